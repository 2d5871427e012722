use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::flex;
use super::portable;

/// `silu(gate) · up` with `silu(x) = x / (1 + e^-x)`. Shazeer, <https://arxiv.org/abs/2002.05202>.
///
/// # Panics
/// If the shapes differ.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gate and up differ in shape");
    #[cfg(feature = "flex")]
    if flex::takes(&gate) {
        return flex::swiglu(gate, up);
    }
    portable::swiglu(gate, up)
}
