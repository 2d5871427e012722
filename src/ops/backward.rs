use burn::backend::Dispatch;
use burn::tensor::{Gradients, Tensor};

use super::backend::StepOps;

/// The gradients of `(output · grad).sum()`, without the product and the sum: the backward pass that begins
/// at `output` with `grad`, which has no graph.
///
/// # Panics
/// If the shapes or the types differ, or `output` has no graph.
pub(crate) fn backward_from<const D: usize>(output: Tensor<D>, grad: Tensor<D>) -> Gradients {
    assert_eq!(
        output.dims(),
        grad.dims(),
        "the gradient's shape is not the output's"
    );
    assert_eq!(
        output.dtype(),
        grad.dtype(),
        "the gradient's type is not the output's"
    );
    let grad = Tensor::from_inner(grad);
    let root = Dispatch::backward_root(output.into_dispatch(), grad.into_dispatch());
    Tensor::<1>::from_dispatch(root).backward()
}
