//! Adapters for programs that serve them, which know less of PEFT's configuration than PEFT.

use std::fmt;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use indexmap::IndexMap;

use super::keys::PeftKeys;
use super::{CONFIG_FILE, WEIGHTS_FILE, config, conversion, in_hf_names, require_no_model};
use crate::adapter::{adapter_config, adapter_layers, to_host};
use crate::checkpoint::tensors::write_tensors;
use crate::files::{create_dir, write_text};
use crate::llama::names::{is_in_mixture, module_names};
use crate::llama::{Output, TransformerDecoder};
use crate::lora::{
    Init, LORA_A, LORA_B, LayerKind, LoRAAdapter, LoRAConfig, SHIFT_A, SHIFT_B, key_prefix,
};
use crate::{Error, Result};

/// A program that serves adapters beside a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Serving {
    /// vLLM: one rank and one scale `alpha / r` for all layers, LoRA on linear layers alone.
    Vllm,
    /// llama.cpp, by its `convert_lora_to_gguf.py`: the scale is `alpha / r` with each tensor's own rank, LoRA on
    /// linear layers and the embedding, but not on an embedding or output that share one weight.
    /// [`save_gguf_adapter`](crate::checkpoint::save_gguf_adapter) writes the file that the script makes.
    LlamaCpp,
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vllm => "vLLM",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// Writes an adapter as a PEFT folder that a serving program computes rightly: rsLoRA's scale, and ranks and alphas by
/// pattern, which such programs pass over without a word, are folded into the tensors. Smaller ranks are filled up with
/// zeros.
///
/// # Errors
/// [`Error::Adapter`] if the model has no such adapter, or it has what the program ignores or rejects: DoRA's
/// magnitudes, biases, modules trained as a whole, layers that it does not adapt (see [`Serving`]). The message names
/// the layer; merge the adapter then.
/// [`Error::Io`] if the folder cannot be written.
pub fn save_peft_for(
    serving: Serving,
    model: &TransformerDecoder,
    adapter: &str,
    base_model: Option<&str>,
    dir: impl AsRef<Path>,
) -> Result<()> {
    let dir = dir.as_ref();
    let refused = |message: String| Error::Adapter {
        path: dir.to_owned(),
        message,
    };
    let made_by = adapter_config(model, adapter)
        .ok_or_else(|| refused(format!("the model has no adapter `{adapter}` to save")))?;
    let plain = served_layers(serving, model, adapter).map_err(refused)?;
    let rank = plain.iter().map(Plain::rank).max().unwrap_or(1);
    let scale = plain.first().map_or(1.0, |layer| layer.scale);
    let is_one_scale = plain.iter().all(|layer| layer.scale == scale);
    let scale = if is_one_scale { scale } else { 1.0 };
    let keys = PeftKeys::of(model, adapter);
    let mut tensors = IndexMap::new();
    for layer in plain {
        let name = |factor: &str| {
            let key = format!("{}{factor}", key_prefix(&layer.path, adapter));
            keys.theirs(&key).expect("a factor has a name")
        };
        let names = [name(LORA_A), name(LORA_B)];
        tensors.extend(names.into_iter().zip(layer.factors(rank, scale)));
    }
    let config = config_of(&in_hf_names(model, adapter, &made_by)?, rank, scale);
    require_no_model(dir)?;
    create_dir(dir)?;
    let named: Vec<(String, &TensorData)> = tensors.iter().map(|(k, v)| (k.clone(), v)).collect();
    write_tensors(named, &dir.join(WEIGHTS_FILE))?;
    let text = serde_json::to_string_pretty(&config::to_json(&config, base_model))
        .expect("a JSON value serialises");
    write_text(&dir.join(CONFIG_FILE), &text)
}

/// The factors of all layers, if a program takes them.
pub(in crate::checkpoint) fn served_layers(
    serving: Serving,
    model: &TransformerDecoder,
    adapter: &str,
) -> Result<Vec<Plain>, String> {
    if model.resized_from.is_some() {
        return Err(format!(
            "{serving} takes no adapter with a vocabulary of another size than its base's; {INSTEAD}"
        ));
    }
    let is_tied = matches!(model.output, Output::Tied(_));
    let layers = adapter_layers(model, adapter).into_iter();
    let plain = layers.map(|(path, layer)| {
        require_served(serving, &path, &layer, is_tied)?;
        Ok(Plain::of(path, &layer))
    });
    plain.collect()
}

const INSTEAD: &str = "merge the adapter instead: save_hf(&model.merge_lora(), ..)";

fn require_served(
    serving: Serving,
    path: &str,
    layer: &LoRAAdapter,
    is_tied: bool,
) -> Result<(), String> {
    let shares_weight = is_tied && module_names(path).is_vocabulary;
    if serving == Serving::LlamaCpp && shares_weight {
        return Err(format!(
            "{serving} takes no adapter of `{path}` where embedding and output share one weight; {INSTEAD}"
        ));
    }
    let is_taken = match layer.layer().kind {
        _ if is_in_mixture(path) => false,
        LayerKind::Linear => true,
        LayerKind::Embedding => serving == Serving::LlamaCpp,
        _ => false,
    };
    if !is_taken {
        return Err(format!("{serving} takes no adapter of `{path}`; {INSTEAD}"));
    }
    let factors = [LORA_A, LORA_B, SHIFT_A, SHIFT_B];
    match layer.params().find(|spec| !factors.contains(&spec.name)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "{serving} takes no `{}`, which the adapter of `{path}` has; {INSTEAD}",
            other.name
        )),
    }
}

/// The factors of one layer, `s·B·A` without anything else.
pub(in crate::checkpoint) struct Plain {
    pub(in crate::checkpoint) path: String,
    pub(in crate::checkpoint) a: Tensor<2>,
    pub(in crate::checkpoint) b: Tensor<2>,
    pub(in crate::checkpoint) scale: f64,
}

impl Plain {
    fn of(path: String, layer: &LoRAAdapter) -> Self {
        let value = |name| layer.matrix(name).set_require_grad(false);
        let own = || [LORA_A, LORA_B].map(value);
        let [a, b] = conversion::converted(layer).unwrap_or_else(own);
        Self {
            path,
            a,
            b,
            scale: layer.scale(),
        }
    }

    pub(in crate::checkpoint) fn rank(&self) -> usize {
        let [rank, _] = self.a.dims();
        rank
    }

    /// `A` and `B` of this rank, with which `scale` gives the layer's update.
    fn factors(self, rank: usize, scale: f64) -> [TensorData; 2] {
        let missing = rank - self.rank();
        let ([_, in_dim], [out_dim, _]) = (self.a.dims(), self.b.dims());
        let b = match self.scale == scale {
            true => self.b,
            false => self.b * (self.scale / scale),
        };
        if missing == 0 {
            return [to_host(self.a), to_host(b)];
        }
        let zeros = |shape: [usize; 2]| Tensor::zeros(shape, (&b.device(), b.dtype()));
        let a = Tensor::cat(vec![self.a, zeros([missing, in_dim])], 0);
        let b = Tensor::cat(vec![b.clone(), zeros([out_dim, missing])], 1);
        [to_host(a), to_host(b)]
    }
}

fn config_of(made_by: &LoRAConfig, rank: usize, scale: f64) -> LoRAConfig {
    let mut config = made_by.clone().with_init(Init::Kaiming);
    config.rank = rank;
    config.alpha = scale * rank as f64;
    config.use_rslora = false;
    config.rank_pattern.clear();
    config.alpha_pattern.clear();
    config
}
