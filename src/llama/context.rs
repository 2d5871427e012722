use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::cache::Growth;
use super::mask::segment_starts;
use super::{AttentionMask, LayerAttention, LlamaConfig, RotaryEmbedding, Span};
use crate::lora::Routes;
use crate::ops::{AttentionBody, mix, seed_dropout};

/// What a forward pass is told beside the tokens: rotations and masks of their positions, which adapter each row
/// takes, and what dropout follows from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Context {
    /// What each kind of attention is told, in the order of [`LlamaConfig::attention_kinds`].
    attention: Vec<AttentionContext>,
    /// The adapter of each row; none is for all rows the adapter that acts.
    pub routes: Option<Routes>,
    /// What each layer's dropout follows from, with the layer's index; none goes on with what was drawn last.
    pub seed: Option<u64>,
}

/// What the attention of some layers is told of the tokens' positions.
#[derive(Debug, Clone)]
pub struct AttentionContext {
    /// The rotations of the positions; none in layers that do not rotate.
    pub rope: Option<RotaryEmbedding>,
    /// What rotated queries are multiplied by, `[batch or 1, seq, 1, 1]`.
    pub query_scale: Option<Tensor<4>>,
    /// Which keys each query sees.
    pub mask: AttentionMask,
    /// How the layers' caches grow, in the context of a cache.
    pub(super) growth: Option<Growth>,
}

impl Context {
    /// Rows of `seq` tokens, the first of which is at position `start`, each seeing those before it.
    ///
    /// # Panics
    /// If `seq` is 0.
    pub fn causal(config: &LlamaConfig, start: usize, seq: usize, device: &Device) -> Self {
        let positions = Vec::from_iter(start..start + seq);
        let mask = |span| AttentionMask::causal_within(span, start, seq);
        Self::new(config, &positions, seq, mask, device)
    }

    /// Rows of `seq` tokens in which several samples follow each other, without seeing each other; positions begin anew
    /// with each. `segments` are the samples' lengths, row by row.
    ///
    /// # Panics
    /// If `seq` is 0, or the samples of a row are longer than it together.
    pub fn packed(
        config: &LlamaConfig,
        segments: &[Vec<usize>],
        seq: usize,
        device: &Device,
    ) -> Self {
        let starts = segment_starts(segments, seq).into_iter().enumerate();
        let positions: Vec<_> = starts.map(|(index, start)| index % seq - start).collect();
        let mask = |span| AttentionMask::within_segments_and(span, segments, seq);
        Self::new(config, &positions, seq, mask, device)
    }

    /// Rows of one sample each and padding on the right, which no token sees. `lengths` are those of the samples.
    ///
    /// # Panics
    /// If `seq` is 0, or a sample is longer.
    pub fn padded(config: &LlamaConfig, lengths: &[usize], seq: usize, device: &Device) -> Self {
        let segments: Vec<_> = lengths.iter().map(|length| vec![*length]).collect();
        let positions = Vec::from_iter(0..seq);
        let mask = |span| AttentionMask::within_segments_and(span, &segments, seq);
        Self::new(config, &positions, seq, mask, device)
    }

    /// Rows of which each had so many positions before, and has so many tokens now, then padding up to `seq`; `growths`
    /// are those of the kinds of attention. Each row turns by the angles of its own length.
    pub(super) fn following(
        config: &LlamaConfig,
        rows: &[(usize, usize)],
        seq: usize,
        growths: Vec<Growth>,
        device: &Device,
    ) -> Self {
        let positions = rows.iter().flat_map(|(before, _)| *before..before + seq);
        let positions = Positions {
            positions: positions.collect(),
            lengths: rows.iter().map(|(before, new)| before + new).collect(),
            seq,
        };
        let kinds = config.attention_kinds().into_iter().zip(growths);
        let attention = kinds.map(|(told, growth)| {
            let mask = growth.mask(told.span, rows);
            AttentionContext {
                growth: Some(growth),
                ..positions.told(config, told, mask, device)
            }
        });
        Self::of(attention.collect())
    }

    fn new(
        config: &LlamaConfig,
        positions: &[usize],
        seq: usize,
        mask: impl Fn(Span) -> AttentionMask,
        device: &Device,
    ) -> Self {
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let positions = Positions {
            lengths: vec![longest; positions.len() / seq],
            positions: positions.to_vec(),
            seq,
        };
        let kinds = config.attention_kinds().into_iter();
        let attention = kinds.map(|told| positions.told(config, told, mask(told.span), device));
        Self::of(attention.collect())
    }

    fn of(attention: Vec<AttentionContext>) -> Self {
        Self {
            attention,
            routes: None,
            seed: None,
        }
    }

    /// The same with padding on the right hidden, see [`AttentionMask::with_padding`].
    ///
    /// # Panics
    /// If a token follows padding, or the numbers of keys differ.
    pub fn with_padding(mut self, is_token: Option<Tensor<2, Bool>>) -> Self {
        if let Some(is_token) = is_token {
            for attention in &mut self.attention {
                attention.mask = attention.mask.clone().with_padding(is_token.clone());
            }
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

    /// What layers of a kind are told, by its index in [`LlamaConfig::attention_kinds`].
    ///
    /// # Panics
    /// If the context is that of another model.
    pub fn attention(&self, kind: usize) -> &AttentionContext {
        &self.attention[kind]
    }

    /// Lets the dropout of a layer follow from the seed and its index, however often it is computed.
    pub(crate) fn seed_layer(&self, index: usize) {
        if let Some(seed) = self.seed {
            seed_dropout(mix(seed, index as u64));
        }
    }
}

/// The positions of tokens.
struct Positions {
    /// Row by row, `seq` each.
    positions: Vec<usize>,
    /// The length of the text that each row belongs to: some rotations depend on it.
    lengths: Vec<usize>,
    seq: usize,
}

impl Positions {
    fn told(
        &self,
        config: &LlamaConfig,
        LayerAttention { rotary, .. }: LayerAttention,
        mask: AttentionMask,
        device: &Device,
    ) -> AttentionContext {
        let (positions, lengths) = (&self.positions, &self.lengths);
        let rope = config.rope_of(rotary).map(|rope| {
            RotaryEmbedding::of_lengths(&rope, config.rotated_dim(), positions, lengths, device)
        });
        AttentionContext {
            rope,
            query_scale: self.query_scale(config, device),
            mask,
            growth: None,
        }
    }

    fn query_scale(&self, config: &LlamaConfig, device: &Device) -> Option<Tensor<4>> {
        let scaling = config.query_scaling?;
        let positions = self.positions.iter();
        let factors: Vec<f32> = positions.map(|at| scaling.factor(*at)).collect();
        let data = TensorData::new(factors, [self.lengths.len(), self.seq, 1, 1]);
        Some(Tensor::from_data(data, (device, DType::F32)))
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
