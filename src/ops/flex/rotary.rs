use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::{Flex, TensorMetadata};

use super::vector::map_rows;
use super::{Primitive, Tracked, contiguous, primitive};

/// The gradient of a rotation is the rotation back.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    Forward,
    Back,
}

pub fn rotate(x: &Primitive, cos: &Primitive, sin: &Primitive, direction: Direction) -> Primitive {
    let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
    let [_, _, heads, head_dim] = x.shape().dims();
    let half = head_dim / 2;
    let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
    let positions = cos.len() / half;
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Back => -1.0,
    };
    let values = map_rows(heads * head_dim, [x.storage()], |position, [x], out| {
        let start = position % positions * half;
        let (cos, sin) = (&cos[start..][..half], &sin[start..][..half]);
        let heads = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (x, out) in heads {
            let (first, second) = x.split_at(half);
            let (out_first, out_second) = out.split_at_mut(half);
            for i in 0..half {
                let sin = sign * sin[i];
                out_first[i] = first[i] * cos[i] - second[i] * sin;
                out_second[i] = second[i] * cos[i] + first[i] * sin;
            }
        }
    });
    primitive(values, &x.shape())
}

pub fn tracked<C: CheckpointStrategy>(x: Tracked, cos: Tracked, sin: Tracked) -> Tracked {
    let backward = RotaryBackward.prepare::<C>([x.node()]);
    let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
    let out = rotate(x.primitive(), &cos, &sin, Direction::Forward);
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((cos, sin), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl Backward<Flex, 1> for RotaryBackward {
    /// cos and sin.
    type State = (Primitive, Primitive);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (cos, sin) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            rotate(&grad, &cos, &sin, Direction::Back)
        });
    }
}
