use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Int, Shape, Tensor};

use crate::settings::setters;

/// What the attention makes of the products of queries and keys before the softmax:
/// `softmax(cap · tanh(scale · q kᵀ / cap)) v`, without a cap `softmax(scale · q kᵀ) v`.
///
/// A cap keeps all scores between `-cap` and `cap`, as Gemma 2 does. <https://arxiv.org/abs/2408.00118>, section 2.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Scores {
    /// What the products are multiplied by, above zero.
    pub scale: f64,
    /// What no score exceeds, above zero.
    pub cap: Option<f64>,
}

impl Scores {
    /// Those of most models, `q kᵀ / sqrt(head_dim)`.
    pub fn of_head(head_dim: usize) -> Self {
        Self {
            scale: 1.0 / (head_dim as f64).sqrt(),
            cap: None,
        }
    }

    setters! {
        with_scale => scale: f64,
        with_cap => cap: Option<f64>,
    }

    pub(crate) fn assert_valid(&self) {
        let is_valid = |number: f64| number > 0.0 && number.is_finite();
        assert!(
            is_valid(self.scale) && self.cap.is_none_or(is_valid),
            "the scale of scores and their cap must be above zero"
        );
    }
}

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
    pub(crate) fn visible_tensor(&self, device: &Device) -> Tensor<3, Int> {
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

    pub fn fits(&self, batch: usize, seq: usize, keys: usize) -> bool {
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

/// The sizes of `q`, `[batch, seq, heads, head_dim]`, and of `k` and `v`,
/// `[batch, keys, kv_heads, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
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
}
