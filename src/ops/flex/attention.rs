use std::mem::MaybeUninit;
use std::ops::Range;

use burn::backend::TensorMetadata;
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Output, Scratch};
use super::vector::{dot, exp, max, new_buffer, sum, tanh, vectorized};
use super::{Primitive, contiguous, primitive};
use crate::ops::types::{KeyRanges, Scores, Sizes};

/// Queries whose scores exist at a time, in each thread.
const QUERY_BLOCK: usize = 64;

impl Sizes {
    /// The rows of one head of `q` or of a tensor of its shape.
    fn queries<'a>(&self, q: &'a [f32], batch: usize, head: usize, rows: &Range<usize>) -> Mat<'a> {
        let row_stride = self.heads * self.head_dim;
        let start = (batch * self.seq + rows.start) * row_stride + head * self.head_dim;
        Mat::new(&q[start..], [rows.len(), self.head_dim], [row_stride, 1])
    }

    /// The rows of one head of `k` or `v`.
    fn keys<'a>(&self, k: &'a [f32], batch: usize, head: usize, rows: &Range<usize>) -> Mat<'a> {
        let row_stride = self.kv_heads * self.head_dim;
        let start = (batch * self.keys + rows.start) * row_stride + head * self.head_dim;
        Mat::new(&k[start..], [rows.len(), self.head_dim], [row_stride, 1])
    }

    /// The blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let seq = self.seq;
        (0..seq)
            .step_by(QUERY_BLOCK)
            .map(move |start| start..(start + QUERY_BLOCK).min(seq))
    }
}

/// The keys from the first to the last that some queries see.
fn union(seen: &[Range<usize>]) -> Range<usize> {
    let seen = || seen.iter().filter(|range| !range.is_empty());
    let start = seen().map(|range| range.start).min().unwrap_or(0);
    let end = seen().map(|range| range.end).max().unwrap_or(0);
    start..end
}

/// What lies in `keys` of a range of keys, counted from their first.
fn within(seen: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
    let place = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
    place(seen.start)..place(seen.end)
}

/// A buffer of which several threads write parts that do not overlap.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: every use of the pointer says why its part is its own.
unsafe impl Send for Shared {}
// SAFETY: the same.
unsafe impl Sync for Shared {}

impl Shared {
    /// The same rows of the same head as [`Sizes::queries`], to write.
    ///
    /// # Safety
    /// The buffer must have the shape of `q`, and no other thread may use these rows of this head.
    unsafe fn queries(self, s: &Sizes, batch: usize, head: usize, rows: &Range<usize>) -> MatMut {
        let row_stride = s.heads * s.head_dim;
        let start = (batch * s.seq + rows.start) * row_stride + head * s.head_dim;
        // SAFETY: the rows lie inside of the buffer, and are nobody else's; the caller says both.
        unsafe { MatMut::from_raw(self.0.add(start), [rows.len(), s.head_dim], row_stride) }
    }

    /// The same rows of the same head as [`Sizes::keys`], to write.
    ///
    /// # Safety
    /// The buffer must have the shape of `k`, and no other thread may use this head.
    unsafe fn keys(self, s: &Sizes, batch: usize, head: usize, rows: &Range<usize>) -> MatMut {
        let row_stride = s.kv_heads * s.head_dim;
        let start = (batch * s.keys + rows.start) * row_stride + head * s.head_dim;
        // SAFETY: the rows lie inside of the buffer, and are nobody else's; the caller says both.
        unsafe { MatMut::from_raw(self.0.add(start), [rows.len(), s.head_dim], row_stride) }
    }
}

/// What a thread keeps from block to block.
#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    /// Scores or weights of a block of queries, `[rows, keys in sight]`.
    weights: Vec<f32>,
    grads: Vec<f32>,
    /// Those of the cap, of one query.
    slopes: Vec<f32>,
}

impl Buffers {
    /// `a · bᵀ` of a block of rows.
    fn scores<'a>(scratch: &mut Scratch, out: &'a mut Vec<f32>, a: Mat, b: Mat) -> &'a mut [f32] {
        let shape = [a.shape()[0], b.shape()[0]];
        out.clear();
        out.reserve(shape[0] * shape[1]);
        let target = MatMut::row_major(out.spare_capacity_mut(), shape);
        scratch.matmul(target, Output::Write, a, b.transpose());
        // SAFETY: the product wrote them all.
        unsafe { out.set_len(shape[0] * shape[1]) };
        out
    }
}

pub fn forward(
    q: &Primitive,
    k: &Primitive,
    v: &Primitive,
    mask: &KeyRanges,
    scores: Scores,
) -> Primitive {
    let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let Sizes { batch, heads, .. } = sizes;
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let pass = ForwardPass {
            sizes,
            mask,
            scores,
            q: q.storage(),
            k: k.storage(),
            v: v.storage(),
            out: Shared(out.as_mut_ptr().cast()),
        };
        let all_heads = (0..batch * heads).into_par_iter();
        all_heads.for_each_init(Buffers::default, |buffers, index| {
            for rows in sizes.blocks() {
                pass.block(index / heads, index % heads, rows, buffers);
            }
        });
    };
    // SAFETY: every row of every head is written.
    let values = unsafe { new_buffer(q.storage::<f32>().len(), fill) };
    primitive(values, &q.shape())
}

struct ForwardPass<'a> {
    sizes: Sizes,
    mask: &'a KeyRanges,
    scores: Scores,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: Shared,
}

impl ForwardPass<'_> {
    fn block(&self, batch: usize, head: usize, rows: Range<usize>, buffers: &mut Buffers) {
        let sizes = &self.sizes;
        let kv_head = head / (sizes.heads / sizes.kv_heads);
        let seen = self.mask.visible(batch, rows.clone());
        let keys = union(seen);
        let q = sizes.queries(self.q, batch, head, &rows);
        let k = sizes.keys(self.k, batch, kv_head, &keys);
        let v = sizes.keys(self.v, batch, kv_head, &keys);
        let weights = Buffers::scores(&mut buffers.scratch, &mut buffers.weights, q, k);
        let by_row = weights.chunks_exact_mut(keys.len().max(1)).zip(seen);
        for (weights, seen) in by_row {
            let seen = within(seen, &keys);
            let scale = capped(&mut weights[seen.clone()], self.scores);
            softmax(weights, seen, scale);
        }
        let weights = Mat::row_major(weights, [rows.len(), keys.len()]);
        // SAFETY: `out` has the shape of q; this task alone has this head.
        let out = unsafe { self.out.queries(sizes, batch, head, &rows) };
        buffers.scratch.matmul(out, Output::Write, weights, v);
    }
}

/// Caps the products of a query and keys, if their scores are capped. What is left to multiply them by.
fn capped(products: &mut [f32], Scores { scale, cap }: Scores) -> f32 {
    let Some(cap) = cap else {
        return scale as f32;
    };
    let (inner_scale, cap) = ((scale / cap) as f32, cap as f32);
    vectorized(
        #[inline(always)]
        || {
            for score in products.iter_mut() {
                *score = cap * tanh(*score * inner_scale);
            }
        },
    );
    1.0
}

/// Replaces scores by `softmax(scale · scores)` within `seen` and by zero elsewhere.
fn softmax(scores: &mut [f32], seen: Range<usize>, scale: f32) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let scores = &mut scores[seen];
    vectorized(
        #[inline(always)]
        || {
            let largest = max(scores);
            for score in scores.iter_mut() {
                *score = exp((*score - largest) * scale);
            }
            let total = sum(scores);
            for score in scores.iter_mut() {
                *score *= 1.0 / total;
            }
        },
    )
}

/// The gradients of q, k and v. The weights P are formed again from the scores, a block of queries
/// at a time: `dP = dO Vᵀ`, `dV = Pᵀ dO`, `dS = P ∘ (dP - rowsum(P ∘ dP))`, `dQ = dS K`,
/// `dK = dSᵀ Q`; where scores are capped, dS is multiplied by the slopes of the cap. All keys of a query are at
/// hand, so its output need not be kept.
pub fn backward(
    grad: &Primitive,
    [q, k, v]: [&Primitive; 3],
    mask: &KeyRanges,
    scores: Scores,
) -> (Primitive, Primitive, Primitive) {
    let [grad, q, k, v] = [grad, q, k, v].map(contiguous);
    let sizes = Sizes::new(&q.shape(), &k.shape());
    let shapes = [q.shape(), k.shape(), v.shape()];
    let [grad, q, k, v]: [&[f32]; 4] = [&grad, &q, &k, &v].map(|tensor| tensor.storage());
    let (mut k_grad, mut v_grad) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let fill = |q_grad: &mut [MaybeUninit<f32>]| {
        let pass = BackwardPass {
            sizes,
            mask,
            scores,
            grad,
            q,
            k,
            v,
            q_grad: Shared(q_grad.as_mut_ptr().cast()),
            k_grad: Shared(k_grad.as_mut_ptr()),
            v_grad: Shared(v_grad.as_mut_ptr()),
        };
        let kv_heads = (0..sizes.batch * sizes.kv_heads).into_par_iter();
        kv_heads.for_each_init(Buffers::default, |buffers, index| {
            pass.kv_head(index / sizes.kv_heads, index % sizes.kv_heads, buffers);
        });
    };
    // SAFETY: every row of every head is written.
    let q_grad = unsafe { new_buffer(q.len(), fill) };
    let [q_shape, k_shape, v_shape] = shapes;
    (
        primitive(q_grad, &q_shape),
        primitive(k_grad, &k_shape),
        primitive(v_grad, &v_shape),
    )
}

struct BackwardPass<'a> {
    sizes: Sizes,
    mask: &'a KeyRanges,
    scores: Scores,
    grad: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    q_grad: Shared,
    k_grad: Shared,
    v_grad: Shared,
}

impl BackwardPass<'_> {
    /// All queries that use one head of the keys.
    fn kv_head(&self, batch: usize, kv_head: usize, buffers: &mut Buffers) {
        let group = self.sizes.heads / self.sizes.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            for rows in self.sizes.blocks() {
                self.block(batch, kv_head, head, rows, buffers);
            }
        }
    }

    fn block(
        &self,
        batch: usize,
        kv_head: usize,
        head: usize,
        rows: Range<usize>,
        buffers: &mut Buffers,
    ) {
        let Self { sizes, mask, .. } = self;
        let Buffers {
            scratch,
            weights,
            grads,
            slopes,
        } = buffers;
        let seen = mask.visible(batch, rows.clone());
        let keys = union(seen);
        let q = sizes.queries(self.q, batch, head, &rows);
        let grad = sizes.queries(self.grad, batch, head, &rows);
        let k = sizes.keys(self.k, batch, kv_head, &keys);
        let v = sizes.keys(self.v, batch, kv_head, &keys);
        let weights = Buffers::scores(scratch, weights, q, k);
        let grads = Buffers::scores(scratch, grads, grad, v);
        let row_len = keys.len().max(1);
        let by_row = weights
            .chunks_exact_mut(row_len)
            .zip(grads.chunks_exact_mut(row_len));
        for ((weights, grads), seen) in by_row.zip(seen) {
            let seen = within(seen, &keys);
            capped_softmax_backward(weights, grads, slopes, seen, self.scores);
        }
        let weights = Mat::row_major(weights, [rows.len(), keys.len()]);
        let grads = Mat::row_major(grads, [rows.len(), keys.len()]);
        // SAFETY: the buffers have the shapes of q, k and v; this task alone has this head of the
        // keys, and with it these heads of the queries.
        let (q_grad, k_grad, v_grad) = unsafe {
            (
                self.q_grad.queries(sizes, batch, head, &rows),
                self.k_grad.keys(sizes, batch, kv_head, &keys),
                self.v_grad.keys(sizes, batch, kv_head, &keys),
            )
        };
        scratch.matmul(q_grad, Output::Write, grads, k);
        scratch.matmul(k_grad, Output::Add, grads.transpose(), q);
        scratch.matmul(v_grad, Output::Add, weights.transpose(), grad);
    }
}

/// Replaces a row of products of a query and keys by the weights, and that of the weights' gradients by the
/// products'.
fn capped_softmax_backward(
    products: &mut [f32],
    grads: &mut [f32],
    slopes: &mut Vec<f32>,
    seen: Range<usize>,
    scores: Scores,
) {
    let scale = capped(&mut products[seen.clone()], scores);
    let Some(cap) = scores.cap else {
        return softmax_backward(products, grads, seen, scale);
    };
    slopes_of_cap(
        &products[seen.clone()],
        slopes,
        scores.scale as f32,
        cap as f32,
    );
    softmax_backward(products, grads, seen.clone(), scale);
    vectorized(
        #[inline(always)]
        || {
            for (grad, slope) in grads[seen].iter_mut().zip(slopes) {
                *grad *= *slope;
            }
        },
    );
}

/// The slopes of `cap · tanh(scale · x / cap)`, from what it gave: `scale · (1 - tanh²)`.
fn slopes_of_cap(capped: &[f32], slopes: &mut Vec<f32>, scale: f32, cap: f32) {
    slopes.resize(capped.len(), 0.0);
    vectorized(
        #[inline(always)]
        || {
            for (slope, score) in slopes.iter_mut().zip(capped) {
                let tanh = score * (1.0 / cap);
                *slope = scale * (1.0 - tanh * tanh);
            }
        },
    );
}

/// Replaces a row of scores by the weights, and that of the weights' gradients by the scores'.
fn softmax_backward(scores: &mut [f32], grads: &mut [f32], seen: Range<usize>, scale: f32) {
    grads[..seen.start].fill(0.0);
    grads[seen.end..].fill(0.0);
    softmax(scores, seen.clone(), scale);
    let (weights, grads) = (&scores[seen.clone()], &mut grads[seen]);
    vectorized(
        #[inline(always)]
        || {
            let along = dot(weights, grads);
            for (weight, grad) in weights.iter().zip(grads) {
                *grad = weight * (*grad - along) * scale;
            }
        },
    );
}
