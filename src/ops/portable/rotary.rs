use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Slice;

use super::cast;

pub fn forward<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype().into();
    let [cos, sin] = [cos, sin].map(|angles| cast::<B>(angles, dtype));
    let ([.., head_dim], [.., pairs]) = (x.shape().dims::<4>(), cos.shape().dims::<4>());
    let part = |range: Range<usize>| {
        let mut slices = [Slice::from(..); 4];
        slices[3] = Slice::from(range);
        B::float_slice(x.clone(), &slices)
    };
    let [first, second] = [0..pairs, pairs..2 * pairs].map(part);
    let turned_first = B::float_sub(
        B::float_mul(first.clone(), cos.clone()),
        B::float_mul(second.clone(), sin.clone()),
    );
    let turned_second = B::float_add(B::float_mul(second, cos), B::float_mul(first, sin));
    let mut parts = vec![turned_first, turned_second];
    if 2 * pairs < head_dim {
        parts.push(part(2 * pairs..head_dim));
    }
    B::float_cat(parts, 3)
}
