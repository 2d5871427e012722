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

use self::tile::{BLOCK, PLANE, PLANES};
use super::{elem, empty};
use crate::ops::attention::Sizes;

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

pub fn forward(q: CubeTensor, k: CubeTensor, v: CubeTensor, visible: CubeTensor) -> CubeTensor {
    let [q, k, v, visible] = [q, k, v, visible].map(into_contiguous);
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let out = empty(&q, q.shape(), q.dtype);
    let (client, dtypes) = (q.client.clone(), [elem(q.dtype), elem(visible.dtype)]);
    forward::forward_kernel::launch(
        &client,
        cubes(sizes.seq, sizes.heads, sizes.batch),
        units(),
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        visible.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        layout(sizes),
        sizes.scale() as f32,
        sizes.head_dim,
        dtypes,
    );
    out
}

/// The gradients of q, k and v.
pub fn backward(
    grad: CubeTensor,
    qkv: [CubeTensor; 3],
    visible: CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [q, k, v] = qkv.map(into_contiguous);
    let [grad, visible] = [grad, visible].map(into_contiguous);
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let [q_grad, k_grad, v_grad] = [&q, &k, &v].map(|like| empty(like, like.shape(), like.dtype));
    let totals = Shape::new([sizes.batch, sizes.heads, sizes.seq, 2]);
    let totals = empty(&q, totals, DType::F32);
    let (blocks, masks) = (sizes.keys.div_ceil(BLOCK), visible.shape()[0]);
    let seeing = empty(&q, Shape::new([masks, blocks, 2]), DType::U32);
    let (client, dtypes) = (q.client.clone(), [elem(q.dtype), elem(visible.dtype)]);
    let scale = sizes.scale() as f32;
    backward::q_grad_kernel::launch(
        &client,
        cubes(sizes.seq, sizes.heads, sizes.batch),
        units(),
        grad.clone().into_tensor_arg(),
        q.clone().into_tensor_arg(),
        k.clone().into_tensor_arg(),
        v.clone().into_tensor_arg(),
        visible.clone().into_tensor_arg(),
        q_grad.clone().into_tensor_arg(),
        totals.clone().into_tensor_arg(),
        layout(sizes),
        scale,
        sizes.head_dim,
        dtypes,
    );
    backward::seeing_kernel::launch(
        &client,
        CubeCount::Static(blocks as u32, masks as u32, 1),
        CubeDim::new_1d(PLANE as u32),
        visible.clone().into_tensor_arg(),
        seeing.clone().into_tensor_arg(),
        layout(sizes),
        elem(visible.dtype),
    );
    backward::kv_grad_kernel::launch(
        &client,
        cubes(sizes.keys, sizes.kv_heads, sizes.batch),
        units(),
        grad.into_tensor_arg(),
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        visible.into_tensor_arg(),
        totals.into_tensor_arg(),
        seeing.into_tensor_arg(),
        k_grad.clone().into_tensor_arg(),
        v_grad.clone().into_tensor_arg(),
        layout(sizes),
        scale,
        sizes.head_dim,
        dtypes,
    );
    (q_grad, k_grad, v_grad)
}

/// A cube for each block of rows, head and batch row.
fn cubes(rows: usize, heads: usize, batch: usize) -> CubeCount {
    let blocks = rows.div_ceil(BLOCK) as u32;
    CubeCount::Static(blocks, heads as u32, batch as u32)
}

fn units() -> CubeDim {
    CubeDim::new_2d(PLANE as u32, PLANES as u32)
}

fn layout(sizes: Sizes) -> LayoutLaunch {
    LayoutLaunch::new(sizes.seq, sizes.keys, sizes.heads, sizes.kv_heads)
}
