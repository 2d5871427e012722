use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

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
    /// The span that the mask is for.
    pub(super) span: Span,
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

    fn new(
        config: &LlamaConfig,
        positions: &[usize],
        seq: usize,
        mask: impl Fn(Span) -> AttentionMask,
        device: &Device,
    ) -> Self {
        let kinds = config.attention_kinds().into_iter();
        let attention = kinds.map(|LayerAttention { span, rotary }| AttentionContext {
            rope: config.rope_of(rotary).map(|rope| {
                RotaryEmbedding::new(&rope, config.rotated_dim(), positions, seq, device)
            }),
            query_scale: query_scale(config, positions, seq, device),
            mask: mask(span),
            span,
        });
        Self {
            attention: attention.collect(),
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

fn query_scale(
    config: &LlamaConfig,
    positions: &[usize],
    seq: usize,
    device: &Device,
) -> Option<Tensor<4>> {
    let scaling = config.query_scaling?;
    let factors: Vec<f32> = positions.iter().map(|at| scaling.factor(*at)).collect();
    let data = TensorData::new(factors, [positions.len() / seq, seq, 1, 1]);
    Some(Tensor::from_data(data, (device, DType::F32)))
}

/// What a forward pass on tensors without numbers is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetaContext {
    /// The tokens of a row.
    pub seq: usize,
    /// How the attention runs.
    pub attention: AttentionBody,
}
