//! Hugging Face's `config.json`, in the style of transformers 4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and of transformers 5 (`rope_parameters`, `dtype`).

use std::path::Path;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use crate::llama::{LlamaConfig, RopeScaling};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Debug, Default, Deserialize)]
struct HfRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Model types whose layers are those of [`LlamaConfig`], and whether q, k and v have a bias.
const MODEL_TYPES: [(&str, bool); 3] = [("llama", false), ("mistral", false), ("qwen2", true)];

/// Reads the sizes of a model from the text of its `config.json`.
pub(super) fn parse(text: &str, path: &Path) -> Result<LlamaConfig> {
    let hf: HfConfig = serde_json::from_str(text).map_err(|error| Error::format(path, error))?;
    let unsupported = |what: String| Err(Error::format(path, what));
    let Some((_, qkv_bias)) = MODEL_TYPES.iter().find(|(name, _)| *name == hf.model_type) else {
        let names = MODEL_TYPES.map(|(name, _)| name).join(", ");
        let found = &hf.model_type;
        return unsupported(format!("model_type `{found}` is not one of {names}"));
    };
    if hf.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        return unsupported(format!("hidden_act {:?} is not silu", hf.hidden_act));
    }
    if hf.mlp_bias {
        return unsupported("mlp_bias: a bias in the feed-forward block is not supported".into());
    }
    if hf.num_attention_heads == 0 {
        return unsupported("num_attention_heads is 0".into());
    }
    let max_seq_len = hf.max_seq_len();
    let rope = hf.rope_parameters.or(hf.rope_scaling).unwrap_or_default();
    let config = LlamaConfig {
        vocab_size: hf.vocab_size,
        num_layers: hf.num_hidden_layers,
        num_heads: hf.num_attention_heads,
        num_kv_heads: hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
        head_dim: hf
            .head_dim
            .unwrap_or(hf.hidden_size / hf.num_attention_heads),
        embed_dim: hf.hidden_size,
        intermediate_dim: hf.intermediate_size,
        max_seq_len,
        norm_eps: hf.rms_norm_eps,
        rope_base: rope.rope_theta.or(hf.rope_theta).unwrap_or(1e4),
        rope_scaling: rope.scaling(path)?,
        tie_embeddings: hf.tie_word_embeddings,
        qkv_bias: *qkv_bias || hf.attention_bias,
        output_proj_bias: hf.attention_bias,
        bos_token_id: hf.bos_token_id,
        eos_token_ids: match hf.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        },
    };
    config
        .validate()
        .map_err(|error| Error::format(path, error))?;
    Ok(config)
}

impl HfConfig {
    /// Attention here sees the whole sequence, which equals a sliding window up to its length.
    fn max_seq_len(&self) -> usize {
        let window = self
            .sliding_window
            .filter(|_| self.use_sliding_window != Some(false));
        let max = self.max_position_embeddings;
        window.map_or(max, |window| window.min(max))
    }
}

impl HfRope {
    fn scaling(&self, path: &Path) -> Result<Option<RopeScaling>> {
        let need = |value: Option<f64>, name: &str| {
            value.ok_or_else(|| Error::format(path, format!("the rope scaling has no {name}")))
        };
        let rope_type = self.rope_type.as_ref().or(self.old_rope_type.as_ref());
        match rope_type.map(String::as_str) {
            None | Some("default") => Ok(None),
            Some("linear") => Ok(Some(RopeScaling::Linear {
                factor: need(self.factor, "factor")?,
            })),
            Some("llama3") => Ok(Some(RopeScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_max_seq_len: self.original_max_position_embeddings.unwrap_or(8192),
            })),
            Some(other) => Err(Error::format(
                path,
                format!("rope type `{other}` is not one of default, linear, llama3"),
            )),
        }
    }
}

/// What is written: the style of transformers 4, which every reader of such folders knows.
#[derive(Serialize)]
struct HfConfigOut<'a> {
    architectures: [&'a str; 1],
    model_type: &'a str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: &'a str,
    rope_theta: f64,
    rope_scaling: Option<serde_json::Value>,
    tie_word_embeddings: bool,
    attention_bias: bool,
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<serde_json::Value>,
    torch_dtype: &'a str,
}

/// The text of `config.json` for a model whose weights are of `dtype`.
pub(super) fn to_json(config: &LlamaConfig, dtype: DType) -> String {
    let (architecture, model_type) = match (config.qkv_bias, config.output_proj_bias) {
        (true, false) => ("Qwen2ForCausalLM", "qwen2"),
        _ => ("LlamaForCausalLM", "llama"),
    };
    let out = HfConfigOut {
        architectures: [architecture],
        model_type,
        vocab_size: config.vocab_size,
        hidden_size: config.embed_dim,
        intermediate_size: config.intermediate_dim,
        num_hidden_layers: config.num_layers,
        num_attention_heads: config.num_heads,
        num_key_value_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        max_position_embeddings: config.max_seq_len,
        rms_norm_eps: config.norm_eps,
        hidden_act: "silu",
        rope_theta: config.rope_base,
        rope_scaling: config.rope_scaling.as_ref().map(scaling_to_json),
        tie_word_embeddings: config.tie_embeddings,
        attention_bias: config.output_proj_bias,
        mlp_bias: false,
        bos_token_id: config.bos_token_id,
        eos_token_id: match &config.eos_token_ids[..] {
            [] => None,
            [id] => Some((*id).into()),
            ids => Some(ids.into()),
        },
        torch_dtype: match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    };
    serde_json::to_string_pretty(&out).expect("a struct of numbers and strings serialises")
}

fn scaling_to_json(scaling: &RopeScaling) -> serde_json::Value {
    match scaling {
        RopeScaling::Linear { factor } => {
            serde_json::json!({ "rope_type": "linear", "factor": factor })
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        } => serde_json::json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_config_reads_back() {
        let path = Path::new("config.json");
        for config in [
            LlamaConfig::llama2_7b(),
            LlamaConfig::llama2_70b(),
            LlamaConfig::llama3_1_8b(),
            LlamaConfig::llama3_2_3b(),
            LlamaConfig {
                rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
                eos_token_ids: vec![3, 4],
                qkv_bias: true,
                ..LlamaConfig::llama2_7b()
            },
        ] {
            assert_eq!(parse(&to_json(&config, DType::BF16), path).unwrap(), config);
        }
    }

    #[test]
    fn a_sliding_window_bounds_the_sequence() {
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32);
        let with = |fields: &str| {
            let text = text.replacen('{', &format!("{{ {fields},"), 1);
            parse(&text, Path::new("config.json")).unwrap().max_seq_len
        };
        assert_eq!(with("\"sliding_window\": 1024"), 1024);
        assert_eq!(with("\"sliding_window\": null"), 4096);
        let unused = "\"sliding_window\": 1024, \"use_sliding_window\": false";
        assert_eq!(with(unused), 4096);
    }

    #[test]
    fn the_kind_of_rope_scaling_has_an_old_name_a_new_one_or_both() {
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32);
        for kind in [
            "\"type\": \"linear\"",
            "\"rope_type\": \"linear\"",
            "\"rope_type\": \"linear\", \"type\": \"linear\"",
        ] {
            let scaling = format!("\"rope_scaling\": {{{kind}, \"factor\": 2.0}}");
            let text = text.replacen("\"rope_scaling\": null", &scaling, 1);
            let config = parse(&text, Path::new("config.json")).unwrap();
            let linear = RopeScaling::Linear { factor: 2.0 };
            assert_eq!(config.rope_scaling, Some(linear), "{kind}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let path = Path::new("config.json");
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32);
        for (from, to, word) in [
            (
                "\"model_type\": \"llama\"",
                "\"model_type\": \"gpt2\"",
                "gpt2",
            ),
            ("\"silu\"", "\"gelu\"", "gelu"),
            ("\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias"),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"yarn\"}",
                "yarn",
            ),
            (
                "\"num_key_value_heads\": 32",
                "\"num_key_value_heads\": 5",
                "num_kv_heads",
            ),
            ("{", "[", "line 2"),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from}");
            let message = parse(&bad, path).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
