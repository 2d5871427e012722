use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

use crate::ops::types::Piece;

pub fn forward<B: Backend>(x: FloatTensor<B>, piece: Piece) -> FloatTensor<B> {
    let slices = slices(x.shape().num_dims(), piece);
    B::float_slice(x, &slices)
}

/// The gradient of a tensor of this shape, of which other pieces have none yet.
pub fn begin_grad<B: Backend>(grad: FloatTensor<B>, shape: Shape, piece: Piece) -> FloatTensor<B> {
    let slices = slices(shape.num_dims(), piece);
    let zeros = B::float_zeros(shape, &grad.device(), grad.dtype().into());
    B::float_slice_assign(zeros, &slices, grad)
}

/// The gradient of the whole, to which that of a piece is added.
pub fn add_grad<B: Backend>(
    whole: FloatTensor<B>,
    grad: FloatTensor<B>,
    piece: Piece,
) -> FloatTensor<B> {
    let slices = slices(whole.shape().num_dims(), piece);
    let before = B::float_slice(whole.clone(), &slices);
    let sum = B::float_add(before, grad);
    B::float_slice_assign(whole, &slices, sum)
}

fn slices(dims: usize, Piece { dim, range }: Piece) -> Vec<Slice> {
    let mut slices = vec![Slice::from(..); dims];
    slices[dim] = Slice::from(range);
    slices
}
