//! Adapters by whichever program, told apart by their files.

use std::path::Path;

use burn::tensor::DType;

use super::adapter_file::{is_adapter_file, load_adapter};
use super::mlx::{self, read_mlx};
use super::peft::{attach_peft, check_config, load_peft, read_peft_config};
use super::tensors::SafetensorsFile;
use super::torchtune::read_torchtune;
use crate::adapter::{Adapter, ParamInfo, adapter_config, compare_keys, get_params, load_tensors};
use crate::llama::TransformerDecoder;
use crate::lora::{DEFAULT_ADAPTER, LoRAConfig};
use crate::{Error, Result};

enum Form {
    /// A folder of PEFT's.
    Peft,
    /// A folder of mlx-lm's.
    Mlx,
    /// A file of [`save_adapter`](super::save_adapter).
    Own,
    /// A file of torchtune's.
    Torchtune,
}

impl Form {
    fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let is_mlx = path.join(mlx::WEIGHTS_FILE).exists();
            return Ok(if is_mlx { Self::Mlx } else { Self::Peft });
        }
        let is_own = is_adapter_file(&SafetensorsFile::open(path)?);
        Ok(if is_own { Self::Own } else { Self::Torchtune })
    }
}

/// Reads how an adapter was made, whatever its form: a folder of PEFT's or mlx-lm's, or a file of
/// [`save_adapter`](super::save_adapter). None for a file of torchtune's, which does not say.
///
/// # Errors
/// Those of [`read_peft_config`], [`read_mlx`] and [`load_adapter`].
pub fn read_adapter_config(path: impl AsRef<Path>) -> Result<Option<LoRAConfig>> {
    let path = path.as_ref();
    Ok(match Form::of(path)? {
        Form::Peft => Some(read_peft_config(path)?),
        Form::Mlx => Some(read_mlx(path)?.config),
        Form::Own => Some(load_adapter(path)?.config),
        Form::Torchtune => None,
    })
}

/// Whether a path is a folder of PEFT's.
pub(super) fn is_peft(path: &Path) -> bool {
    matches!(Form::of(path), Ok(Form::Peft))
}

/// Puts an adapter of any form on a model that is there already, see [`attach_peft`]. What does not say what it is like
/// (torchtune's) is for [`load_any_adapter`].
///
/// # Errors
/// Those of [`read_adapter_config`], [`TransformerDecoder::with_adapters`] and [`load_any_adapter`], and
/// [`Error::Adapter`] if the file does not say what the adapter is like. The model is unchanged then.
pub fn attach_any_adapter(model: &mut TransformerDecoder, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if is_peft(path) {
        return attach_peft(model, path).map(drop);
    }
    let lora = described(path)?;
    let mut adapted = model.clone().with_adapters(&lora)?;
    load_any_adapter(&mut adapted, path)?;
    *model = adapted;
    Ok(())
}

/// How an adapter was made, whose files have to say it.
pub(super) fn described(path: &Path) -> Result<LoRAConfig> {
    read_adapter_config(path)?.ok_or_else(|| Error::Adapter {
        path: path.to_owned(),
        message: "the file does not say what its adapter is like: build or load the model with a `LoRAConfig`, then load \
                  the file by `load_any_adapter`"
            .into(),
    })
}

/// Loads an adapter of any form, see [`read_adapter_config`], into a model that was built for it.
///
/// # Errors
/// [`Error::Adapter`] if the model's adapters are of another configuration, [`Error::Keys`] if a tensor is missing or
/// matches nothing, [`Error::Shape`] if one is for another model, and those of [`load_peft`], [`read_mlx`],
/// [`load_adapter`] and [`read_torchtune`]. The model is unchanged then.
pub fn load_any_adapter(model: &mut TransformerDecoder, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match Form::of(path)? {
        Form::Peft => load_peft(model, path).map(drop),
        Form::Mlx => fill(model, &read_mlx(path)?, path),
        Form::Own => fill(model, &load_adapter(path)?, path),
        Form::Torchtune => {
            let lora = adapter_config(model, DEFAULT_ADAPTER);
            let lora = lora.ok_or_else(|| Error::Adapter {
                path: path.to_owned(),
                message: "the model has no adapter to load it into".into(),
            })?;
            fill(model, &read_torchtune(path, &lora, &model.config)?, path)
        }
    }
}

fn fill(model: &mut TransformerDecoder, adapter: &Adapter, path: &Path) -> Result<()> {
    check_config(model, &adapter.config, "the file").map_err(|differs| Error::Adapter {
        path: path.to_owned(),
        message: format!("{differs}; model and adapter must have the same configuration"),
    })?;
    let params = get_params(model);
    let is_own = |key: &String| params.get(key).is_some_and(ParamInfo::is_adapter);
    let tensors = adapter.tensors.iter();
    let shapes = tensors.map(|(key, value)| (key.as_str(), &value.shape()[..]));
    let mut report = compare_keys(model, &path.display().to_string(), shapes)?;
    report.missing.retain(is_own);
    let (own, base) = report.loaded.into_iter().partition(is_own);
    report.loaded = own;
    report.unexpected.extend::<Vec<String>>(base);
    report.require_complete()?;
    load_tensors(model, &report.loaded, |key| {
        Ok(adapter.tensors[key].clone().convert_dtype(DType::F32))
    })
}
