use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, empty, row, vector_size};

#[cube(launch)]
fn rms_norm_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<F, N>>,
    eps: f32,
    #[define(F)] _dtype: ElemType,
) {
    let len = weight.len();
    let start = CUBE_POS * len;
    if start >= out.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS_X as usize;
    while i < len {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        squares += x * x;
        i += row::UNITS;
    }
    let squares = row::sum(row::vector_sum::<N>(squares), &mut shared);
    let numbers = f32::cast_from(len * weight.vector_size());
    let norm = Vector::new(1.0f32 / (squares / numbers + eps).sqrt());
    let mut i = UNIT_POS_X as usize;
    while i < len {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        out[start + i] = Vector::cast_from(x * norm * weight[i]);
        i += row::UNITS;
    }
}

/// `weight` is f32.
pub fn forward(x: CubeTensor, weight: CubeTensor, eps: f64) -> CubeTensor {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let out = empty(&x, x.shape(), x.dtype);
    let dim = weight.shape().num_elements();
    let (client, dtype, vector) = (x.client.clone(), elem(x.dtype), vector_size(&x, dim));
    let (count, cube_dim) = row::cubes(&client, x.shape().num_elements() / dim);
    rms_norm_kernel::launch(
        &client,
        count,
        cube_dim,
        vector,
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        eps as f32,
        dtype,
    );
    out
}

/// With `n = 1 / sqrt(mean(x²) + eps)` and `h = w · grad`: `n h - n³ x mean(h · x)`.
#[cube(launch)]
fn rms_norm_x_grad_kernel<F: Float, N: Size>(
    grad: &Tensor<Vector<F, N>>,
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<F, N>>,
    eps: f32,
    #[define(F)] _dtype: ElemType,
) {
    let len = weight.len();
    let start = CUBE_POS * len;
    if start >= out.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut along = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS_X as usize;
    while i < len {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        let scaled = Vector::<f32, N>::cast_from(grad[start + i]) * weight[i];
        squares += x * x;
        along += scaled * x;
        i += row::UNITS;
    }
    let squares = row::sum(row::vector_sum::<N>(squares), &mut shared);
    let along = row::sum(row::vector_sum::<N>(along), &mut shared);
    let numbers = f32::cast_from(len * weight.vector_size());
    let norm = 1.0f32 / (squares / numbers + eps).sqrt();
    let factor = Vector::<f32, N>::new(norm * norm * norm * along / numbers);
    let norm = Vector::<f32, N>::new(norm);
    let mut i = UNIT_POS_X as usize;
    while i < len {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        let scaled = Vector::<f32, N>::cast_from(grad[start + i]) * weight[i];
        out[start + i] = Vector::cast_from(norm * scaled - factor * x);
        i += row::UNITS;
    }
}

/// The gradient of x.
pub fn x_grad(grad: CubeTensor, x: CubeTensor, weight: CubeTensor, eps: f64) -> CubeTensor {
    let [grad, x, weight] = [grad, x, weight].map(into_contiguous);
    let out = empty(&x, x.shape(), x.dtype);
    let dim = weight.shape().num_elements();
    let (client, dtype, vector) = (x.client.clone(), elem(x.dtype), vector_size(&x, dim));
    let (count, cube_dim) = row::cubes(&client, x.shape().num_elements() / dim);
    rms_norm_x_grad_kernel::launch(
        &client,
        count,
        cube_dim,
        vector,
        grad.into_tensor_arg(),
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        eps as f32,
        dtype,
    );
    out
}
