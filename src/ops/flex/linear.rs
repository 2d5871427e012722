use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Element};
use bytemuck::Pod;
use half::{bf16, f16};

use super::gemm::{Mat, MatMut, Operand, Output, is_thin, matmul, matmul_bf16, multiplies_bf16};
use super::vector::new_buffer;
use super::{Primitive, contiguous, into_contiguous, primitive};
use crate::ops::is_medium;

/// Which way the weight, `[out_dim, in_dim]`, is applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// `x Wᵀ`.
    Forward,
    /// `grad W`.
    Backward,
}

pub fn forward(x: &Primitive, weight: &Primitive) -> Primitive {
    apply(x, weight, Pass::Forward)
}

pub fn x_grad(grad: &Primitive, weight: &Primitive) -> Primitive {
    apply(grad, weight, Pass::Backward)
}

fn apply(x: &Primitive, weight: &Primitive, pass: Pass) -> Primitive {
    let (x, weight) = (contiguous(x), in_either_order(weight));
    match weight.dtype() {
        DType::F32 => product(&x, operand::<f32>(&weight, pass), exact),
        DType::BF16 if rounds_products() => product(&x, operand::<bf16>(&weight, pass), rounded),
        DType::BF16 => product(&x, operand::<bf16>(&weight, pass), exact),
        DType::F16 => product(&x, operand::<f16>(&weight, pass), exact),
        dtype => panic!("a weight of type {dtype:?} cannot be multiplied by an f32 tensor"),
    }
}

/// Whether products with weights of less than f32 are of bf16.
pub fn rounds_products() -> bool {
    is_medium() && multiplies_bf16()
}

pub fn exact<B: Operand>(out: MatMut, x: Mat, weight: B) {
    matmul(out, Output::Write, x, weight);
}

pub fn rounded<B: Operand>(out: MatMut, x: Mat, weight: B) {
    match is_thin(&x, &weight) {
        true => exact(out, x, weight),
        false => matmul_bf16(out, x, weight),
    }
}

/// `sum + x Wᵀ` with an f32 weight, in the place of `sum`.
pub fn add_forward(sum: Primitive, x: &Primitive, weight: &Primitive) -> Primitive {
    add(sum, x, weight, Pass::Forward)
}

/// `sum + grad W` with an f32 weight, in the place of `sum`.
pub fn add_x_grad(sum: Primitive, grad: &Primitive, weight: &Primitive) -> Primitive {
    add(sum, grad, weight, Pass::Backward)
}

fn add(sum: Primitive, x: &Primitive, weight: &Primitive, pass: Pass) -> Primitive {
    let (mut sum, x) = (into_contiguous(sum), contiguous(x));
    let weight = in_either_order(weight);
    let weight = operand::<f32>(&weight, pass);
    let x = rows_of(&x, weight.shape()[0]);
    let out = MatMut::row_major_of(sum.storage_mut(), [x.shape()[0], weight.shape()[1]]);
    matmul(out, Output::Add, x, weight);
    sum
}

/// `x` times a weight of `[in_dim, out_dim]`.
pub fn product<B: Operand>(
    x: &Primitive,
    weight: B,
    multiply: impl Fn(MatMut, Mat, B),
) -> Primitive {
    let [in_dim, out_dim] = weight.shape();
    let x_matrix = rows_of(x, in_dim);
    let [rows, _] = x_matrix.shape();
    let fill = |out: &mut [_]| multiply(MatMut::row_major(out, [rows, out_dim]), x_matrix, weight);
    // SAFETY: the product writes all of its numbers.
    let values = unsafe { new_buffer(rows * out_dim, fill) };
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = out_dim;
    primitive(values, &shape)
}

/// A weight whose numbers, and no others, lie row by row or column by column, as one that came from
/// [`burn::nn::Linear`] does.
fn in_either_order(weight: &Primitive) -> Primitive {
    let columns = weight.layout().transpose(0, 1);
    let is_whole = columns.start_offset() == 0
        && weight.bytes().len() == columns.num_elements() * weight.dtype().size();
    match columns.is_contiguous() && is_whole {
        true => weight.clone(),
        false => contiguous(weight),
    }
}

fn rows_of(x: &Primitive, in_dim: usize) -> Mat<'_> {
    let x: &[f32] = x.storage();
    Mat::row_major(x, [x.len() / in_dim, in_dim])
}

/// The matrix that rows are multiplied by.
fn operand<T: Element + Pod>(weight: &Primitive, pass: Pass) -> Mat<'_, T> {
    let (values, shape @ [out_dim, in_dim]) = (weight.storage(), weight.shape().dims());
    let weight = match weight.layout().is_contiguous() {
        true => Mat::row_major(values, shape),
        false => Mat::row_major(values, [in_dim, out_dim]).transpose(),
    };
    match pass {
        Pass::Forward => weight.transpose(),
        Pass::Backward => weight,
    }
}

/// `gradᵀ x`, in the weight's type.
pub fn weight_grad(grad: &Primitive, x: &Primitive, weight: &Primitive) -> Primitive {
    let (grad, x) = (contiguous(grad), contiguous(x));
    let [out_dim, in_dim] = weight.shape().dims();
    let (grad, x): (&[f32], &[f32]) = (grad.storage(), x.storage());
    let rows = x.len() / in_dim;
    let fill = |out: &mut [_]| {
        let out = MatMut::row_major(out, [out_dim, in_dim]);
        let grad = Mat::row_major(grad, [rows, out_dim]);
        let x = Mat::row_major(x, [rows, in_dim]);
        matmul(out, Output::Write, grad.transpose(), x);
    };
    // SAFETY: the product writes all of its numbers.
    let values = unsafe { new_buffer(out_dim * in_dim, fill) };
    let values = primitive(values, &[out_dim, in_dim]);
    Flex::float_cast(values, weight.dtype().into())
}
