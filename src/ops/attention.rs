use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{F32, MetaOp, MetaTensor};
use super::portable::attention::QUERY_BLOCK;
use super::types::{AttentionMask, Scores};

/// How a device runs the attention, see [`attention_body`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionBody {
    /// The scores of a few queries at a time, in the processor's cache.
    Cache,
    /// The scores of a block of queries in memory, those of all rows and heads.
    Blocks,
    /// No scores in memory. The output and the totals of the softmaxes are kept for the backward pass too.
    Flash,
}

/// How `device` runs the attention of heads of `head_dim` numbers of type `dtype`, with capped scores
/// ([`Scores::cap`]) or not: [`AttentionBody::Flash`] caps none.
pub fn attention_body(
    device: &Device,
    dtype: DType,
    head_dim: usize,
    has_cap: bool,
) -> AttentionBody {
    #[cfg(feature = "cube")]
    if !has_cap && super::cube::has_flash_attention(device, dtype, head_dim) {
        return AttentionBody::Flash;
    }
    #[cfg(not(feature = "cube"))]
    let _ = (dtype, head_dim, has_cap);
    match super::is_fused_cpu(device) {
        true => AttentionBody::Cache,
        false => AttentionBody::Blocks,
    }
}

/// Attention with grouped queries: `softmax(q kᵀ / sqrt(head_dim)) v` over the keys that `mask`
/// shows. Vaswani et al., <https://arxiv.org/abs/1706.03762>; Ainslie et al.,
/// <https://arxiv.org/abs/2305.13245>. No scores are kept: the backward pass forms them again, some
/// queries or keys at a time (Dao et al., <https://arxiv.org/abs/2205.14135>). The softmax is
/// f32 whatever `q` is, and so are scores but for the portable bodies, which form them in `q`'s type.
///
/// # Shapes
/// - `q`: `[batch, seq, heads, head_dim]`, output the same
/// - `k`, `v`: `[batch, keys, kv_heads, head_dim]`
///
/// # Panics
/// If the shapes do not fit each other and `mask`, or the types differ.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    let [_, _, _, head_dim] = q.dims();
    attention_scored(q, k, v, mask, Scores::of_head(head_dim))
}

/// [`attention`] with scores of another scale, or capped: `softmax(cap · tanh(scale · q kᵀ / cap)) v`.
///
/// # Shapes
/// - `q`: `[batch, seq, heads, head_dim]`, output the same
/// - `k`, `v`: `[batch, keys, kv_heads, head_dim]`
///
/// # Panics
/// If the shapes do not fit each other and `mask`, the types differ, or the scale or the cap is not above zero.
pub fn attention_scored(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &AttentionMask,
    scores: Scores,
) -> Tensor<4> {
    scores.assert_valid();
    let [batch, seq, heads, head_dim] = q.dims();
    let [_, keys, kv_heads, _] = k.dims();
    let fits = k.dims() == [batch, keys, kv_heads, head_dim] && k.dims() == v.dims();
    assert!(
        fits && heads % kv_heads == 0,
        "the heads do not fit each other"
    );
    let dtypes = [k.dtype(), v.dtype()];
    assert_eq!(dtypes, [q.dtype(); 2], "q, k and v differ in type");
    assert!(
        mask.ranges().fits(batch, seq, keys),
        "the mask does not fit the heads"
    );
    let device = q.device();
    let body = attention_body(&device, q.dtype(), head_dim, scores.cap.is_some());
    let visible = mask.visible_tensor(&device).into_dispatch();
    let [q, k, v] = [q, k, v].map(dispatched);
    Tensor::from_dispatch(match body {
        AttentionBody::Flash => Dispatch::flash_attention(q, k, v, visible, scores.scale).0,
        _ => Dispatch::attention(q, k, v, visible, mask.ranges().clone(), scores),
    })
}

/// What [`attention`] of rows of `seq` tokens holds: it keeps q, k and v; [`AttentionBody::Flash`] also the output
/// and the softmaxes' totals. The backward pass of [`AttentionBody::Blocks`] forms the scores of a block of queries
/// and the weights' gradients (both f32), the weights and the scores' gradients; and gradients of k and v in f32.
pub(crate) fn attention_meta(
    [q, k, v]: [MetaTensor; 3],
    seq: usize,
    heads: usize,
    body: AttentionBody,
) -> MetaTensor {
    let size = q.ledger().activation_size();
    let op = MetaOp::of([q.clone(), k.clone(), v.clone()]);
    let op = match body {
        AttentionBody::Cache => op.keeps_narrowed(&q).keeps_narrowed(&k).keeps_narrowed(&v),
        AttentionBody::Blocks => {
            let scores = q.rows * heads * seq.min(QUERY_BLOCK);
            let keys = k.rows * (k.width + v.width);
            let op = op.keeps(&q).keeps(&k).keeps(&v);
            op.forms_in_backward(2 * scores * (F32 + size) + keys * (F32 - size))
        }
        AttentionBody::Flash => {
            let op = op.keeps(&q).keeps(&k).keeps(&v);
            op.keeps(&q.beside(heads * F32 / size)).keeps_output()
        }
    };
    op.output(q.width)
}
