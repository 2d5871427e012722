//! Bases of any form: Hugging Face folders and GGUF files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::gguf::{gguf_packing, load_gguf, load_gguf_as, read_gguf_config};
use super::hf::{hf_packing, load_hf, load_hf_as, read_hf_config};
use crate::adapter::LoadReport;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::BlockFormat;
use crate::weight::BaseFormat;
use crate::{Error, Result};

const GGUF: &str = "gguf";

/// Whether a path names a GGUF file: any file, or what would be one by its name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.is_file() || has_gguf_name(path)
}

fn has_gguf_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case(GGUF) && !path.is_dir()
}

/// Reads the sizes of a model: of a Hugging Face folder ([`read_hf_config`]) or a GGUF file ([`read_gguf_config`]).
///
/// # Errors
/// Those of the two, and [`Error::Format`] for a folder that has GGUF files in a model's place: the message names one.
pub fn read_base_config(path: impl AsRef<Path>) -> Result<LlamaConfig> {
    let path = path.as_ref();
    match is_gguf(path) {
        true => read_gguf_config(path),
        false => {
            require_hf_folder(path)?;
            read_hf_config(path)
        }
    }
}

/// A folder without a configuration may be one of GGUF files, of which none is known to be meant.
fn require_hf_folder(dir: &Path) -> Result<()> {
    if dir.join("config.json").exists() {
        return Ok(());
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    let first = files.filter(|path| has_gguf_name(path)).min();
    first.map_or(Ok(()), |file| {
        let message = format!(
            "no config.json is in this folder, but GGUF files are; name the one to load, such as {}",
            file.display()
        );
        Err(Error::format(dir, message))
    })
}

/// Loads the base weights of a Hugging Face folder ([`load_hf`]) or a GGUF file ([`load_gguf`]) as they are stored.
///
/// # Errors
/// Those of the two.
pub fn load_any_base(model: &mut TransformerDecoder, path: impl AsRef<Path>) -> Result<LoadReport> {
    match is_gguf(path.as_ref()) {
        true => load_gguf(model, path),
        false => load_hf(model, path),
    }
}

/// [`load_any_base`] with a type or a packing for what is not packed, see [`load_hf_as`] and [`load_gguf_as`].
///
/// # Errors
/// Those of the two.
pub fn load_any_base_as(
    model: &mut TransformerDecoder,
    path: impl AsRef<Path>,
    format: impl Into<BaseFormat>,
) -> Result<LoadReport> {
    match is_gguf(path.as_ref()) {
        true => load_gguf_as(model, path, format),
        false => load_hf_as(model, path, format),
    }
}

/// How the weights of a Hugging Face folder or a GGUF file are packed, by this crate's keys; those that are not there are
/// numbers of a float type. Headers tell it: no weight is read.
///
/// # Errors
/// Those of [`load_any_base`] that are the files'.
pub fn read_base_packing(path: impl AsRef<Path>) -> Result<BTreeMap<String, BlockFormat>> {
    let layouts = match is_gguf(path.as_ref()) {
        true => gguf_packing(path.as_ref()),
        false => hf_packing(path.as_ref()),
    }?;
    let formats = layouts.into_iter();
    Ok(formats
        .map(|(key, layout)| (key, layout.format()))
        .collect())
}
