use std::ops::Range;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, FloatDType, IntDType, TensorMetadata};
use burn::tensor::{Shape, Slice};

use super::{cast, to_f32};
use crate::ops::AttentionMask;
use crate::ops::attention::Sizes;

/// Queries whose scores exist at a time.
const QUERY_BLOCK: usize = 256;

/// A block of queries and the keys from the first to the last that they see.
struct Block {
    sizes: Sizes,
    queries: Range<usize>,
    keys: Range<usize>,
}

fn blocks(sizes: Sizes, mask: &AttentionMask) -> impl Iterator<Item = Block> {
    let starts = (0..sizes.seq).step_by(QUERY_BLOCK);
    starts.map(move |start| {
        let queries = start..(start + QUERY_BLOCK).min(sizes.seq);
        let rows = (0..sizes.batch).flat_map(|row| mask.visible(row, queries.clone()));
        let first = rows.clone().map(|range| range.start).min().unwrap_or(0);
        let end = rows.map(|range| range.end).max().unwrap_or(0);
        // A query that sees nothing has a range to be masked all the same.
        let keys = if first < end {
            first..end
        } else {
            0..sizes.keys
        };
        Block {
            sizes,
            queries,
            keys,
        }
    })
}

impl Block {
    /// The queries of a tensor like `q`: `[batch, kv_heads, group · queries, head_dim]`. Those of the
    /// heads that share a key head are stacked, so that keys and values are never repeated.
    fn stacked<B: Backend>(&self, q: FloatTensor<B>) -> FloatTensor<B> {
        let q = B::float_swap_dims(part::<B>(q, 1, &self.queries), 1, 2);
        let Sizes {
            batch,
            kv_heads,
            head_dim,
            ..
        } = self.sizes;
        B::float_reshape(q, Shape::new([batch, kv_heads, self.stack(), head_dim]))
    }

    /// Undoes [`stacked`](Self::stacked): `[batch, queries, heads, head_dim]`.
    fn unstacked<B: Backend>(&self, out: FloatTensor<B>) -> FloatTensor<B> {
        let Sizes {
            batch,
            heads,
            head_dim,
            ..
        } = self.sizes;
        let shape = Shape::new([batch, heads, self.queries.len(), head_dim]);
        B::float_swap_dims(B::float_reshape(out, shape), 1, 2)
    }

    fn stack(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads * self.queries.len()
    }

    /// The keys of a tensor `[batch, kv_heads, keys, head_dim]`.
    fn seen<B: Backend>(&self, k: &FloatTensor<B>) -> FloatTensor<B> {
        part::<B>(k.clone(), 2, &self.keys)
    }

    /// The softmax of the scores in f32, `[batch, kv_heads, group · queries, keys]`.
    fn weights<B: Backend>(
        &self,
        q: FloatTensor<B>,
        k: FloatTensor<B>,
        visible: IntTensor<B>,
    ) -> FloatTensor<B> {
        // Scaling the queries instead of the scores touches fewer numbers.
        let q = B::float_mul_scalar(q, self.sizes.scale().into());
        let scores = to_f32::<B>(B::float_matmul(q, B::float_swap_dims(k, 2, 3)));
        let Sizes {
            batch,
            heads,
            kv_heads,
            ..
        } = self.sizes;
        let [queries, keys] = [&self.queries, &self.keys].map(|range| range.len());
        let scores = B::float_reshape(scores, Shape::new([batch, heads, queries, keys]));
        let weights = B::softmax(B::float_add(scores, self.mask::<B>(visible)), 3);
        B::float_reshape(weights, Shape::new([batch, kv_heads, self.stack(), keys]))
    }

    /// What to add to scores, `[batch or 1, 1, queries, keys]`: nothing where a key is in sight, and
    /// elsewhere a number so low that its exponential is zero.
    fn mask<B: Backend>(&self, visible: IntTensor<B>) -> FloatTensor<B> {
        const OUT_OF_SIGHT: f64 = 1e30;
        let device = visible.device();
        let visible = B::int_into_float(visible, FloatDType::F32);
        let [rows, _, _] = visible.shape().dims();
        let bound = |index: usize| {
            let queries = Slice::from(self.queries.clone());
            let bound = Slice::from(index..index + 1);
            let bounds = B::float_slice(visible.clone(), &[Slice::from(..), queries, bound]);
            B::float_reshape(bounds, Shape::new([rows, 1, self.queries.len(), 1]))
        };
        let keys = self.keys.start as i64..self.keys.end as i64;
        let keys = B::int_arange(keys, &device, IntDType::I32);
        let keys = B::int_into_float(keys, FloatDType::F32);
        let keys = B::float_reshape(keys, Shape::new([1, 1, 1, self.keys.len()]));
        let after_first = B::float_sub(keys.clone(), bound(0));
        let before_end = B::float_sub(B::float_add_scalar(bound(1), (-1.0).into()), keys);
        let [after_first, before_end] =
            [after_first, before_end].map(|x| B::float_clamp_max(x, 0.0.into()));
        let outside = B::float_add(after_first, before_end);
        B::float_mul_scalar(outside, OUT_OF_SIGHT.into())
    }
}

/// `[batch, length, heads, head_dim]` as `[batch, heads, length, head_dim]`, or back.
fn swap<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(x, 1, 2)
}

/// A range of one of four dimensions.
fn part<B: Backend>(x: FloatTensor<B>, dim: usize, range: &Range<usize>) -> FloatTensor<B> {
    B::float_slice(x, &slices(dim, range))
}

fn slices(dim: usize, range: &Range<usize>) -> [Slice; 4] {
    let mut slices = [Slice::from(..); 4];
    slices[dim] = Slice::from(range.clone());
    slices
}

pub fn forward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    visible: IntTensor<B>,
    mask: &AttentionMask,
) -> FloatTensor<B> {
    let (sizes, dtype) = (Sizes::new(&q.shape(), &k.shape()), q.dtype().into());
    let (k, v) = (swap::<B>(k), swap::<B>(v));
    let out = blocks(sizes, mask).map(|block| {
        let (q, k) = (block.stacked::<B>(q.clone()), block.seen::<B>(&k));
        let weights = cast::<B>(block.weights::<B>(q, k, visible.clone()), dtype);
        block.unstacked::<B>(B::float_matmul(weights, block.seen::<B>(&v)))
    });
    B::float_cat(out.collect(), 1)
}

/// What a block sees of keys or values, added up over the blocks in f32.
struct Sum<B: Backend>(FloatTensor<B>);

impl<B: Backend> Sum<B> {
    fn zeros(like: &FloatTensor<B>) -> Self {
        Self(B::float_zeros(
            like.shape(),
            &like.device(),
            FloatDType::F32,
        ))
    }

    fn add(self, keys: &Range<usize>, term: FloatTensor<B>) -> Self {
        let sum = B::float_add(part::<B>(self.0.clone(), 2, keys), to_f32::<B>(term));
        Self(B::float_slice_assign(self.0, &slices(2, keys), sum))
    }
}

/// The gradients of q, k and v, with the weights w of a block formed again:
///
/// ```text
/// ∂v = wᵀ ∂out      ∂w = ∂out vᵀ      ∂scores = w · (∂w - Σ w ∂w)
/// ∂q = scale · ∂scores k              ∂k = scale · ∂scoresᵀ q
/// ```
pub fn backward<B: Backend>(
    grad: FloatTensor<B>,
    [q, k, v]: [FloatTensor<B>; 3],
    visible: IntTensor<B>,
    mask: &AttentionMask,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (sizes, dtype) = (Sizes::new(&q.shape(), &k.shape()), q.dtype().into());
    let (k, v) = (swap::<B>(k), swap::<B>(v));
    let (mut k_grad, mut v_grad) = (Sum::<B>::zeros(&k), Sum::<B>::zeros(&v));
    let mut q_grads = Vec::new();
    for block in blocks(sizes, mask) {
        let (q, grad) = (
            block.stacked::<B>(q.clone()),
            block.stacked::<B>(grad.clone()),
        );
        let (k, v) = (block.seen::<B>(&k), block.seen::<B>(&v));
        let weights = block.weights::<B>(q.clone(), k.clone(), visible.clone());
        let transposed = B::float_swap_dims(cast::<B>(weights.clone(), dtype), 2, 3);
        v_grad = v_grad.add(&block.keys, B::float_matmul(transposed, grad.clone()));

        let weight_grads = to_f32::<B>(B::float_matmul(grad, B::float_swap_dims(v, 2, 3)));
        let along = B::float_sum_dim(B::float_mul(weights.clone(), weight_grads.clone()), 3);
        let score_grads = B::float_mul(weights, B::float_sub(weight_grads, along));
        let score_grads = B::float_mul_scalar(score_grads, sizes.scale().into());
        let score_grads = cast::<B>(score_grads, dtype);
        let q_grad = B::float_matmul(score_grads.clone(), k);
        q_grads.push(block.unstacked::<B>(q_grad));
        let transposed = B::float_swap_dims(score_grads, 2, 3);
        k_grad = k_grad.add(&block.keys, B::float_matmul(transposed, q));
    }
    let [k_grad, v_grad] = [k_grad, v_grad].map(|sum| swap::<B>(cast::<B>(sum.0, dtype)));
    (B::float_cat(q_grads, 1), k_grad, v_grad)
}
