use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{
    Block, Experts, LayerAttention, QueryScaling, RMSNorm, Rope, RopeScaling, Rotary,
    TransformerDecoder,
};
use crate::lora::{AttnModule, LoRAConfig, MlpModule};
use crate::settings::setters;
use crate::{Error, Result};

/// The sizes and switches of a decoder: those of a published model, or one of them with other values.
///
/// ```
/// use burn_peft::llama::LlamaConfig;
///
/// let config = LlamaConfig::llama2_7b().with_num_layers(2).with_vocab_size(100);
/// assert_eq!(config.embed_dim, 4096);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// The family by its name in `config.json` (`llama`, `qwen3`): what a saved one calls the model, where that family
    /// has such layers.
    #[serde(default = "llama")]
    pub model_type: String,
    /// The number of token ids.
    pub vocab_size: usize,
    /// The number of decoder layers.
    pub num_layers: usize,
    /// The number of query heads.
    pub num_heads: usize,
    /// The number of key and value heads; fewer than query heads in grouped-query attention.
    pub num_kv_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// The width of the hidden state.
    pub embed_dim: usize,
    /// The width inside the feed-forward block.
    pub intermediate_dim: usize,
    /// The longest sequence that the model was trained for.
    pub max_seq_len: usize,
    /// The switches of a layer.
    #[serde(default)]
    pub block: Block,
    /// The experts that some layers have in the place of their feed-forward block.
    #[serde(default)]
    pub experts: Option<Experts>,
    /// What the attention of each layer sees, and how it is told positions: this list, repeated. Empty is full
    /// attention with the rotary embedding in all, see [`LayerAttention::pattern`].
    #[serde(default)]
    pub layer_attention: Vec<LayerAttention>,
    /// The epsilon of the RMS norms.
    pub norm_eps: f64,
    /// The base of the rotary embedding's frequencies.
    pub rope_base: f64,
    /// How the frequencies are stretched for a longer context.
    pub rope_scaling: Option<RopeScaling>,
    /// The rotary embedding of layers that have another one ([`Rotary::Local`]).
    #[serde(default)]
    pub local_rope: Option<Rope>,
    /// The numbers of each head that are rotated, the first ones; all if it is not given.
    #[serde(default)]
    pub rotary_dim: Option<usize>,
    /// A factor of the queries that grows with the position.
    #[serde(default)]
    pub query_scaling: Option<QueryScaling>,
    /// What embedded tokens are multiplied by.
    #[serde(default)]
    pub embedding_scale: Option<f64>,
    /// What logits are divided by.
    #[serde(default)]
    pub logit_divisor: Option<f64>,
    /// The soft cap c of the logits x, `c · tanh(x / c)`.
    #[serde(default)]
    pub logit_cap: Option<f64>,
    /// Whether the output projection is the embedding's weight.
    pub tie_embeddings: bool,
    /// Whether the query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_proj_bias: bool,
    /// Whether the projections of the feed-forward block have a bias.
    #[serde(default)]
    pub mlp_bias: bool,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up batches, for other programs: saved as it was read.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
    /// What a `config.json` holds beside this.
    #[serde(default)]
    pub(crate) other_fields: OtherFields,
}

/// Fields of a file that say nothing of the model here, to be saved as they were read. Configurations that differ in
/// them alone are equal.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct OtherFields(pub serde_json::Map<String, serde_json::Value>);

impl PartialEq for OtherFields {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// More tokens than any model reads, of which sizes can still be formed.
const MAX_CONTEXT: usize = 1 << 30;

impl LlamaConfig {
    /// The longest sequence that the model is made for: what it was trained for, times the factor of a rotary embedding
    /// that grows with the sequence.
    pub fn context_len(&self) -> usize {
        match self.rope_scaling {
            Some(RopeScaling::Dynamic { factor, .. }) => {
                (self.max_seq_len as f64 * factor) as usize
            }
            _ => self.max_seq_len,
        }
    }

    /// The rotary embedding.
    pub fn rope(&self) -> Rope {
        Rope::new(self.rope_base).with_scaling(self.rope_scaling.clone())
    }

    /// The rotary embedding of some layers; none if they do not rotate.
    pub(super) fn rope_of(&self, rotary: Rotary) -> Option<Rope> {
        match rotary {
            Rotary::Global => Some(self.rope()),
            Rotary::Local => Some(self.local_rope.clone().unwrap_or_else(|| self.rope())),
            Rotary::None => None,
        }
    }

    /// The numbers of each head that are rotated.
    pub(crate) fn rotated_dim(&self) -> usize {
        self.rotary_dim.unwrap_or(self.head_dim)
    }

    /// What the attention of a layer sees, and how it is told positions.
    pub fn attention_of(&self, layer: usize) -> LayerAttention {
        match &self.layer_attention[..] {
            [] => LayerAttention::default(),
            pattern => pattern[layer % pattern.len()],
        }
    }

    /// The kinds of attention that the layers have, each once.
    pub fn attention_kinds(&self) -> Vec<LayerAttention> {
        let mut kinds = Vec::new();
        for attention in (0..self.num_layers).map(|layer| self.attention_of(layer)) {
            if !kinds.contains(&attention) {
                kinds.push(attention);
            }
        }
        kinds
    }

    /// The kind of a layer, as its index in [`Self::attention_kinds`].
    pub(super) fn attention_kind(&self, layer: usize) -> usize {
        let (kinds, own) = (self.attention_kinds(), self.attention_of(layer));
        let index = kinds.iter().position(|kind| *kind == own);
        index.expect("the kinds of all layers")
    }

    /// The experts of a layer that has some.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts
            .as_ref()
            .filter(|experts| experts.are_in(layer))
    }

    /// A norm of the model's kind over vectors of width `dim`.
    pub(super) fn norm(&self, dim: usize, device: &Device) -> RMSNorm {
        match self.block.unit_offset {
            true => RMSNorm::with_unit_offset(dim, self.norm_eps, device),
            false => RMSNorm::new(dim, self.norm_eps, device),
        }
    }

    /// The width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// `(in_dim, out_dim)` of an attention projection.
    pub fn attn_dims(&self, module: AttnModule) -> (usize, usize) {
        match module {
            AttnModule::QProj => (self.embed_dim, self.q_dim()),
            AttnModule::KProj | AttnModule::VProj => (self.embed_dim, self.kv_dim()),
            AttnModule::OutputProj => (self.q_dim(), self.embed_dim),
        }
    }

    /// `(in_dim, out_dim)` of a feed-forward projection.
    pub fn mlp_dims(&self, module: MlpModule) -> (usize, usize) {
        match module {
            MlpModule::W1 | MlpModule::W3 => (self.embed_dim, self.intermediate_dim),
            MlpModule::W2 => (self.intermediate_dim, self.embed_dim),
        }
    }

    /// The same of another family, by its name in `config.json`.
    pub fn with_model_type(mut self, model_type: impl Into<String>) -> Self {
        self.model_type = model_type.into();
        self
    }

    setters! {
        with_vocab_size => vocab_size: usize,
        with_num_layers => num_layers: usize,
        with_num_heads => num_heads: usize,
        with_num_kv_heads => num_kv_heads: usize,
        with_head_dim => head_dim: usize,
        with_embed_dim => embed_dim: usize,
        with_intermediate_dim => intermediate_dim: usize,
        with_max_seq_len => max_seq_len: usize,
        with_block => block: Block,
        with_experts => experts: Option<Experts>,
        with_layer_attention => layer_attention: Vec<LayerAttention>,
        with_norm_eps => norm_eps: f64,
        with_rope_base => rope_base: f64,
        with_rope_scaling => rope_scaling: Option<RopeScaling>,
        with_local_rope => local_rope: Option<Rope>,
        with_rotary_dim => rotary_dim: Option<usize>,
        with_query_scaling => query_scaling: Option<QueryScaling>,
        with_embedding_scale => embedding_scale: Option<f64>,
        with_logit_divisor => logit_divisor: Option<f64>,
        with_logit_cap => logit_cap: Option<f64>,
        with_tie_embeddings => tie_embeddings: bool,
        with_qkv_bias => qkv_bias: bool,
        with_output_proj_bias => output_proj_bias: bool,
        with_mlp_bias => mlp_bias: bool,
        with_bos_token_id => bos_token_id: Option<u32>,
        with_eos_token_ids => eos_token_ids: Vec<u32>,
        with_pad_token_id => pad_token_id: Option<u32>,
    }

    /// Checks that sizes and numbers make up a model.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the one that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let invalid = |name, message: String| Err(Error::InvalidArgument { name, message });
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("embed_dim", self.embed_dim),
            ("intermediate_dim", self.intermediate_dim),
            ("max_seq_len", self.max_seq_len),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return invalid(name, "must be at least 1".into());
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv) = (self.num_heads, self.num_kv_heads);
            let message = format!("{heads} query heads cannot share {kv} key heads evenly");
            return invalid("num_kv_heads", message);
        }
        self.validate_widths()?;
        self.validate_numbers()?;
        self.validate_rotary()?;
        let context = self.context_len();
        if !(1..=MAX_CONTEXT).contains(&context) {
            let message = format!("a context of {context} tokens; must be from 1 to {MAX_CONTEXT}");
            return invalid("max_seq_len", message);
        }
        if let Some(experts) = &self.experts {
            experts.validate()?;
        }
        let mut spans = self.layer_attention.iter().map(|layer| layer.span);
        if spans.any(|span| span.tokens() == Some(0)) {
            return invalid("sliding_window", "must be at least 1".into());
        }
        Ok(())
    }

    /// Checks what is neither a size nor of the rotary embedding: a model computes no number by a norm of epsilon -1.
    fn validate_numbers(&self) -> Result<()> {
        let invalid = |name, message: String| Err(Error::InvalidArgument { name, message });
        // In f32, in which they serve, too.
        if !((self.norm_eps as f32).is_finite() && self.norm_eps >= 0.0) {
            let message = format!("must be a number from 0 up, not {}", self.norm_eps);
            return invalid("norm_eps", message);
        }
        let above_zero = [
            ("embedding_scale", self.embedding_scale),
            ("logit_divisor", self.logit_divisor),
            ("logit_cap", self.logit_cap),
            ("score_scale", self.block.score_scale),
            ("score_cap", self.block.score_cap),
            ("residual_scale", self.block.residual_scale),
        ];
        for (name, number) in above_zero {
            if let Some(number) = number.filter(|number| !is_above_zero(*number)) {
                return invalid(name, format!("must be a number above 0, not {number}"));
            }
        }
        if let Some(QueryScaling {
            beta,
            original_max_seq_len,
        }) = self.query_scaling
            && !((beta as f32).is_finite() && original_max_seq_len > 0)
        {
            let message = format!(
                "needs a number and a context of at least 1, not {beta} and {original_max_seq_len}"
            );
            return invalid("query_scaling", message);
        }
        Ok(())
    }

    /// Checks that the number of bytes of every weight is a number.
    fn validate_widths(&self) -> Result<()> {
        let heads = self.num_heads.checked_mul(self.head_dim);
        let experts = self.experts.as_ref();
        let experts = experts.map_or(Some(1), |it| it.count.checked_mul(it.intermediate_dim));
        let widths = [
            heads,
            experts,
            Some(self.vocab_size),
            Some(self.intermediate_dim),
        ];
        // Gate and up in one weight, in numbers of 8 bytes.
        let row = self.embed_dim.checked_mul(2 * 8);
        let bytes = |width: Option<usize>| width?.checked_mul(row?);
        match widths.into_iter().all(|width| bytes(width).is_some()) {
            true => Ok(()),
            false => Err(Error::InvalidArgument {
                name: "embed_dim",
                message: "with these sizes a weight is larger than any memory".to_owned(),
            }),
        }
    }

    fn validate_rotary(&self) -> Result<()> {
        let invalid = |name, message: String| Err(Error::InvalidArgument { name, message });
        let rotary_dim = self.rotated_dim();
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > self.head_dim {
            let message = format!(
                "rotary embedding needs an even width, at most that of a head, not {rotary_dim}"
            );
            let name = if self.rotary_dim.is_some() {
                "rotary_dim"
            } else {
                "head_dim"
            };
            return invalid(name, message);
        }
        let ropes = [
            self.rope(),
            self.local_rope.clone().unwrap_or_else(|| self.rope()),
        ];
        ropes.iter().try_for_each(|rope| rope.validate(rotary_dim))
    }

    /// A model of these sizes without adapters, with random weights. Nothing is allocated before
    /// a parameter is used or loaded.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) fails.
    pub fn init(&self, device: &Device) -> TransformerDecoder {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        TransformerDecoder::new(self, device)
    }

    /// A model of these sizes with new adapters; everything but the adapters is frozen. Nothing is
    /// allocated before a parameter is used or loaded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the sizes or the LoRA configuration cannot be used.
    pub fn init_lora(&self, lora: &LoRAConfig, device: &Device) -> Result<TransformerDecoder> {
        self.validate()?;
        TransformerDecoder::new(self, device).with_adapters(lora)
    }
}

/// In f32 too, in which it serves.
pub(super) fn is_above_zero(number: f64) -> bool {
    (number as f32).is_finite() && number as f32 > 0.0
}

/// The family of configurations that name none.
fn llama() -> String {
    "llama".to_owned()
}
