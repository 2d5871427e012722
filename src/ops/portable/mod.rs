//! The bodies for every backend, in Burn's tensor operations. The backward passes form again what the
//! forward passes did not keep.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod glu;
pub mod linear;
pub mod normed_rotary;
pub mod packed;
pub mod rms_norm;
pub mod rotary;
pub mod split;
pub mod squares;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, FloatDType, TensorMetadata};
use burn::tensor::Shape;

/// `[..., dim]` as a matrix, in whose memory rows follow each other: sums then are formed in the same
/// order whatever made the tensor.
fn rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let dim = shape[shape.num_dims() - 1];
    B::float_reshape(x, Shape::new([shape.num_elements() / dim, dim]))
}

fn to_f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(x, FloatDType::F32)
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    match FloatDType::from(x.dtype()) == dtype {
        true => x,
        false => B::float_cast(x, dtype),
    }
}
