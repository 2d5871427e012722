//! Granite 3: multipliers of embedding, scores, residuals and logits.

use serde_json::{Map, Value, json};

use super::{DEFAULTS, Family, Fields, llama, map};
use crate::llama::{Block, LlamaConfig};

pub static GRANITE: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    defaults: DEFAULTS,
    read,
    write,
};

fn read(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    llama::read(fields, config)?;
    let multiplier = |key| fields.get_or::<f64>(key, 1.0);
    let other_than_one =
        |key| Ok::<_, String>(Some(multiplier(key)?).filter(|value| *value != 1.0));
    config.embedding_scale = other_than_one("embedding_multiplier")?;
    config.logit_divisor = other_than_one("logits_scaling")?;
    config.block.residual_scale = other_than_one("residual_multiplier")?;
    config.block.score_scale = Some(multiplier("attention_multiplier")?);
    Ok(())
}

fn write(config: &LlamaConfig) -> Map<String, Value> {
    let mut fields = llama::write(config);
    let score_scale = config.block.score_scale;
    fields.extend(map(json!({
        "embedding_multiplier": config.embedding_scale.unwrap_or(1.0),
        "logits_scaling": config.logit_divisor.unwrap_or(1.0),
        "residual_multiplier": config.block.residual_scale.unwrap_or(1.0),
        "attention_multiplier": score_scale.unwrap_or((config.head_dim as f64).powf(-0.5)),
    })));
    fields
}

impl LlamaConfig {
    fn granite3(dim: usize, ffn: usize, score_scale: f64, logit_divisor: f64) -> Self {
        Self {
            model_type: GRANITE.model_type.to_owned(),
            vocab_size: 49_159,
            num_layers: 40,
            num_kv_heads: 8,
            head_dim: dim / 32,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 131_072,
            rope_base: 1e7,
            tie_embeddings: true,
            block: Block::default()
                .with_score_scale(Some(score_scale))
                .with_residual_scale(Some(0.22)),
            embedding_scale: Some(12.0),
            logit_divisor: Some(logit_divisor),
            bos_token_id: Some(0),
            eos_token_ids: vec![0],
            pad_token_id: Some(0),
            ..Self::llama2_7b()
        }
    }

    /// Granite 3.3 2B.
    pub fn granite3_2b() -> Self {
        Self::granite3(2048, 8192, 0.015625, 8.0)
    }

    /// Granite 3.3 8B.
    pub fn granite3_8b() -> Self {
        Self::granite3(4096, 12_800, 0.0078125, 16.0)
    }
}
