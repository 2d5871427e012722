use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, elementwise, empty, into_owned, vector_size};
use crate::ops::types::{Activation, gelu};

#[cube(launch)]
fn glu_kernel<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let (inner, _slope) = inner::<N>(gate, activation);
    out[ABSOLUTE_POS] = Vector::cast_from(gate * sigmoid::<N>(inner) * up);
}

/// `w(x)` of an activation `x · sigmoid(w(x))`, and its slope.
#[cube]
fn inner<N: Size>(
    x: Vector<f32, N>,
    #[comptime] activation: Activation,
) -> (Vector<f32, N>, Vector<f32, N>) {
    match comptime!(activation) {
        Activation::Silu => (x, Vector::new(1.0f32)),
        Activation::GeluTanh => {
            let bound = Vector::new(comptime!(gelu::BOUND as f32));
            let x = min(max(x, -bound), bound);
            let slope = Vector::new(comptime!(gelu::SLOPE as f32));
            let cubic = Vector::new(comptime!((gelu::SLOPE * gelu::CUBIC) as f32)) * x * x;
            (x * (slope + cubic), slope + Vector::new(3.0f32) * cubic)
        }
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    one / (one + (-x).exp())
}

pub fn forward(gate: CubeTensor, up: CubeTensor, activation: Activation) -> CubeTensor {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let out = empty(&gate, gate.shape(), gate.dtype);
    let len = out.shape().num_elements();
    let vector = vector_size(&gate, len);
    let (client, dtype) = (gate.client.clone(), elem(gate.dtype));
    let (count, dim) = elementwise(&client, len / vector);
    glu_kernel::launch(
        &client,
        count,
        dim,
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        activation,
        dtype,
    );
    out
}

/// Writes the gradients of gate and up in their places: with `s = sigmoid(w(gate))` and `a = gate s`,
/// `grad up (s + a (1 - s) w'(gate))` and `grad a`.
#[cube(launch)]
fn glu_backward_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    gate: &mut Tensor<Vector<F, N>>,
    up: &mut Tensor<Vector<F, N>>,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= grad.len() {
        terminate!();
    }
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let (inner, inner_slope) = inner::<N>(g, activation);
    let sigmoid = sigmoid::<N>(inner);
    let activated = g * sigmoid;
    let slope = sigmoid + activated * (Vector::new(1.0f32) - sigmoid) * inner_slope;
    gate[ABSOLUTE_POS] = Vector::cast_from(grad * u * slope);
    up[ABSOLUTE_POS] = Vector::cast_from(grad * activated);
}

/// The gradients of gate and up, in their places if nobody else reads these.
pub fn backward(
    grad: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
    activation: Activation,
) -> (CubeTensor, CubeTensor) {
    let grad = into_contiguous(grad);
    let (gate, up) = (into_owned(gate), into_owned(up));
    let len = grad.shape().num_elements();
    let vector = vector_size(&grad, len);
    let (client, dtype) = (grad.client.clone(), elem(grad.dtype));
    let (count, dim) = elementwise(&client, len / vector);
    glu_backward_kernel::launch(
        &client,
        count,
        dim,
        vector,
        grad.into_tensor_arg(),
        gate.clone().into_tensor_arg(),
        up.clone().into_tensor_arg(),
        activation,
        dtype,
    );
    (gate, up)
}
