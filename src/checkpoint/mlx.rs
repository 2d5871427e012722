//! mlx-lm's adapter folders: `adapters.safetensors` with transposed factors, and `adapter_config.json`.

use std::path::Path;

use burn::tensor::{DType, TensorData};
use serde::Deserialize;
use serde_json::json;

use super::keys::in_words_of;
use super::tensors::{load_state_dict_file, save_state_dict};
use crate::adapter::{Adapter, StateDict};
use crate::files::{create_dir, read_text, write_text};
use crate::llama::NormPlacement;
use crate::llama::names::{from_hf, is_in_mixture, to_hf};
use crate::lora::{DORA, LORA, LoRAConfig, MethodRef};
use crate::{Error, Result};

const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const WEIGHTS_FILE: &str = "adapters.safetensors";

#[derive(Deserialize)]
struct MlxConfig {
    #[serde(default = "lora")]
    fine_tune_type: String,
    lora_parameters: Parameters,
}

fn lora() -> String {
    "lora".into()
}

#[derive(Deserialize)]
struct Parameters {
    rank: usize,
    /// The factor of the update itself, not of the rank.
    scale: f64,
    #[serde(default)]
    dropout: f64,
}

/// The names of an adapter's parameters: here, in mlx-lm, and whether these are each other's transposed.
const PARAMS: [(&str, &str, bool); 3] = [
    ("lora_a.weight", "lora_a", true),
    ("lora_b.weight", "lora_b", true),
    ("magnitude", "m", false),
];

/// Reads an adapter folder of mlx-lm's for a Llama-like model. Its targets are the modules that have tensors: mlx-lm
/// adapts the last layers only.
///
/// # Errors
/// [`Error::Adapter`] if it is not LoRA or DoRA, or a tensor is of no module of such a model; [`Error::Io`],
/// [`Error::Format`], [`Error::DType`] if a file cannot be read.
pub fn read_mlx(dir: impl AsRef<Path>) -> Result<Adapter> {
    let path = dir.as_ref().join(CONFIG_FILE);
    let config: MlxConfig =
        serde_json::from_str(&read_text(&path)?).map_err(|error| Error::format(&path, error))?;
    let refused = |message| Error::Adapter {
        path: path.clone(),
        message,
    };
    let method = match config.fine_tune_type.as_str() {
        "lora" => MethodRef(&LORA),
        "dora" => MethodRef(&DORA),
        other => {
            let message = format!("`fine_tune_type` is \"{other}\", expected \"lora\" or \"dora\"");
            return Err(refused(message));
        }
    };
    let Parameters {
        rank,
        scale,
        dropout,
    } = config.lora_parameters;
    let mut tensors = StateDict::new();
    for (name, value) in load_state_dict_file(dir.as_ref().join(WEIGHTS_FILE))? {
        let (key, value) = from_mlx(&name, value)
            .ok_or_else(|| refused(format!("`{name}` is a tensor of no adapter of a Llama")))?;
        tensors.insert(key, value);
    }
    let ends = |key: &String| key.strip_suffix(".lora_a.weight").map(str::to_owned);
    let modules: Vec<String> = tensors.keys().filter_map(ends).collect();
    let lora = LoRAConfig::new(modules)
        .with_method(method)
        .with_rank(rank)
        .with_alpha(scale * rank as f64)
        .with_dropout(dropout);
    lora.validate()
        .map_err(|error| refused(in_words_of(error, &[("alpha", "scale")])))?;
    Ok(Adapter::new(lora, tensors))
}

fn from_mlx(name: &str, value: TensorData) -> Option<(String, TensorData)> {
    let (module, param) = name.rsplit_once('.')?;
    let (ours, _, is_transposed) = PARAMS.iter().find(|(_, theirs, _)| *theirs == param)?;
    let value = match is_transposed {
        true => transposed(value)?,
        false => value,
    };
    Some((
        format!("{}.{ours}", from_hf(module, NormPlacement::Before)?),
        value,
    ))
}

/// Writes an adapter as a folder of mlx-lm's.
///
/// # Errors
/// [`Error::Adapter`] if mlx-lm has no such adapter: it is neither LoRA nor DoRA, has patterns or trains more than
/// factors and magnitudes; [`Error::Io`] if the folder cannot be written.
pub fn save_mlx(adapter: &Adapter, num_layers: usize, dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    let refused = |message: String| Error::Adapter {
        path: dir.to_owned(),
        message,
    };
    let lora = &adapter.config;
    if !lora.rank_pattern.is_empty() || !lora.alpha_pattern.is_empty() {
        return Err(refused(
            "mlx-lm has one rank and one scale for all modules".into(),
        ));
    }
    let mut tensors = StateDict::new();
    for (key, value) in &adapter.tensors {
        let (name, value) = to_mlx(key, value.clone()).ok_or_else(|| {
            refused(format!(
                "mlx-lm has no place for `{key}`; merge the adapter"
            ))
        })?;
        tensors.insert(name, value);
    }
    let is_dora = lora.uses_dora();
    let config = json!({
        "fine_tune_type": if is_dora { "dora" } else { "lora" },
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale(),
            "dropout": lora.dropout,
            "keys": module_names(&adapter.tensors),
        },
    });
    create_dir(dir)?;
    save_state_dict(&tensors, dir.join(WEIGHTS_FILE))?;
    let text = serde_json::to_string_pretty(&config).expect("a JSON value serialises");
    write_text(&dir.join(CONFIG_FILE), &text)
}

/// The modules' names below a layer.
fn module_names(tensors: &StateDict) -> Vec<String> {
    let modules = tensors.keys().filter_map(|key| {
        let module = to_hf(key.strip_suffix(".lora_a.weight")?)?;
        let inside = module.strip_prefix("model.layers.")?;
        inside.split_once('.').map(|(_, name)| name.to_owned())
    });
    let mut names: Vec<String> = modules.collect();
    names.sort();
    names.dedup();
    names
}

fn to_mlx(key: &str, value: TensorData) -> Option<(String, TensorData)> {
    PARAMS.iter().find_map(|(ours, theirs, is_transposed)| {
        let module = key.strip_suffix(ours)?.strip_suffix('.')?;
        if is_in_mixture(module) {
            return None;
        }
        let value = match is_transposed {
            true => transposed(value.clone())?,
            false => value.clone(),
        };
        Some((format!("{}.{theirs}", to_hf(module)?), value))
    })
}

fn transposed(value: TensorData) -> Option<TensorData> {
    let [rows, columns] = value.shape()[..].try_into().ok()?;
    let numbers: Vec<f32> = value.convert_dtype(DType::F32).iter().collect();
    let column = |column: usize| (0..rows).map(move |row| row * columns + column);
    let values = (0..columns).flat_map(column).map(|index| numbers[index]);
    Some(TensorData::new(values.collect::<Vec<_>>(), [columns, rows]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(lora: LoRAConfig) -> Adapter {
        let q = "layers.1.attn.q_proj";
        let a = TensorData::new(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let b = TensorData::new(vec![1f32, 2.0], [1, 2]);
        let tensors = [
            (format!("{q}.lora_a.weight"), a),
            (format!("{q}.lora_b.weight"), b),
        ];
        Adapter::new(lora, tensors.into())
    }

    #[test]
    fn a_folder_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoRAConfig::new(["layers.1.attn.q_proj"])
            .with_rank(2)
            .with_alpha(40.0);
        let adapter = adapter(lora);
        save_mlx(&adapter, 2, &dir).unwrap();
        let theirs = load_state_dict_file(dir.path().join(WEIGHTS_FILE)).unwrap();
        let a = &theirs["model.layers.1.self_attn.q_proj.lora_a"];
        assert_eq!(a.shape()[..], [3, 2]);
        let numbers: Vec<f32> = a.iter().collect();
        assert_eq!(numbers, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let text = read_text(&dir.path().join(CONFIG_FILE)).unwrap();
        assert!(text.contains("\"scale\": 20.0"), "{text}");
        assert!(text.contains("self_attn.q_proj"), "{text}");
        assert_eq!(read_mlx(&dir).unwrap(), adapter);
    }

    #[test]
    fn what_it_has_no_place_for_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoRAConfig::new(["q_proj"]).with_rank(2);
        let mut extra = adapter(lora.clone());
        let value = TensorData::new(vec![1f32], [1]);
        extra
            .tensors
            .insert("layers.1.attn.q_proj.full.bias".into(), value);
        let error = save_mlx(&extra, 2, &dir).unwrap_err();
        assert!(error.to_string().contains("full.bias"), "{error}");
        let error = save_mlx(
            &adapter(lora.with_alpha_pattern([("q_proj", 1.0)])),
            2,
            &dir,
        );
        assert!(error.unwrap_err().to_string().contains("one scale"));

        let config = r#"{"fine_tune_type": "full", "lora_parameters": {"rank": 2, "scale": 1}}"#;
        std::fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
        let error = read_mlx(&dir).unwrap_err();
        assert!(error.to_string().contains("\"full\""), "{error}");
    }
}
