use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, elementwise, empty, into_owned, vector_size};

#[cube(launch)]
fn swiglu_kernel<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    out[ABSOLUTE_POS] = Vector::cast_from(gate * sigmoid::<N>(gate) * up);
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    one / (one + (-x).exp())
}

pub fn forward(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let out = empty(&gate, gate.shape(), gate.dtype);
    let len = out.shape().num_elements();
    let vector = vector_size(&gate, len);
    let (client, dtype) = (gate.client.clone(), elem(gate.dtype));
    let (count, dim) = elementwise(&client, len / vector);
    swiglu_kernel::launch(
        &client,
        count,
        dim,
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        dtype,
    );
    out
}

/// Writes the gradients of gate and up in their places: with `s = sigmoid(gate)` and `a = gate s`,
/// `grad up (s + a (1 - s))` and `grad a`.
#[cube(launch)]
fn swiglu_backward_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    gate: &mut Tensor<Vector<F, N>>,
    up: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= grad.len() {
        terminate!();
    }
    let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    let g = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
    let u = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
    let sigmoid = sigmoid::<N>(g);
    let activation = g * sigmoid;
    let slope = sigmoid + activation * (Vector::new(1.0f32) - sigmoid);
    gate[ABSOLUTE_POS] = Vector::cast_from(grad * u * slope);
    up[ABSOLUTE_POS] = Vector::cast_from(grad * activation);
}

/// The gradients of gate and up, in their places if nobody else reads these.
pub fn backward(grad: CubeTensor, gate: CubeTensor, up: CubeTensor) -> (CubeTensor, CubeTensor) {
    let grad = into_contiguous(grad);
    let (gate, up) = (into_owned(gate), into_owned(up));
    let len = grad.shape().num_elements();
    let vector = vector_size(&grad, len);
    let (client, dtype) = (grad.client.clone(), elem(grad.dtype));
    let (count, dim) = elementwise(&client, len / vector);
    swiglu_backward_kernel::launch(
        &client,
        count,
        dim,
        vector,
        grad.into_tensor_arg(),
        gate.clone().into_tensor_arg(),
        up.clone().into_tensor_arg(),
        dtype,
    );
    (gate, up)
}
