//! What is written of a model: its metadata, which are read again before anything is written.

use serde_json::Value as Json;

use super::architectures::{Architecture, COMMON, Kind, Windows};
use super::config::{described, slides_but};
use super::scaling::{require_scaling, scaling_values};
use crate::gguf::{Tensor, Value};
use crate::llama::families::{Family, saved_family};
use crate::llama::{LayerAttention, LlamaConfig, RopeScaling, Rotary};

/// What is said of a model beside its tokenizer.
pub(super) fn metadata(
    architecture: &Architecture,
    config: &LlamaConfig,
    file_type: u32,
) -> Vec<(String, Value)> {
    let name = architecture.name;
    let general = [
        ("general.architecture", name.into()),
        ("general.type", "model".into()),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(2)),
    ];
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rotated_dim()),
    ];
    let sizes = sizes.map(|(key, size)| (key, Value::size(size)));
    let of_model = rows(architecture, config).into_iter().chain(sizes);
    let of_model = of_model
        .chain(windows(architecture.windows, config))
        .chain(scaling_values(architecture, config))
        .map(|(key, value)| (format!("{name}.{key}"), value));
    let general = general.map(|(key, value)| (key.to_owned(), value));
    general.into_iter().chain(of_model).collect()
}

/// What the fields of the model's `config.json` say, by the architecture's rows.
fn rows(architecture: &Architecture, config: &LlamaConfig) -> Vec<(&'static str, Value)> {
    let family = saved_family(config).or_else(|| Family::of(&config.model_type));
    let fields = family.expect("the architecture has it").write(config);
    let value = |field: &str| {
        let inside = fields.get("rope_parameters");
        fields.get(field).or_else(|| inside?.get(field))
    };
    let rows = COMMON.iter().chain(architecture.rows);
    let values = rows.filter_map(|row| {
        let value = value(row.field)?;
        let value = match row.kind {
            Kind::Size => Value::size(value.as_u64()? as usize),
            Kind::Number => Value::F32(value.as_f64()? as f32),
        };
        Some((row.key, value))
    });
    values.collect()
}

/// The window, and which layers have it where that is another rule than the architecture's own.
fn windows(windows: Windows, config: &LlamaConfig) -> Vec<(&'static str, Value)> {
    let layers = (0..config.num_layers).map(|layer| config.attention_of(layer).span.tokens());
    let spans: Vec<_> = layers.collect();
    let Some(window) = spans.iter().copied().flatten().next() else {
        return Vec::new();
    };
    let mut values = vec![("attention.sliding_window", Value::size(window))];
    if let Windows::AllBut { every, .. } = windows {
        let slides: Vec<_> = spans.iter().map(Option::is_some).collect();
        let layers = config.num_layers;
        let tells = |every: &usize| slides_but(*every, layers) == slides;
        let own = (!tells(&every)).then(|| (0..=layers).find(tells)).flatten();
        let key = "attention.sliding_window_pattern";
        values.extend(own.map(|every| (key, Value::size(every))));
    }
    values
}

/// Checks that a file with these metadata and tensors is read as the model that it is written for.
///
/// # Errors
/// What cannot be said of the model in such a file.
pub(super) fn require_told(
    config: &LlamaConfig,
    architecture: &Architecture,
    metadata: &[(String, Value)],
    tensors: &[Tensor],
) -> Result<(), String> {
    require_scaling(architecture, config)?;
    let found = described(metadata, tensors).map_err(|error| error.to_string())?;
    let [own, found] = [config, &found].map(told);
    match different(&own, &found) {
        None => Ok(()),
        Some(field) => Err(format!(
            "llama.cpp's files of a `{}` cannot say what `{field}` is of this model",
            architecture.name
        )),
    }
}

/// What metadata and tensors beside the tokenizer tell of a model.
fn told(config: &LlamaConfig) -> Json {
    let layers = (0..config.num_layers).map(|layer| config.attention_of(layer));
    let mut told = LlamaConfig {
        model_type: String::new(),
        layer_attention: LayerAttention::pattern(layers),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        ..config.clone()
    };
    // Its factors are told by a tensor, of which other bounds may be read.
    let scaling = told.rope_scaling.take();
    told.rope_scaling = scaling.filter(|s| !matches!(s, RopeScaling::Llama3 { .. }));
    let mut layers = told.layer_attention.iter();
    if !layers.any(|layer| layer.rotary == Rotary::Local) {
        told.local_rope = None;
    }
    told.other_fields = Default::default();
    serde_json::to_value(told).expect("a configuration serialises")
}

/// The field in which two values differ by more than f32 rounds; an empty one if it is the values themselves.
fn different(a: &Json, b: &Json) -> Option<String> {
    let is_near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs();
    match (a, b) {
        (Json::Object(a), Json::Object(b)) if a.len() == b.len() => {
            let mut fields = a.iter();
            fields.find_map(|(field, value)| {
                let inside = different(value, b.get(field).unwrap_or(&Json::Null))?;
                let place = [field.as_str(), &inside];
                Some(
                    place
                        .into_iter()
                        .filter(|part| !part.is_empty())
                        .collect::<Vec<_>>()
                        .join("."),
                )
            })
        }
        (Json::Array(a), Json::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b);
            pairs
                .any(|(a, b)| different(a, b).is_some())
                .then(String::new)
        }
        (Json::Number(a), Json::Number(b)) => {
            let near = a
                .as_f64()
                .zip(b.as_f64())
                .is_some_and(|(a, b)| is_near(a, b));
            (!near).then(String::new)
        }
        (a, b) => (a != b).then(String::new),
    }
}
