use std::ops::Range;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, FloatDType, IntDType, TensorMetadata};
use burn::tensor::{Shape, Slice};

use super::{cast, to_f32};
use crate::ops::types::{KeyRanges, Scores, Sizes};

/// What a backend brings along.
pub trait MatrixProduct: Backend {
    /// `a b` of the last two dimensions.
    fn matrix_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Queries whose scores exist at a time.
pub const QUERY_BLOCK: usize = 256;

/// A block of queries and the keys from the first to the last that they see.
pub struct Block {
    pub sizes: Sizes,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
    /// Whether a query sees nothing.
    has_blind: bool,
}

fn blocks(sizes: Sizes, mask: &KeyRanges) -> impl DoubleEndedIterator<Item = Block> {
    let starts = (0..sizes.seq).step_by(QUERY_BLOCK);
    starts.map(move |start| {
        let queries = start..(start + QUERY_BLOCK).min(sizes.seq);
        let rows = (0..sizes.batch).flat_map(|row| mask.visible(row, queries.clone()));
        let has_blind = rows.clone().any(|range| range.is_empty());
        let seen = rows.filter(|range| !range.is_empty());
        let first = seen.clone().map(|range| range.start).min().unwrap_or(0);
        // Queries that see nothing have a key to be masked all the same.
        let end = seen.map(|range| range.end).max();
        Block {
            sizes,
            queries,
            keys: first..end.unwrap_or(sizes.keys.min(1)),
            has_blind,
        }
    })
}

impl Block {
    /// The queries of a tensor like `q`: `[batch, kv_heads, group · queries, head_dim]`. Those of the
    /// heads that share a key head are stacked, so that keys and values are never repeated.
    fn stacked<B: MatrixProduct>(&self, q: FloatTensor<B>) -> FloatTensor<B> {
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
    fn unstacked<B: MatrixProduct>(&self, out: FloatTensor<B>) -> FloatTensor<B> {
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
    fn seen<B: MatrixProduct>(&self, k: &FloatTensor<B>) -> FloatTensor<B> {
        part::<B>(k.clone(), 2, &self.keys)
    }

    /// The softmax of scores in f32, `[batch, kv_heads, group · queries, keys]`.
    fn weights<B: MatrixProduct>(
        &self,
        scores: FloatTensor<B>,
        visible: IntTensor<B>,
    ) -> FloatTensor<B> {
        let Sizes {
            batch,
            heads,
            kv_heads,
            ..
        } = self.sizes;
        let [queries, keys] = [&self.queries, &self.keys].map(|range| range.len());
        let scores = B::float_reshape(scores, Shape::new([batch, heads, queries, keys]));
        let mask = self.mask::<B>(visible.clone());
        let mut weights = B::softmax(B::float_add(scores, mask), 3);
        if self.has_blind {
            weights = B::float_mul(weights, self.sighted::<B>(visible));
        }
        B::float_reshape(weights, Shape::new([batch, kv_heads, self.stack(), keys]))
    }

    /// What to add to scores, `[batch or 1, 1, queries, keys]`: nothing where a key is in sight, and
    /// elsewhere a number so low that its exponential is zero.
    fn mask<B: MatrixProduct>(&self, visible: IntTensor<B>) -> FloatTensor<B> {
        const OUT_OF_SIGHT: f64 = 1e30;
        let device = visible.device();
        let [first, end] = self.bounds::<B>(visible);
        let keys = self.keys.start as i64..self.keys.end as i64;
        let keys = B::int_arange(keys, &device, IntDType::I32);
        let keys = B::int_into_float(keys, FloatDType::F32);
        let keys = B::float_reshape(keys, Shape::new([1, 1, 1, self.keys.len()]));
        let after_first = B::float_sub(keys.clone(), first);
        let before_end = B::float_sub(B::float_add_scalar(end, (-1.0).into()), keys);
        let [after_first, before_end] =
            [after_first, before_end].map(|x| B::float_clamp_max(x, 0.0.into()));
        let outside = B::float_add(after_first, before_end);
        B::float_mul_scalar(outside, OUT_OF_SIGHT.into())
    }

    /// One for queries that see a key, zero for others, `[batch or 1, 1, queries, 1]`.
    fn sighted<B: MatrixProduct>(&self, visible: IntTensor<B>) -> FloatTensor<B> {
        let [first, end] = self.bounds::<B>(visible);
        B::float_clamp(B::float_sub(end, first), 0.0.into(), 1.0.into())
    }

    /// The first key that each query sees and the one after the last, `[batch or 1, 1, queries, 1]`.
    fn bounds<B: MatrixProduct>(&self, visible: IntTensor<B>) -> [FloatTensor<B>; 2] {
        let visible = B::int_into_float(visible, FloatDType::F32);
        let [rows, _, _] = visible.shape().dims();
        [0, 1].map(|index| {
            let queries = Slice::from(self.queries.clone());
            let bound = Slice::from(index..index + 1);
            let bounds = B::float_slice(visible.clone(), &[Slice::from(..), queries, bound]);
            B::float_reshape(bounds, Shape::new([rows, 1, self.queries.len(), 1]))
        })
    }
}

/// The scores in f32, and where they are capped the tanh of them.
fn scores<B: MatrixProduct>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    Scores { scale, cap }: Scores,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    // Scaling the queries instead of the scores touches fewer numbers.
    let q = B::float_mul_scalar(q, scale.into());
    let scores = to_f32::<B>(B::matrix_product(q, B::float_swap_dims(k, 2, 3)));
    match cap {
        None => (scores, None),
        Some(cap) => {
            let tanh = B::float_tanh(B::float_mul_scalar(scores, (1.0 / cap).into()));
            (B::float_mul_scalar(tanh.clone(), cap.into()), Some(tanh))
        }
    }
}

/// `[batch, length, heads, head_dim]` as `[batch, heads, length, head_dim]`, one head after the other
/// in memory: else every block's products might copy it.
fn by_head<B: MatrixProduct>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = swap::<B>(x);
    let shape = x.shape();
    let numbers = Shape::new([shape.num_elements()]);
    B::float_reshape(B::float_reshape(x, numbers), shape)
}

/// `[batch, length, heads, head_dim]` as `[batch, heads, length, head_dim]`, or back.
fn swap<B: MatrixProduct>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(x, 1, 2)
}

/// A range of one of four dimensions.
fn part<B: MatrixProduct>(x: FloatTensor<B>, dim: usize, range: &Range<usize>) -> FloatTensor<B> {
    B::float_slice(x, &slices(dim, range))
}

fn slices(dim: usize, range: &Range<usize>) -> [Slice; 4] {
    let mut slices = [Slice::from(..); 4];
    slices[dim] = Slice::from(range.clone());
    slices
}

pub fn forward<B: MatrixProduct>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    visible: IntTensor<B>,
    mask: &KeyRanges,
    kind: Scores,
) -> FloatTensor<B> {
    let dtype = q.dtype().into();
    forward_by_block::<B>([q, k, v], mask, |block, q, k| {
        let (scores, _tanh) = scores::<B>(q, k, kind);
        cast::<B>(block.weights::<B>(scores, visible.clone()), dtype)
    })
}

/// The attention, block by block. `weights` gives those of a block, `[batch, kv_heads, group ·
/// queries, keys]`, in the type of the queries that it gets.
pub fn forward_by_block<B: MatrixProduct>(
    [q, k, v]: [FloatTensor<B>; 3],
    mask: &KeyRanges,
    weights: impl Fn(&Block, FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let (k, v) = (by_head::<B>(k), by_head::<B>(v));
    let out = blocks(sizes, mask).map(|block| {
        let weights = weights(&block, block.stacked::<B>(q.clone()), block.seen::<B>(&k));
        block.unstacked::<B>(B::matrix_product(weights, block.seen::<B>(&v)))
    });
    joined::<B>(out.collect())
}

/// The gradient of keys or values, `[batch, kv_heads, keys, head_dim]`: what blocks see of them, added
/// up in f32.
struct Sum<B: Backend> {
    shape: Shape,
    total: Option<FloatTensor<B>>,
}

impl<B: MatrixProduct> Sum<B> {
    fn of_none(like: &FloatTensor<B>) -> Self {
        let shape = like.shape();
        Self { shape, total: None }
    }

    fn add(&mut self, keys: &Range<usize>, term: FloatTensor<B>) {
        let term = to_f32::<B>(term);
        let is_whole = *keys == (0..self.shape[2]);
        self.total = Some(match self.total.take() {
            None if is_whole => term,
            total => {
                let device = term.device();
                let zeros = || B::float_zeros(self.shape.clone(), &device, FloatDType::F32);
                let total = total.unwrap_or_else(zeros);
                let sum = B::float_add(part::<B>(total.clone(), 2, keys), term);
                B::float_slice_assign(total, &slices(2, keys), sum)
            }
        });
    }

    /// The sum by position, `[batch, keys, kv_heads, head_dim]`.
    fn finish(self, dtype: FloatDType) -> FloatTensor<B> {
        let total = self.total.expect("a sequence has a block");
        swap::<B>(cast::<B>(total, dtype))
    }
}

/// The parts of a sequence, one after the other.
fn joined<B: Backend>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, 1),
    }
}

pub fn backward<B: MatrixProduct>(
    grad: FloatTensor<B>,
    qkv: [FloatTensor<B>; 3],
    visible: IntTensor<B>,
    mask: &KeyRanges,
    kind: Scores,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dtype = grad.dtype().into();
    backward_by_block::<B>(grad, qkv, mask, |block, [q, k, v, grad]| {
        let (scores, tanh) = scores::<B>(q, k, kind);
        let weights = block.weights::<B>(scores, visible.clone());
        let weight_grads = to_f32::<B>(B::matrix_product(grad, B::float_swap_dims(v, 2, 3)));
        let along = B::float_sum_dim(B::float_mul(weights.clone(), weight_grads.clone()), 3);
        let score_grads = B::float_mul(weights.clone(), B::float_sub(weight_grads, along));
        let score_grads = B::float_mul_scalar(score_grads, kind.scale.into());
        let score_grads = match tanh {
            None => score_grads,
            Some(tanh) => B::float_mul(score_grads, tanh_slope::<B>(tanh)),
        };
        (cast::<B>(weights, dtype), cast::<B>(score_grads, dtype))
    })
}

/// `1 - tanh²`, from the tanh.
fn tanh_slope<B: Backend>(tanh: FloatTensor<B>) -> FloatTensor<B> {
    let squares = B::float_mul(tanh.clone(), tanh);
    B::float_add_scalar(B::float_neg(squares), 1.0.into())
}

/// The gradients of q, k and v, with the weights w of a block formed again; ∂scores are those of `q kᵀ`:
///
/// ```text
/// ∂v = wᵀ ∂out      ∂w = ∂out vᵀ      ∂scores = scale · w · (∂w - Σ w ∂w) · slope
/// ∂q = ∂scores k    ∂k = ∂scoresᵀ q   slope = 1 - tanh²(scale · q kᵀ / cap), one without a cap
/// ```
///
/// `weights` gives w and ∂scores of a block from its queries, keys, values and ∂out, in their type.
pub fn backward_by_block<B: MatrixProduct>(
    grad: FloatTensor<B>,
    [q, k, v]: [FloatTensor<B>; 3],
    mask: &KeyRanges,
    weights: impl Fn(&Block, [FloatTensor<B>; 4]) -> (FloatTensor<B>, FloatTensor<B>),
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (sizes, dtype) = (Sizes::new(&q.shape(), &k.shape()), q.dtype().into());
    let (k, v) = (by_head::<B>(k), by_head::<B>(v));
    let [mut k_grad, mut v_grad] = [&k, &v].map(|like| Sum::<B>::of_none(like));
    let mut q_grads = Vec::new();
    // The last block of a causal mask sees all keys: what the others add needs no zeros to begin with.
    for block in blocks(sizes, mask).rev() {
        let [q, grad] = [&q, &grad].map(|tensor| block.stacked::<B>(tensor.clone()));
        let [k, v] = [&k, &v].map(|tensor| block.seen::<B>(tensor));
        let inputs = [q.clone(), k.clone(), v, grad.clone()];
        let (weights, score_grads) = weights(&block, inputs);
        let [weights_t, score_grads_t] =
            [weights, score_grads.clone()].map(|tensor| B::float_swap_dims(tensor, 2, 3));
        v_grad.add(&block.keys, B::matrix_product(weights_t, grad));
        q_grads.push(block.unstacked::<B>(B::matrix_product(score_grads, k)));
        k_grad.add(&block.keys, B::matrix_product(score_grads_t, q));
    }
    q_grads.reverse();
    let [k_grad, v_grad] = [k_grad, v_grad].map(|sum| sum.finish(dtype));
    (joined::<B>(q_grads), k_grad, v_grad)
}
