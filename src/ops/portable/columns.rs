use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

pub fn forward<B: Backend>(x: FloatTensor<B>, start: usize, width: usize) -> FloatTensor<B> {
    let slices = slices(x.shape().num_dims(), start..start + width);
    B::float_slice(x, &slices)
}

/// The gradient of a tensor of this shape, of which other columns have none.
pub fn backward<B: Backend>(grad: FloatTensor<B>, shape: Shape, start: usize) -> FloatTensor<B> {
    let last = shape.num_dims() - 1;
    let slices = slices(last + 1, start..start + grad.shape()[last]);
    let zeros = B::float_zeros(shape, &grad.device(), grad.dtype().into());
    B::float_slice_assign(zeros, &slices, grad)
}

fn slices(dims: usize, columns: Range<usize>) -> Vec<Slice> {
    let mut slices = vec![Slice::from(..); dims];
    slices[dims - 1] = Slice::from(columns);
    slices
}
