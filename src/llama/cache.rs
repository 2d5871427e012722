use burn::tensor::Tensor;

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

/// The keys and values of one layer, `[batch, len, kv_heads, head_dim]` each.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
}

impl LayerCache {
    /// Appends keys and values of new positions and returns those of all positions.
    pub(super) fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let all = match self.keys_values.take() {
            None => (key, value),
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key], 1),
                Tensor::cat(vec![values, value], 1),
            ),
        };
        self.keys_values = Some(all.clone());
        all
    }
}
