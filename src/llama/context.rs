use burn::tensor::{Bool, Device, Tensor};

use super::{AttentionMask, LlamaConfig, RotaryEmbedding};
use crate::lora::Routes;
use crate::ops::{AttentionBody, mix, seed_dropout};

/// What a forward pass is told beside the tokens: rotations and mask of their positions, which adapter each row
/// takes, and what dropout follows from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Context {
    /// The rotations of the positions.
    pub rope: RotaryEmbedding,
    /// Which keys each query sees.
    pub mask: AttentionMask,
    /// The adapter of each row; none is for all rows the adapter that acts.
    pub routes: Option<Routes>,
    /// What each layer's dropout follows from, with the layer's index; none goes on with what was drawn last.
    pub seed: Option<u64>,
}

impl Context {
    /// Rows of `seq` tokens, the first of which is at position `start`, each seeing those before it.
    ///
    /// # Panics
    /// If `seq` is 0.
    pub fn causal(config: &LlamaConfig, start: usize, seq: usize, device: &Device) -> Self {
        Self {
            rope: RotaryEmbedding::new(config, start, seq, device),
            mask: AttentionMask::causal(start, seq),
            routes: None,
            seed: None,
        }
    }

    /// Rows of `seq` tokens in which several samples follow each other, without seeing each other. `segments` are
    /// the samples' lengths, row by row.
    ///
    /// # Panics
    /// If `seq` is 0, or the samples of a row are longer than it together.
    pub fn packed(
        config: &LlamaConfig,
        segments: &[Vec<usize>],
        seq: usize,
        device: &Device,
    ) -> Self {
        Self {
            rope: RotaryEmbedding::within_segments(config, segments, seq, device),
            mask: AttentionMask::within_segments(segments, seq),
            routes: None,
            seed: None,
        }
    }

    /// The same with another mask.
    pub fn with_mask(mut self, mask: AttentionMask) -> Self {
        self.mask = mask;
        self
    }

    /// The same with padding on the right hidden, see [`AttentionMask::with_padding`].
    ///
    /// # Panics
    /// If a token follows padding, or the numbers of keys differ.
    pub fn with_padding(mut self, is_token: Option<Tensor<2, Bool>>) -> Self {
        if let Some(is_token) = is_token {
            self.mask = self.mask.with_padding(is_token);
        }
        self
    }

    /// The same with an adapter for each row.
    pub fn with_routes(mut self, routes: Option<Routes>) -> Self {
        self.routes = routes;
        self
    }

    /// The same with a seed of the layers' dropout.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Lets the dropout of a layer follow from the seed and its index, however often it is computed.
    pub(crate) fn seed_layer(&self, index: usize) {
        if let Some(seed) = self.seed {
            seed_dropout(mix(seed, index as u64));
        }
    }
}

/// What a forward pass on tensors without numbers is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetaContext {
    /// The tokens of a row.
    pub seq: usize,
    /// How the attention runs.
    pub attention: AttentionBody,
}
