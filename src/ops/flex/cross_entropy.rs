use burn::backend::tensor::IntTensor;
use burn::backend::{Flex, TensorMetadata};
use rayon::prelude::*;

use super::vector::{exp, max, sum, sum_of, vectorized};
use super::{Primitive, contiguous, indices, into_contiguous, primitive};

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
                (largest, sum_of(row, |x| exp(x - largest)))
            },
        );
        loss(row[*target], largest, total)
    });
    primitive(vec![in_order(losses)], &[1])
}

/// Forms the loss and, in the place of the logits, its gradient `softmax(logits) - onehot(target)`:
/// the logits are read once and nothing else of their size exists.
pub fn forward_with_grad(logits: Primitive, targets: IntTensor<Flex>) -> (Primitive, Primitive) {
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
    let loss = in_order(losses);
    (primitive(vec![loss], &[1]), logits)
}

/// The sum of the rows' losses, whichever thread had which.
fn in_order(losses: impl IndexedParallelIterator<Item = f64>) -> f32 {
    let losses: Vec<f64> = losses.collect();
    losses.iter().sum::<f64>() as f32
}

/// `-log softmax` of a logit.
#[inline(always)]
fn loss(logit: f32, largest: f32, total: f32) -> f64 {
    f64::from(largest) + f64::from(total).ln() - f64::from(logit)
}
