use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, IntDType, TensorMetadata};
use rayon::prelude::*;

use super::vector::{exp, max, sum, vectorized};
use super::{Primitive, Tracked, contiguous, into_contiguous, primitive};

pub fn forward(logits: Primitive, targets: IntTensor<Flex>) -> Primitive {
    let logits = contiguous(&logits);
    let [_, classes] = logits.shape().dims();
    let rows = logits.storage::<f32>().par_chunks_exact(classes);
    let targets = indices(targets);
    let losses = rows.zip(&targets).map(|(row, target)| {
        let (largest, total) = vectorized(
            #[inline(always)]
            || {
                let largest = max(row);
                (largest, row.iter().map(|x| exp(x - largest)).sum())
            },
        );
        loss(row[*target], largest, total)
    });
    primitive(vec![losses.sum::<f64>() as f32], &[1])
}

/// Forms the loss and, in the place of the logits, its gradient `softmax(logits) - onehot(target)`:
/// the logits are read once and nothing else of their size exists.
fn forward_with_grad(logits: Primitive, targets: IntTensor<Flex>) -> (Primitive, Primitive) {
    let mut logits = into_contiguous(logits);
    let [_, classes] = logits.shape().dims();
    let targets = indices(targets);
    let rows = logits.storage_mut::<f32>().par_chunks_exact_mut(classes);
    let losses = rows.zip(&targets).map(|(row, target)| {
        vectorized(
            #[inline(always)]
            || {
                let (largest, at_target) = (max(row), row[*target]);
                for x in row.iter_mut() {
                    *x = exp(*x - largest);
                }
                let total = sum(row);
                for x in row.iter_mut() {
                    *x *= 1.0 / total;
                }
                row[*target] -= 1.0;
                loss(at_target, largest, total)
            },
        )
    });
    let loss = losses.sum::<f64>() as f32;
    (primitive(vec![loss], &[1]), logits)
}

/// `-log softmax` of a logit.
#[inline(always)]
fn loss(logit: f32, largest: f32, total: f32) -> f64 {
    f64::from(largest) + f64::from(total).ln() - f64::from(logit)
}

fn indices(targets: IntTensor<Flex>) -> Vec<usize> {
    let targets = Flex::int_cast(targets, IntDType::I64);
    let targets = targets.to_contiguous();
    let targets: &[i64] = targets.storage();
    targets.iter().map(|target| *target as usize).collect()
}

pub fn tracked<C: CheckpointStrategy>(logits: Tracked, targets: IntTensor<Flex>) -> Tracked {
    let backward = CrossEntropyBackward.prepare::<C>([logits.node()]);
    let logits = logits.into_primitive();
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (loss, grad) = forward_with_grad(logits, targets);
            prep.finish(grad, loss)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(logits, targets)),
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl Backward<Flex, 1> for CrossEntropyBackward {
    /// The gradient of the sum.
    type State = Primitive;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let factor = grad.storage::<f32>()[0];
            Flex::float_mul_scalar(ops.state, factor.into())
        });
    }
}
