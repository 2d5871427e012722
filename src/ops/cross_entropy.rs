use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};

#[cfg(feature = "flex")]
use super::flex;

/// The sum of the cross entropies `-log softmax(logits)[target]` over all rows, in f32.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`
/// - output: `[1]`
///
/// # Panics
/// If a target is not below `classes`.
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if flex::takes(&logits) {
        return flex::cross_entropy_sum(logits, targets);
    }
    let [rows, _] = logits.dims();
    let log_probs = log_softmax(logits.cast(DType::F32), 1);
    log_probs.gather(1, targets.reshape([rows, 1])).sum().neg()
}
