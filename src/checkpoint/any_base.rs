//! Bases of any form: Hugging Face's folders, Meta's, and GGUF files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;

use super::base::{BaseWeights, compare_base};
use super::gguf::{GgufWeights, gguf_packing, load_gguf, load_gguf_as, read_gguf_config};
use super::hf::{CONFIG_FILE, HfFolder, hf_packing, load_hf, load_hf_as, read_hf_config};
use super::meta::{MetaWeights, is_meta, load_meta, load_meta_as, read_meta_config};
use crate::adapter::LoadReport;
use crate::gguf::GgufFile;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::BlockFormat;
use crate::weight::BaseFormat;
use crate::{Error, Result};

const GGUF: &str = "gguf";

/// The form of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaseKind {
    HuggingFace,
    Meta,
    Gguf,
}

impl BaseKind {
    /// What a path names. A file is taken for a GGUF file, and so is a path without a file that ends in `.gguf`.
    pub(super) fn of(path: &Path) -> Self {
        match () {
            () if path.is_file() || has_gguf_name(path) => Self::Gguf,
            () if !path.join(CONFIG_FILE).exists() && is_meta(path) => Self::Meta,
            () => Self::HuggingFace,
        }
    }
}

fn has_gguf_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case(GGUF) && !path.is_dir()
}

/// Reads the sizes of a model: of a Hugging Face folder ([`read_hf_config`]), one as Meta releases it
/// ([`read_meta_config`]: one without a `config.json`), or a GGUF file ([`read_gguf_config`]).
///
/// # Errors
/// Those of the three, and [`Error::Format`] for a folder that has GGUF files in a model's place, or a folder of Meta's below
/// it: the message names one.
pub fn read_base_config(path: impl AsRef<Path>) -> Result<LlamaConfig> {
    let path = path.as_ref();
    match BaseKind::of(path) {
        BaseKind::Gguf => read_gguf_config(path),
        BaseKind::Meta => read_meta_config(path),
        BaseKind::HuggingFace => {
            require_hf_folder(path)?;
            read_hf_config(path)
        }
    }
}

/// A folder without a configuration may be one of GGUF files, of which none is known to be meant, or have Meta's own files
/// one level below.
fn require_hf_folder(dir: &Path) -> Result<()> {
    if dir.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    let first = |is_one: fn(&Path) -> bool| paths.iter().filter(|path| is_one(path)).min();
    let message = match (first(has_gguf_name), first(is_meta)) {
        (Some(file), _) => format!(
            "no {CONFIG_FILE} is in this folder, but GGUF files are; name the one to load, such as {}",
            file.display()
        ),
        (None, Some(folder)) => format!(
            "no {CONFIG_FILE} is in this folder, but Meta's own files are in one below; name that: {}",
            folder.display()
        ),
        (None, None) => return Ok(()),
    };
    Err(Error::format(dir, message))
}

/// Loads the base weights of a Hugging Face folder ([`load_hf`]), one as Meta releases it ([`load_meta`]) or a GGUF file
/// ([`load_gguf`]) as they are stored.
///
/// # Errors
/// Those of the three.
pub fn load_any_base(model: &mut TransformerDecoder, path: impl AsRef<Path>) -> Result<LoadReport> {
    match BaseKind::of(path.as_ref()) {
        BaseKind::Gguf => load_gguf(model, path),
        BaseKind::Meta => load_meta(model, path),
        BaseKind::HuggingFace => load_hf(model, path),
    }
}

/// [`load_any_base`] with a type or a packing for what is not packed, see [`load_hf_as`], [`load_meta_as`] and
/// [`load_gguf_as`].
///
/// # Errors
/// Those of the three.
pub fn load_any_base_as(
    model: &mut TransformerDecoder,
    path: impl AsRef<Path>,
    format: impl Into<BaseFormat>,
) -> Result<LoadReport> {
    match BaseKind::of(path.as_ref()) {
        BaseKind::Gguf => load_gguf_as(model, path, format),
        BaseKind::Meta => load_meta_as(model, path, format),
        BaseKind::HuggingFace => load_hf_as(model, path, format),
    }
}

/// Checks that the tensors of a base are those of a model of these sizes, before anything is made of either. Headers tell it: no
/// weight is read, but for an output that is stored beside the embedding which it should be.
///
/// # Errors
/// [`Error::Format`] if there are more or fewer layers than the configuration says, and those of [`load_any_base`] that are
/// about names and shapes.
pub fn check_base(path: impl AsRef<Path>, config: &LlamaConfig, device: &Device) -> Result<()> {
    let path = path.as_ref();
    match BaseKind::of(path) {
        BaseKind::Gguf => {
            let file = GgufFile::open(path)?;
            check_weights(&GgufWeights::of(&file, config)?, path, config, device)
        }
        BaseKind::Meta => check_weights(&MetaWeights::open(path)?, path, config, device),
        BaseKind::HuggingFace => {
            check_weights(&HfFolder::open(path, config)?, path, config, device)
        }
    }
}

fn check_weights(
    weights: &impl BaseWeights,
    path: &Path,
    config: &LlamaConfig,
    device: &Device,
) -> Result<()> {
    let layer = |(key, _): (&str, _)| key.strip_prefix("layers.")?.split('.').next()?.parse().ok();
    let last: Option<usize> = weights.shapes().into_iter().filter_map(layer).max();
    let found = last.map_or(0, |last| last.saturating_add(1));
    if found != config.num_layers {
        let asked = config.num_layers;
        let message =
            format!("its configuration says {asked} layers, but its weights are those of {found}");
        return Err(Error::format(path, message));
    }
    compare_base(&config.init(device), weights).map(drop)
}

/// How the weights of a Hugging Face folder or a GGUF file are packed, by this crate's keys; those that are not there are
/// numbers of a float type, as all of Meta's are. Headers tell it: no weight is read.
///
/// # Errors
/// Those of [`load_any_base`] that are the files'.
pub fn read_base_packing(path: impl AsRef<Path>) -> Result<BTreeMap<String, BlockFormat>> {
    let path = path.as_ref();
    let layouts = match BaseKind::of(path) {
        BaseKind::Gguf => gguf_packing(path),
        BaseKind::Meta => MetaWeights::open(path).map(|weights| weights.packed()),
        BaseKind::HuggingFace => hf_packing(path),
    }?;
    let formats = layouts.into_iter();
    Ok(formats
        .map(|(key, layout)| (key, layout.format()))
        .collect())
}
