use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaTensor};

/// `silu(gate) · up` with `silu(x) = x / (1 + e^-x)`. Shazeer, <https://arxiv.org/abs/2002.05202>.
///
/// # Shapes
/// - `gate`, `up` and output: `[..., intermediate_dim]`
///
/// # Panics
/// If the shapes or the types differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gate and up differ in shape");
    assert_eq!(gate.dtype(), up.dtype(), "gate and up differ in type");
    Tensor::from_dispatch(Dispatch::swiglu(dispatched(gate), up.into_dispatch()))
}

/// What [`swiglu`] holds: it keeps both inputs, whose places the gradients take.
pub(crate) fn swiglu_meta(gate: MetaTensor, up: MetaTensor) -> MetaTensor {
    let width = gate.width;
    let inputs = [gate.clone(), up.clone()];
    let op = MetaOp::of(inputs).keeps(&gate).keeps(&up);
    op.reuses_kept().output(width)
}
