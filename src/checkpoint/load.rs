//! A model and its tokenizer, ready to use.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::any_adapter::{described, load_any_adapter};
use super::any_base::{load_any_base, load_any_base_as, read_base_config};
use crate::Result;
use crate::adapter::{
    get_params, initialize_adapters, initialize_params, validate_state_dict_for_lora,
};
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::lora::LoRAConfig;
use crate::settings::setters;
use crate::tokenizer::Tokenizer;
use crate::weight::BaseFormat;

/// How a model is loaded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Where the model computes: a device with autodiff if it is to be trained.
    pub device: Device,
    /// How the base is kept in memory; none leaves it as its files have it.
    pub format: Option<BaseFormat>,
    /// The seed of a new adapter's first values.
    pub seed: u64,
}

impl LoadOptions {
    /// A base as its files have it, on this device.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            format: None,
            seed: 0,
        }
    }

    /// The base in a type of float, or in fewer bits.
    pub fn with_format(mut self, format: impl Into<BaseFormat>) -> Self {
        self.format = Some(format.into());
        self
    }

    setters! {
        with_seed => seed: u64,
    }
}

/// The adapter of a model that is loaded.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ModelAdapter<'a> {
    /// There is none.
    None,
    /// A new one.
    New(&'a LoRAConfig),
    /// That of a folder or a file, see [`load_any_adapter`].
    Saved(&'a Path),
}

impl<'a> From<&'a LoRAConfig> for ModelAdapter<'a> {
    fn from(config: &'a LoRAConfig) -> Self {
        Self::New(config)
    }
}

impl<'a> From<&'a Path> for ModelAdapter<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Saved(path)
    }
}

impl<'a> From<&'a PathBuf> for ModelAdapter<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Saved(path)
    }
}

impl<'a> From<&'a str> for ModelAdapter<'a> {
    fn from(path: &'a str) -> Self {
        Self::Saved(Path::new(path))
    }
}

impl<'a> From<Option<&'a Path>> for ModelAdapter<'a> {
    fn from(path: Option<&'a Path>) -> Self {
        path.map_or(Self::None, Self::Saved)
    }
}

impl ModelAdapter<'_> {
    fn config(self) -> Result<Option<LoRAConfig>> {
        match self {
            Self::None => Ok(None),
            Self::New(config) => Ok(Some(config.clone())),
            Self::Saved(path) => described(path).map(Some),
        }
    }
}

/// Loads a base and its adapter, ready to generate, or on a device with autodiff ready to train. The base is a folder of
/// Hugging Face's (also one that bitsandbytes packed) or Meta's, or a GGUF file. The adapter is `None`, a path, or the
/// [`LoRAConfig`] of a new one.
///
/// ```
/// use burn::tensor::{DType, Device};
/// use burn_peft::adapter::ParamCount;
/// use burn_peft::checkpoint::{LoadOptions, load_model};
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
///
/// # fn main() -> burn_peft::Result<()> {
/// let dir = "examples/assets/tiny";
/// let device = Device::default();
/// let base = load_model(dir, None, &LoadOptions::new(&device).with_format(DType::F32))?;
///
/// let lora = LoRAConfig::new([QProj, VProj]);
/// let model = load_model(dir, &lora, &LoadOptions::new(&device.autodiff()).with_seed(1))?;
/// let (all, base) = (ParamCount::of(&model), ParamCount::of(&base));
/// assert_eq!(all.total - all.trainable, base.total); // the base is frozen
/// # Ok(())
/// # }
/// ```
///
/// A new adapter has the first values that follow from the seed. Those that follow from data or from the base's
/// quantization are another step: [`initialize_eva`](crate::adapter::initialize_eva),
/// [`initialize_loftq_from`](super::initialize_loftq_from). Without an adapter every weight is trainable.
///
/// # Errors
/// Those of [`read_base_config`], [`load_any_base_as`], [`read_adapter_config`](super::read_adapter_config),
/// [`LlamaConfig::init_lora`] and
/// [`load_any_adapter`]; [`Error::Adapter`](crate::Error::Adapter) for an adapter whose file does not say what it is like (torchtune's).
pub fn load_model<'a>(
    base: impl AsRef<Path>,
    adapter: impl Into<ModelAdapter<'a>>,
    options: &LoadOptions,
) -> Result<TransformerDecoder> {
    let (base, adapter) = (base.as_ref(), adapter.into());
    let (config, device) = (read_base_config(base)?, &options.device);
    let mut model = match adapter.config()? {
        None => config.init(device),
        Some(lora) => config.init_lora(&lora, device)?,
    };
    let report = match options.format {
        None => load_any_base(&mut model, base),
        Some(format) => load_any_base_as(&mut model, base, format),
    }?;
    let adapters = get_params(&model).filter(|_, param| param.is_adapter());
    validate_state_dict_for_lora(&adapters, &report)?;
    match adapter {
        ModelAdapter::None => {}
        ModelAdapter::Saved(path) => load_any_adapter(&mut model, path)?,
        ModelAdapter::New(_) => {
            model = initialize_adapters(model, options.seed);
            initialize_params(&model);
        }
    }
    Ok(model)
}

/// Reads the tokenizer of a base, or one of another place, for a model: the model's own end of a text serves where the
/// tokenizer knows none.
///
/// # Errors
/// Those of [`Tokenizer::load`].
pub fn load_tokenizer(path: impl AsRef<Path>, config: &LlamaConfig) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(path)?;
    let known = tokenizer.eos_id();
    let end = known.or_else(|| config.eos_token_ids.first().copied());
    Ok(tokenizer.with_special_ids(None, end))
}
