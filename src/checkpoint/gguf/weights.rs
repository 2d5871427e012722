//! The weights of a model, by this crate's names.

use std::borrow::Cow;

use burn::tensor::{DType, TensorData};

use super::kind::TensorKind;
use super::names::{from_gguf, is_norm, is_rotated};
use super::reader::{Entry, GgufFile};
use super::scaling::ROPE_TENSORS;
use crate::checkpoint::rotary::half_split;
use crate::checkpoint::tensors::{decode, encode};
use crate::llama::LlamaConfig;
use crate::{Error, Result};

/// A weight of a model, as it is in a file.
pub(crate) struct GgufTensor<'a> {
    file: &'a GgufFile,
    entry: &'a Entry,
    key: String,
    /// Whether neighbouring rows are rotated in the file, where this crate rotates those half a head apart.
    is_rotary_permuted: bool,
    /// Whether it is the `1 + w` of a norm, where this crate has w.
    has_unit_offset: bool,
    head_dim: usize,
}

impl GgufFile {
    /// The weights of a model of which [`Self::config`] gave the sizes, in the file's order. Shapes are not compared with
    /// the model's.
    ///
    /// # Errors
    /// [`Error::Keys`] if the file has a tensor that no such model has, [`Error::Format`] if rows of q or k are no whole
    /// number of heads.
    pub(crate) fn tensors<'a>(&'a self, config: &LlamaConfig) -> Result<Vec<GgufTensor<'a>>> {
        // Those of other architectures lie as in Hugging Face's files.
        let neighbours_rotate = self.architecture()?.rotates_neighbours;
        let weights = self
            .entries()
            .iter()
            .filter(|entry| !ROPE_TENSORS.contains(&&*entry.name));
        let mut found = Vec::new();
        let mut unexpected = Vec::new();
        for entry in weights {
            match from_gguf(&entry.name, &config.block) {
                Some(key) => found.push(GgufTensor {
                    file: self,
                    entry,
                    is_rotary_permuted: neighbours_rotate && is_rotated(&key),
                    has_unit_offset: config.block.unit_offset && is_norm(&key),
                    key,
                    head_dim: config.head_dim,
                }),
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
}

impl<'a> GgufTensor<'a> {
    /// The name in a state dict of this crate.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The name in the file.
    pub(crate) fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// How the numbers are stored.
    pub(crate) fn kind(&self) -> TensorKind {
        self.entry.kind
    }

    /// Rows and columns of a weight, whose blocks lie along the rows; the length of a bias or norm.
    pub(crate) fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// Row by row as they are in the file.
    pub(super) fn stored_bytes(&self) -> &'a [u8] {
        self.file.bytes(self.entry)
    }

    /// Row by row in this crate's order. Only a tensor in another order is copied.
    pub(crate) fn bytes(&self) -> Cow<'a, [u8]> {
        let stored = self.stored_bytes();
        match self.is_rotary_permuted {
            true => Cow::Owned(half_split(stored, self.row_bytes(), self.head_dim)),
            false => Cow::Borrowed(stored),
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
        self.file.release(self.entry);
    }

    fn row_bytes(&self) -> usize {
        self.stored_bytes().len() / self.shape()[0]
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
