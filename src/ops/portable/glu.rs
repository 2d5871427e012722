use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::{cast, to_f32};
use crate::ops::types::{Activation, gelu};

pub fn forward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let sigmoid = sigmoid::<B>(gate.clone(), activation);
    B::float_mul(B::float_mul(gate, sigmoid), up)
}

/// With `s = sigmoid(w(gate))` and `a = gate s`: `(grad up (s + a (1 - s) w'(gate)), grad a)`.
pub fn backward<B: Backend>(
    grad: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sigmoid = sigmoid::<B>(gate.clone(), activation);
    let activated = B::float_mul(gate.clone(), sigmoid.clone());
    let rest = B::float_add_scalar(B::float_neg(sigmoid.clone()), 1.0.into());
    let rest = match activation {
        Activation::Silu => rest,
        Activation::GeluTanh => B::float_mul(rest, gelu_slope::<B>(gate)),
    };
    let slope = B::float_add(sigmoid, B::float_mul(activated.clone(), rest));
    let gate_grad = B::float_mul(B::float_mul(grad.clone(), up), slope);
    (gate_grad, B::float_mul(grad, activated))
}

/// `sigmoid(w(x))`.
fn sigmoid<B: Backend>(x: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    match activation {
        Activation::Silu => B::sigmoid(x),
        Activation::GeluTanh => {
            let dtype = x.dtype().into();
            let x = gelu_input::<B>(x);
            let factor = parabola::<B>(x.clone(), gelu::CUBIC);
            cast::<B>(B::sigmoid(B::float_mul(x, factor)), dtype)
        }
    }
}

/// `w'(x)` of [`Activation::GeluTanh`].
fn gelu_slope<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype().into();
    cast::<B>(parabola::<B>(gelu_input::<B>(x), 3.0 * gelu::CUBIC), dtype)
}

/// What `w` of [`Activation::GeluTanh`] gets, f32: in half precision it would be rounded too often.
fn gelu_input<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_clamp(to_f32::<B>(x), (-gelu::BOUND).into(), gelu::BOUND.into())
}

/// `SLOPE · (1 + square · x²)`.
fn parabola<B: Backend>(x: FloatTensor<B>, square: f64) -> FloatTensor<B> {
    let squares = B::float_mul(x.clone(), x);
    let squares = B::float_mul_scalar(squares, (gelu::SLOPE * square).into());
    B::float_add_scalar(squares, gelu::SLOPE.into())
}
