use burn::tensor::Tensor;

use super::Span;

/// The keys and values that a decoder has seen, one [`LayerCache`] a layer, for generation token by
/// token.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

impl KvCache {
    /// An empty cache for a model of `num_layers` layers.
    pub fn new(num_layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); num_layers],
            len: 0,
        }
    }

    /// How many positions are in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the cache yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    pub(super) fn advance(&mut self, positions: usize) {
        self.len += positions;
    }
}

/// The keys and values of one layer that later queries see, `[batch, kept, kv_heads, head_dim]` each.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
    /// The positions so far, those that are no more kept too.
    positions: usize,
}

impl LayerCache {
    /// Appends keys and values of new positions; returns those that are kept, then the new ones.
    pub(super) fn append(
        &mut self,
        keys: Tensor<4>,
        values: Tensor<4>,
        span: Span,
    ) -> (Tensor<4>, Tensor<4>) {
        let [_, new, ..] = keys.dims();
        self.positions += new;
        let all = match self.keys_values.take() {
            None => (keys, values),
            Some((kept_keys, kept_values)) => (
                Tensor::cat(vec![kept_keys, keys], 1),
                Tensor::cat(vec![kept_values, values], 1),
            ),
        };
        self.keys_values = self.seen_later(&all, span);
        all
    }

    /// Those that the next query sees; none is what no query sees.
    fn seen_later(
        &self,
        (keys, values): &(Tensor<4>, Tensor<4>),
        span: Span,
    ) -> Option<(Tensor<4>, Tensor<4>)> {
        let [_, len, ..] = keys.dims();
        let kept = span.seen_before(self.positions);
        let last = |all: &Tensor<4>| match kept == len {
            true => all.clone(),
            false => all.clone().narrow(1, len - kept, kept),
        };
        (kept > 0).then(|| (last(keys), last(values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn keys(range: std::ops::Range<i64>) -> Tensor<4> {
        Tensor::<1, burn::tensor::Int>::arange(range, &Device::default())
            .float()
            .reshape([1, -1, 1, 1])
    }

    #[test]
    fn a_window_is_all_that_is_kept() {
        let mut cache = LayerCache::default();
        let mut appended = |range: std::ops::Range<i64>, span| {
            let (keys, _) = cache.append(keys(range.clone()), keys(range), span);
            keys.into_data().iter::<f32>().collect::<Vec<_>>()
        };
        let window = Span::Window(3);
        assert_eq!(appended(0..5, window), [0., 1., 2., 3., 4.]);
        assert_eq!(appended(5..6, window), [3., 4., 5.]);
        assert_eq!(appended(6..8, window), [4., 5., 6., 7.]);
    }
}
