use burn::tensor::module::linear as plain_linear;
use burn::tensor::{DType, Device, Tensor};

#[cfg(feature = "flex")]
use super::flex;

/// `x Wᵀ`. A weight of another type than `x` is brought to that of `x`: as a whole, or, fused, a
/// part at a time.
///
/// # Shapes
/// - `x`: `[..., in_dim]`
/// - `weight`: `[out_dim, in_dim]`
/// - output: `[..., out_dim]`
///
/// # Panics
/// If the last dimension of `x` is not `in_dim`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let ([_, in_dim], width) = (weight.dims(), x.dims()[D - 1]);
    assert_eq!(width, in_dim, "the input's width is not the weight's");
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::linear(x, weight);
    }
    let weight = weight.cast(x.dtype());
    plain_linear(x, weight.transpose(), None)
}

/// The type that a model with weights of type `dtype` computes in: f32 on Flex, where products in
/// half precision are slower than widening their weights; elsewhere that of the weights.
pub fn compute_dtype(device: &Device, dtype: DType) -> DType {
    #[cfg(feature = "flex")]
    if flex::is_flex(device) {
        return DType::F32;
    }
    let _ = device;
    dtype
}
