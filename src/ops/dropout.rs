use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::types::DropoutMask;

/// Dropout: each element is zero with a probability p, and divided by `1 - p` otherwise. Srivastava et
/// al., <https://jmlr.org/papers/v15/srivastava14a.html>.
///
/// # Shapes
/// - `x` and output: any, the same
pub fn dropout<const D: usize>(x: Tensor<D>, mask: DropoutMask) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::dropout(dispatched(x), mask))
}
