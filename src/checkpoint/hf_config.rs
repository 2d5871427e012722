//! Hugging Face's `config.json`, in the style of transformers 4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and of transformers 5 (`rope_parameters`, `dtype`).

use std::path::Path;

use burn::tensor::DType;
use serde::{Deserialize, Deserializer, Serialize};

use crate::llama::{LlamaConfig, ModelType, RopeScaling};
use crate::{Error, Result};

/// What decides how the rest is read.
#[derive(Debug, Deserialize)]
struct ModelTypeField {
    model_type: String,
}

#[derive(Debug, Deserialize)]
struct HfConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default, deserialize_with = "given")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    original_max_position_embeddings: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default, deserialize_with = "given")]
    bos_token_id: Option<Option<TokenId>>,
    #[serde(default, deserialize_with = "given")]
    eos_token_id: Option<Option<OneOrMany>>,
    pad_token_id: Option<TokenId>,
    quantization_config: Option<HfQuantization>,
}

/// By what the weights of linear layers were packed. How is told by the tensors of each.
#[derive(Debug, Deserialize)]
struct HfQuantization {
    quant_method: Option<String>,
    #[serde(default)]
    load_in_4bit: bool,
    #[serde(default)]
    load_in_8bit: bool,
}

impl HfQuantization {
    fn require_known(&self) -> Result<(), String> {
        let named = match &self.quant_method {
            Some(method) if method == BITSANDBYTES => return Ok(()),
            // As files of its first years have it.
            None if self.load_in_4bit || self.load_in_8bit => return Ok(()),
            Some(method) => format!("names the quant_method `{method}`"),
            None => "names no quant_method".to_owned(),
        };
        Err(format!(
            "quantization_config {named}; of quantized folders those of bitsandbytes are read. Load the folder that this \
             one was made from: it is quantized as it is read with Quantization::Nf4, in the recipe quantize_base: nf4"
        ))
    }
}

/// What is read of `generation_config.json`.
#[derive(Debug, Deserialize)]
struct HfGeneration {
    eos_token_id: Option<OneOrMany>,
}

/// The id of a token; -1 in some files, for none.
#[derive(Debug, Clone, Copy, Deserialize)]
struct TokenId(i64);

impl TokenId {
    fn known(self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }
}

/// A value of a key that is there, which may be null. Without the key there is none, and the model type's
/// default holds.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

#[derive(Debug, Default, PartialEq, Deserialize)]
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
#[serde(untagged, expecting = "expected the id of a token or a list of them")]
enum OneOrMany {
    One(TokenId),
    Many(Vec<TokenId>),
}

/// A model type, with what transformers 5 takes for keys that a file does not have.
struct Kind {
    model_type: ModelType,
    name: &'static str,
    architecture: &'static str,
    max_position_embeddings: usize,
    /// None: as many as query heads.
    num_key_value_heads: Option<usize>,
    /// The ids of BOS and EOS.
    special_ids: Option<[TokenId; 2]>,
}

static LLAMA: Kind = Kind {
    model_type: ModelType::Llama,
    name: "llama",
    architecture: "LlamaForCausalLM",
    max_position_embeddings: 2048,
    num_key_value_heads: None,
    special_ids: Some([TokenId(1), TokenId(2)]),
};
static MISTRAL: Kind = Kind {
    model_type: ModelType::Mistral,
    name: "mistral",
    architecture: "MistralForCausalLM",
    max_position_embeddings: 131_072,
    num_key_value_heads: Some(8),
    special_ids: Some([TokenId(1), TokenId(2)]),
};
static QWEN2: Kind = Kind {
    model_type: ModelType::Qwen2,
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    max_position_embeddings: 32_768,
    num_key_value_heads: Some(32),
    special_ids: None,
};
static KINDS: [&Kind; 3] = [&LLAMA, &MISTRAL, &QWEN2];

/// The method of quantization whose folders are read.
const BITSANDBYTES: &str = "bitsandbytes";
const SLIDING_WINDOW: usize = 4096;
/// How many layers of a Qwen2 have no window.
const MAX_WINDOW_LAYERS: usize = 28;
/// What `layer_types` calls a layer that has one.
const SLIDING: &str = "sliding_attention";
/// The activation's names.
const SILU: [&str; 2] = ["silu", "swish"];
const RMS_NORM_EPS: f64 = 1e-6;
const ROPE_THETA: f64 = 1e4;

/// What the fields are called here and in `config.json`.
const KEYS: [(&str, &str); 12] = [
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("num_kv_heads", "num_key_value_heads"),
    ("embed_dim", "hidden_size"),
    ("intermediate_dim", "intermediate_size"),
    ("max_seq_len", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("rope_base", "rope_theta"),
    ("tie_embeddings", "tie_word_embeddings"),
    ("qkv_bias", "attention_bias"),
    ("output_proj_bias", "attention_bias"),
    ("eos_token_ids", "eos_token_id"),
];

/// The key of `config.json` that a field of [`LlamaConfig`] comes from.
pub(crate) fn hf_config_key(field: &str) -> &str {
    let row = KEYS.iter().find(|(ours, _)| *ours == field);
    row.map_or(field, |(_, theirs)| theirs)
}

/// Reads the sizes of a model from the text of its `config.json`.
pub(super) fn parse(text: &str, path: &Path) -> Result<LlamaConfig> {
    let malformed = |error| Error::format(path, error);
    let field: ModelTypeField = serde_json::from_str(text).map_err(malformed)?;
    let unreadable = |message| Error::format(path, message);
    let kind = field.kind().map_err(unreadable)?;
    let hf: HfConfig = serde_json::from_str(text).map_err(malformed)?;
    let config = hf.into_llama(kind).map_err(unreadable)?;
    config.validate().map_err(|error| match error {
        Error::InvalidArgument { name, message } => {
            Error::format(path, format!("{}: {message}", hf_config_key(name)))
        }
        other => other,
    })?;
    Ok(config)
}

/// Reads the tokens that end a text from the text of a `generation_config.json`.
pub(super) fn parse_ends(text: &str, path: &Path) -> Result<Vec<u32>> {
    let generation = serde_json::from_str(text);
    let generation: HfGeneration = generation.map_err(|error| Error::format(path, error))?;
    let ends = generation.eos_token_id;
    Ok(ends.map_or_else(Vec::new, OneOrMany::into_vec))
}

/// How a file names the tokens that end a text; none if there are none.
pub(super) fn ends_to_json(ids: &[u32]) -> Option<serde_json::Value> {
    match ids {
        [] => None,
        [id] => Some((*id).into()),
        ids => Some(ids.into()),
    }
}

impl ModelTypeField {
    /// The kind of model, if it is one that can be read.
    fn kind(&self) -> Result<&'static Kind, String> {
        let kind = KINDS.into_iter().find(|kind| kind.name == self.model_type);
        kind.ok_or_else(|| {
            let names = KINDS.map(|kind| kind.name).join(", ");
            format!("model_type `{}` is not one of {names}", self.model_type)
        })
    }
}

impl HfConfig {
    fn require_llama_like(&self) -> Result<(), String> {
        let other = |act: &&String| !SILU.contains(&act.as_str());
        if let Some(act) = self.hidden_act.as_ref().filter(other) {
            return Err(format!("hidden_act `{act}` is not supported; only silu is"));
        }
        if self.mlp_bias {
            return Err("mlp_bias: a bias in the feed-forward block is not supported".into());
        }
        if self.num_attention_heads == 0 {
            return Err("num_attention_heads is 0".into());
        }
        Ok(())
    }

    fn into_llama(self, kind: &Kind) -> Result<LlamaConfig, String> {
        self.require_llama_like()?;
        let quantization = self.quantization_config.as_ref();
        quantization.map_or(Ok(()), HfQuantization::require_known)?;
        let heads = self.num_attention_heads;
        let max = self.max_position_embeddings;
        let max = max.unwrap_or(kind.max_position_embeddings);
        let sliding_window = self.window(kind.model_type);
        let kv_heads = self.num_key_value_heads;
        let [bos, eos] = [0, 1].map(|i| kind.special_ids.map(|ids| ids[i]));
        let eos = self.eos_token_id.unwrap_or(eos.map(OneOrMany::One));
        let has_bias = self.attention_bias && kind.model_type == ModelType::Llama;
        // transformers 5 takes the older setting where a file has both, unless it is empty.
        let older = self.rope_scaling.filter(|rope| *rope != HfRope::default());
        let rope = older.or(self.rope_parameters).unwrap_or_default();
        let rope_base = rope.rope_theta.or(self.rope_theta);
        // Beside the scaling it has precedence over the one in it.
        let outer = self.original_max_position_embeddings;
        let original_max = outer.or(rope.original_max_position_embeddings);
        Ok(LlamaConfig {
            model_type: kind.model_type,
            vocab_size: self.vocab_size,
            num_layers: self.num_hidden_layers,
            num_heads: heads,
            num_kv_heads: kv_heads
                .unwrap_or(kind.num_key_value_heads)
                .unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads),
            embed_dim: self.hidden_size,
            intermediate_dim: self.intermediate_size,
            max_seq_len: max,
            sliding_window,
            norm_eps: self.rms_norm_eps.unwrap_or(RMS_NORM_EPS),
            rope_base: rope_base.unwrap_or(ROPE_THETA),
            rope_scaling: rope.scaling(original_max.unwrap_or(max))?,
            tie_embeddings: self.tie_word_embeddings,
            qkv_bias: has_bias || kind.model_type == ModelType::Qwen2,
            output_proj_bias: has_bias,
            bos_token_id: self.bos_token_id.unwrap_or(bos).and_then(TokenId::known),
            eos_token_ids: eos.map_or_else(Vec::new, OneOrMany::into_vec),
            pad_token_id: self.pad_token_id.and_then(TokenId::known),
        })
    }

    /// How far attention looks back, where that is bounded.
    fn window(&self, model_type: ModelType) -> Option<usize> {
        let is_used = match model_type {
            ModelType::Mistral => true,
            ModelType::Qwen2 => self.use_sliding_window && self.has_sliding_layer(),
            ModelType::Llama => false,
        };
        let window = self.sliding_window.unwrap_or(Some(SLIDING_WINDOW));
        window.filter(|_| is_used)
    }

    /// Whether a Qwen2 has a layer with a window: by `layer_types`, else those from `max_window_layers` on.
    fn has_sliding_layer(&self) -> bool {
        let full = self.max_window_layers.unwrap_or(MAX_WINDOW_LAYERS);
        match &self.layer_types {
            Some(types) => types.iter().any(|layer| layer == SLIDING),
            None => full < self.num_hidden_layers,
        }
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        let ids = match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        };
        ids.into_iter().filter_map(TokenId::known).collect()
    }
}

impl HfRope {
    /// The scaling of a model that was first trained for `original_max` positions.
    fn scaling(&self, original_max: usize) -> Result<Option<RopeScaling>, String> {
        let need = |value: Option<f64>, name: &str| {
            value.ok_or_else(|| format!("the rope scaling has no {name}"))
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
                original_max_seq_len: original_max,
            })),
            Some(other) => Err(format!(
                "rope type `{other}` is not one of default, linear, llama3"
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
    /// Null is no window; a model type that has none has no such key.
    #[serde(skip_serializing_if = "Option::is_none")]
    sliding_window: Option<Option<usize>>,
    rms_norm_eps: f64,
    hidden_act: &'a str,
    rope_theta: f64,
    rope_scaling: Option<serde_json::Value>,
    tie_word_embeddings: bool,
    attention_bias: bool,
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pad_token_id: Option<u32>,
    torch_dtype: &'a str,
}

/// The text of `config.json` for a model whose weights are of `dtype`.
pub(super) fn to_json(config: &LlamaConfig, dtype: DType) -> String {
    let kind = kind_of(config);
    let is_mistral = kind.model_type == ModelType::Mistral;
    let out = HfConfigOut {
        architectures: [kind.architecture],
        model_type: kind.name,
        vocab_size: config.vocab_size,
        hidden_size: config.embed_dim,
        intermediate_size: config.intermediate_dim,
        num_hidden_layers: config.num_layers,
        num_attention_heads: config.num_heads,
        num_key_value_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        // Qwen2's window is only some layers', a Llama has none.
        max_position_embeddings: match is_mistral {
            true => config.max_seq_len,
            false => config.context_len(),
        },
        sliding_window: is_mistral.then_some(config.sliding_window),
        rms_norm_eps: config.norm_eps,
        hidden_act: SILU[0],
        rope_theta: config.rope_base,
        rope_scaling: config.rope_scaling.as_ref().map(scaling_to_json),
        tie_word_embeddings: config.tie_embeddings,
        attention_bias: config.output_proj_bias,
        mlp_bias: false,
        bos_token_id: config.bos_token_id,
        eos_token_id: ends_to_json(&config.eos_token_ids),
        pad_token_id: config.pad_token_id,
        torch_dtype: match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    };
    serde_json::to_string_pretty(&out).expect("a struct of numbers and strings serialises")
}

/// The model type that a model is saved as, see [`kind_of`].
pub(super) fn saved_model_type(config: &LlamaConfig) -> ModelType {
    kind_of(config).model_type
}

/// The kind that a model is saved as: the one that it is, if that has the biases which the model has.
fn kind_of(config: &LlamaConfig) -> &'static Kind {
    match (config.qkv_bias, config.output_proj_bias) {
        (true, false) => &QWEN2,
        (false, false) if config.model_type == ModelType::Mistral => &MISTRAL,
        _ => &LLAMA,
    }
}

fn scaling_to_json(scaling: &RopeScaling) -> serde_json::Value {
    match scaling {
        RopeScaling::Linear { factor } => {
            // Servers that are older than `rope_type` know this one by `type`.
            serde_json::json!({ "rope_type": "linear", "type": "linear", "factor": factor })
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
    use serde_json::{Value, json};

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
                pad_token_id: Some(0),
                qkv_bias: true,
                model_type: ModelType::Qwen2,
                ..LlamaConfig::llama2_7b()
            },
            LlamaConfig {
                max_seq_len: 32_768,
                sliding_window: Some(4096),
                model_type: ModelType::Mistral,
                ..LlamaConfig::llama2_7b()
            },
            LlamaConfig {
                model_type: ModelType::Mistral,
                ..LlamaConfig::llama2_7b()
            },
        ] {
            assert_eq!(parse(&to_json(&config, DType::BF16), path).unwrap(), config);
        }
    }

    /// Llama 2 7B's `config.json`, of another model type, with and without some keys.
    fn read(model_type: &str, with: Value, without: &[&str]) -> LlamaConfig {
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32);
        let mut config: Value = serde_json::from_str(&text).unwrap();
        let fields = config.as_object_mut().unwrap();
        fields.insert("model_type".into(), model_type.into());
        fields.extend(with.as_object().unwrap().clone());
        fields.retain(|key, _| !without.contains(&key.as_str()));
        parse(&config.to_string(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn ids_below_zero_are_none() {
        let config = read(
            "llama",
            json!({"bos_token_id": -1, "eos_token_id": [-1, 7]}),
            &[],
        );
        assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![7]));
    }

    #[test]
    fn a_padding_token_is_kept_if_it_is_one() {
        for (id, expected) in [(json!(0), Some(0)), (json!(-1), None), (json!(null), None)] {
            let found = read("llama", json!({ "pad_token_id": id }), &[]);
            assert_eq!(found.pad_token_id, expected);
        }
        let without: Value =
            serde_json::from_str(&to_json(&LlamaConfig::llama2_7b(), DType::F32)).unwrap();
        assert!(without.get("pad_token_id").is_none());
    }

    #[test]
    fn a_sliding_window_that_is_used_bounds_the_sequence() {
        let (default, max) = (json!({}), 4096);
        let (short, none) = (
            json!({"sliding_window": 1024}),
            json!({"sliding_window": null}),
        );
        let used = json!({"sliding_window": 1024, "use_sliding_window": true});
        for (model_type, with, expected) in [
            ("mistral", &short, 1024),
            ("mistral", &none, max),
            ("qwen2", &used, 1024),
            ("qwen2", &short, max),
            ("qwen2", &default, max),
            ("llama", &used, max),
        ] {
            let found = read(model_type, with.clone(), &[]).context_len();
            assert_eq!(found, expected, "{model_type} {with}");
        }
        let long = |with| read("mistral", with, &["max_position_embeddings"]).context_len();
        assert_eq!((long(default), long(none)), (4096, 131_072));
    }

    /// As in transformers 5.
    #[test]
    fn a_window_that_no_layer_has_bounds_nothing() {
        let (full, sliding) = (json!("full_attention"), json!("sliding_attention"));
        for (with, expected) in [
            (json!({"num_hidden_layers": 28}), 4096),
            (json!({"num_hidden_layers": 29}), 1024),
            (json!({"max_window_layers": 32}), 4096),
            (json!({"max_window_layers": 31}), 1024),
            (
                json!({"max_window_layers": 0, "layer_types": [full, full]}),
                4096,
            ),
            (
                json!({"max_window_layers": 32, "layer_types": [full, sliding]}),
                1024,
            ),
            (json!({"layer_types": null}), 1024),
        ] {
            let mut used = json!({"sliding_window": 1024, "use_sliding_window": true});
            let fields = used.as_object_mut().unwrap();
            fields.extend(with.as_object().unwrap().clone());
            let found = read("qwen2", used, &[]).context_len();
            assert_eq!(found, expected, "{with}");
        }
    }

    /// Only some layers of a Qwen2 have it.
    #[test]
    fn the_window_of_a_qwen2_bounds_what_is_written() {
        let used = json!({"sliding_window": 1024, "use_sliding_window": true});
        let written = to_json(&read("qwen2", used, &[]), DType::F32);
        let again = parse(&written, Path::new("config.json")).unwrap();
        assert_eq!(
            (again.model_type, again.max_seq_len),
            (ModelType::Qwen2, 1024)
        );
    }

    #[test]
    fn keys_that_are_missing_have_the_model_types_defaults() {
        let missing = [
            "max_position_embeddings",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "tie_word_embeddings",
            "attention_bias",
        ];
        for (model_type, kv_heads, max) in [
            ("llama", 64, 2048),
            ("mistral", 8, 131_072),
            ("qwen2", 32, 32_768),
        ] {
            let config = read(model_type, json!({"num_attention_heads": 64}), &missing);
            assert_eq!((config.num_kv_heads, config.max_seq_len), (kv_heads, max));
            assert_eq!((config.norm_eps, config.rope_base), (1e-6, 1e4));
            assert!(!config.tie_embeddings && !config.output_proj_bias);
        }
        let null = json!({"num_attention_heads": 16, "num_key_value_heads": null});
        assert_eq!(read("qwen2", null, &[]).num_kv_heads, 16);
    }

    #[test]
    fn only_llama_has_a_setting_for_biases() {
        for (model_type, biases) in [
            ("llama", (true, true)),
            ("mistral", (false, false)),
            ("qwen2", (true, false)),
        ] {
            let config = read(model_type, json!({"attention_bias": true}), &[]);
            assert_eq!(
                (config.qkv_bias, config.output_proj_bias),
                biases,
                "{model_type}"
            );
        }
    }

    /// As transformers 5 does.
    #[test]
    fn of_two_settings_of_the_rotary_embedding_the_older_holds() {
        let newer = json!({"rope_type": "default", "rope_theta": 2e4});
        let linear = json!({"rope_type": "linear", "factor": 2.0});
        let with_base = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4});
        let scaled = Some(RopeScaling::Linear { factor: 2.0 });
        for (older, base, scaling) in [
            (&linear, 1e4, &scaled),
            (&with_base, 3e4, &scaled),
            (&json!({}), 2e4, &None),
            (&Value::Null, 2e4, &None),
        ] {
            let both = json!({"rope_parameters": newer, "rope_scaling": older});
            let config = read("llama", both, &["rope_theta"]);
            assert_eq!((config.rope_base, &config.rope_scaling), (base, scaling));
        }
        let both = json!({"rope_parameters": newer, "rope_scaling": linear, "rope_theta": 5e4});
        assert_eq!(read("llama", both, &[]).rope_base, 5e4);
    }

    /// As in transformers 5, whichever name the scaling has.
    #[test]
    fn where_llama3_scaling_begins() {
        let length = json!({"original_max_position_embeddings": 64});
        let other = json!({"original_max_position_embeddings": 32});
        let none = json!({"original_max_position_embeddings": null});
        let empty = json!({});
        for (outside, inside, expected) in [
            (&empty, &empty, 4096),
            (&empty, &length, 64),
            (&length, &empty, 64),
            (&length, &other, 64),
            (&none, &other, 32),
            (&none, &none, 4096),
        ] {
            for name in ["rope_scaling", "rope_parameters"] {
                let found = original_length(name, outside, inside);
                assert_eq!(found, expected, "{name}: {outside}, {inside}");
            }
        }
    }

    /// That of a model with these keys outside of a llama3 scaling and in it.
    fn original_length(scaling: &str, outside: &Value, inside: &Value) -> usize {
        let mut rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let extend = |to: &mut Value, with: &Value| {
            let fields = to.as_object_mut().unwrap();
            fields.extend(with.as_object().unwrap().clone());
        };
        extend(&mut rope, inside);
        let mut config = json!({ scaling: rope });
        extend(&mut config, outside);
        match read("llama", config, &[]).rope_scaling {
            Some(RopeScaling::Llama3 {
                original_max_seq_len,
                ..
            }) => original_max_seq_len,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn linear_scaling_is_written_under_both_names() {
        let scaling = scaling_to_json(&RopeScaling::Linear { factor: 2.0 });
        assert_eq!(
            scaling,
            json!({"rope_type": "linear", "type": "linear", "factor": 2.0})
        );
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
    fn swish_is_silu() {
        let config = read("llama", json!({"hidden_act": "swish"}), &[]);
        assert_eq!(config, LlamaConfig::llama2_7b());
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
            (
                "\"silu\"",
                "\"gelu\"",
                "hidden_act `gelu` is not supported; only silu is",
            ),
            ("\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias"),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"yarn\"}",
                "yarn",
            ),
            (
                "\"num_key_value_heads\": 32",
                "\"num_key_value_heads\": 5",
                "num_key_value_heads: ",
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
