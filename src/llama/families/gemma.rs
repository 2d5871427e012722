//! Gemma 2 and the text model of Gemma 3: norms by `1 + w` before and after, the embedding times the root of its width,
//! windows in some layers, soft caps.

use serde_json::{Map, Value, json};

use super::layers::{layer_types, sliding_layers, window, windowed};
use super::rope::Outside;
use super::rope_by_layer::{by_layer_type, write_by_layer_type};
use super::{DEFAULTS, Defaults, Family, Fields, map};
use crate::llama::{
    Block, LayerAttention, LlamaConfig, NormPlacement, QkNorm, Rope, RopeScaling, Rotary, Span,
};
use crate::ops::Activation;

const GEMMA: Defaults = Defaults {
    max_seq_len: 8192,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    tie_embeddings: true,
    bos: Some(2),
    eos: Some(1),
    pad: Some(0),
    activation: (
        "hidden_activation",
        Activation::GeluTanh,
        &["gelu_pytorch_tanh"],
    ),
    ..DEFAULTS
};

pub static GEMMA2: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    defaults: GEMMA,
    read: read_gemma2,
    write: |config| write_block(config, config.block.score_cap),
};

pub static GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    defaults: GEMMA3,
    read: read_gemma3,
    write: write_gemma3,
};

const GEMMA3: Defaults = Defaults {
    max_seq_len: 131_072,
    rope_base: GLOBAL_BASE,
    // A model that reads images too leaves out what its text model has by default.
    sizes: &[
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
    ],
    ..GEMMA
};

const GLOBAL_BASE: f64 = 1e6;
const LOCAL_BASE: f64 = 1e4;

fn read_block(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    if fields.flag("use_bidirectional_attention")? {
        return Err(
            "use_bidirectional_attention: attention that looks ahead is not supported".into(),
        );
    }
    config.block.norms = NormPlacement::Both;
    config.block.unit_offset = true;
    let scalar: f64 = fields.get_or("query_pre_attn_scalar", 256.0)?;
    config.block.score_scale = Some(scalar.powf(-0.5));
    config.embedding_scale = Some((config.embed_dim as f64).sqrt());
    config.qkv_bias = fields.flag("attention_bias")?;
    config.output_proj_bias = config.qkv_bias;
    Ok(())
}

fn cap(fields: Fields, key: &str, default: Option<f64>) -> Result<Option<f64>, String> {
    Ok(fields.given(key)?.unwrap_or(default))
}

/// A window in every other layer.
fn read_gemma2(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    read_block(fields, config)?;
    config.block.score_cap = cap(fields, "attn_logit_softcapping", Some(50.0))?;
    config.logit_cap = cap(fields, "final_logit_softcapping", Some(30.0))?;
    let sliding = sliding_layers(fields, config.num_layers, |layer| layer % 2 == 0)?;
    let window = fields.given("sliding_window")?.unwrap_or(Some(4096));
    config.layer_attention = windowed(sliding, window, Rotary::Global);
    Ok(())
}

/// A norm of each head of q and k; a window and a rotary embedding of their own in five of six layers.
fn read_gemma3(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    read_block(fields, config)?;
    config.block.qk_norm = Some(QkNorm::Head);
    config.logit_cap = cap(fields, "final_logit_softcapping", None)?;
    let period: usize = fields.get_or("sliding_window_pattern", 6)?;
    let sliding = sliding_layers(fields, config.num_layers, |layer| {
        (layer + 1) % period.max(1) != 0
    })?;
    let window = fields.given("sliding_window")?.unwrap_or(Some(4096));
    let outside = |base| Outside {
        base,
        max_seq_len: config.max_seq_len,
        original_max_seq_len: None,
    };
    let full = outside(fields.get_or("rope_theta", GLOBAL_BASE)?);
    let local = outside(fields.get_or("rope_local_base_freq", LOCAL_BASE)?);
    let [full, local] = by_layer_type(fields, [full, local])?;
    config.set_ropes(full, local, |rotary| windowed(sliding, window, rotary));
    Ok(())
}

fn write_block(config: &LlamaConfig, score_cap: Option<f64>) -> Map<String, Value> {
    map(json!({
        "query_pre_attn_scalar": score_scalar(config),
        "attn_logit_softcapping": score_cap,
        "final_logit_softcapping": config.logit_cap,
        "attention_bias": config.qkv_bias,
        "sliding_window": window(config),
        "layer_types": layer_types(config),
    }))
}

/// The whole number whose root the scores are divided by, if it is one: transformers takes no other.
fn score_scalar(config: &LlamaConfig) -> Value {
    let scale = config.block.score_scale;
    let scalar = scale.map_or(config.head_dim as f64, |scale| scale.powi(-2));
    let whole = scalar.round();
    match scale.is_none_or(|scale| whole.powf(-0.5) == scale) {
        true => (whole as u64).into(),
        false => scalar.into(),
    }
}

fn write_gemma3(config: &LlamaConfig) -> Map<String, Value> {
    let mut fields = write_block(config, None);
    let local = config
        .local_rope
        .as_ref()
        .map_or(config.rope_base, |rope| rope.base);
    fields.insert("rope_local_base_freq".to_owned(), local.into());
    fields.extend(write_by_layer_type(config));
    fields
}

impl LlamaConfig {
    /// What both generations share; `scalar` is the number whose root scores are divided by.
    fn gemma(sizes: [usize; 6], scalar: f64) -> Self {
        let [
            num_layers,
            embed_dim,
            intermediate_dim,
            num_heads,
            num_kv_heads,
            head_dim,
        ] = sizes;
        Self {
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            embed_dim,
            intermediate_dim,
            norm_eps: 1e-6,
            tie_embeddings: true,
            block: Block::default()
                .with_norms(NormPlacement::Both)
                .with_unit_offset(true)
                .with_activation(Activation::GeluTanh)
                .with_score_scale(Some(scalar.powf(-0.5))),
            embedding_scale: Some((embed_dim as f64).sqrt()),
            bos_token_id: Some(2),
            eos_token_ids: vec![1],
            pad_token_id: Some(0),
            ..Self::llama2_7b()
        }
    }

    fn gemma2(sizes: [usize; 6], scalar: f64) -> Self {
        let local = LayerAttention {
            span: Span::Window(4096),
            rotary: Rotary::Global,
        };
        let mut config = Self::gemma(sizes, scalar);
        config.block.score_cap = Some(50.0);
        Self {
            model_type: GEMMA2.model_type.to_owned(),
            vocab_size: 256_000,
            max_seq_len: 8192,
            layer_attention: vec![local, LayerAttention::default()],
            logit_cap: Some(30.0),
            ..config
        }
    }

    /// Gemma 2 2B.
    pub fn gemma2_2b() -> Self {
        Self::gemma2([26, 2304, 9216, 8, 4, 256], 256.0)
    }

    /// Gemma 2 9B.
    pub fn gemma2_9b() -> Self {
        Self::gemma2([42, 3584, 14_336, 16, 8, 256], 256.0)
    }

    /// Gemma 2 27B.
    pub fn gemma2_27b() -> Self {
        Self::gemma2([46, 4608, 36_864, 32, 16, 128], 144.0)
    }

    fn gemma3(sizes: [usize; 6], scalar: f64, window: usize) -> Self {
        let local = LayerAttention {
            span: Span::Window(window),
            rotary: Rotary::Local,
        };
        let mut config = Self::gemma(sizes, scalar);
        config.block.qk_norm = Some(QkNorm::Head);
        config.layer_attention = vec![local; 5];
        config.layer_attention.push(LayerAttention::default());
        Self {
            model_type: GEMMA3_TEXT.model_type.to_owned(),
            vocab_size: 262_144,
            max_seq_len: 32_768,
            rope_base: GLOBAL_BASE,
            local_rope: Some(Rope::new(LOCAL_BASE)),
            ..config
        }
    }

    /// The text model of one that reads images too.
    fn gemma3_of_images(sizes: [usize; 6], scalar: f64) -> Self {
        Self {
            vocab_size: 262_208,
            max_seq_len: 131_072,
            rope_scaling: Some(RopeScaling::Linear { factor: 8.0 }),
            ..Self::gemma3(sizes, scalar, 1024)
        }
    }

    /// Gemma 3 270M.
    pub fn gemma3_270m() -> Self {
        Self::gemma3([18, 640, 2048, 4, 1, 256], 256.0, 512)
    }

    /// Gemma 3 1B.
    pub fn gemma3_1b() -> Self {
        Self::gemma3([26, 1152, 6912, 4, 1, 256], 256.0, 512)
    }

    /// The text model of Gemma 3 4B.
    pub fn gemma3_4b() -> Self {
        Self::gemma3_of_images([34, 2560, 10_240, 8, 4, 256], 256.0)
    }

    /// The text model of Gemma 3 12B.
    pub fn gemma3_12b() -> Self {
        Self::gemma3_of_images([48, 3840, 15_360, 16, 8, 256], 256.0)
    }

    /// The text model of Gemma 3 27B.
    pub fn gemma3_27b() -> Self {
        Self::gemma3_of_images([62, 5376, 21_504, 32, 16, 128], 168.0)
    }
}
