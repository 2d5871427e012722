//! Qwen2, Qwen2.5 and Qwen3.

use serde_json::{Map, Value, json};

use super::layers::{layer_types, sliding_layers, window, windowed};
use super::{DEFAULTS, Defaults, Family, Fields, map};
use crate::llama::{Block, LlamaConfig, QkNorm, Rotary, Span};

const QWEN: Defaults = Defaults {
    max_seq_len: 32_768,
    num_kv_heads: Some(32),
    bos: None,
    eos: None,
    ..DEFAULTS
};

/// Biases of q, k and v.
pub static QWEN2: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    defaults: QWEN,
    read: |fields, config| {
        config.qkv_bias = true;
        read_window(fields, config)
    },
    write: write_window,
};

/// A norm of each head of q and k.
pub static QWEN3: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    defaults: Defaults {
        head_dim: Some(128),
        ..QWEN
    },
    read: |fields, config| {
        config.block.qk_norm = Some(QkNorm::Head);
        config.qkv_bias = fields.flag("attention_bias")?;
        config.output_proj_bias = config.qkv_bias;
        read_window(fields, config)
    },
    write: |config| {
        let mut fields = write_window(config);
        fields.insert("attention_bias".to_owned(), config.qkv_bias.into());
        fields
    },
};

/// A window of the layers from `max_window_layers` on, or of those that `layer_types` names.
fn read_window(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    let full: usize = fields.get_or("max_window_layers", 28)?;
    let sliding = sliding_layers(fields, config.num_layers, |layer| layer >= full)?;
    let uses_window = fields.flag("use_sliding_window")?;
    let window = fields.given("sliding_window")?.unwrap_or(Some(4096));
    let window = window.filter(|_| uses_window);
    config.layer_attention = windowed(sliding, window, Rotary::Global);
    Ok(())
}

fn write_window(config: &LlamaConfig) -> Map<String, Value> {
    let Some(window) = window(config) else {
        return map(json!({ "use_sliding_window": false, "sliding_window": null }));
    };
    let layers = 0..config.num_layers;
    let is_full = |layer: &usize| config.attention_of(*layer).span == Span::Full;
    map(json!({
        "use_sliding_window": true,
        "sliding_window": window,
        "max_window_layers": layers.take_while(is_full).count(),
        "layer_types": layer_types(config),
    }))
}

impl LlamaConfig {
    fn qwen2_5(layers: usize, dim: usize, ffn: usize, heads: usize, kv_heads: usize) -> Self {
        Self {
            model_type: QWEN2.model_type.to_owned(),
            vocab_size: 152_064,
            num_layers: layers,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim / heads,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 131_072,
            norm_eps: 1e-6,
            rope_base: 1e6,
            qkv_bias: true,
            bos_token_id: Some(151_643),
            eos_token_ids: vec![151_643],
            ..Self::llama2_7b()
        }
    }

    fn small_qwen2_5(layers: usize, dim: usize, ffn: usize, heads: usize) -> Self {
        Self {
            vocab_size: 151_936,
            max_seq_len: 32_768,
            tie_embeddings: true,
            ..Self::qwen2_5(layers, dim, ffn, heads, 2)
        }
    }

    /// Qwen2.5 0.5B.
    pub fn qwen2_5_0_5b() -> Self {
        Self::small_qwen2_5(24, 896, 4864, 14)
    }

    /// Qwen2.5 1.5B.
    pub fn qwen2_5_1_5b() -> Self {
        Self::small_qwen2_5(28, 1536, 8960, 12)
    }

    /// Qwen2.5 3B.
    pub fn qwen2_5_3b() -> Self {
        Self::small_qwen2_5(36, 2048, 11_008, 16)
    }

    /// Qwen2.5 7B.
    pub fn qwen2_5_7b() -> Self {
        Self::qwen2_5(28, 3584, 18_944, 28, 4)
    }

    /// Qwen2.5 14B.
    pub fn qwen2_5_14b() -> Self {
        Self::qwen2_5(48, 5120, 13_824, 40, 8)
    }

    /// Qwen2.5 32B.
    pub fn qwen2_5_32b() -> Self {
        Self::qwen2_5(64, 5120, 27_648, 40, 8)
    }

    /// Qwen2.5 72B.
    pub fn qwen2_5_72b() -> Self {
        Self::qwen2_5(80, 8192, 29_568, 64, 8)
    }

    pub(super) fn qwen3(layers: usize, dim: usize, ffn: usize, heads: usize) -> Self {
        Self {
            model_type: QWEN3.model_type.to_owned(),
            vocab_size: 151_936,
            head_dim: 128,
            max_seq_len: 40_960,
            qkv_bias: false,
            block: Block::default().with_qk_norm(Some(QkNorm::Head)),
            eos_token_ids: vec![151_645],
            ..Self::qwen2_5(layers, dim, ffn, heads, 8)
        }
    }

    /// Qwen3 0.6B.
    pub fn qwen3_0_6b() -> Self {
        Self::qwen3(28, 1024, 3072, 16).with_tie_embeddings(true)
    }

    /// Qwen3 1.7B.
    pub fn qwen3_1_7b() -> Self {
        Self::qwen3(28, 2048, 6144, 16).with_tie_embeddings(true)
    }

    /// Qwen3 4B.
    pub fn qwen3_4b() -> Self {
        Self::qwen3(36, 2560, 9728, 32).with_tie_embeddings(true)
    }

    /// Qwen3 8B.
    pub fn qwen3_8b() -> Self {
        Self::qwen3(36, 4096, 12_288, 32)
    }

    /// Qwen3 14B.
    pub fn qwen3_14b() -> Self {
        Self::qwen3(40, 5120, 17_408, 40)
    }

    /// Qwen3 32B.
    pub fn qwen3_32b() -> Self {
        Self::qwen3(64, 5120, 25_600, 64)
    }
}
