use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Shape, Tensor};

use super::backend::StepOps;

/// Which keys each query sees: a range of them.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    ranges: KeyRanges,
    /// The same on the first device that asked, see [`AttentionMask::visible_tensor`].
    on_device: Arc<OnceLock<(Device, Tensor<3, Int>)>>,
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
    /// If there are not `seq` ranges in each row, or a range of keys is reversed or ends after the keys.
    pub fn new(seq: usize, keys: usize, visible: Vec<Range<usize>>) -> Self {
        assert!(
            visible.len().is_multiple_of(seq.max(1)),
            "a row is not whole"
        );
        let is_inside = |range: &Range<usize>| range.start <= range.end && range.end <= keys;
        assert!(
            visible.iter().all(is_inside),
            "a range of keys is reversed or ends after the keys"
        );
        Self {
            ranges: KeyRanges(Arc::new(Ranges { visible, seq, keys })),
            on_device: Arc::default(),
        }
    }

    pub(crate) fn ranges(&self) -> &KeyRanges {
        &self.ranges
    }

    /// The first key that each query sees and the one after the last, `[batch or 1, seq, 2]`, made
    /// once for one device.
    pub(super) fn visible_tensor(&self, device: &Device) -> Tensor<3, Int> {
        let Ranges { visible, seq, .. } = &*self.ranges.0;
        let new = || {
            let bounds = visible.iter().flat_map(|range| [range.start, range.end]);
            let bounds: Vec<i32> = bounds.map(|bound| bound as i32).collect();
            let shape = [visible.len() / seq, *seq, 2];
            // Rows of two numbers would not lie one after another on every device.
            Tensor::<1, Int>::from_ints(&bounds[..], device).reshape(shape)
        };
        let (first, tensor) = self.on_device.get_or_init(|| (device.clone(), new()));
        match first == device {
            true => tensor.clone(),
            false => new(),
        }
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

/// How `device` runs the attention of heads of `head_dim` numbers of type `dtype`.
pub fn attention_body(device: &Device, dtype: DType, head_dim: usize) -> AttentionBody {
    #[cfg(feature = "cube")]
    if super::cube::has_flash_attention(device, dtype, head_dim) {
        return AttentionBody::Flash;
    }
    #[cfg(not(feature = "cube"))]
    let _ = (dtype, head_dim);
    match super::is_fused_cpu(device) {
        true => AttentionBody::Cache,
        false => AttentionBody::Blocks,
    }
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
        mask.ranges.fits(batch, seq, keys),
        "the mask does not fit the heads"
    );
    let device = q.device();
    let body = attention_body(&device, q.dtype(), head_dim);
    let visible = mask.visible_tensor(&device).into_dispatch();
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(match body {
        AttentionBody::Flash => Dispatch::flash_attention(q, k, v, visible).0,
        _ => Dispatch::attention(q, k, v, visible, mask.ranges.clone()),
    })
}
