//! The attention without scores in memory, for half precision on GPUs whose planes multiply matrices:
//! tiles of keys and values go through shared memory, scores and weights stay in registers. Dao,
//! <https://arxiv.org/abs/2307.08691>.
//!
//! A plane of 32 units has 16 rows of scores. In a 16 x 8 fragment of sums each unit holds two neighbours
//! in each of two rows, and two such fragments are, rounded, the left-hand side of the next product as they
//! lie (PTX's `mma.m16n8k16`):
//!
//! ```text
//! unit 4 g + t holds    row g:      columns 2 t, 2 t + 1
//!                       row g + 8:  columns 2 t, 2 t + 1
//! ```
//!
//! Units exchange numbers with those that are where they are. Before the loops a plane comes together for it
//! (`sync_plane`); in them it relies on the compiler, which brings units together after each branch.

mod backward;
mod forward;
mod rows;
mod tile;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use self::tile::{PLANE, PLANES};
use super::{elem, empty};
use crate::ops::types::Sizes;

/// What all heads have in common.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Layout {
    seq: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
}

/// Whether these kernels take heads of so many numbers of type `dtype`.
pub fn takes(client: &Client, dtype: DType, head_dim: usize) -> bool {
    // More would not fit the registers.
    let fits = head_dim.is_multiple_of(16) && head_dim <= 128;
    fits && matches!(dtype, DType::BF16 | DType::F16) && has_products(client, elem(dtype))
}

/// Whether planes of 32 units multiply such numbers and load them from shared memory as matrices.
fn has_products(client: &Client, dtype: ElemType) -> bool {
    let product = MmaConfig {
        a_type: dtype,
        b_type: dtype,
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let properties = client.properties();
    let (hardware, matmul) = (&properties.hardware, &properties.features.matmul);
    [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
        && matmul.mma.contains(&product)
        && matmul.ldmatrix.contains(&dtype)
}

/// The output, and of each query the logarithm of its softmax's total, `[batch, heads, seq]`.
pub fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    visible: CubeTensor,
    scale: f64,
) -> (CubeTensor, CubeTensor) {
    let [q, k, v, visible] = [q, k, v, visible].map(into_contiguous);
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let out = empty(&q, q.shape(), q.dtype);
    let totals = empty(&q, totals_shape(&sizes), DType::F32);
    let (client, dtypes) = (q.client.clone(), [elem(q.dtype), elem(visible.dtype)]);
    forward::forward_kernel::launch(
        &client,
        cubes(sizes.seq.div_ceil(forward::QUERIES), sizes.heads, &sizes),
        units(),
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        visible.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        totals.clone().into_tensor_arg(),
        layout(&sizes),
        scale as f32,
        sizes.head_dim,
        dtypes,
    );
    (out, totals)
}

/// The gradients of q, k and v, with what [`forward`] gave.
pub fn backward(
    grad: CubeTensor,
    [out, totals]: [CubeTensor; 2],
    qkv: [CubeTensor; 3],
    visible: CubeTensor,
    scale: f64,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [q, k, v] = qkv.map(into_contiguous);
    let [grad, visible] = [grad, visible].map(into_contiguous);
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let (client, dtypes) = (q.client.clone(), [elem(q.dtype), elem(visible.dtype)]);
    let scale = scale as f32;
    let means = means(&grad, out, &sizes);
    let seeing = seeing(&visible, &sizes);
    let [q_grad, k_grad, v_grad] = [&q, &k, &v].map(|like| empty(like, like.shape(), like.dtype));
    backward::q_grad_kernel::launch(
        &client,
        cubes(sizes.seq.div_ceil(backward::QUERIES), sizes.heads, &sizes),
        units(),
        grad.clone().into_tensor_arg(),
        q.clone().into_tensor_arg(),
        k.clone().into_tensor_arg(),
        v.clone().into_tensor_arg(),
        visible.clone().into_tensor_arg(),
        totals.clone().into_tensor_arg(),
        means.clone().into_tensor_arg(),
        q_grad.clone().into_tensor_arg(),
        layout(&sizes),
        scale,
        sizes.head_dim,
        dtypes,
    );
    backward::kv_grad_kernel::launch(
        &client,
        cubes(sizes.keys.div_ceil(backward::KEYS), sizes.kv_heads, &sizes),
        units(),
        grad.into_tensor_arg(),
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        visible.into_tensor_arg(),
        totals.into_tensor_arg(),
        means.into_tensor_arg(),
        seeing.into_tensor_arg(),
        k_grad.clone().into_tensor_arg(),
        v_grad.clone().into_tensor_arg(),
        layout(&sizes),
        scale,
        sizes.head_dim,
        dtypes,
    );
    (q_grad, k_grad, v_grad)
}

/// Of each query the mean of the weights' gradients, `[batch, heads, seq]`.
fn means(grad: &CubeTensor, out: CubeTensor, sizes: &Sizes) -> CubeTensor {
    let means = empty(grad, totals_shape(sizes), DType::F32);
    backward::means_kernel::launch(
        &grad.client,
        cubes(sizes.seq.div_ceil(PLANES), sizes.heads, sizes),
        units(),
        grad.clone().into_tensor_arg(),
        into_contiguous(out).into_tensor_arg(),
        means.clone().into_tensor_arg(),
        layout(sizes),
        sizes.head_dim,
        elem(grad.dtype),
    );
    means
}

/// Of each block of keys the queries that see it, `[batch or 1, blocks, 2]`.
fn seeing(visible: &CubeTensor, sizes: &Sizes) -> CubeTensor {
    let (blocks, masks) = (sizes.keys.div_ceil(backward::KEYS), visible.shape()[0]);
    let seeing = empty(visible, Shape::new([masks, blocks, 2]), DType::U32);
    backward::seeing_kernel::launch(
        &visible.client,
        CubeCount::Static(blocks as u32, masks as u32, 1),
        CubeDim::new_1d(PLANE as u32),
        visible.clone().into_tensor_arg(),
        seeing.clone().into_tensor_arg(),
        layout(sizes),
        elem(visible.dtype),
    );
    seeing
}

/// A cube for each block of rows, head and batch row.
fn cubes(blocks: usize, heads: usize, sizes: &Sizes) -> CubeCount {
    CubeCount::Static(blocks as u32, heads as u32, sizes.batch as u32)
}

fn units() -> CubeDim {
    CubeDim::new_2d(PLANE as u32, PLANES as u32)
}

fn totals_shape(sizes: &Sizes) -> Shape {
    Shape::new([sizes.batch, sizes.heads, sizes.seq])
}

fn layout(sizes: &Sizes) -> LayoutLaunch {
    LayoutLaunch::new(sizes.seq, sizes.keys, sizes.heads, sizes.kv_heads)
}
