use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::backend::StepOps;

/// The sum of the cross entropies `-log softmax(logits)[target]` over all rows, in f32.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`
/// - output: `[1]`
///
/// # Panics
/// If a target is not below `classes`; on GPUs, which do not tell, the sum is NaN.
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy_sum(logits, targets))
}
