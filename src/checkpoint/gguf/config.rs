//! The configuration of a model, by its file's metadata and tensors: the fields of a `config.json` that say
//! the same, which the model's family reads.

use indexmap::IndexSet;
use serde_json::{Map, Value as Json, json};

use super::architectures::{Architecture, COMMON, Kind, Row, Windows};
use super::scaling::scaling_fields;
use crate::checkpoint::tensors::decode;
use crate::gguf::{
    Cursor, GgufFile, Metadata, TOKENS, Tensor, TensorKind, Value, Values, metadata_bytes,
};
use crate::llama::families::{FULL, Family, Fields, SLIDING, ends_to_json};
use crate::llama::{LayerAttention, LlamaConfig, Rotary, Span};
use crate::{Error, Result};
use burn::tensor::DType;

/// Settings that change what is computed, and the values with which they do not, below the architecture's
/// name. An architecture may have one as a row of its own.
const NEUTRAL: [(&str, &[f64]); 13] = [
    ("expert_count", &[0.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
];

/// What the fields are called here and there, below the architecture's name.
const KEYS: [(&str, &str); 9] = [
    ("num_layers", "block_count"),
    ("num_heads", "attention.head_count"),
    ("num_kv_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("embed_dim", "embedding_length"),
    ("intermediate_dim", "feed_forward_length"),
    ("max_seq_len", "context_length"),
    ("rotary_dim", "rope.dimension_count"),
    ("experts", "expert_count"),
];

/// Tokens that end a text or a turn of a conversation by what they are called, whatever the metadata name: converters tell
/// one of several, and llama.cpp stops at all of these.
const ENDS: [&str; 10] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
];

/// Sizes and numbers that llama.cpp has a value of its own for.
const MAY_LACK: [&str; 2] = ["attention.head_count_kv", "rope.freq_base"];
const ROPE_BASE: f64 = 1e4;
const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";

impl GgufFile {
    /// The sizes of the model.
    ///
    /// # Errors
    /// [`Error::Format`] if the metadata lack one, disagree with the tensors, or describe a model that this crate does
    /// not compute.
    pub(crate) fn config(&self) -> Result<LlamaConfig> {
        Model::of(self)?.config()
    }

    /// The architecture.
    pub(super) fn architecture(&self) -> Result<&'static Architecture> {
        architecture_of(&self.metadata())
    }
}

fn architecture_of(metadata: &Metadata) -> Result<&'static Architecture> {
    if metadata.text("general.type")? == Some("adapter") {
        let message = "an adapter, not a model; load the model that it was made for";
        return Err(Error::format(metadata.path, message));
    }
    let key = "general.architecture";
    let name = metadata.need(key, metadata.text(key)?)?;
    Architecture::named(name).ok_or_else(|| {
        let known = Architecture::names();
        metadata.error(key, format!("a `{name}` is not one of {known}"))
    })
}

/// The tensors that a configuration is read from.
pub(super) trait Tensors {
    /// The shape of a tensor, if it is there.
    fn shape_of(&self, name: &str) -> Option<&[usize]>;

    /// Its numbers, if it is there.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not f32.
    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>>;
}

impl Tensors for GgufFile {
    fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.entry(name).map(|entry| &entry.shape[..])
    }

    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entry(name) else {
            return Ok(None);
        };
        if entry.kind != TensorKind::F32 {
            let message = format!("`{name}` is of {:?}, not of F32", entry.kind);
            return Err(Error::format(self.path(), message));
        }
        let shape = entry.shape.clone();
        let data = decode(self.bytes(entry), DType::F32, shape, DType::F32);
        Ok(Some(data.iter().collect()))
    }
}

impl Tensors for [Tensor<'_>] {
    fn shape_of(&self, name: &str) -> Option<&[usize]> {
        let tensor = self.iter().find(|tensor| tensor.name == name)?;
        Some(&tensor.shape)
    }

    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.iter().find(|tensor| tensor.name == name) else {
            return Ok(None);
        };
        let bytes = (tensor.bytes)()?;
        let data = decode(&bytes, DType::F32, tensor.shape.clone(), DType::F32);
        Ok(Some(data.iter().collect()))
    }
}

/// What a file with these metadata and tensors is read as.
///
/// # Errors
/// Those of [`GgufFile::config`].
pub(super) fn described(metadata: &[(String, Value)], tensors: &[Tensor]) -> Result<LlamaConfig> {
    let bytes = metadata_bytes(metadata);
    let path = std::path::Path::new("the file to write");
    let values = Values::read(&mut Cursor::new(&bytes), metadata.len())
        .map_err(|message| Error::format(path, message))?;
    let metadata = Metadata {
        values: &values,
        bytes: &bytes,
        path,
    };
    let model = Model {
        architecture: architecture_of(&metadata)?,
        metadata,
        tensors: &tensors,
    };
    model.config()
}

impl<T: Tensors + ?Sized> Tensors for &T {
    fn shape_of(&self, name: &str) -> Option<&[usize]> {
        (**self).shape_of(name)
    }

    fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        (**self).numbers(name)
    }
}

/// A file, or what will be one, and its architecture.
pub(super) struct Model<'a> {
    pub(super) metadata: Metadata<'a>,
    pub(super) architecture: &'static Architecture,
    tensors: &'a dyn Tensors,
}

impl<'a> Model<'a> {
    fn of(file: &'a GgufFile) -> Result<Self> {
        Ok(Self {
            metadata: file.metadata(),
            architecture: file.architecture()?,
            tensors: file,
        })
    }

    fn config(&self) -> Result<LlamaConfig> {
        self.require_neutral()?;
        let family = Family::of(self.family()?).expect("a family of the table");
        let read = family.read(Fields(&self.fields()?));
        let mut config = read.map_err(|message| self.in_their_names(&message))?;
        // Fields were written for the family alone.
        config.other_fields = Default::default();
        let has = |name: &str| self.tensors.shape_of(name).is_some();
        let has_bias = |name: &str| has(&format!("blk.0.{name}.bias"));
        config.qkv_bias = ["attn_q", "attn_k", "attn_v", "attn_qkv"]
            .into_iter()
            .any(has_bias);
        config.output_proj_bias = has_bias("attn_output");
        config.mlp_bias = has_bias("ffn_down");
        if self.architecture.windows == Windows::All
            && let Some(window) = self.window()?
        {
            let span = Span::Window(window);
            let rotary = Rotary::Global;
            config.layer_attention = LayerAttention::pattern([LayerAttention { span, rotary }]);
        }
        let rotated = self.size_or("rope.dimension_count", config.head_dim)?;
        config.rotary_dim = Some(rotated).filter(|dim| *dim != config.head_dim);
        self.require_consistent(&config)?;
        Ok(config)
    }

    /// The family by its name in `config.json`.
    fn family(&self) -> Result<&'static str> {
        let mut family = "";
        for (name, key) in self.architecture.families {
            let is_it = match key {
                None => family.is_empty(),
                Some(key) => self.number(key)?.is_some_and(|value| value != 0.0),
            };
            if is_it {
                family = name;
            }
        }
        Ok(family)
    }

    /// The fields of a `config.json` that say the same.
    fn fields(&self) -> Result<Map<String, Json>> {
        let mut fields = Map::new();
        for row in COMMON {
            let value = match self.value(row)? {
                None if !MAY_LACK.contains(&row.key) => {
                    return self.metadata.need(&self.key(row.key), None);
                }
                value => value,
            };
            fields.extend(value.map(|value| (row.field.to_owned(), value)));
        }
        for row in self.architecture.rows {
            let value = self.value(*row)?;
            fields.extend(value.map(|value| (row.field.to_owned(), value)));
        }
        let heads = self.size("attention.head_count")?;
        fields.entry("num_key_value_heads").or_insert(heads.into());
        fields.entry("rope_theta").or_insert(ROPE_BASE.into());
        let head_dim = self.head_dim(heads)?;
        fields.insert("head_dim".to_owned(), head_dim.into());
        fields.extend(self.vocabulary()?);
        fields.extend(self.window_fields()?);
        fields.extend(scaling_fields(self, head_dim)?);
        self.architecture.complete(&mut fields);
        Ok(fields)
    }

    fn value(&self, row: Row) -> Result<Option<Json>> {
        Ok(match row.kind {
            Kind::Size => self.size_if_given(row.key)?.map(Json::from),
            Kind::Number => self.number(row.key)?.map(|number| match number {
                0.0 => Json::Null,
                number => number.into(),
            }),
        })
    }

    /// The number of tokens, and those that begin and end a text: ids that the vocabulary has.
    fn vocabulary(&self) -> Result<Map<String, Json>> {
        let [bos, eos, eot, eom, pad] =
            ["bos", "eos", "eot", "eom", "padding"].map(|name| self.metadata.token_id(name));
        let vocab_size = self.need_shape("token_embd.weight")?[0];
        let known = |id: Option<u32>| id.filter(|id| (*id as usize) < vocab_size);
        let named = [eos?, eot?, eom?].into_iter().flatten();
        let ends = named.chain(self.ends_by_text()?).map(Some);
        let ends: IndexSet<u32> = ends.filter_map(known).collect();
        let ends = Vec::from_iter(ends);
        Ok(fields(json!({
            "vocab_size": vocab_size,
            "tie_word_embeddings": self.tensors.shape_of("output.weight").is_none(),
            "bos_token_id": known(bos?),
            "eos_token_id": ends_to_json(&ends),
            "pad_token_id": known(pad?),
        })))
    }

    /// The ids of [`ENDS`].
    fn ends_by_text(&self) -> Result<Vec<u32>> {
        let tokens = self.metadata.texts(TOKENS)?.unwrap_or_default();
        let ends = (0..).zip(tokens).filter(|(_, text)| ENDS.contains(text));
        Ok(ends.map(|(id, _)| id).collect())
    }

    /// A window that some layers have, and which.
    fn window_fields(&self) -> Result<Map<String, Json>> {
        let Windows::AllBut { every, window } = self.architecture.windows else {
            return Ok(fields(json!({ "sliding_window": null })));
        };
        let layers = self.size("block_count")?;
        let window = self.size_or(WINDOW, window)?;
        let slides = match window {
            0 => vec![false; layers.min(MAX_LAYERS)],
            _ => self.sliding_layers(layers, every)?,
        };
        let kinds = slides.iter().map(|slides| match slides {
            true => SLIDING,
            false => FULL,
        });
        let kinds: Vec<_> = kinds.collect();
        let window = Some(window).filter(|window| *window > 0);
        Ok(fields(
            json!({ "sliding_window": window, "layer_types": kinds }),
        ))
    }

    /// By a list with a flag for each, or by a number: all but the last of so many.
    fn sliding_layers(&self, layers: usize, every: usize) -> Result<Vec<bool>> {
        let key = self.key(PATTERN);
        if self.metadata.is_list(&key) {
            let flags = self.metadata.flags(&key)?.unwrap_or_default();
            return match flags.len() == layers {
                true => Ok(flags),
                false => {
                    let message = format!("{} are given for {layers} layers", flags.len());
                    Err(self.metadata.error(&key, message))
                }
            };
        }
        let every = self.size_or(PATTERN, every)?;
        Ok(slides_but(every, layers.min(MAX_LAYERS)))
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// A number of things. Products of two do not overflow.
    fn size_if_given(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(value) = self.metadata.integer(&key)? else {
            return Ok(None);
        };
        let size = u32::try_from(value);
        let size = size.map_err(|_| self.metadata.error(&key, format!("{value} is no size")))?;
        Ok(Some(size as usize))
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_if_given(key)?.unwrap_or(default))
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let size = self.size_if_given(key)?;
        self.metadata.need(&self.key(key), size)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = self.metadata.number(&self.key(key))?;
        match number.filter(|number| !number.is_finite()) {
            Some(other) => Err(self.error(key, format!("{other} is no number to compute with"))),
            None => Ok(number),
        }
    }

    pub(super) fn numbers(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        self.tensors.numbers(tensor)
    }

    /// An error about a key below the architecture's name.
    pub(super) fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        self.metadata.error(&self.key(key), message)
    }

    /// What a family says of a field, said of the key.
    fn in_their_names(&self, message: &str) -> Error {
        let mut rows = COMMON.iter().chain(self.architecture.rows);
        match rows.find(|row| message.starts_with(row.field)) {
            Some(row) => {
                let what = &message[row.field.len()..];
                self.error(row.key, what.trim_start_matches([':', ' ']))
            }
            None => Error::format(self.metadata.path, message),
        }
    }

    fn require_neutral(&self) -> Result<()> {
        let others = NEUTRAL.into_iter();
        for (key, neutral) in others.filter(|(key, _)| !self.architecture.reads(key)) {
            if let Some(value) = self.number(key)?.filter(|value| !neutral.contains(value)) {
                return Err(self.error(key, format!("{value} is not supported")));
            }
        }
        if self.architecture.windows == Windows::None && self.window()?.is_some() {
            return Err(self.error(WINDOW, "a window is not supported in such a model"));
        }
        let local = "rope.freq_base_swa";
        let base = self.number("rope.freq_base")?.unwrap_or(ROPE_BASE);
        if !self.architecture.reads(local) && self.number(local)?.is_some_and(|own| own != base) {
            return Err(self.error(local, format!("another base than {base} is not supported")));
        }
        for (key, meaning) in self.architecture.flags {
            if self.metadata.flag(&self.key(key))? == Some(false) {
                return Err(self.error(key, format!("{meaning} is not supported")));
            }
        }
        Ok(())
    }

    fn window(&self) -> Result<Option<usize>> {
        let window = self.size_if_given(WINDOW)?;
        Ok(window.filter(|window| *window > 0))
    }

    /// The width of a head, which keys, values and, in most models, rotation have to share.
    fn head_dim(&self, heads: usize) -> Result<usize> {
        if heads == 0 {
            return Err(self.error("attention.head_count", "must be at least 1"));
        }
        let own = self.size("embedding_length")? / heads;
        let head_dim = self.size_or("attention.key_length", own)?;
        let rotation = ["rope.dimension_count"].into_iter();
        let rotation = rotation.filter(|_| !self.architecture.rotates_parts);
        for key in ["attention.value_length"].into_iter().chain(rotation) {
            let other = self.size_or(key, head_dim)?;
            if other != head_dim {
                let message =
                    format!("{other} is not supported where a head has a width of {head_dim}");
                return Err(self.error(key, message));
            }
        }
        Ok(head_dim)
    }

    /// The shape of a tensor that has to be there.
    fn need_shape(&self, name: &str) -> Result<&[usize]> {
        self.tensors.shape_of(name).ok_or_else(|| {
            let message =
                format!("there is no tensor `{name}`; is this the file of a whole model?");
            Error::format(self.metadata.path, message)
        })
    }

    /// Checks that the sizes make up a model, and are those of the tensors: a model of other sizes is never
    /// made.
    fn require_consistent(&self, config: &LlamaConfig) -> Result<()> {
        config.validate().map_err(|error| match error {
            Error::InvalidArgument { name, message } => {
                let theirs = KEYS.iter().find(|(ours, _)| *ours == name);
                let key = theirs.map_or(name.to_owned(), |(_, theirs)| self.key(theirs));
                self.metadata.error(&key, message)
            }
            other => other,
        })?;
        for (name, expected) in expected_shapes(config) {
            let found = self.need_shape(&name)?;
            if found != expected {
                let message =
                    format!("the tensor `{name}` is {found:?}, but by the metadata {expected:?}");
                return Err(Error::format(self.metadata.path, message));
            }
        }
        Ok(())
    }
}

/// What a file may say at most, since something is kept for each layer before its weights are looked at.
const MAX_LAYERS: usize = 10_000;

/// Some tensors that tell all sizes of a model.
fn expected_shapes(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let (dim, inside) = (config.embed_dim, config.intermediate_dim);
    let (q, kv) = (config.q_dim(), config.kv_dim());
    let last = config.num_layers - 1;
    let norm = match config.block.norms.is_before() {
        true => "attn_norm",
        false => "post_attention_norm",
    };
    let mut shapes = vec![("token_embd".to_owned(), vec![config.vocab_size, dim])];
    shapes.extend(match config.block.joint_projections {
        true => vec![("blk.0.attn_qkv".to_owned(), vec![q + 2 * kv, dim])],
        false => vec![
            ("blk.0.attn_q".to_owned(), vec![q, dim]),
            ("blk.0.attn_k".to_owned(), vec![kv, dim]),
        ],
    });
    shapes.push(match (&config.experts, config.block.joint_projections) {
        (Some(experts), _) => {
            let shape = vec![experts.count, experts.intermediate_dim, dim];
            ("blk.0.ffn_gate_exps".to_owned(), shape)
        }
        (None, true) => ("blk.0.ffn_up".to_owned(), vec![2 * inside, dim]),
        (None, false) => ("blk.0.ffn_gate".to_owned(), vec![inside, dim]),
    });
    shapes.push((format!("blk.{last}.{norm}"), vec![dim]));
    let shapes = shapes.into_iter();
    shapes
        .map(|(name, shape)| (format!("{name}.weight"), shape))
        .collect()
}

/// Which of so many layers slide where all but the last of every so many do; of 0 all of them.
pub(super) fn slides_but(every: usize, layers: usize) -> Vec<bool> {
    let slides = |layer: usize| every == 0 || layer % every < every - 1;
    (0..layers).map(slides).collect()
}

/// An object's fields.
pub(super) fn fields(object: Json) -> Map<String, Json> {
    match object {
        Json::Object(fields) => fields,
        other => unreachable!("{other} is no object"),
    }
}
