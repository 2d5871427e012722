use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Shape, Tensor};

use super::backend::StepOps;

/// Which keys each query sees: a range of them.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    ranges: KeyRanges,
    /// The same for bodies that run on a device, see [`AttentionMask::visible_tensor`].
    on_device: Arc<OnceLock<Tensor<3, Int>>>,
}

/// The ranges of a mask without the tensor. They go with an operation that Burn's fusion runs later, on
/// a thread on which no tensor may be dropped.
#[derive(Debug, Clone)]
pub struct KeyRanges(Arc<Ranges>);

#[derive(Debug)]
struct Ranges {
    /// Row by row.
    visible: Vec<Range<usize>>,
    seq: usize,
    keys: usize,
}

impl AttentionMask {
    /// A mask for `seq` queries and `keys` keys a row; `visible` are the ranges of keys, query by
    /// query and row by row, or those of one row for all.
    ///
    /// # Panics
    /// If there are not `seq` ranges in each row, or one ends after the keys.
    pub fn new(seq: usize, keys: usize, visible: Vec<Range<usize>>) -> Self {
        assert!(
            visible.len().is_multiple_of(seq.max(1)),
            "a row is not whole"
        );
        let is_inside = |range: &Range<usize>| range.start <= range.end && range.end <= keys;
        assert!(visible.iter().all(is_inside), "a range ends after the keys");
        Self {
            ranges: KeyRanges(Arc::new(Ranges { visible, seq, keys })),
            on_device: Arc::default(),
        }
    }

    pub(crate) fn ranges(&self) -> &KeyRanges {
        &self.ranges
    }

    /// The first key that each query sees and the one after the last, `[batch or 1, seq, 2]`, made
    /// once.
    pub(super) fn visible_tensor(&self, device: &Device) -> Tensor<3, Int> {
        let Ranges { visible, seq, .. } = &*self.ranges.0;
        let new = || {
            let bounds = visible.iter().flat_map(|range| [range.start, range.end]);
            let bounds: Vec<i32> = bounds.map(|bound| bound as i32).collect();
            let shape = [visible.len() / seq, *seq, 2];
            // Rows of two numbers would not lie one after another on every device.
            Tensor::<1, Int>::from_ints(&bounds[..], device).reshape(shape)
        };
        self.on_device.get_or_init(new).clone()
    }
}

impl KeyRanges {
    /// The queries of a row.
    pub fn seq(&self) -> usize {
        self.0.seq
    }

    /// The keys of a row.
    pub fn keys(&self) -> usize {
        self.0.keys
    }

    fn fits(&self, batch: usize, seq: usize, keys: usize) -> bool {
        let Ranges { visible, .. } = &*self.0;
        let rows_fit = visible.len() == seq || visible.len() == batch * seq;
        rows_fit && self.seq() == seq && self.keys() == keys
    }

    /// What the queries `rows` of the row `batch` see.
    pub fn visible(&self, batch: usize, rows: Range<usize>) -> &[Range<usize>] {
        let Ranges { visible, seq, .. } = &*self.0;
        let start = (batch * seq) % visible.len();
        &visible[start + rows.start..start + rows.end]
    }
}

/// Whether the attention forms the scores of a block of queries in memory, those of all rows and heads
/// at a time: for heads of `head_dim` numbers of type `dtype`.
pub(crate) fn forms_scores(device: &Device, dtype: DType, head_dim: usize) -> bool {
    #[cfg(feature = "cube")]
    if let Some(forms_scores) = super::cube::forms_scores(device, dtype, head_dim) {
        return forms_scores;
    }
    #[cfg(not(feature = "cube"))]
    let _ = (dtype, head_dim);
    !super::is_fused_cpu(device)
}

/// The sizes of `q`, `[batch, seq, heads, head_dim]`, and of `k` and `v`,
/// `[batch, keys, kv_heads, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub keys: usize,
    pub kv_heads: usize,
}

impl Sizes {
    pub fn new(q: &Shape, k: &Shape) -> Self {
        let [batch, seq, heads, head_dim] = q.dims();
        let [_, keys, kv_heads, _] = k.dims();
        Self {
            batch,
            seq,
            heads,
            head_dim,
            keys,
            kv_heads,
        }
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}

/// Attention with grouped queries: `softmax(q kᵀ / sqrt(head_dim)) v` over the keys that `mask`
/// shows. Vaswani et al., <https://arxiv.org/abs/1706.03762>; Ainslie et al.,
/// <https://arxiv.org/abs/2305.13245>. No scores are kept: the backward pass forms them again, some
/// queries at a time (Dao et al., <https://arxiv.org/abs/2205.14135>). Scores are f32 whatever `q` is.
///
/// # Shapes
/// - `q`: `[batch, seq, heads, head_dim]`, output the same
/// - `k`, `v`: `[batch, keys, kv_heads, head_dim]`
///
/// # Panics
/// If the shapes do not fit each other and `mask`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
    let [batch, seq, heads, head_dim] = q.dims();
    let [_, keys, kv_heads, _] = k.dims();
    let fits = k.dims() == [batch, keys, kv_heads, head_dim] && k.dims() == v.dims();
    assert!(
        fits && heads % kv_heads == 0,
        "the heads do not fit each other"
    );
    assert!(
        mask.ranges.fits(batch, seq, keys),
        "the mask does not fit the heads"
    );
    let visible = mask.visible_tensor(&q.device());
    Tensor::from_dispatch(Dispatch::attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        visible.into_dispatch(),
        mask.ranges.clone(),
    ))
}
