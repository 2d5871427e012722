use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{F32, MetaOp, MetaTensor};

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

/// What [`cross_entropy_sum`] holds: it keeps its gradient, in the logits' place. In half precision that is
/// multiplied by the loss's factor in f32.
pub(crate) fn cross_entropy_meta(logits: MetaTensor) -> MetaTensor {
    let size = logits.ledger().activation_size();
    let widened = usize::from(size < F32) * logits.rows * logits.width * F32;
    let op = MetaOp::of([logits.clone()]).keeps(&logits).reuses_kept();
    op.forms_in_backward(widened).output(0)
}
