//! `params.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::PARAMS;
use crate::files::read_text;
use crate::llama::RopeScaling;
use crate::llama::families::Fields as JsonFields;
use crate::{Error, Result};

/// Fields of other models and of quantized ones, which change what is computed.
const NOT_COMPUTED: [&str; 6] = [
    "lora_args",
    "moe",
    "moe_args",
    "quantization_args",
    "sliding_window",
    "vision_chunk_size",
];

/// The base of Llama 3's rotary embedding, and of Code Llama's.
const LLAMA_3_BASE: f64 = 5e5;
const CODE_LLAMA_BASE: f64 = 1e6;

/// Below this width a Llama with a scaled rotary embedding is one of 3.2, with another factor.
const NARROW: usize = 4096;

/// The fields.
pub(super) struct Fields {
    dim: u32,
    pub n_layers: u32,
    pub n_heads: u32,
    pub n_kv_heads: Option<u32>,
    pub vocab_size: Option<i64>,
    multiple_of: Option<u32>,
    ffn_dim_multiplier: Option<f64>,
    pub norm_eps: f64,
    pub rope_theta: f64,
    use_scaled_rope: bool,
    rope_scaling_factor: Option<f64>,
    max_seq_len: Option<u32>,
}

impl Fields {
    fn read(json: JsonFields) -> Result<Self, String> {
        let is_set = |field: &&str| {
            let value = json.0.get(*field);
            value.is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
        };
        if let Some(field) = NOT_COMPUTED.into_iter().find(is_set) {
            return Err(format!(
                "`{field}` is set, but such models are not computed here"
            ));
        }
        Ok(Self {
            dim: json.need("dim")?,
            n_layers: json.need("n_layers")?,
            n_heads: json.need("n_heads")?,
            n_kv_heads: json.get("n_kv_heads")?,
            vocab_size: json.get("vocab_size")?,
            multiple_of: json.get("multiple_of")?,
            ffn_dim_multiplier: json.get("ffn_dim_multiplier")?,
            norm_eps: json.get_or("norm_eps", 1e-5)?,
            rope_theta: json.get_or("rope_theta", 1e4)?,
            use_scaled_rope: json.flag("use_scaled_rope")?,
            rope_scaling_factor: json.get("rope_scaling_factor")?,
            max_seq_len: json.get("max_seq_len")?,
        })
    }
}

/// A file whose fields have been checked.
pub(super) struct Params {
    path: PathBuf,
    pub fields: Fields,
}

impl Params {
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(PARAMS);
        let json = serde_json::from_str(&read_text(&path)?);
        let json: Map<_, _> = json.map_err(|error| Error::format(&path, error))?;
        let fields = Fields::read(JsonFields(&json));
        let fields = fields.map_err(|message| Error::format(&path, message))?;
        let params = Self { path, fields };
        params.check().map_err(|message| params.wrong(message))?;
        Ok(params)
    }

    fn check(&self) -> Result<(), String> {
        let Fields { dim, n_heads, .. } = self.fields;
        if n_heads == 0 || dim == 0 || !dim.is_multiple_of(n_heads) {
            return Err(format!(
                "`n_heads` of {n_heads} does not divide `dim` of {dim}"
            ));
        }
        let numbers = [
            ("norm_eps", Some(self.fields.norm_eps)),
            ("rope_theta", Some(self.fields.rope_theta)),
            ("rope_scaling_factor", self.fields.rope_scaling_factor),
        ];
        for (name, number) in numbers {
            if let Some(number) = number.filter(|number| *number <= 0.0) {
                return Err(format!("`{name}` is {number}, but must be above 0"));
            }
        }
        Ok(())
    }

    /// An error about the file.
    pub fn wrong(&self, message: impl ToString) -> Error {
        Error::format(&self.path, message)
    }

    /// The width of the hidden state.
    pub fn dim(&self) -> usize {
        self.fields.dim as usize
    }

    /// The width of one head.
    pub fn head_dim(&self) -> usize {
        (self.fields.dim / self.fields.n_heads) as usize
    }

    /// The width inside the feed-forward block, if the file tells it: two thirds of four times `dim`, times
    /// `ffn_dim_multiplier`, each rounded down as in Meta's own code, then up to the next multiple of `multiple_of`. 0 if
    /// there is no such number.
    pub fn intermediate_dim(&self) -> Option<usize> {
        let multiple = self.fields.multiple_of? as usize;
        let width = 2 * 4 * self.dim() / 3;
        let factor = self.fields.ffn_dim_multiplier.unwrap_or(1.0);
        let width = (factor * width as f64) as usize;
        Some(width.checked_next_multiple_of(multiple).unwrap_or(0))
    }

    /// The longest sequence: that of `max_seq_len`, a field that Meta's own files do not have; without it that of the release
    /// which the other fields tell.
    pub fn max_seq_len(&self) -> usize {
        let Fields {
            norm_eps,
            rope_theta,
            ..
        } = self.fields;
        match self.fields.max_seq_len {
            Some(len) => len as usize,
            None if self.fields.use_scaled_rope => 131_072,
            None if rope_theta == LLAMA_3_BASE => 8192,
            None if rope_theta == CODE_LLAMA_BASE => 16_384,
            // As llama.cpp's converter tells Llama 1 from 2.
            None if norm_eps < 1e-5 => 2048,
            None => 4096,
        }
    }

    pub fn rope_scaling(&self) -> Option<RopeScaling> {
        let factor = self.fields.rope_scaling_factor;
        let usual = match self.dim() < NARROW {
            true => 32.0,
            false => 8.0,
        };
        self.fields
            .use_scaled_rope
            .then(|| RopeScaling::llama3(factor.unwrap_or(usual)))
    }
}
