//! The weights of a model, by this crate's names.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, TensorData};

use super::names::{from_gguf, gate_of_experts, is_norm, is_rotated, up_of_experts};
use super::scaling::ROPE_TENSORS;
use crate::checkpoint::rotary::half_split;
use crate::checkpoint::tensors::{decode, encode};
use crate::gguf::{Entry, GgufFile, TensorKind};
use crate::llama::LlamaConfig;
use crate::{Error, Result};

/// Below a layer, what stands before an expert's number.
const EXPERTS: &str = ".moe.experts.";

/// A weight of a model, as it is in a file.
pub(crate) struct GgufTensor<'a> {
    file: &'a GgufFile,
    /// The tensors, or the parts of them, that it consists of, one below the other: one, but for gate and up of an
    /// expert.
    parts: Vec<Part<'a>>,
    shape: Vec<usize>,
    key: String,
    /// Whether neighbouring rows are rotated in the file, where this crate rotates those half a head apart.
    is_rotary_permuted: bool,
    /// Whether it is the `1 + w` of a norm, where this crate has w.
    has_unit_offset: bool,
    head_dim: usize,
}

/// Some bytes of a tensor.
struct Part<'a> {
    entry: &'a Entry,
    bytes: Range<usize>,
}

impl GgufFile {
    /// The weights of a model of which [`Self::config`] gave the sizes, in the file's order. Shapes are not compared with
    /// the model's.
    ///
    /// # Errors
    /// [`Error::Keys`] if the file has a tensor that no such model has, [`Error::Format`] if rows of q or k are no whole
    /// number of heads, or a tensor of experts is not one of all of them.
    pub(crate) fn tensors<'a>(&'a self, config: &LlamaConfig) -> Result<Vec<GgufTensor<'a>>> {
        let weights = self
            .entries()
            .iter()
            .filter(|entry| !ROPE_TENSORS.contains(&&*entry.name));
        let mut found = Vec::new();
        let mut unexpected = Vec::new();
        for entry in weights {
            let gate = gate_of_experts(&entry.name);
            match from_gguf(&entry.name, &config.block) {
                Some(key) => match key.split_once(EXPERTS) {
                    Some((layer, module)) => {
                        found.extend(self.experts(entry, layer, module, config)?);
                    }
                    None => found.push(self.whole(entry, key, config)?),
                },
                // It is read with the gate.
                None if gate.is_some_and(|gate| self.entry(&gate).is_some()) => {}
                None => unexpected.push((entry.name.clone(), None)),
            }
        }
        if !unexpected.is_empty() {
            return Err(Error::Keys {
                origin: self.path().display().to_string(),
                missing: Vec::new(),
                unexpected,
            });
        }
        found.iter().try_for_each(GgufTensor::require_heads)?;
        Ok(found)
    }

    fn whole<'a>(
        &'a self,
        entry: &'a Entry,
        key: String,
        config: &LlamaConfig,
    ) -> Result<GgufTensor<'a>> {
        // Those of other architectures lie as in Hugging Face's files.
        let neighbours_rotate = self.architecture()?.rotates_neighbours;
        let bytes = 0..self.bytes(entry).len();
        Ok(GgufTensor {
            file: self,
            parts: vec![Part { entry, bytes }],
            shape: entry.shape.clone(),
            is_rotary_permuted: neighbours_rotate && is_rotated(&key),
            has_unit_offset: config.block.unit_offset && is_norm(&key),
            key,
            head_dim: config.head_dim,
        })
    }

    /// The matrices of all experts of a layer in one tensor, or of gate and up in two.
    fn experts<'a>(
        &'a self,
        entry: &'a Entry,
        layer: &str,
        module: &str,
        config: &LlamaConfig,
    ) -> Result<Vec<GgufTensor<'a>>> {
        let up = up_of_experts(&entry.name).map(|name| {
            let missing = || Error::format(self.path(), format!("there is no tensor `{name}`"));
            self.entry(&name).ok_or_else(missing)
        });
        let up = up.transpose()?;
        let count = config.experts.as_ref().map_or(0, |experts| experts.count);
        let [found, rows, columns] = entry.shape[..] else {
            return Err(self.not_of_all(entry, count));
        };
        if found != count || up.is_some_and(|up| up.shape != entry.shape) {
            return Err(self.not_of_all(entry, count));
        }
        if let Some(up) = up.filter(|up| up.kind != entry.kind) {
            return Err(self.packed_in_two_ways(entry, up));
        }
        let entries: Vec<_> = [entry].into_iter().chain(up).collect();
        let parts = |index| {
            entries
                .iter()
                .map(move |entry| self.part(entry, index, count))
        };
        let expert = |index: usize| GgufTensor {
            file: self,
            parts: parts(index).collect(),
            shape: vec![entries.len() * rows, columns],
            key: format!("{layer}{EXPERTS}{index}.{module}"),
            is_rotary_permuted: false,
            has_unit_offset: false,
            head_dim: config.head_dim,
        };
        Ok((0..count).map(expert).collect())
    }

    fn packed_in_two_ways(&self, gate: &Entry, up: &Entry) -> Error {
        let message = format!(
            "the tensors `{}` and `{}` are packed in two ways, but here they are one matrix",
            gate.name, up.name
        );
        Error::format(self.path(), message)
    }

    /// What one of so many experts has of a tensor.
    fn part<'a>(&self, entry: &'a Entry, index: usize, count: usize) -> Part<'a> {
        let len = self.bytes(entry).len() / count;
        let bytes = index * len..(index + 1) * len;
        Part { entry, bytes }
    }

    fn not_of_all(&self, entry: &Entry, count: usize) -> Error {
        let message = format!(
            "the tensor `{}` is {:?}, but not a matrix of each of {count} experts, gate and up alike",
            entry.name, entry.shape
        );
        Error::format(self.path(), message)
    }
}

impl<'a> GgufTensor<'a> {
    /// The name in a state dict of this crate.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The name in the file; of gate and up that of the gate.
    pub(crate) fn name(&self) -> &'a str {
        &self.parts[0].entry.name
    }

    /// How the numbers are stored.
    pub(crate) fn kind(&self) -> TensorKind {
        self.parts[0].entry.kind
    }

    /// Rows and columns of a weight, whose blocks lie along the rows; the length of a bias or norm.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row by row as they are in the file.
    pub(super) fn stored_bytes(&self) -> Cow<'a, [u8]> {
        let bytes = |part: &Part<'a>| &self.file.bytes(part.entry)[part.bytes.clone()];
        match &self.parts[..] {
            [only] => Cow::Borrowed(bytes(only)),
            parts => Cow::Owned(parts.iter().map(bytes).collect::<Vec<_>>().concat()),
        }
    }

    /// Row by row in this crate's order. Only a tensor in another order, or of two, is copied.
    pub(crate) fn bytes(&self) -> Cow<'a, [u8]> {
        let stored = self.stored_bytes();
        match self.is_rotary_permuted {
            true => {
                let row_bytes = stored.len() / self.shape[0];
                Cow::Owned(half_split(&stored, row_bytes, self.head_dim))
            }
            false => stored,
        }
    }

    /// The numbers in this crate's order, cast to `dtype`; none if they are packed in blocks.
    ///
    /// # Panics
    /// If `dtype` is not f32, f16 or bf16.
    pub(crate) fn read(&self, dtype: DType) -> Option<TensorData> {
        let stored = self.kind().float()?;
        let shape = self.shape().to_vec();
        if !self.has_unit_offset {
            return Some(decode(&self.bytes(), stored, shape, dtype));
        }
        let offset = decode(&self.bytes(), stored, shape.clone(), DType::F32);
        Some(encode(offset.iter().map(|w: f32| w - 1.0), shape, dtype))
    }

    /// Lets the system take back the file's pages once what is needed of them has been copied.
    pub(crate) fn release(&self) {
        for part in &self.parts {
            self.file.release(part.entry, part.bytes.clone());
        }
    }

    /// A tensor in another order can be put into this crate's.
    fn require_heads(&self) -> Result<()> {
        let rows = self.shape()[0];
        match self.is_rotary_permuted && !rows.is_multiple_of(self.head_dim) {
            true => {
                let message = format!(
                    "the tensor `{}`: {rows} rows are no whole number of heads of {}",
                    self.name(),
                    self.head_dim
                );
                Err(Error::format(self.file.path(), message))
            }
            false => Ok(()),
        }
    }
}
