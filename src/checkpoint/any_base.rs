//! Bases of any form: Hugging Face folders and GGUF files.

use std::path::Path;

use super::gguf::{load_gguf, load_gguf_as, read_gguf_config};
use super::hf::{load_hf, load_hf_as, read_hf_config};
use crate::Result;
use crate::adapter::LoadReport;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::weight::BaseFormat;

/// Whether a path names a GGUF file.
pub(super) fn is_gguf(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("gguf")
}

/// Reads the sizes of a model: of a Hugging Face folder ([`read_hf_config`]) or a `.gguf` file ([`read_gguf_config`]).
///
/// # Errors
/// Those of the two.
pub fn read_base_config(path: impl AsRef<Path>) -> Result<LlamaConfig> {
    match is_gguf(path.as_ref()) {
        true => read_gguf_config(path),
        false => read_hf_config(path),
    }
}

/// Loads the base weights of a Hugging Face folder ([`load_hf`]) or a `.gguf` file ([`load_gguf`]) as they are stored.
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
