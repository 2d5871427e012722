//! Adapters in the forms of other programs.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::adapter_file::save_adapter;
use super::gguf::save_gguf_adapter;
use super::mlx::save_mlx;
use super::peft::{Serving, save_peft_adapter, save_peft_for};
use super::torchtune::save_torchtune;
use crate::adapter::Adapter;
use crate::llama::TransformerDecoder;
use crate::lora::DEFAULT_ADAPTER;
use crate::{Error, Result};

/// The form in which a program has adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// PEFT's folders ([`save_peft_adapter`]).
    Peft,
    /// PEFT's folders as vLLM computes them rightly ([`save_peft_for`]).
    Vllm,
    /// llama.cpp's GGUF files ([`save_gguf_adapter`]).
    LlamaCpp,
    /// torchtune's files ([`save_torchtune`]).
    Torchtune,
    /// mlx-lm's folders ([`save_mlx`]).
    Mlx,
    /// A file of this crate's ([`save_adapter`]).
    BurnPeft,
}

impl AdapterFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [
        Self::Peft,
        Self::Vllm,
        Self::LlamaCpp,
        Self::Torchtune,
        Self::Mlx,
        Self::BurnPeft,
    ];
}

impl fmt::Display for AdapterFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Peft => "peft",
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llama.cpp",
            Self::Torchtune => "torchtune",
            Self::Mlx => "mlx",
            Self::BurnPeft => "burn-peft",
        })
    }
}

impl FromStr for AdapterFormat {
    type Err = Error;

    /// Reads the name of a format.
    fn from_str(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|format| format.to_string() == name);
        found.ok_or_else(|| Error::InvalidArgument {
            name: "format",
            message: format!(
                "`{name}` is not one of {}",
                Self::ALL.map(|format| format.to_string()).join(", ")
            ),
        })
    }
}

/// Writes the adapter of a model for a program, as a folder or a file. `base_model` is what a folder of PEFT's names as its
/// base.
///
/// # Errors
/// Those of the function that the [format](AdapterFormat) names.
pub fn export_adapter(
    model: &TransformerDecoder,
    format: AdapterFormat,
    base_model: Option<&str>,
    out: impl AsRef<Path>,
) -> Result<()> {
    let name = DEFAULT_ADAPTER;
    let adapter = || Adapter::of(model, name);
    match format {
        AdapterFormat::Peft => save_peft_adapter(model, name, base_model, out),
        AdapterFormat::Vllm => save_peft_for(Serving::Vllm, model, name, base_model, out),
        AdapterFormat::LlamaCpp => save_gguf_adapter(model, name, out),
        AdapterFormat::Torchtune => save_torchtune(&adapter()?, &model.config, out),
        AdapterFormat::Mlx => save_mlx(&adapter()?, model.config.num_layers, out),
        AdapterFormat::BurnPeft => save_adapter(&adapter()?, out),
    }
}
