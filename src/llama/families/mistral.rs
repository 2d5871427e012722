//! Mistral, with a window in all layers, and Ministral 3.

use serde_json::{Map, Value, json};

use super::layers::{window, windowed};
use super::rope::{parameters, parameters_to_json};
use super::{DEFAULTS, Defaults, Family, Fields, map};
use crate::llama::{LlamaConfig, QueryScaling, RopeScaling, Rotary};

pub static MISTRAL: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    defaults: Defaults {
        max_seq_len: 131_072,
        num_kv_heads: Some(8),
        ..DEFAULTS
    },
    read: |fields, config| read_window(fields, config, Some(4096)),
    write: |config| map(json!({ "sliding_window": window(config) })),
};

pub static MINISTRAL3: Family = Family {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    defaults: Defaults {
        max_seq_len: 262_144,
        num_kv_heads: Some(8),
        head_dim: Some(128),
        norm_eps: 1e-5,
        pad: Some(11),
        ..DEFAULTS
    },
    read: read_ministral3,
    write: write_ministral3,
};

/// All layers have the window.
fn read_window(
    fields: Fields,
    config: &mut LlamaConfig,
    default: Option<usize>,
) -> Result<(), String> {
    let window = fields.given("sliding_window")?.unwrap_or(default);
    config.layer_attention = windowed(vec![true; config.num_layers], window, Rotary::Global);
    Ok(())
}

/// The rotary embedding has a factor of the queries.
fn read_ministral3(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    read_window(fields, config, None)?;
    let Some(rope) = parameters(fields)? else {
        config.rope_base = 1e6;
        config.rope_scaling = Some(ministral3_scaling());
        config.query_scaling = Some(QueryScaling::new(0.1, 16_384));
        return Ok(());
    };
    let Some(beta) = rope.get("llama_4_scaling_beta")? else {
        return Err("the rotary embedding has no llama_4_scaling_beta".to_owned());
    };
    let length: usize = rope.need("original_max_position_embeddings")?;
    config.query_scaling = Some(QueryScaling::new(beta, length.max(1)));
    Ok(())
}

fn write_ministral3(config: &LlamaConfig) -> Map<String, Value> {
    let mut rope = map(parameters_to_json(&config.rope()));
    if let Some(scaling) = config.query_scaling {
        rope.insert("llama_4_scaling_beta".to_owned(), scaling.beta.into());
        let length = scaling.original_max_seq_len.into();
        rope.insert("original_max_position_embeddings".to_owned(), length);
    }
    // In place of the older style, which has no place for the factor.
    map(json!({
        "sliding_window": window(config),
        "rope_parameters": rope,
        "rope_scaling": null,
    }))
}

impl LlamaConfig {
    /// Mistral 7B v0.3.
    pub fn mistral_7b() -> Self {
        Self {
            model_type: MISTRAL.model_type.to_owned(),
            vocab_size: 32_768,
            num_kv_heads: 8,
            intermediate_dim: 14_336,
            max_seq_len: 32_768,
            rope_base: 1e6,
            ..Self::llama2_7b()
        }
    }

    fn ministral3(layers: usize, dim: usize, ffn: usize) -> Self {
        Self {
            model_type: MINISTRAL3.model_type.to_owned(),
            vocab_size: 131_072,
            num_layers: layers,
            head_dim: 128,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 262_144,
            rope_scaling: Some(ministral3_scaling()),
            query_scaling: Some(QueryScaling::new(0.1, 16_384)),
            pad_token_id: Some(11),
            ..Self::mistral_7b()
        }
    }

    /// The text model of Ministral 3 3B.
    pub fn ministral3_3b() -> Self {
        Self::ministral3(26, 3072, 9216).with_tie_embeddings(true)
    }

    /// The text model of Ministral 3 8B.
    pub fn ministral3_8b() -> Self {
        Self::ministral3(34, 4096, 14_336)
    }

    /// The text model of Ministral 3 14B.
    pub fn ministral3_14b() -> Self {
        Self::ministral3(40, 5120, 16_384)
    }
}

/// What files have that say nothing of it.
fn ministral3_scaling() -> RopeScaling {
    RopeScaling::Yarn {
        factor: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: 1.0,
        original_max_seq_len: 16_384,
    }
}
