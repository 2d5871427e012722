//! OLMo 2 and OLMo 3: norms after attention and feed-forward block, and of all of q and k; in OLMo 3 windows too.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::layers::{layer_types, sliding_layers, window, windowed};
use super::rope::Outside;
use super::rope_by_layer::{by_layer_type, write_by_layer_type};
use super::{DEFAULTS, Defaults, Family, map};
use crate::llama::{
    Block, LayerAttention, LlamaConfig, NormPlacement, QkNorm, Rope, RopeScaling, Rotary, Span,
};

const OLMO: Defaults = Defaults {
    norm_eps: 1e-5,
    bos: None,
    eos: Some(50_279),
    pad: Some(1),
    ..DEFAULTS
};

pub static OLMO2: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    defaults: OLMO,
    read: read_block,
    write: write_block,
};

pub static OLMO3: Family = Family {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    defaults: Defaults {
        rope_base: BASE,
        ..OLMO
    },
    read: read_olmo3,
    write: write_olmo3,
};

const BASE: f64 = 5e5;

fn read_block(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    config.block.norms = NormPlacement::After;
    config.block.qk_norm = Some(QkNorm::Width);
    config.qkv_bias = fields.flag("attention_bias")?;
    config.output_proj_bias = config.qkv_bias;
    Ok(())
}

fn write_block(config: &LlamaConfig) -> Map<String, Value> {
    map(json!({ "attention_bias": config.qkv_bias }))
}

/// A window in three of four layers; only the others scale their rotary embedding.
fn read_olmo3(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    read_block(fields, config)?;
    let sliding = sliding_layers(fields, config.num_layers, |layer| (layer + 1) % 4 != 0)?;
    let window = fields.given("sliding_window")?.unwrap_or(Some(4096));
    // The base outside of them is that of the full layers only.
    let outside = |base| Outside {
        base,
        max_seq_len: config.max_seq_len,
        original_max_seq_len: None,
    };
    let full_base = fields.get_or("rope_theta", BASE)?;
    let [full, local] = by_layer_type(fields, [outside(full_base), outside(BASE)])?;
    config.set_ropes(full, local, |rotary| windowed(sliding, window, rotary));
    Ok(())
}

fn write_olmo3(config: &LlamaConfig) -> Map<String, Value> {
    let mut fields = write_block(config);
    fields.insert("sliding_window".to_owned(), window(config).into());
    fields.insert("layer_types".to_owned(), layer_types(config));
    fields.extend(write_by_layer_type(config));
    fields
}

impl LlamaConfig {
    fn olmo2(layers: usize, dim: usize, ffn: usize, heads: usize, kv_heads: usize) -> Self {
        Self {
            model_type: OLMO2.model_type.to_owned(),
            vocab_size: 100_352,
            num_layers: layers,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: 128,
            embed_dim: dim,
            intermediate_dim: ffn,
            max_seq_len: 4096,
            norm_eps: 1e-6,
            rope_base: BASE,
            block: Block::default()
                .with_norms(NormPlacement::After)
                .with_qk_norm(Some(QkNorm::Width)),
            bos_token_id: None,
            eos_token_ids: vec![100_257],
            pad_token_id: Some(100_277),
            ..Self::llama2_7b()
        }
    }

    /// OLMo 2 1B.
    pub fn olmo2_1b() -> Self {
        Self::olmo2(16, 2048, 8192, 16, 16)
    }

    /// OLMo 2 7B.
    pub fn olmo2_7b() -> Self {
        Self::olmo2(32, 4096, 11_008, 32, 32)
    }

    /// OLMo 2 13B.
    pub fn olmo2_13b() -> Self {
        Self::olmo2(40, 5120, 13_824, 40, 40)
    }

    /// OLMo 2 32B.
    pub fn olmo2_32b() -> Self {
        Self::olmo2(64, 5120, 27_648, 40, 8)
    }

    fn olmo3(config: Self) -> Self {
        let local = LayerAttention {
            span: Span::Window(4096),
            rotary: Rotary::Local,
        };
        Self {
            model_type: OLMO3.model_type.to_owned(),
            vocab_size: 100_278,
            max_seq_len: 65_536,
            rope_scaling: Some(RopeScaling::Yarn {
                factor: 8.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                attention_factor: 1.2079441541679836,
                original_max_seq_len: 8192,
            }),
            local_rope: Some(Rope::new(BASE)),
            layer_attention: vec![local, local, local, LayerAttention::default()],
            ..config
        }
    }

    /// OLMo 3 7B.
    pub fn olmo3_7b() -> Self {
        Self::olmo3(Self::olmo2_7b())
    }

    /// OLMo 3 32B.
    pub fn olmo3_32b() -> Self {
        Self::olmo3(Self::olmo2_32b())
    }
}
