use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, elementwise, empty, vector_size};
use crate::ops::types::DropoutMask;
use crate::ops::types::MULTIPLIERS;

/// The hash of `ops::types::dropout`, whose keys are `key_0` and `key_1`.
#[cube]
fn hash(index: u32, key_0: u32, key_1: u32) -> u32 {
    round(round(index ^ key_0) ^ key_1)
}

#[cube]
fn round(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * comptime!(MULTIPLIERS[0]);
    let x = (x ^ (x >> 15)) * comptime!(MULTIPLIERS[1]);
    x ^ (x >> 16)
}

#[cube(launch)]
fn dropout_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    key_0: u32,
    key_1: u32,
    threshold: u32,
    factor: f32,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let mut numbers = Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    let first = (ABSOLUTE_POS * numbers.vector_size()) as u32;
    #[unroll]
    for i in 0..numbers.vector_size() {
        let is_dropped = hash(first + i as u32, key_0, key_1) < threshold;
        numbers.insert(i, select(is_dropped, 0.0f32, numbers.extract(i) * factor));
    }
    out[ABSOLUTE_POS] = Vector::cast_from(numbers);
}

pub fn forward(x: CubeTensor, mask: DropoutMask) -> CubeTensor {
    let x = into_contiguous(x);
    let out = empty(&x, x.shape(), x.dtype);
    let len = out.shape().num_elements();
    let vector = vector_size(&x, len);
    let (client, dtype, [key_0, key_1]) = (x.client.clone(), elem(x.dtype), mask.keys());
    let (count, dim) = elementwise(&client, len / vector);
    dropout_kernel::launch(
        &client,
        count,
        dim,
        vector,
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        key_0,
        key_1,
        mask.threshold(),
        mask.factor(),
        dtype,
    );
    out
}
