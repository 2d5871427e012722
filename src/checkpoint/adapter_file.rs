//! An adapter of any module as one safetensors file, with its configuration.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::tensors::{SafetensorsFile, load_state_dict_file, write_tensors_with};
use crate::adapter::Adapter;
use crate::lora::{LoRAConfig, Method, MethodRef};
use crate::{Error, Result};

/// Where the configuration stands in the file's metadata.
const CONFIG: &str = "burn_peft.lora_config";
/// The method's name in the configuration.
const METHOD: &str = "method";

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

/// Reads an adapter that [`save_adapter`] wrote; one of a method of your own by [`load_adapter_with`].
///
/// # Errors
/// [`Error::Adapter`] if the file has no configuration of this crate's, as files of other programs, whose tensors
/// may be laid out otherwise under the same names (torchtune's), or its method is not one of
/// [`METHODS`](crate::lora::METHODS); [`Error::Io`], [`Error::Format`], [`Error::DType`] if it cannot be read.
pub fn load_adapter(path: impl AsRef<Path>) -> Result<Adapter> {
    load_adapter_with(path, &[])
}

/// [`load_adapter`], with methods beside those of this crate. A file has a method's name alone.
///
/// # Errors
/// As [`load_adapter`].
pub fn load_adapter_with(
    path: impl AsRef<Path>,
    methods: &[&'static dyn Method],
) -> Result<Adapter> {
    let path = path.as_ref();
    if path.is_dir() {
        let message =
            "a folder, not a file of `save_adapter`; a PEFT folder is read by `attach_peft`";
        return Err(Error::format(path, message));
    }
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
    let config = read_config(config, methods)
        .map_err(|error| refused(format!("its LoRAConfig cannot be read: {error}")))?;
    Ok(Adapter::new(config, load_state_dict_file(path)?))
}

/// Reads a configuration whose method may be one of these.
fn read_config(text: &str, methods: &[&'static dyn Method]) -> serde_json::Result<LoRAConfig> {
    let mut fields: Map<String, Value> = serde_json::from_str(text)?;
    let name = fields.get(METHOD).and_then(Value::as_str);
    let own = methods.iter().find(|method| Some(method.name()) == name);
    if own.is_some() {
        fields.remove(METHOD);
    }
    let config: LoRAConfig = serde_json::from_value(fields.into())?;
    Ok(match own {
        Some(method) => config.with_method(MethodRef(*method)),
        None => config,
    })
}
