use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, FloatDType, TensorMetadata};

use super::{cast, to_f32};

/// A weight of another type is brought to that of `x` here and again in the backward pass: no copy
/// of it is kept.
pub fn forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = transposed::<B>(weight, x.dtype().into());
    B::linear(x, weight, None)
}

/// `grad W`.
pub fn x_grad<B: Backend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = transposed::<B>(weight, grad.dtype().into());
    B::linear_x_backward(weight, grad)
}

/// `gradᵀ x`, in the weight's type.
pub fn weight_grad<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = weight.dtype().into();
    let [x, grad] = match dtype {
        // A sum over all tokens may be beyond f16.
        FloatDType::F32 => [x, grad].map(to_f32::<B>),
        _ => [x, grad],
    };
    transposed::<B>(B::linear_weight_backward(x, grad), dtype)
}

/// Burn's layout of a weight, `[in_dim, out_dim]`, or back.
fn transposed<B: Backend>(weight: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    B::float_swap_dims(cast::<B>(weight, dtype), 0, 1)
}
