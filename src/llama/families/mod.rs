//! The families of models: a file each, with the fields of its `config.json`, their defaults in transformers 5 and the
//! switches that follow. Nothing else knows a family.

mod fields;
mod gemma;
mod granite;
mod layers;
mod llama;
mod mistral;
mod olmo;
mod phi3;
mod qwen;
mod qwen3_moe;
mod rope;
mod rope_by_layer;
mod smollm3;

use serde_json::{Map, Value, json};

use self::fields::TokenId;
pub(crate) use self::fields::{Fields, OneOrMany, ends_to_json};
pub(crate) use self::layers::{FULL, SLIDING};
pub(crate) use self::rope::{longrope_attention_factor, scaling_to_json};
use super::{Block, LlamaConfig, Rope};
use crate::ops::Activation;

/// A family of models.
pub(crate) struct Family {
    /// What `config.json` calls it.
    pub model_type: &'static str,
    /// The class that transformers makes of it.
    pub architecture: &'static str,
    defaults: Defaults,
    /// Sets what the family's own fields say.
    read: fn(Fields, &mut LlamaConfig) -> Result<(), String>,
    /// The family's own fields; they replace common ones of the same names.
    write: fn(&LlamaConfig) -> Map<String, Value>,
}

/// What transformers takes where a file does not have a field.
struct Defaults {
    max_seq_len: usize,
    /// None: as many as query heads.
    num_kv_heads: Option<usize>,
    /// None: `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    norm_eps: f64,
    rope_base: f64,
    tie_embeddings: bool,
    bos: Option<i64>,
    eos: Option<i64>,
    pad: Option<i64>,
    /// Sizes by their fields.
    sizes: &'static [(&'static str, usize)],
    /// How the rotary embedding of all layers is told, by the base and the longest sequence.
    read_rope: fn(Fields, f64, usize) -> Result<Rope, String>,
    /// The field that names the activation, and the names of the one that the family has.
    activation: (&'static str, Activation, &'static [&'static str]),
}

/// Llama's.
const DEFAULTS: Defaults = Defaults {
    max_seq_len: 2048,
    num_kv_heads: None,
    head_dim: None,
    norm_eps: 1e-6,
    rope_base: 1e4,
    tie_embeddings: false,
    bos: Some(1),
    eos: Some(2),
    pad: None,
    sizes: &[],
    read_rope: rope::read_rope,
    activation: ("hidden_act", Activation::Silu, &["silu", "swish"]),
};

/// What a file may say at most, since something is kept for each layer before its weights are looked at.
const MAX_LAYERS: usize = 10_000;

/// Fields that families read, and write under other names or only where they say something.
const READ_OTHERWISE: [&str; 12] = [
    "dtype",
    "layer_types",
    "max_window_layers",
    "no_rope_layer_interval",
    "num_local_experts",
    "original_max_position_embeddings",
    "pad_token_id",
    "quantization_config",
    "rope_parameters",
    "sliding_window_pattern",
    "torch_dtype",
    "use_bidirectional_attention",
];

/// Fields of many files that say nothing of what is computed.
const WITHOUT_EFFECT: [&str; 10] = [
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "cache_implementation",
    "id2label",
    "initializer_range",
    "label2id",
    "pretraining_tp",
    "transformers_version",
    "use_cache",
];

/// All families, in the order in which one is looked for that a model can be saved as.
pub(crate) static FAMILIES: [&Family; 13] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MINISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen3_moe::QWEN3_MOE,
    &smollm3::SMOLLM3,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &granite::GRANITE,
    &phi3::PHI3,
    &gemma::GEMMA2,
    &gemma::GEMMA3_TEXT,
];

impl Family {
    /// The family of a model type.
    pub(crate) fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .into_iter()
            .find(|family| family.model_type == model_type)
    }

    /// The sizes and switches of a model by the fields of its `config.json`.
    pub(crate) fn read(&self, fields: Fields) -> Result<LlamaConfig, String> {
        let mut config = self.read_common(fields)?;
        (self.read)(fields, &mut config)?;
        let own = self.write(&config);
        let others = fields
            .0
            .iter()
            .filter(|(key, _)| !own.contains_key(*key) && !READ_OTHERWISE.contains(&key.as_str()));
        config.other_fields.0 = others
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok(config)
    }

    fn read_common(&self, fields: Fields) -> Result<LlamaConfig, String> {
        let defaults = &self.defaults;
        let size = |key| self.size(fields, key);
        let [num_layers, num_heads] = self.layers_and_heads(fields)?;
        let embed_dim = size("hidden_size")?;
        let head_dim = fields.get("head_dim")?.or(defaults.head_dim);
        let num_kv_heads = fields.given("num_key_value_heads")?;
        let max_seq_len = fields.get_or("max_position_embeddings", defaults.max_seq_len)?;
        let Rope { base, scaling } = (defaults.read_rope)(fields, defaults.rope_base, max_seq_len)?;
        let ends = fields.given::<OneOrMany>("eos_token_id")?;
        let ends = ends.unwrap_or(defaults.eos.map(|id| OneOrMany::One(TokenId(id))));
        Ok(LlamaConfig {
            model_type: self.model_type.to_owned(),
            vocab_size: size("vocab_size")?,
            num_layers,
            num_heads,
            num_kv_heads: num_kv_heads
                .unwrap_or(defaults.num_kv_heads)
                .unwrap_or(num_heads),
            head_dim: head_dim.unwrap_or(embed_dim / num_heads),
            embed_dim,
            intermediate_dim: size("intermediate_size")?,
            max_seq_len,
            norm_eps: fields.get_or("rms_norm_eps", defaults.norm_eps)?,
            rope_base: base,
            rope_scaling: scaling,
            tie_embeddings: fields.get_or("tie_word_embeddings", defaults.tie_embeddings)?,
            block: Block::default().with_activation(self.activation(fields)?),
            bos_token_id: fields.token("bos_token_id", defaults.bos)?,
            eos_token_ids: ends.map_or_else(Vec::new, OneOrMany::into_vec),
            pad_token_id: fields.token("pad_token_id", defaults.pad)?,
            ..LlamaConfig::llama2_7b()
        })
    }

    fn size(&self, fields: Fields, key: &str) -> Result<usize, String> {
        let mut defaults = self.defaults.sizes.iter();
        match defaults.find(|(name, _)| *name == key) {
            Some((_, default)) => fields.get_or(key, *default),
            None => fields.need(key),
        }
    }

    fn layers_and_heads(&self, fields: Fields) -> Result<[usize; 2], String> {
        let layers = self.size(fields, "num_hidden_layers")?;
        let heads = self.size(fields, "num_attention_heads")?;
        match (layers, heads) {
            (_, 0) => Err("num_attention_heads is 0".to_owned()),
            (layers, _) if layers > MAX_LAYERS => {
                Err(format!("num_hidden_layers {layers} is above {MAX_LAYERS}"))
            }
            known => Ok(known.into()),
        }
    }

    fn activation(&self, fields: Fields) -> Result<Activation, String> {
        let (key, activation, names) = self.defaults.activation;
        match fields.get::<String>(key)? {
            Some(name) if !names.contains(&name.as_str()) => {
                let expected = names[0];
                Err(format!(
                    "{key} `{name}` is not supported; only {expected} is"
                ))
            }
            _ => Ok(activation),
        }
    }

    /// The fields of the `config.json` of a model, but those that tell how its weights are stored and those of other
    /// programs: the style of transformers 4, which every reader of such folders knows.
    pub(crate) fn write(&self, config: &LlamaConfig) -> Map<String, Value> {
        let (activation_key, _, names) = self.defaults.activation;
        let fields = json!({
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            "hidden_size": config.embed_dim,
            "intermediate_size": config.intermediate_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": config.norm_eps,
            activation_key: names[0],
            "tie_word_embeddings": config.tie_embeddings,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ends_to_json(&config.eos_token_ids),
        });
        let Value::Object(mut fields) = fields else {
            unreachable!("an object was written")
        };
        let pad = config.pad_token_id.map(Value::from);
        // A default that the model does not have.
        let pad = pad.or(self.defaults.pad.map(|_| Value::Null));
        fields.extend(pad.map(|id| ("pad_token_id".to_owned(), id)));
        fields.extend(rope::rope_to_json(&config.rope()));
        fields.extend((self.write)(config));
        fields
    }

    /// The fields that the family has or may have, and those that none of them computes by.
    pub(crate) fn fields(&self) -> Vec<String> {
        let mut config = LlamaConfig::llama2_7b();
        config.pad_token_id = Some(0);
        let own = self.write(&config);
        own.keys()
            .map(String::as_str)
            .chain(READ_OTHERWISE)
            .chain(WITHOUT_EFFECT)
            .map(str::to_owned)
            .collect()
    }

    /// Whether a model of this family has these sizes and switches, whatever it is called.
    fn fits(&self, config: &LlamaConfig) -> bool {
        let again = self.read(Fields(&self.write(config)));
        again.is_ok_and(|again| again.with_model_type(config.model_type.as_str()) == *config)
    }
}

/// The family that a model is saved as: its own if that has such layers, else the first that has.
pub(crate) fn saved_family(config: &LlamaConfig) -> Option<&'static Family> {
    let own = Family::of(&config.model_type).into_iter();
    own.chain(FAMILIES).find(|family| family.fits(config))
}

/// Fields as a map.
fn map(fields: Value) -> Map<String, Value> {
    match fields {
        Value::Object(fields) => fields,
        other => unreachable!("{other} is no object"),
    }
}
