//! An adapter of any module as one safetensors file, with its configuration.

use std::collections::HashMap;
use std::path::Path;

use super::tensors::{SafetensorsFile, load_state_dict_file, write_tensors_with};
use crate::adapter::Adapter;
use crate::lora::LoRAConfig;
use crate::{Error, Result};

/// Where the configuration stands in the file's metadata.
const CONFIG: &str = "burn_peft.lora_config";

/// Writes an adapter to one file: its tensors, and its configuration in the file's metadata.
///
/// ```
/// use burn::tensor::Device;
/// use burn_peft::adapter::{Adapter, with_adapters};
/// use burn_peft::checkpoint::{load_adapter, save_adapter};
/// use burn_peft::lora::{DEFAULT_ADAPTER, LoRAConfig, LoRALinear};
///
/// # fn main() -> burn_peft::Result<()> {
/// let device = Device::default();
/// let layers = vec![LoRALinear::plain(8, 8, true, &device)];
/// let model = with_adapters(layers.clone(), &LoRAConfig::default().with_targets("0".into()))?;
/// let path = std::env::temp_dir().join("burn-peft-adapter.safetensors");
/// save_adapter(&Adapter::of(&model, DEFAULT_ADAPTER)?, &path)?;
///
/// let model = load_adapter(&path)?.attach(layers, "mine")?;
/// # std::fs::remove_file(&path).unwrap();
/// # let _ = model;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be written. What stood at `path` stays then.
pub fn save_adapter(adapter: &Adapter, path: impl AsRef<Path>) -> Result<()> {
    let config = serde_json::to_string(&adapter.config).expect("a configuration is plain data");
    let metadata = HashMap::from([(CONFIG.to_owned(), config)]);
    let tensors = adapter.tensors.iter();
    let tensors = tensors.map(|(key, value)| (key.clone(), value));
    write_tensors_with(tensors, metadata, path.as_ref())
}

/// Whether a file is one that [`save_adapter`] wrote.
pub(super) fn is_adapter_file(file: &SafetensorsFile) -> bool {
    file.metadata(CONFIG).is_some()
}

/// Reads an adapter that [`save_adapter`] wrote.
///
/// # Errors
/// [`Error::Adapter`] if the file has no configuration of this crate's, as files of other programs, whose tensors
/// may be laid out otherwise under the same names (torchtune's); [`Error::Io`], [`Error::Format`], [`Error::DType`]
/// if it cannot be read.
pub fn load_adapter(path: impl AsRef<Path>) -> Result<Adapter> {
    let path = path.as_ref();
    let refused = |message: String| Error::Adapter {
        path: path.to_owned(),
        message,
    };
    let file = SafetensorsFile::open(path)?;
    let config = file.metadata(CONFIG).ok_or_else(|| {
        refused(
            "the file names no LoRAConfig: it is not from `save_adapter`. A PEFT folder is read by \
             `attach_peft`; tensors of your own become an adapter by `Adapter::new`"
                .into(),
        )
    })?;
    let config: LoRAConfig = serde_json::from_str(config)
        .map_err(|error| refused(format!("its LoRAConfig cannot be read: {error}")))?;
    Ok(Adapter::new(config, load_state_dict_file(path)?))
}
