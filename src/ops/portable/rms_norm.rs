use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use super::{cast, rows, to_f32};

pub fn forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let (dtype, shape) = (x.dtype().into(), x.shape());
    let x = to_f32::<B>(rows::<B>(x));
    let normed = B::float_mul(x.clone(), inverse_norm::<B>(x, eps));
    let out = B::float_mul(normed, row::<B>(weight));
    B::float_reshape(cast::<B>(out, dtype), shape)
}

/// A vector as a matrix of one row.
fn row<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let dim = vector.shape().num_elements();
    B::float_reshape(vector, Shape::new([1, dim]))
}

/// `1 / sqrt(mean(x²) + eps)` of each row.
fn inverse_norm<B: Backend>(x: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let mean_square = B::float_mean_dim(B::float_mul(x.clone(), x), 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean_square, eps.into())))
}

/// With `n = 1 / sqrt(mean(x²) + eps)` and `h = w · grad`: `n h - n³ x mean(h · x)`.
pub fn x_grad<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let (dtype, shape) = (x.dtype().into(), x.shape());
    let [grad, x] = [grad, x].map(|x| to_f32::<B>(rows::<B>(x)));
    let norm = inverse_norm::<B>(x.clone(), eps);
    let normed = B::float_mul(x, norm.clone());
    let scaled = B::float_mul(grad, row::<B>(weight));
    let along = B::float_mean_dim(B::float_mul(scaled.clone(), normed.clone()), 1);
    let across = B::float_sub(scaled, B::float_mul(normed, along));
    B::float_reshape(cast::<B>(B::float_mul(across, norm), dtype), shape)
}

/// The sum of `grad · n x` over all rows.
pub fn weight_grad<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let [grad, x] = [grad, x].map(|x| to_f32::<B>(rows::<B>(x)));
    let normed = B::float_mul(x.clone(), inverse_norm::<B>(x, eps));
    let sum = B::float_sum_dim(B::float_mul(grad, normed), 0);
    B::float_reshape(sum, weight.shape())
}
