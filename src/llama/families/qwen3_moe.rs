//! Qwen3 with experts.

use serde_json::{Map, Value, json};

use super::layers::{window, windowed};
use super::{DEFAULTS, Defaults, Family, Fields, map};
use crate::llama::{Experts, LlamaConfig, QkNorm, Rotary};

/// Qwen3's attention, and experts in all layers or some.
pub static QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    defaults: Defaults {
        max_seq_len: 32_768,
        num_kv_heads: Some(4),
        bos: None,
        eos: None,
        ..DEFAULTS
    },
    read: |fields, config| {
        config.block.qk_norm = Some(QkNorm::Head);
        config.qkv_bias = fields.flag("attention_bias")?;
        config.output_proj_bias = config.qkv_bias;
        config.experts = read_experts(fields, config.num_layers)?;
        let uses_window = fields.flag("use_sliding_window")?;
        let window = fields.given("sliding_window")?.unwrap_or(Some(4096));
        let window = window.filter(|_| uses_window);
        // Of all layers, whatever `layer_types` and `max_window_layers` say.
        let all = vec![true; config.num_layers];
        config.layer_attention = windowed(all, window, Rotary::Global);
        Ok(())
    },
    write,
};

/// What a file may say at most of all layers together, since something is kept for each expert before its weights are
/// looked at.
const MAX_EXPERTS: usize = 100_000;

/// None if the number of experts is 0.
fn read_experts(fields: Fields, num_layers: usize) -> Result<Option<Experts>, String> {
    // The name in files of transformers 5.
    let count = fields.get("num_local_experts")?;
    let count: usize = fields.get("num_experts")?.or(count).unwrap_or(128);
    if count.saturating_mul(num_layers) > MAX_EXPERTS {
        return Err(format!(
            "num_experts: {count} in each of {num_layers} layers are above {MAX_EXPERTS}"
        ));
    }
    if fields.flag("output_router_logits")? {
        let message = "output_router_logits is true: a training would add the loss by which routers deal out tokens \
                       evenly (router_aux_loss_coef), which is not computed here; set it to false to train without it";
        return Err(message.into());
    }
    let experts = Experts::new(
        count,
        fields.get_or("num_experts_per_tok", 8)?,
        fields.get_or("moe_intermediate_size", 768)?,
    );
    let experts = experts
        .with_normalized(fields.flag("norm_topk_prob")?)
        .with_layer_step(fields.get_or("decoder_sparse_step", 1)?)
        .with_dense_layers(fields.get_or("mlp_only_layers", Vec::new())?);
    Ok(Some(experts).filter(|experts| experts.count > 0))
}

fn write(config: &LlamaConfig) -> Map<String, Value> {
    let window = window(config);
    let experts = config.experts.clone();
    let experts = experts.unwrap_or_else(|| Experts::new(0, 8, 768));
    map(json!({
        "attention_bias": config.qkv_bias,
        "use_sliding_window": window.is_some(),
        "sliding_window": window,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.intermediate_dim,
        "norm_topk_prob": experts.is_normalized,
        "decoder_sparse_step": experts.layer_step,
        "mlp_only_layers": experts.dense_layers,
        "output_router_logits": false,
    }))
}

impl LlamaConfig {
    fn qwen3_moe(layers: usize, dim: usize, ffn: usize, heads: usize, inside: usize) -> Self {
        Self {
            model_type: QWEN3_MOE.model_type.to_owned(),
            num_kv_heads: 4,
            experts: Some(Experts::new(128, 8, inside).with_normalized(true)),
            ..Self::qwen3(layers, dim, ffn, heads)
        }
    }

    /// Qwen3 30B-A3B.
    pub fn qwen3_30b_a3b() -> Self {
        Self::qwen3_moe(48, 2048, 6144, 32, 768)
    }

    /// Qwen3 235B-A22B.
    pub fn qwen3_235b_a22b() -> Self {
        Self::qwen3_moe(94, 4096, 12_288, 64, 1536)
    }
}
