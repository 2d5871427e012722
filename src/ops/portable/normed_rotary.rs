//! Of the two operations that this one joins, as the backend has them.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use crate::ops::backend::StepOps;

pub fn forward<B: StepOps>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    [cos, sin]: [FloatTensor<B>; 2],
) -> FloatTensor<B> {
    let shape = x.shape();
    let normed = B::rms_norm(groups::<B>(x, &weight), weight, eps);
    B::rotary(B::float_reshape(normed, shape), cos, sin)
}

pub fn x_grad<B: StepOps>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    angles: [FloatTensor<B>; 2],
) -> FloatTensor<B> {
    let shape = x.shape();
    let grad = turned_back::<B>(grad, angles);
    let [grad, x] = [grad, x].map(|x| groups::<B>(x, &weight));
    B::float_reshape(B::rms_norm_x_grad(grad, x, weight, eps), shape)
}

pub fn weight_grad<B: StepOps>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    angles: [FloatTensor<B>; 2],
) -> FloatTensor<B> {
    let grad = turned_back::<B>(grad, angles);
    let [grad, x] = [grad, x].map(|x| groups::<B>(x, &weight));
    B::rms_norm_weight_grad(grad, x, weight, eps)
}

fn turned_back<B: StepOps>(
    grad: FloatTensor<B>,
    [cos, sin]: [FloatTensor<B>; 2],
) -> FloatTensor<B> {
    B::rotary(grad, cos, B::float_neg(sin))
}

/// What the norm takes together, as rows.
fn groups<B: Backend>(x: FloatTensor<B>, weight: &FloatTensor<B>) -> FloatTensor<B> {
    let width = weight.shape().num_elements();
    let rows = x.shape().num_elements() / width;
    B::float_reshape(x, Shape::new([rows, width]))
}
