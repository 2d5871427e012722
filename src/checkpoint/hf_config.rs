//! Hugging Face's `config.json`, in the style of transformers 4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and of transformers 5 (`rope_parameters`, `dtype`). What a family of models has there is told by
//! [`crate::llama::families`].

use std::path::Path;

use burn::tensor::DType;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::nearest;
use crate::llama::LlamaConfig;
use crate::llama::families::{FAMILIES, Family, Fields, OneOrMany, saved_family};
use crate::{Error, Result};

pub(super) use crate::llama::families::ends_to_json;

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

/// The method of quantization whose folders are read.
const BITSANDBYTES: &str = "bitsandbytes";

/// What the fields are called here and in `config.json`.
const KEYS: [(&str, &str); 14] = [
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("num_kv_heads", "num_key_value_heads"),
    ("embed_dim", "hidden_size"),
    ("intermediate_dim", "intermediate_size"),
    ("max_seq_len", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("rope_base", "rope_theta"),
    ("rotary_dim", "partial_rotary_factor"),
    ("tie_embeddings", "tie_word_embeddings"),
    ("qkv_bias", "attention_bias"),
    ("output_proj_bias", "attention_bias"),
    ("eos_token_ids", "eos_token_id"),
    ("experts", "num_experts"),
];

/// The key of `config.json` that a field of [`LlamaConfig`] comes from.
pub(crate) fn hf_config_key(field: &str) -> &str {
    let row = KEYS.iter().find(|(ours, _)| *ours == field);
    row.map_or(field, |(_, theirs)| theirs)
}

/// Reads the sizes and switches of a model from the text of its `config.json`.
pub(super) fn parse(text: &str, path: &Path) -> Result<LlamaConfig> {
    let fields = parse_object(text, path)?;
    let fields = text_model(fields).map_err(|message| Error::format(path, message))?;
    let config = read(Fields(&fields)).map_err(|message| Error::format(path, message))?;
    config.validate().map_err(|error| match error {
        Error::InvalidArgument { name, message } => {
            Error::format(path, format!("{}: {message}", hf_config_key(name)))
        }
        other => other,
    })?;
    Ok(config)
}

fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    let value = serde_json::from_str(text).map_err(|error| Error::format(path, error))?;
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::format(path, "is no JSON object")),
    }
}

fn read(fields: Fields) -> Result<LlamaConfig, String> {
    let model_type: String = fields.need("model_type")?;
    let family = Family::of(&model_type).ok_or_else(|| unknown(&model_type, fields))?;
    let quantization: Option<HfQuantization> = fields.get("quantization_config")?;
    quantization.map_or(Ok(()), |packed| packed.require_known())?;
    family.read(fields)
}

/// The fields of the text model in those of one that reads images too; those of a text model as they are.
fn text_model(mut fields: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let Some(text) = fields.shift_remove("text_config") else {
        return Ok(fields);
    };
    let Value::Object(mut text) = text else {
        return Err(format!("text_config: {text} is no object"));
    };
    let outer = fields.get("model_type").and_then(Value::as_str);
    let (_, inner) = TEXT_MODELS
        .into_iter()
        .find(|(model, _)| Some(*model) == outer)
        .unwrap_or_default();
    text.entry("model_type").or_insert_with(|| inner.into());
    // Of the whole model, whose head it is.
    let is_tied = fields
        .get("tie_word_embeddings")
        .cloned()
        .filter(|value| !value.is_null());
    text.insert(
        "tie_word_embeddings".to_owned(),
        is_tied.unwrap_or(true.into()),
    );
    for key in [
        "quantization_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ] {
        if let Some(value) = fields.get(key).filter(|_| !text.contains_key(key)) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    Ok(text)
}

/// Whether the text of a `config.json` is that of a model that reads images too, and does not say whether its embedding and
/// output are one.
pub(super) fn leaves_output_open(text: &str) -> bool {
    let fields: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let is_tied = fields.get("tie_word_embeddings");
    fields.contains_key("text_config") && is_tied.is_none_or(Value::is_null)
}

/// Models that read images too, and what their text model is where they do not say.
const TEXT_MODELS: [(&str, &str); 2] = [("gemma3", "gemma3_text"), ("mistral3", "mistral")];

/// A family that is not known, with the one that is most like it, and the first field that this one does not have.
fn unknown(model_type: &str, fields: Fields) -> String {
    let names = FAMILIES.map(|family| family.model_type);
    let mut message = format!(
        "model_type `{model_type}` is not one of {}",
        names.join(", ")
    );
    let most_alike = nearest(model_type, names, 1);
    let most_alike = most_alike.first().and_then(|name| Family::of(name));
    if let Some(family) = most_alike {
        let known = family.fields();
        let mut others = fields.0.keys().filter(|key| !known.contains(key));
        message += &format!("; the nearest is {}", family.model_type);
        message += &others
            .next()
            .map_or_else(String::new, |key| format!(", which has no `{key}`"));
    }
    message
}

/// Reads the tokens that end a text from the text of a `generation_config.json`.
pub(super) fn parse_ends(text: &str, path: &Path) -> Result<Vec<u32>> {
    let fields = parse_object(text, path)?;
    let ends = Fields(&fields).get::<OneOrMany>("eos_token_id");
    let ends = ends.map_err(|message| Error::format(path, message))?;
    Ok(ends.map_or_else(Vec::new, OneOrMany::into_vec))
}

/// The text of `config.json` for a model whose weights are of `dtype`.
///
/// # Errors
/// [`Error::InvalidArgument`] if no family has such layers.
pub(super) fn to_json(config: &LlamaConfig, dtype: DType) -> Result<String> {
    let family = saved_family(config).ok_or_else(|| Error::InvalidArgument {
        name: "model_type",
        message: format!(
            "no family of Hugging Face's models that is known has the layers of this `{}`",
            config.model_type
        ),
    })?;
    let mut fields = family.write(config);
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    fields.insert("torch_dtype".to_owned(), json!(dtype));
    for (key, value) in &config.other_fields.0 {
        fields.entry(key).or_insert_with(|| value.clone());
    }
    Ok(serde_json::to_string_pretty(&fields).expect("JSON serialises"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{LayerAttention, RopeScaling, Rotary, Span};

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
                model_type: "qwen2".to_owned(),
                ..LlamaConfig::llama2_7b()
            },
            LlamaConfig {
                max_seq_len: 32_768,
                layer_attention: vec![LayerAttention {
                    span: Span::Window(4096),
                    rotary: Rotary::Global,
                }],
                model_type: "mistral".to_owned(),
                ..LlamaConfig::llama2_7b()
            },
            LlamaConfig {
                model_type: "mistral".to_owned(),
                ..LlamaConfig::llama2_7b()
            },
        ] {
            assert_eq!(
                parse(&to_json(&config, DType::BF16).unwrap(), path).unwrap(),
                config
            );
        }
    }

    #[test]
    fn fields_of_other_programs_are_kept() {
        let with = json!({"auto_map": {"x": 1}, "_name_or_path": "a/b", "rope_theta": 2e4, "dtype": "float16"});
        let config = read("llama", with, &["rms_norm_eps"]);
        assert_eq!(
            config,
            read("llama", json!({"rope_theta": 2e4}), &["rms_norm_eps"])
        );
        let written = to_json(&config, DType::F32).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(
            (&written["auto_map"]["x"], &written["_name_or_path"]),
            (&json!(1), &json!("a/b"))
        );
        assert_eq!(
            (written.get("dtype"), &written["torch_dtype"]),
            (None, &json!("float32"))
        );
        assert_eq!(written["rope_theta"], 2e4);
    }

    #[test]
    fn published_models_read_back_as_they_are_written() {
        for (name, config) in crate::llama::PRESETS {
            let written = to_json(&config(), DType::BF16).unwrap();
            let again = parse(&written, Path::new("config.json")).unwrap();
            assert_eq!(again, config(), "{name}");
        }
    }

    /// Llama 2 7B's `config.json`, of another model type, with and without some keys.
    fn read(model_type: &str, with: Value, without: &[&str]) -> LlamaConfig {
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32).unwrap();
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
            serde_json::from_str(&to_json(&LlamaConfig::llama2_7b(), DType::F32).unwrap()).unwrap();
        assert!(without.get("pad_token_id").is_none());
    }

    /// The windows of a model's layers, repeated.
    fn windows(config: &LlamaConfig) -> Vec<Option<usize>> {
        let layers = config.layer_attention.iter();
        layers.map(|layer| layer.span.tokens()).collect()
    }

    #[test]
    fn which_models_have_a_sliding_window() {
        let default = json!({});
        let (short, none) = (
            json!({"sliding_window": 1024}),
            json!({"sliding_window": null}),
        );
        let used =
            json!({"sliding_window": 1024, "use_sliding_window": true, "max_window_layers": 0});
        for (model_type, with, expected) in [
            ("mistral", &short, &[Some(1024)][..]),
            ("mistral", &none, &[]),
            ("mistral", &default, &[Some(4096)]),
            ("qwen2", &used, &[Some(1024)]),
            ("qwen2", &short, &[]),
            ("qwen2", &default, &[]),
            ("llama", &used, &[]),
        ] {
            let found = windows(&read(model_type, with.clone(), &[]));
            assert_eq!(found, expected, "{model_type} {with}");
        }
    }

    /// As in transformers 5.
    #[test]
    fn which_layers_of_a_qwen_have_it() {
        let (full, sliding) = (json!("full_attention"), json!("sliding_attention"));
        for (with, expected) in [
            (json!({"num_hidden_layers": 28}), &[][..]),
            (json!({"max_window_layers": 32}), &[]),
            (
                json!({"max_window_layers": 1, "num_hidden_layers": 2}),
                &[None, Some(1024)],
            ),
            (
                json!({"max_window_layers": 0, "num_hidden_layers": 2, "layer_types": [full, full]}),
                &[],
            ),
            (
                json!({"num_hidden_layers": 2, "layer_types": [full, sliding]}),
                &[None, Some(1024)],
            ),
        ] {
            let mut used = json!({"sliding_window": 1024, "use_sliding_window": true});
            let fields = used.as_object_mut().unwrap();
            fields.extend(with.as_object().unwrap().clone());
            let config = read("qwen2", used, &[]);
            assert_eq!(windows(&config), expected, "{with}");
            let written = to_json(&config, DType::F32).unwrap();
            assert_eq!(parse(&written, Path::new("config.json")).unwrap(), config);
        }
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
        let linear = RopeScaling::Linear { factor: 2.0 };
        let config = LlamaConfig::llama2_7b().with_rope_scaling(Some(linear));
        let written = to_json(&config, DType::F32).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(
            written["rope_scaling"],
            json!({"rope_type": "linear", "type": "linear", "factor": 2.0})
        );
    }

    #[test]
    fn the_kind_of_rope_scaling_has_an_old_name_a_new_one_or_both() {
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32).unwrap();
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
    fn an_unknown_family_is_told_with_the_nearest_and_what_it_lacks() {
        let config = json!({"model_type": "qwen3_next", "hidden_size": 64, "use_cache": true, "linear_num_value_heads": 4});
        let error = parse(&config.to_string(), Path::new("config.json")).unwrap_err();
        let told = "the nearest is qwen3, which has no `linear_num_value_heads`";
        assert!(error.to_string().ends_with(told), "{error}");
        // Fields that the family may have, but writes in another way or not at all.
        let config = json!({"model_type": "qwen2_5", "layer_types": [], "max_window_layers": 28, "quantization_config": {},
                            "shared_layers": 4});
        let error = parse(&config.to_string(), Path::new("config.json")).unwrap_err();
        let told = "the nearest is qwen2, which has no `shared_layers`";
        assert!(error.to_string().ends_with(told), "{error}");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let path = Path::new("config.json");
        let text = to_json(&LlamaConfig::llama2_7b(), DType::F32).unwrap();
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
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"yarn\"}",
                "the rope scaling has no factor",
            ),
            (
                "\"num_key_value_heads\": 32",
                "\"num_key_value_heads\": 5",
                "num_key_value_heads: ",
            ),
            (
                "\"num_hidden_layers\": 32",
                "\"num_hidden_layers\": 1000000000000",
                "num_hidden_layers 1000000000000 is above 10000",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], \"long_factor\": [1, 2]}",
                "longrope needs 64 factors of each kind, not 1 and 2",
            ),
            (
                "\"rms_norm_eps\": ",
                "\"rms_norm_eps\": -",
                "rms_norm_eps: must be a number from 0 up, not -",
            ),
            (
                "\"rms_norm_eps\": ",
                "\"rms_norm_eps\": 1e39, \"x\": ",
                "rms_norm_eps: must be a number from 0 up, not 1",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 1e-5}",
                "a context of 0 tokens",
            ),
            (
                "\"rope_theta\": ",
                "\"rope_theta\": -",
                "rope_theta: must be a number above 0, not -10000",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}",
                "rope_scaling: factor must be a number above 0, not 0",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": -2}",
                "rope_scaling: factor must be a number above 0, not -2",
            ),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4}",
                "low_freq_factor 4 must be below high_freq_factor 4",
            ),
            (
                "\"hidden_size\": 4096",
                "\"hidden_size\": 4611686018427387904",
                "hidden_size: with these sizes a weight is larger than any memory",
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
