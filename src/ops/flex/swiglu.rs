use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::vector::{CHUNK, map, sigmoid, vectorized};
use super::{Primitive, Tracked, contiguous, into_contiguous, primitive};

pub fn forward(gate: &Primitive, up: &Primitive) -> Primitive {
    let (gate, up) = (contiguous(gate), contiguous(up));
    let inputs = [gate.storage(), up.storage()];
    let values = map(inputs, |[gate, up]| gate * sigmoid(gate) * up);
    primitive(values, &gate.shape())
}

pub fn tracked<C: CheckpointStrategy>(gate: Tracked, up: Tracked) -> Tracked {
    let backward = SwigluBackward.prepare::<C>([gate.node(), up.node()]);
    let (gate, up) = (gate.into_primitive(), up.into_primitive());
    let out = forward(&gate, &up);
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((gate, up), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl Backward<Flex, 2> for SwigluBackward {
    /// gate and up.
    type State = (Primitive, Primitive);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (gate, up) = ops.state;
        let (gate_grad, up_grad) = backward(&grad, gate, up);
        for (node, grad) in ops.parents.into_iter().zip([gate_grad, up_grad]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

/// The gradients of gate and up, in their places.
fn backward(grad: &Primitive, gate: Primitive, up: Primitive) -> (Primitive, Primitive) {
    let grad = contiguous(grad);
    let [mut gate, mut up] = [gate, up].map(into_contiguous);
    let pairs = gate.storage_mut::<f32>().par_chunks_mut(CHUNK);
    let pairs = pairs.zip(up.storage_mut::<f32>().par_chunks_mut(CHUNK));
    let grads = grad.storage::<f32>().par_chunks(CHUNK);
    pairs.zip(grads).for_each(|((gate, up), grad)| {
        vectorized(
            #[inline(always)]
            || {
                for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                    let sigmoid = sigmoid(*gate);
                    let activation = *gate * sigmoid;
                    let slope = sigmoid + activation * (1.0 - sigmoid);
                    (*gate, *up) = (grad * *up * slope, grad * activation);
                }
            },
        );
    });
    (gate, up)
}
