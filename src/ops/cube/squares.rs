use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, into_owned, row, vector_size};

/// Each cube takes every so many runs of numbers, and adds their squares to its own part.
#[cube(launch)]
fn add_squares_kernel<F: Float, N: Size>(
    values: &Tensor<Vector<F, N>>,
    parts: &mut Tensor<f32>,
    #[define(F)] _dtype: ElemType,
) {
    let part = CUBE_POS;
    if part >= parts.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = part * row::UNITS + UNIT_POS_X as usize;
    while i < values.len() {
        let value = Vector::<f32, N>::cast_from(values[i]);
        squares += value * value;
        i += parts.len() * row::UNITS;
    }
    let sum = row::sum(row::vector_sum::<N>(squares), &mut shared);
    if UNIT_POS_X == 0 {
        parts[part] += sum;
    }
}

/// Writes in the place of `parts`, if nobody else reads them.
pub fn add(parts: CubeTensor, values: CubeTensor) -> CubeTensor {
    let (parts, values) = (into_owned(parts), into_contiguous(values));
    let vector = vector_size(&values, values.shape().num_elements());
    let (client, dtype) = (values.client.clone(), elem(values.dtype));
    let (count, dim) = row::cubes(&client, parts.shape().num_elements());
    add_squares_kernel::launch(
        &client,
        count,
        dim,
        vector,
        values.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        dtype,
    );
    parts
}
