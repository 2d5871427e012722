use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, elementwise, empty, vector_size};
use crate::ops::portable::split;
use crate::ops::types::Piece;

/// A unit turns some neighbouring pairs of a head.
#[cube(launch)]
fn rotary_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<f32, N>>,
    sin: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<F, N>>,
    heads: usize,
    half: usize,
    #[define(F)] _dtype: ElemType,
) {
    let head = ABSOLUTE_POS / half;
    let within = ABSOLUTE_POS % half;
    let first = head * 2 * half + within;
    let second = first + half;
    if second >= out.len() {
        terminate!();
    }
    // Angles of one row serve all rows.
    let angle = (head / heads * half + within) % cos.len();
    let (cos, sin) = (cos[angle], sin[angle]);
    let x1 = Vector::<f32, N>::cast_from(x[first]);
    let x2 = Vector::<f32, N>::cast_from(x[second]);
    out[first] = Vector::cast_from(x1 * cos - x2 * sin);
    out[second] = Vector::cast_from(x2 * cos + x1 * sin);
}

/// `cos` and `sin` are f32.
pub fn forward(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    let ([.., head_dim], [.., pairs]) = (x.shape().dims::<4>(), cos.shape().dims::<4>());
    if 2 * pairs == head_dim {
        return turned(x, cos, sin);
    }
    let [first, kept] = [0..2 * pairs, 2 * pairs..head_dim]
        .map(|range| split::forward::<CubeBackend>(x.clone(), Piece { dim: 3, range }));
    CubeBackend::float_cat(vec![turned(first, cos, sin), kept], 3)
}

/// All numbers of each head.
fn turned(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    let [x, cos, sin] = [x, cos, sin].map(into_contiguous);
    let out = empty(&x, x.shape(), x.dtype);
    let [_, _, heads, head_dim] = x.shape().dims();
    let (client, dtype) = (x.client.clone(), elem(x.dtype));
    let vector = vector_size(&x, head_dim / 2);
    let units = x.shape().num_elements() / 2 / vector;
    let (count, dim) = elementwise(&client, units);
    rotary_kernel::launch(
        &client,
        count,
        dim,
        vector,
        x.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        heads,
        head_dim / 2 / vector,
        dtype,
    );
    out
}
