use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaTensor};
use super::types::Activation;

/// A gated linear unit, `activation(gate) · up`: SwiGLU with [`Activation::Silu`], GeGLU with
/// [`Activation::GeluTanh`]. Shazeer, <https://arxiv.org/abs/2002.05202>.
///
/// # Shapes
/// - `gate`, `up` and output: `[..., intermediate_dim]`
///
/// # Panics
/// If the shapes or the types differ.
pub fn glu<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gate and up differ in shape");
    assert_eq!(gate.dtype(), up.dtype(), "gate and up differ in type");
    let (gate, up) = (dispatched(gate), up.into_dispatch());
    Tensor::from_dispatch(Dispatch::glu(gate, up, activation))
}

/// What [`glu`] holds: it keeps both inputs, whose places the gradients take.
pub(crate) fn glu_meta(gate: MetaTensor, up: MetaTensor) -> MetaTensor {
    let width = gate.width;
    let inputs = [gate.clone(), up.clone()];
    let op = MetaOp::of(inputs).keeps_narrowed(&gate).keeps_narrowed(&up);
    op.reuses_kept().output(width)
}
