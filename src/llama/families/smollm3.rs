//! SmolLM3: no rotation in every fourth layer.

use serde_json::{Map, Value, json};

use super::layers::{layer_types, sliding_layers, window, windowed};
use super::{DEFAULTS, Defaults, Family, Fields, llama, map};
use crate::llama::{LayerAttention, LlamaConfig, Rotary};

pub static SMOLLM3: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    defaults: Defaults {
        max_seq_len: 32_768,
        num_kv_heads: Some(4),
        rope_base: 2e6,
        tie_embeddings: true,
        bos: Some(128_000),
        eos: Some(128_001),
        pad: Some(128_004),
        ..DEFAULTS
    },
    read,
    write,
};

fn read(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    llama::read(fields, config)?;
    let rotates = rotating_layers(fields, config.num_layers)?;
    // Layers that are named have it in any case.
    let uses_window =
        fields.flag("use_sliding_window")? || fields.get::<Value>("layer_types")?.is_some();
    let window = fields.get("sliding_window")?.filter(|_| uses_window);
    let sliding = sliding_layers(fields, config.num_layers, |layer| !rotates[layer])?;
    config.layer_attention = windowed(sliding, window, Rotary::Global);
    let layers = (0..config.num_layers).map(|layer| LayerAttention {
        rotary: if rotates[layer] {
            Rotary::Global
        } else {
            Rotary::None
        },
        ..config.attention_of(layer)
    });
    config.layer_attention = LayerAttention::pattern(Vec::from_iter(layers));
    Ok(())
}

/// By `no_rope_layers`, in which 1 is a layer that rotates.
fn rotating_layers(fields: Fields, num_layers: usize) -> Result<Vec<bool>, String> {
    if let Some(flags) = fields.get::<Vec<i64>>("no_rope_layers")? {
        return match flags.len() < num_layers {
            true => Err(format!(
                "no_rope_layers: {} are given for {num_layers} layers",
                flags.len()
            )),
            false => Ok(flags
                .into_iter()
                .take(num_layers)
                .map(|flag| flag != 0)
                .collect()),
        };
    }
    let interval: usize = fields.get_or("no_rope_layer_interval", 4)?;
    match interval {
        0 => Err("no_rope_layer_interval is 0".to_owned()),
        interval => Ok((1..=num_layers)
            .map(|number| number % interval != 0)
            .collect()),
    }
}

fn write(config: &LlamaConfig) -> Map<String, Value> {
    let layers = (0..config.num_layers).map(|layer| config.attention_of(layer));
    let rotates: Vec<_> = layers
        .map(|layer| i32::from(layer.rotary != Rotary::None))
        .collect();
    let mut fields = llama::write(config);
    fields.extend(map(json!({
        "no_rope_layers": rotates,
        "use_sliding_window": window(config).is_some(),
        "sliding_window": window(config),
        "layer_types": layer_types(config),
    })));
    fields
}

impl LlamaConfig {
    /// SmolLM3 3B.
    pub fn smollm3_3b() -> Self {
        let rotates = LayerAttention::default();
        let not = LayerAttention {
            rotary: Rotary::None,
            ..rotates
        };
        Self {
            model_type: SMOLLM3.model_type.to_owned(),
            num_layers: 36,
            num_heads: 16,
            num_kv_heads: 4,
            embed_dim: 2048,
            intermediate_dim: 11_008,
            max_seq_len: 65_536,
            norm_eps: 1e-6,
            rope_base: 5e6,
            tie_embeddings: true,
            layer_attention: vec![rotates, rotates, rotates, not],
            bos_token_id: Some(128_000),
            eos_token_ids: vec![128_001],
            pad_token_id: Some(128_004),
            ..Self::llama3_8b()
        }
    }
}
