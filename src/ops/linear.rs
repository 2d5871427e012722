use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};

use super::backend::StepOps;
#[cfg(feature = "flex")]
use super::flex;

/// `x Wᵀ`. A weight of another type than `x` is brought to that of `x`: as a whole, or, fused, a
/// part at a time. Neither is kept: this is the place where a quantized weight would be widened.
///
/// # Shapes
/// - `x`: `[..., in_dim]`
/// - `weight`: `[out_dim, in_dim]`
/// - output: `[..., out_dim]`
///
/// # Panics
/// If the last dimension of `x` is not `in_dim`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    assert_fits(&x, &weight);
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch()))
}

pub(super) fn assert_fits<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>) {
    let ([_, in_dim], width) = (weight.dims(), x.dims()[D - 1]);
    assert_eq!(width, in_dim, "the input's width is not the weight's");
}

/// The type that a model with weights of type `dtype` computes in: f32 in the fused bodies of Flex,
/// where products in half precision are slower than widening their weights; elsewhere that of the
/// weights.
///
/// This is the one rule of mixed types. The embedding brings its rows to this type, every operation
/// gives what it is given, and [`linear`] brings a weight of another type, such as an adapter's f32,
/// to that of its input. The norms, the softmax, the loss and sums over gradients are computed in
/// f32; adapters, their gradients and the optimizer's moments are f32.
pub fn compute_dtype(device: &Device, dtype: DType) -> DType {
    match is_fused_cpu(device) {
        true => DType::F32,
        false => dtype,
    }
}

/// Whether f32 operations of a device have the fused bodies of Flex.
pub(crate) fn is_fused_cpu(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    let is_fused = flex::fuses(device);
    #[cfg(not(feature = "flex"))]
    let is_fused = false;
    #[cfg(not(feature = "flex"))]
    let _ = device;
    is_fused
}
