use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::TransformerDecoder;
use crate::lora::{AttnModule, LoRAConfig, MlpModule};
use crate::settings::setters;
use crate::{Error, Result};

/// The families of models whose layers are alike. Other programs choose a tokenizer by them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelType {
    /// Llama.
    #[default]
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
}

/// The sizes of a Llama-like decoder: those of a published model, or one of them with other values.
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
    /// What a saved `config.json` calls the model, where the biases allow it.
    #[serde(default)]
    pub model_type: ModelType,
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
    /// How many tokens attention looks back, where that is bounded (Mistral). It is not applied: see
    /// [`context_len`](Self::context_len).
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// The epsilon of the RMS norms.
    pub norm_eps: f64,
    /// The base of the rotary embedding's frequencies.
    pub rope_base: f64,
    /// How the frequencies are stretched for a longer context.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output projection is the embedding's weight.
    pub tie_embeddings: bool,
    /// Whether the query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_proj_bias: bool,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up batches, for other programs: saved as it was read.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
}

/// A change of the rotary embedding's frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RopeScaling {
    /// All frequencies divided by a factor (position interpolation).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept, smoothly in between (Llama 3.1).
    Llama3 {
        /// The factor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_seq_len / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_seq_len / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context that the model was first trained for, in tokens.
        original_max_seq_len: usize,
    },
}

impl LlamaConfig {
    /// Llama 2 7B.
    pub fn llama2_7b() -> Self {
        Self::llama2(32, 32, 32, 4096, 11008)
    }

    /// Llama 2 13B.
    pub fn llama2_13b() -> Self {
        Self::llama2(40, 40, 40, 5120, 13824)
    }

    /// Llama 2 70B.
    pub fn llama2_70b() -> Self {
        Self::llama2(80, 64, 8, 8192, 28672)
    }

    /// Llama 3 8B.
    pub fn llama3_8b() -> Self {
        Self {
            vocab_size: 128_256,
            num_kv_heads: 8,
            intermediate_dim: 14336,
            max_seq_len: 8192,
            rope_base: 5e5,
            bos_token_id: Some(128_000),
            eos_token_ids: vec![128_001],
            ..Self::llama2_7b()
        }
    }

    /// Llama 3.1 8B.
    pub fn llama3_1_8b() -> Self {
        Self {
            max_seq_len: 131_072,
            rope_scaling: Some(RopeScaling::llama3(8.0)),
            ..Self::llama3_8b()
        }
    }

    /// Llama 3.1 70B.
    pub fn llama3_1_70b() -> Self {
        Self {
            num_layers: 80,
            num_heads: 64,
            embed_dim: 8192,
            intermediate_dim: 28672,
            ..Self::llama3_1_8b()
        }
    }

    /// Llama 3.2 1B.
    pub fn llama3_2_1b() -> Self {
        Self {
            num_layers: 16,
            head_dim: 64,
            embed_dim: 2048,
            intermediate_dim: 8192,
            rope_scaling: Some(RopeScaling::llama3(32.0)),
            tie_embeddings: true,
            ..Self::llama3_1_8b()
        }
    }

    /// Llama 3.2 3B.
    pub fn llama3_2_3b() -> Self {
        Self {
            num_layers: 28,
            num_heads: 24,
            head_dim: 128,
            embed_dim: 3072,
            ..Self::llama3_2_1b()
        }
    }

    fn llama2(layers: usize, heads: usize, kv_heads: usize, dim: usize, ffn: usize) -> Self {
        Self {
            model_type: ModelType::Llama,
            vocab_size: 32000,
            num_layers: layers,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim / heads,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 4096,
            sliding_window: None,
            norm_eps: 1e-5,
            rope_base: 1e4,
            rope_scaling: None,
            tie_embeddings: false,
            qkv_bias: false,
            output_proj_bias: false,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: None,
        }
    }

    /// The longest sequence that the model is right for. Attention sees all of it, which equals a sliding
    /// window up to the window's length.
    pub fn context_len(&self) -> usize {
        let window = self.sliding_window.unwrap_or(self.max_seq_len);
        window.min(self.max_seq_len)
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

    setters! {
        with_model_type => model_type: ModelType,
        with_vocab_size => vocab_size: usize,
        with_num_layers => num_layers: usize,
        with_num_heads => num_heads: usize,
        with_num_kv_heads => num_kv_heads: usize,
        with_head_dim => head_dim: usize,
        with_embed_dim => embed_dim: usize,
        with_intermediate_dim => intermediate_dim: usize,
        with_max_seq_len => max_seq_len: usize,
        with_sliding_window => sliding_window: Option<usize>,
        with_norm_eps => norm_eps: f64,
        with_rope_base => rope_base: f64,
        with_rope_scaling => rope_scaling: Option<RopeScaling>,
        with_tie_embeddings => tie_embeddings: bool,
        with_qkv_bias => qkv_bias: bool,
        with_output_proj_bias => output_proj_bias: bool,
        with_bos_token_id => bos_token_id: Option<u32>,
        with_eos_token_ids => eos_token_ids: Vec<u32>,
        with_pad_token_id => pad_token_id: Option<u32>,
    }

    /// Checks that the sizes make up a model.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the size that cannot be used.
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
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return invalid(name, "must be at least 1".into());
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv) = (self.num_heads, self.num_kv_heads);
            let message = format!("{heads} query heads cannot share {kv} key heads evenly");
            return invalid("num_kv_heads", message);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            let message = format!(
                "rotary embedding needs an even width, not {}",
                self.head_dim
            );
            return invalid("head_dim", message);
        }
        Ok(())
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

impl RopeScaling {
    /// Llama 3.1's scaling with its own bounds.
    pub fn llama3(factor: f64) -> Self {
        Self::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_seq_len: 8192,
        }
    }
}
