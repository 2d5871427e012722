//! The tensors of one or more files, under this crate's keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{DType, TensorData};

use super::keys::{EMBEDDING, OUTPUT};
use super::tensors::SafetensorsFile;
use crate::{Error, Result};

/// Open files and where each of our keys is in them.
pub(super) struct Weights {
    files: Vec<SafetensorsFile>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    name: String,
    shape: Vec<usize>,
}

impl Weights {
    /// Opens every file and checks every header and type. What has no key of ours keeps its name. The
    /// output of a model with tied embeddings must be its embedding.
    pub(super) fn open(
        paths: impl IntoIterator<Item = PathBuf>,
        key_of: impl Fn(&str) -> Option<String>,
        tied: bool,
    ) -> Result<Self> {
        let mut weights = Self {
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        for path in paths {
            weights.add_file(SafetensorsFile::open(path)?, &key_of)?;
        }
        if tied {
            weights.tie()?;
        }
        Ok(weights)
    }

    fn add_file(
        &mut self,
        file: SafetensorsFile,
        key_of: &impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for (name, shape) in file.shapes() {
            if is_rotary(&name) {
                continue;
            }
            file.dtype(&name)?;
            let key = key_of(&name).unwrap_or_else(|| name.clone());
            self.require_one(&key, &name, &file)?;
            let entry = Entry {
                file: self.files.len(),
                name,
                shape,
            };
            self.entries.insert(key, entry);
        }
        self.files.push(file);
        Ok(())
    }

    /// Of two values under two names for one weight, with and without `model.` say, none is known to be right.
    fn require_one(&self, key: &str, name: &str, file: &SafetensorsFile) -> Result<()> {
        let other = self.entries.get(key).filter(|entry| entry.name != name);
        let Some(other) = other else {
            return Ok(());
        };
        let of_other = self.files.get(other.file).unwrap_or(file);
        if file.holds_same(name, of_other, &other.name)? {
            return Ok(());
        }
        let mut names = [name, &other.name];
        names.sort();
        let [first, second] = names;
        let message = format!(
            "`{first}` and `{second}` are names of one weight, and differ; remove one of them"
        );
        Err(Error::format(file.path(), message))
    }

    /// Some programs save the embedding of a tied model as the output's weight too, or only so.
    fn tie(&mut self) -> Result<()> {
        let Some(output) = self.entries.remove(OUTPUT) else {
            return Ok(());
        };
        let Some(embedding) = self.entries.get(EMBEDDING) else {
            self.entries.insert(EMBEDDING.to_owned(), output);
            return Ok(());
        };
        let [of_output, of_embedding] = [&output, embedding].map(|e| &self.files[e.file]);
        if of_output.holds_same(&output.name, of_embedding, &embedding.name)? {
            return Ok(());
        }
        let (output, embedding) = (&output.name, &embedding.name);
        let message = format!(
            "`{output}` differs from `{embedding}`, but the model's config.json says that they are one; \
             if the model has both, set tie_word_embeddings to false there"
        );
        Err(Error::format(of_output.path(), message))
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(k, e)| (k.as_str(), &e.shape[..]))
    }

    /// An error about a tensor's shape, with the file and the name that the tensor has there.
    pub(super) fn locate(&self, error: Error) -> Error {
        let Error::Shape { key, .. } = &error else {
            return error;
        };
        let entry = &self.entries[key];
        let path = self.files[entry.file].path();
        error.with_key(&entry.name).in_file(path)
    }

    /// Reads a tensor in the type that `target` gives for the stored one.
    pub(super) fn read(&self, key: &str, target: impl Fn(DType) -> DType) -> Result<TensorData> {
        let entry = &self.entries[key];
        let file = &self.files[entry.file];
        file.read(&entry.name, target(file.dtype(&entry.name)?))
    }
}

/// What old files carry of the rotary embedding, which follows from the configuration.
fn is_rotary(name: &str) -> bool {
    let tables = ["inv_freq", "cos_cached", "sin_cached"];
    let is = |table| name.ends_with(&format!("rotary_emb.{table}"));
    tables.into_iter().any(is)
}
