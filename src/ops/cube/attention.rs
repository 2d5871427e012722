use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::product::product;
use super::{elem, empty, row};
use crate::ops::portable::attention::{Block, backward_by_block, forward_by_block};
use crate::ops::types::{KeyRanges, Scores};

/// Where the scores of a block lie: row after row, `[batch, heads, queries, keys]`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Layout {
    /// Of one batch row, all heads together.
    rows_per_batch: usize,
    queries: usize,
    keys: usize,
    /// The block's first query and key in the whole sequence.
    first_query: usize,
    first_key: usize,
    seq: usize,
}

/// The keys of a block that the query of a row of scores sees: the first, and the one after the last.
#[cube]
fn seen<I: Int>(visible: &Tensor<I>, layout: &Layout, row: usize) -> (usize, usize) {
    let batch = row / layout.rows_per_batch;
    let query = layout.first_query + row % layout.queries;
    // Ranges of one batch row serve all.
    let index = (batch * layout.seq + query) * 2 % visible.len();
    let mut first = usize::cast_from(visible[index]);
    let mut end = usize::cast_from(visible[index + 1]);
    // A query that sees nothing may have any empty range.
    if first < layout.first_key {
        first = layout.first_key;
    }
    if end < first {
        end = first;
    }
    (first - layout.first_key, end - layout.first_key)
}

/// The largest of some scores, at each unit.
#[cube]
fn largest_score(
    scores: &Tensor<f32>,
    start: usize,
    first: usize,
    end: usize,
    shared: &mut Shared<[f32]>,
) -> f32 {
    let mut largest = f32::min_value();
    let mut key = first + UNIT_POS_X as usize;
    while key < end {
        let score = scores[start + key];
        if score > largest {
            largest = score;
        }
        key += row::UNITS;
    }
    row::max(largest, shared)
}

/// [`Scores`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Scaling {
    scale: f32,
    cap: f32,
    #[cube(comptime)]
    has_cap: bool,
}

/// `tanh(scale · product / cap)`.
#[cube]
fn capped(product: f32, scaling: &Scaling) -> f32 {
    (product * scaling.scale / scaling.cap).tanh()
}

/// `exp(score - largest score)`, from products.
#[cube]
fn exponential(product: f32, largest: f32, scaling: &Scaling) -> f32 {
    match comptime!(scaling.has_cap) {
        true => ((capped(product, scaling) - capped(largest, scaling)) * scaling.cap).exp(),
        false => ((product - largest) * scaling.scale).exp(),
    }
}

/// How much a score moves with its product.
#[cube]
fn slope(product: f32, scaling: &Scaling) -> f32 {
    match comptime!(scaling.has_cap) {
        true => {
            let tanh = capped(product, scaling);
            scaling.scale * (1.0f32 - tanh * tanh)
        }
        false => scaling.scale,
    }
}

/// The softmax of scores over the keys in sight, zero elsewhere, from the products of queries and keys.
#[cube(launch, address_type = "dynamic")]
fn weights_kernel<F: Float, I: Int>(
    scores: &Tensor<f32>,
    visible: &Tensor<I>,
    weights: &mut Tensor<F>,
    layout: Layout,
    scaling: Scaling,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let start = CUBE_POS * layout.keys;
    if start >= weights.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let (first, end) = seen::<I>(visible, &layout, CUBE_POS);
    let largest = largest_score(scores, start, first, end, &mut shared);
    let mut total = 0.0f32;
    let mut key = first + UNIT_POS_X as usize;
    while key < end {
        total += exponential(scores[start + key], largest, &scaling);
        key += row::UNITS;
    }
    let total = row::sum(total, &mut shared);
    let mut key = UNIT_POS_X as usize;
    while key < layout.keys {
        let mut weight = 0.0f32;
        if key >= first && key < end {
            weight = exponential(scores[start + key], largest, &scaling) / total;
        }
        weights[start + key] = F::cast_from(weight);
        key += row::UNITS;
    }
}

/// The weights w again, and the gradients of the products, `slope · w · (∂w - Σ w ∂w)`.
#[cube(launch, address_type = "dynamic")]
fn weights_backward_kernel<F: Float, I: Int>(
    scores: &Tensor<f32>,
    weight_grads: &Tensor<f32>,
    visible: &Tensor<I>,
    weights: &mut Tensor<F>,
    score_grads: &mut Tensor<F>,
    layout: Layout,
    scaling: Scaling,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let start = CUBE_POS * layout.keys;
    if start >= weights.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let (first, end) = seen::<I>(visible, &layout, CUBE_POS);
    let largest = largest_score(scores, start, first, end, &mut shared);
    let mut total = 0.0f32;
    let mut along = 0.0f32;
    let mut key = first + UNIT_POS_X as usize;
    while key < end {
        let weight = exponential(scores[start + key], largest, &scaling);
        total += weight;
        along += weight * weight_grads[start + key];
        key += row::UNITS;
    }
    let total = row::sum(total, &mut shared);
    let along = row::sum(along, &mut shared) / total;
    let mut key = UNIT_POS_X as usize;
    while key < layout.keys {
        let mut weight = 0.0f32;
        let mut score_grad = 0.0f32;
        if key >= first && key < end {
            weight = exponential(scores[start + key], largest, &scaling) / total;
            let slope = slope(scores[start + key], &scaling);
            score_grad = slope * weight * (weight_grads[start + key] - along);
        }
        weights[start + key] = F::cast_from(weight);
        score_grads[start + key] = F::cast_from(score_grad);
        key += row::UNITS;
    }
}

pub fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    visible: CubeTensor,
    mask: &KeyRanges,
    kind: Scores,
) -> CubeTensor {
    let visible = into_contiguous(visible);
    forward_by_block::<CubeBackend>([q, k, v], mask, |block, q, k| {
        let dtype = q.dtype;
        let scores = scores(q, k);
        let weights = empty(&scores, scores.shape(), dtype);
        let client = scores.client.clone();
        let (count, dim) = row::cubes(&client, num_rows(block));
        weights_kernel::launch(
            &client,
            count,
            dim,
            scores.required_address_type(),
            scores.into_tensor_arg(),
            visible.clone().into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            layout(block),
            scaling(kind),
            [elem(dtype), elem(visible.dtype)],
        );
        weights
    })
}

/// The gradients of q, k and v.
pub fn backward(
    grad: CubeTensor,
    qkv: [CubeTensor; 3],
    visible: CubeTensor,
    mask: &KeyRanges,
    kind: Scores,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let visible = into_contiguous(visible);
    backward_by_block::<CubeBackend>(grad, qkv, mask, |block, [q, k, v, grad]| {
        let dtype = q.dtype;
        let (scores, weight_grads) = (scores(q, k), scores(grad, v));
        let [weights, score_grads] = [(); 2].map(|()| empty(&scores, scores.shape(), dtype));
        let client = scores.client.clone();
        let (count, dim) = row::cubes(&client, num_rows(block));
        weights_backward_kernel::launch(
            &client,
            count,
            dim,
            scores.required_address_type(),
            scores.into_tensor_arg(),
            weight_grads.into_tensor_arg(),
            visible.clone().into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            score_grads.clone().into_tensor_arg(),
            layout(block),
            scaling(kind),
            [elem(dtype), elem(visible.dtype)],
        );
        (weights, score_grads)
    })
}

fn scaling(Scores { scale, cap }: Scores) -> ScalingLaunch {
    ScalingLaunch::new(scale as f32, cap.unwrap_or(1.0) as f32, cap.is_some())
}

/// `a bᵀ` in f32, without a rounding to the type of `a` and `b` between.
fn scores(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let b = CubeBackend::float_swap_dims(b, 2, 3);
    into_contiguous(product(a, b, 1.0, DType::F32))
}

/// The rows of scores of a block.
fn num_rows(block: &Block) -> usize {
    block.sizes.batch * block.sizes.heads * block.queries.len()
}

fn layout(block: &Block) -> LayoutLaunch {
    LayoutLaunch::new(
        block.sizes.heads * block.queries.len(),
        block.queries.len(),
        block.keys.len(),
        block.queries.start,
        block.keys.start,
        block.sizes.seq,
    )
}
