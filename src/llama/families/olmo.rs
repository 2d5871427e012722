//! OLMo 2 and OLMo 3: norms after attention and feed-forward block, and of all of q and k; in OLMo 3 windows too.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::layers::{FULL, SLIDING, layer_types, sliding_layers, window, windowed};
use super::rope::{Outside, parameters_to_json, read_parameters};
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

/// The rotary embeddings of full and of sliding layers: `rope_parameters` by layer type; `rope_scaling` is that of full
/// ones.
pub fn by_layer_type(
    fields: Fields,
    [of_full, of_sliding]: [Outside; 2],
) -> Result<[Rope; 2], String> {
    let named = fields.object("rope_parameters")?;
    if named.is_some_and(|named| !named.has(FULL) && !named.has(SLIDING)) {
        return Err(format!("rope_parameters has neither {FULL} nor {SLIDING}"));
    }
    let of = |kind| named.map_or(Ok(None), |named| named.object(kind));
    let read = |fields: Option<Fields>, outside: &Outside| match fields {
        Some(fields) => read_parameters(fields, outside),
        None => Ok(Rope::new(outside.base)),
    };
    // Where a file has both, the older setting replaces what it names.
    let mut full = of(FULL)?.map(|fields| fields.0.clone()).unwrap_or_default();
    let older = fields.object("rope_scaling")?;
    full.extend(older.into_iter().flat_map(|older| older.0.clone()));
    if full.contains_key("type") && !full.contains_key("rope_type") {
        return Err("rope_scaling: such a model needs `rope_type` in place of `type`".to_owned());
    }
    // transformers looks for it in another place, and does not find it.
    full.shift_remove("truncate");
    Ok([
        read(Some(Fields(&full)), &of_full)?,
        read(of(SLIDING)?, &of_sliding)?,
    ])
}

/// The rotary embeddings in both styles.
pub fn write_by_layer_type(config: &LlamaConfig) -> Map<String, Value> {
    let full = config.rope();
    let local = config.local_rope.clone().unwrap_or_else(|| full.clone());
    map(json!({ "rope_parameters": {
        FULL: parameters_to_json(&full),
        SLIDING: parameters_to_json(&local),
    }}))
}

impl LlamaConfig {
    /// With these rotary embeddings of full and of local layers; `layers` gives what layers see from the rotary
    /// embedding of the local ones.
    pub(super) fn set_ropes(
        &mut self,
        full: Rope,
        local: Rope,
        layers: impl FnOnce(Rotary) -> Vec<LayerAttention>,
    ) {
        let rotary = match local == full {
            true => Rotary::Global,
            false => Rotary::Local,
        };
        self.layer_attention = layers(rotary);
        let has_local = self
            .layer_attention
            .iter()
            .any(|layer| layer.rotary == Rotary::Local);
        self.local_rope = has_local.then_some(local);
        self.rope_base = full.base;
        self.rope_scaling = full.scaling;
    }
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
