//! The model that a program is to use, as its arguments name it.

use std::path::{Path, PathBuf};

use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer, read_base_config};
use burn_peft::llama::TransformerDecoder;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::Precision;
use burn_peft::weight::{BaseFormat, Quantization};
use burn_peft::{Error, Result};
use clap::Args;
use serde::de::DeserializeOwned;

use crate::device;

#[derive(Args)]
pub struct ModelArgs {
    /// A Hugging Face folder with its tokenizer, one of Meta's, or a GGUF file.
    #[arg(long, value_name = "DIR|FILE")]
    model: Option<PathBuf>,
    /// An adapter: a folder of PEFT's or mlx-lm's, or a file of this crate's.
    #[arg(long, value_name = "DIR|FILE")]
    pub adapter: Option<PathBuf>,
    /// The type of the base's weights, if not that of its files: f32, bf16 or f16. Packed weights are unpacked.
    #[arg(long, value_parser = word::<Precision>)]
    dtype: Option<Precision>,
    /// Packs the weights of linear layers as they are loaded: nf4 or int8. The others are f32, or of `--dtype`.
    #[arg(long, value_parser = word::<Quantization>)]
    quantize: Option<Quantization>,
    /// auto, flex, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

impl ModelArgs {
    /// The base.
    pub fn base(&self) -> Result<&Path> {
        let default = crate::DEFAULT_MODEL.map(Path::new);
        let base = self.model.as_deref().or(default);
        base.ok_or_else(|| Error::InvalidArgument {
            name: "model",
            message: "name one by --model: a folder of Hugging Face's or Meta's, or a GGUF file"
                .into(),
        })
    }

    /// The tokenizer of the base.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let base = self.base()?;
        load_tokenizer(base, &read_base_config(base)?)
    }

    /// The model, with its adapter if it has one.
    pub fn load(&self) -> Result<TransformerDecoder> {
        let mut options = LoadOptions::new(&device::from_name(&self.device, 0)?);
        if self.dtype.is_some() || self.quantize.is_some() {
            let dtype = self.dtype.unwrap_or(Precision::F32);
            let format = BaseFormat::new(dtype.into()).with_quantization(self.quantize);
            options = options.with_format(format.with_kept_packing(self.dtype.is_none()));
        }
        load_model(self.base()?, self.adapter.as_deref(), &options)
    }
}

/// A word that the recipe has for a setting.
pub fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}
