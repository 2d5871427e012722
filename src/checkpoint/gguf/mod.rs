//! GGUF files, those of llama.cpp: models and adapters as their metadata and tensors.

mod architectures;
mod config;
mod describe;
mod load;
mod names;
mod rope;
mod save;
mod scaling;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use burn::tensor::{DType, TensorData};

use self::architectures::Architecture;
pub(super) use self::load::{GgufWeights, gguf_packing};
pub use self::load::{load_gguf, load_gguf_as};
use self::names::to_gguf;
pub use self::save::{GgufFormat, save_gguf, save_merged_gguf};
use super::peft::{Plain, Serving, served_layers};
use super::rotary::{interleaved_row, permuted, rotated_rows};
use crate::adapter::{adapter_config, to_host};
use crate::gguf::{GgufFile, Tensor, Value, write_gguf};
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::lora::LORA_B;
use crate::{Error, Result};

/// Reads the sizes of a model from the metadata and tensors of its GGUF file; of a model that was split, from the first of
/// its files, beside which the others lie. No weight is read.
///
/// Read are the architectures `llama`, which Mistral's models have too, `qwen2`, `qwen3`, `qwen3moe`, `gemma2`, `gemma3`,
/// `phi3`, `smollm3`, `granite`, `olmo2`, which OLMo 3's models have too, and `mistral3`, which is Ministral's. The rotary
/// embedding's scaling is none, linear, yarn, Phi-3's longrope or Llama 3.1's, each in the architectures in which llama.cpp
/// computes it. A setting that changes what is computed and is not one of the architecture's is an error. The tokens that end
/// a text are the file's `eos`, `eot` and `eom`, then those that end one by their texts (`<end_of_turn>`, `<|im_end|>`, `<|end|>`
/// and the like, as in llama.cpp); ids that the vocabulary does not have are none.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read; [`Error::Format`] if it is truncated or damaged, or describes a model that
/// is not read.
pub fn read_gguf_config(path: impl AsRef<Path>) -> Result<LlamaConfig> {
    GgufFile::open(path)?.config()
}

/// Writes an adapter as one GGUF file for llama.cpp, in f32: `llama-cli -m base.gguf --lora adapter.gguf`. The base may
/// be of any quantization. It has to be the base as it was before the adapter: weights of the embedding or output that
/// a PEFT folder had beside the adapter are not in the file.
///
/// llama.cpp scales all layers by one alpha over the rank of each; what a layer's scale is beside that (rsLoRA, alphas by
/// pattern) is folded into its `B`.
///
/// # Errors
/// [`Error::Adapter`] if the model has no such adapter, or it has what llama.cpp ignores or rejects: DoRA's magnitudes,
/// biases, modules trained as a whole, an adapter of an embedding or output that share one weight. The message names
/// the layer; merge the adapter then. [`Error::Io`] if the file cannot be written. What stood at `path` stays then.
pub fn save_gguf_adapter(
    model: &TransformerDecoder,
    adapter: &str,
    path: impl AsRef<Path>,
) -> Result<()> {
    let path = path.as_ref();
    let refused = |message: String| Error::Adapter {
        path: path.to_owned(),
        message,
    };
    if adapter_config(model, adapter).is_none() {
        return Err(refused(format!(
            "the model has no adapter `{adapter}` to save"
        )));
    }
    let architecture = Architecture::of(&model.config).map_err(refused)?;
    let layers = served_layers(Serving::LlamaCpp, model, adapter).map_err(refused)?;
    let alpha = shared_alpha(&layers);
    let mut tensors = Vec::new();
    for layer in layers {
        let name = to_gguf(&layer.path).expect("an adapted layer has a name");
        let [a, b] = factors(layer, alpha, &model.config, architecture);
        tensors.push((format!("{name}.weight.lora_a"), a));
        tensors.push((format!("{name}.weight.lora_b"), b));
    }
    let metadata = [
        ("general.type", "adapter".into()),
        ("general.architecture", architecture.name.into()),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", Value::F32(alpha)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    let tensors = tensors.iter();
    let tensors = tensors.map(|(name, data)| Tensor::of_f32(name.clone(), data));
    write_gguf(path, &metadata, &tensors.collect::<Vec<_>>())
}

/// The alpha of the first layer. Where it is no f32 above 0 it is 1: llama.cpp takes 0 for a scale of 1.
fn shared_alpha(layers: &[Plain]) -> f32 {
    let first = layers.first().map_or(1.0, |layer| alpha_of(layer) as f32);
    match first.is_normal() && first > 0.0 {
        true => first,
        false => 1.0,
    }
}

/// The alpha with which `alpha / r` is a layer's scale.
fn alpha_of(layer: &Plain) -> f64 {
    layer.scale * layer.rank() as f64
}

/// `lora_a` and `lora_b`, whose product llama.cpp scales by `alpha / r`.
///
/// # Shapes
/// - `[r, in]` and `[out, r]`; of an embedding `[vocab_size, r]`, whose rows are looked up, and `[dim, r]`
fn factors(
    layer: Plain,
    alpha: f32,
    model: &LlamaConfig,
    architecture: &Architecture,
) -> [TensorData; 2] {
    let own_alpha = alpha_of(&layer);
    let (a, b) = (layer.a.cast(DType::F32), layer.b.cast(DType::F32));
    let b = to_host(match own_alpha as f32 == alpha {
        true => b,
        false => b * (own_alpha / f64::from(alpha)),
    });
    let key = format!("{}.{LORA_B}", layer.path);
    let is_turned = architecture.rotates_neighbours && rotated_rows(&key, model).is_some();
    let b = match is_turned {
        true => permuted(b, model.head_dim, interleaved_row),
        false => b,
    };
    let a = match layer.path == "tok_embeddings" {
        true => a.transpose(),
        false => a,
    };
    [to_host(a), b]
}
