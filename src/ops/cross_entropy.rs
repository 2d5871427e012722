use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;

/// The sum of the cross entropies `-log softmax(logits)[target]` over all rows, in f32.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`
/// - output: `[1]`
///
/// # Panics
/// If there is not one target for each row, or a target is not below `classes`; on GPUs, which do not tell,
/// the sum is NaN then.
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = logits.dims();
    assert_eq!(targets.dims(), [rows], "each row has one target");
    let (logits, targets) = (dispatched(logits), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy_sum(logits, targets))
}
