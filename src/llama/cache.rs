use std::ops::Range;

use burn::tensor::{Device, Int, Tensor};

use super::{AttentionMask, Context, LlamaConfig, Span};

/// The keys and values that a decoder has seen, one [`LayerCache`] a layer, for generation token by
/// token. Layers with a window keep what the window shows.
///
/// Rows may be of different lengths, and [`TransformerDecoder::forward_cached_padded`] takes them padded on either
/// side: the cache keeps each row's tokens side by side, so that no later token sees padding.
/// [`Self::take_rows`] copies rows: it forks a prompt that several answers begin with, and drops rows that have ended.
///
/// ```
/// use burn::prelude::*;
/// use burn_peft::checkpoint::{load_hf, read_hf_config};
/// use burn_peft::llama::KvCache;
///
/// # fn main() -> burn_peft::Result<()> {
/// let (dir, device) = ("examples/assets/tiny", Device::default());
/// let mut model = read_hf_config(dir)?.init(&device);
/// load_hf(&mut model, dir)?;
/// let prompt = Tensor::<2, Int>::from_ints([[1, 7, 3]], &device);
///
/// let mut cache = KvCache::new(model.config.num_layers);
/// let mut logits = model.forward_cached(prompt, &mut cache).repeat(&[2, 1]); // [2, vocab_size]
/// let mut cache = cache.take_rows(&[0, 0]); // two answers
/// for _ in 0..4 {
///     let next = logits.argmax(1); // [2, 1]; here the likeliest token
///     logits = model.forward_cached(next, &mut cache);
/// }
/// assert_eq!(cache.lengths(), [7, 7]);
/// # Ok(())
/// # }
/// ```
///
/// [`TransformerDecoder::forward_cached_padded`]: super::TransformerDecoder::forward_cached_padded
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// The positions of each row so far; none before the first pass.
    lengths: Vec<usize>,
}

impl KvCache {
    /// An empty cache for a model of `num_layers` layers.
    pub fn new(num_layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); num_layers],
            lengths: Vec::new(),
        }
    }

    /// How many positions are in the longest row.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether nothing is in the cache yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many positions are in each row; empty before the first pass.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The cache of other rows, each a copy of one of these.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn take_rows(&self, rows: &[usize]) -> Self {
        let lengths = rows.iter().map(|row| self.lengths[*row]).collect();
        let layers = self.layers.iter().map(|layer| layer.take_rows(rows));
        Self {
            layers: layers.collect(),
            lengths,
        }
    }

    /// Forgets what follows the first `len` tokens of the only row. False, and nothing changes, if a window of some layer
    /// no longer shows all that these see.
    pub(crate) fn truncate(&mut self, len: usize) -> bool {
        let length = self.len();
        let is_whole = |layer: &LayerCache| layer.used.len() == length;
        if self.lengths.len() != 1 || !(len == length || self.layers.iter().all(is_whole)) {
            return false;
        }
        let dropped = length.saturating_sub(len);
        self.lengths[0] -= dropped;
        let layers = self.layers.iter_mut();
        layers.for_each(|layer| layer.used.end -= dropped);
        true
    }

    /// The context of tokens that follow those in the cache, `new` in each row and then padding up to `seq`.
    pub(super) fn context(
        &self,
        config: &LlamaConfig,
        new: &[usize],
        seq: usize,
        device: &Device,
    ) -> Context {
        let rows = self.rows(new);
        let growth_of = |kind, span| {
            let index = (0..self.layers.len()).find(|index| config.attention_kind(*index) == kind);
            let layer = index.map(|index| &self.layers[index]);
            layer.expect(FEWER_LAYERS).growth(span, &rows, seq)
        };
        let kinds = config.attention_kinds().into_iter().enumerate();
        let growths = kinds.map(|(kind, told)| growth_of(kind, told.span));
        // Rows that are alike are told once.
        let are_alike = rows.iter().all(|row| *row == rows[0]);
        let told = if are_alike { &rows[..1] } else { &rows };
        Context::following(config, told, seq, growths.collect(), device)
    }

    /// The positions of each row before the new tokens, and the number of these.
    fn rows(&self, new: &[usize]) -> Vec<(usize, usize)> {
        let fits = self.lengths.is_empty() || self.lengths.len() == new.len();
        assert!(fits, "the cache is of other rows");
        let before = |row| self.lengths.get(row).copied().unwrap_or(0);
        let new = new.iter().enumerate();
        new.map(|(row, count)| (before(row), *count)).collect()
    }

    pub(super) fn layer(&mut self, index: usize) -> &mut LayerCache {
        self.layers.get_mut(index).expect(FEWER_LAYERS)
    }

    /// After a pass over `new` tokens of each row.
    pub(super) fn advance(&mut self, new: &[usize]) {
        let rows = self.rows(new).into_iter();
        self.lengths = rows.map(|(before, new)| before + new).collect();
    }
}

const FEWER_LAYERS: &str = "the cache is of a model with fewer layers";

/// The keys and values of one layer that later queries see, in slots: `[batch, slots, kv_heads, head_dim]` each. The last
/// token of every row lies in the last slot that is used.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
    used: Range<usize>,
}

impl LayerCache {
    /// Puts in keys and values of new positions; returns those of all slots.
    pub(super) fn append(
        &mut self,
        keys: Tensor<4>,
        values: Tensor<4>,
        growth: &Growth,
    ) -> (Tensor<4>, Tensor<4>) {
        let (old_keys, old_values) = self.keys_values.take().unzip();
        let keys = growth.place(old_keys, keys);
        let values = growth.place(old_values, values);
        self.used = growth.used_after();
        self.keys_values = (!self.used.is_empty())
            .then(|| (growth.aligned(keys.clone()), growth.aligned(values.clone())));
        (keys, values)
    }

    /// How `seq` more slots are used, in rows of so many positions before and so many new ones.
    fn growth(&self, span: Span, rows: &[(usize, usize)], seq: usize) -> Growth {
        let capacity = self.keys_values.as_ref().map(|(keys, _)| keys.dims()[1]);
        let padding = rows.iter().map(|(_, new)| seq - new);
        let padding = Vec::from_iter(padding);
        let padding = padding.iter().any(|tokens| *tokens > 0).then_some(padding);
        let keep = rows
            .iter()
            .map(|(before, new)| span.seen_before(before + new));
        let kept = self.used.clone();
        let fits = capacity.is_some_and(|capacity| kept.end + seq <= capacity);
        let len = kept.len() + seq;
        Growth {
            at: if fits { kept.end } else { kept.len() },
            capacity: match capacity {
                Some(capacity) if fits => capacity,
                Some(_) if padding.is_none() => len + (len / 2).max(LEAST_SLACK),
                _ => len,
            },
            moves: !fits,
            keep: keep.max().unwrap_or(0),
            kept,
            seq,
            padding,
        }
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let taken = |all: &Tensor<4>| {
            let rows = Tensor::<1, Int>::from_ints(&rows[..], &all.device());
            all.clone().select(0, rows)
        };
        Self {
            keys_values: self.keys_values.as_ref().map(|(k, v)| (taken(k), taken(v))),
            used: self.used.clone(),
        }
    }
}

/// The fewest slots that a cache which must grow gets for later tokens, so that not every token copies all keys.
const LEAST_SLACK: usize = 64;

/// How the caches of some layers take the keys of a pass.
#[derive(Debug, Clone)]
pub(super) struct Growth {
    /// The slots used before.
    kept: Range<usize>,
    /// Whether these go to the first slots of a new buffer.
    moves: bool,
    /// The slot of the first new key.
    at: usize,
    seq: usize,
    capacity: usize,
    /// How much of `seq` is padding in each row, on the right, if any is.
    padding: Option<Vec<usize>>,
    /// How many slots later queries see.
    keep: usize,
}

impl Growth {
    /// Which slots each query of rows sees, of which each has had so many positions before.
    pub(super) fn mask(&self, span: Span, rows: &[(usize, usize)]) -> AttentionMask {
        let visible = rows.iter().flat_map(|(before, _)| {
            let oldest = before.saturating_sub(self.kept.len());
            (*before..before + self.seq).map(move |position| {
                let first = span.first_seen(position).max(oldest);
                let slot = |position| self.at + position - before;
                slot(first)..slot(position) + 1
            })
        });
        AttentionMask::new(self.seq, self.capacity, visible.collect())
    }

    /// All slots, with those of the new positions filled.
    fn place(&self, old: Option<Tensor<4>>, new: Tensor<4>) -> Tensor<4> {
        let [batch, seq, heads, head_dim] = new.dims();
        let Some(old) = old else {
            return new;
        };
        if !self.moves {
            let slots = [0..batch, self.at..self.at + seq, 0..heads, 0..head_dim];
            return old.slice_assign(slots, new);
        }
        let kept = old.narrow(1, self.kept.start, self.kept.len());
        let room = self.capacity - self.at - seq;
        let options = (&new.device(), new.dtype());
        let mut parts = vec![kept, new];
        if room > 0 {
            parts.push(Tensor::zeros([batch, room, heads, head_dim], options));
        }
        Tensor::cat(parts, 1)
    }

    /// The slots that are kept after the pass.
    fn used_after(&self) -> Range<usize> {
        match self.padding {
            Some(_) => 0..self.keep,
            None => self.at + self.seq - self.keep..self.at + self.seq,
        }
    }

    /// What is kept of all slots. Where rows end in padding, each is turned until its last token is in the last used slot.
    fn aligned(&self, all: Tensor<4>) -> Tensor<4> {
        let Some(padding) = &self.padding else {
            return all;
        };
        let [batch, slots, heads, head_dim] = all.dims();
        // Behind the new ones there may be slots for later tokens.
        let end = self.at + self.seq;
        let first = end - self.keep;
        let sources = padding.iter().enumerate().flat_map(|(row, padding)| {
            let turned = (first..end).map(move |slot| (slot + end - padding) % end);
            turned.map(move |slot| (row * slots + slot) as i32)
        });
        let sources = Vec::from_iter(sources);
        let sources = Tensor::<1, Int>::from_ints(&sources[..], &all.device());
        let flat = all.reshape([batch * slots, heads, head_dim]);
        flat.select(0, sources)
            .reshape([batch, self.keep, heads, head_dim])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that are numbered by row and position.
    fn keys(rows: &[&[i32]]) -> Tensor<4> {
        let numbers: Vec<i32> = rows.concat();
        let keys = Tensor::<1, Int>::from_ints(&numbers[..], &Device::default());
        keys.float()
            .reshape([rows.len() as i32, rows[0].len() as i32, 1, 1])
    }

    /// What the queries of a pass see, row by row.
    fn seen(
        cache: &mut LayerCache,
        span: Span,
        before: &[usize],
        new: &[usize],
        rows: &[&[i32]],
    ) -> Vec<Vec<i32>> {
        let told: Vec<_> = before.iter().copied().zip(new.iter().copied()).collect();
        let seq = rows[0].len();
        let growth = cache.growth(span, &told, seq);
        let mask = growth.mask(span, &told);
        let (all, _) = cache.append(keys(rows), keys(rows), &growth);
        let [_, slots, ..] = all.dims();
        let all: Vec<i32> = all
            .into_data()
            .iter::<f32>()
            .map(|key| key as i32)
            .collect();
        let queries = (0..rows.len()).flat_map(|row| (0..new[row]).map(move |query| (row, query)));
        let seen = queries.map(|(row, query)| {
            let range = mask.ranges().visible(row, query..query + 1)[0].clone();
            all[row * slots..(row + 1) * slots][range].to_vec()
        });
        seen.collect()
    }

    #[test]
    fn a_window_is_all_that_is_seen_however_long_the_text() {
        let (mut cache, span) = (LayerCache::default(), Span::Window(3));
        let got = seen(&mut cache, span, &[0], &[5], &[&[0, 1, 2, 3, 4]]);
        assert_eq!(got.last().unwrap(), &[2, 3, 4]);
        for position in 5..300_i32 {
            let got = seen(&mut cache, span, &[position as usize], &[1], &[&[position]]);
            assert_eq!(got, [[position - 2, position - 1, position]]);
        }
        let (keys, _) = cache.keys_values.unwrap();
        assert!(keys.dims()[1] < 100, "the slots are used again");
    }

    #[test]
    fn rows_of_different_lengths_see_no_padding() {
        for (span, expected) in [
            (Span::Full, [vec![0, 1, 2, 3], vec![10, 13]]),
            (Span::Window(3), [vec![1, 2, 3], vec![10, 13]]),
            (Span::Chunk(3), [vec![3], vec![10, 13]]),
        ] {
            let mut cache = LayerCache::default();
            let rows: [&[i32]; 2] = [&[0, 1, 2], &[10, -1, -1]];
            let got = seen(&mut cache, span, &[0, 0], &[3, 1], &rows);
            assert_eq!(got, [vec![0], vec![0, 1], vec![0, 1, 2], vec![10]]);
            let got = seen(&mut cache, span, &[3, 1], &[1, 1], &[&[3], &[13]]);
            assert_eq!(got, expected, "{span:?}");
            // Another pass with padding, and one after it.
            let rows: [&[i32]; 2] = [&[4, -1], &[14, 15]];
            seen(&mut cache, span, &[4, 2], &[1, 2], &rows);
            let got = seen(&mut cache, span, &[5, 4], &[1, 1], &[&[5], &[16]]);
            let expected = match span {
                Span::Full => [vec![0, 1, 2, 3, 4, 5], vec![10, 13, 14, 15, 16]],
                Span::Window(_) => [vec![3, 4, 5], vec![14, 15, 16]],
                _ => [vec![3, 4, 5], vec![15, 16]],
            };
            assert_eq!(got, expected, "{span:?}");
        }
    }

    #[test]
    fn rows_are_copied() {
        let mut cache = LayerCache::default();
        let rows: [&[i32]; 2] = [&[0, 1], &[10, 11]];
        seen(&mut cache, Span::Full, &[0, 0], &[2, 2], &rows);
        let mut cache = cache.take_rows(&[1, 0, 1]);
        let new: [&[i32]; 3] = [&[12], &[2], &[22]];
        let got = seen(&mut cache, Span::Full, &[2; 3], &[1; 3], &new);
        assert_eq!(got, [[10, 11, 12], [0, 1, 2], [10, 11, 22]]);
    }
}
