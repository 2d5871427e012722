//! Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2 and what else calls itself a Llama.

use serde_json::{Map, Value, json};

use super::{DEFAULTS, Family, Fields, map};
use crate::llama::config::OtherFields;
use crate::llama::{Block, LlamaConfig, RopeScaling};

pub static LLAMA: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    defaults: DEFAULTS,
    read,
    write,
};

pub fn read(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    config.qkv_bias = fields.flag("attention_bias")?;
    config.output_proj_bias = config.qkv_bias;
    config.mlp_bias = fields.flag("mlp_bias")?;
    Ok(())
}

pub fn write(config: &LlamaConfig) -> Map<String, Value> {
    map(json!({
        "attention_bias": config.output_proj_bias,
        "mlp_bias": config.mlp_bias,
    }))
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
            model_type: "llama".to_owned(),
            vocab_size: 32000,
            num_layers: layers,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim / heads,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 4096,
            block: Block::default(),
            layer_attention: Vec::new(),
            norm_eps: 1e-5,
            rope_base: 1e4,
            rope_scaling: None,
            local_rope: None,
            rotary_dim: None,
            query_scaling: None,
            embedding_scale: None,
            logit_divisor: None,
            logit_cap: None,
            experts: None,
            tie_embeddings: false,
            qkv_bias: false,
            output_proj_bias: false,
            mlp_bias: false,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: None,
            other_fields: OtherFields::default(),
        }
    }

    /// Llama 3.3 70B.
    pub fn llama3_3_70b() -> Self {
        Self::llama3_1_70b()
    }

    fn smollm2(layers: usize, dim: usize, ffn: usize, heads: usize, kv_heads: usize) -> Self {
        Self {
            vocab_size: 49_152,
            num_layers: layers,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: 64,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 8192,
            rope_base: 1e5,
            tie_embeddings: true,
            bos_token_id: Some(0),
            eos_token_ids: vec![0],
            ..Self::llama2_7b()
        }
    }

    /// SmolLM2 135M.
    pub fn smollm2_135m() -> Self {
        Self::smollm2(30, 576, 1536, 9, 3)
    }

    /// SmolLM2 360M.
    pub fn smollm2_360m() -> Self {
        Self::smollm2(32, 960, 2560, 15, 5)
    }

    /// SmolLM2 1.7B.
    pub fn smollm2_1_7b() -> Self {
        Self::smollm2(24, 2048, 8192, 32, 32).with_rope_base(1.3e5)
    }
}
