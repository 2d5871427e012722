use burn::tensor::Device;

use super::{LlamaConfig, TransformerDecoder};
use crate::lora::LoRAConfig;

/// Llama 2 7B with random weights, lazy: nothing is allocated before weights are loaded or used.
pub fn llama2_7b(device: &Device) -> TransformerDecoder {
    LlamaConfig::llama2_7b().init(device)
}

/// Llama 2 13B with random weights, lazy.
pub fn llama2_13b(device: &Device) -> TransformerDecoder {
    LlamaConfig::llama2_13b().init(device)
}

/// Llama 2 70B with random weights, lazy.
pub fn llama2_70b(device: &Device) -> TransformerDecoder {
    LlamaConfig::llama2_70b().init(device)
}

/// Llama 2 7B with new adapters, lazy; everything but the adapters is frozen.
///
/// # Panics
/// If the configuration cannot be used. Where it comes from a user, call
/// [`LlamaConfig::init_lora`], which returns an error instead.
pub fn lora_llama2_7b(lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
    init_lora(&LlamaConfig::llama2_7b(), lora, device)
}

/// Llama 2 13B with new adapters, see [`lora_llama2_7b`].
///
/// # Panics
/// If the configuration cannot be used.
pub fn lora_llama2_13b(lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
    init_lora(&LlamaConfig::llama2_13b(), lora, device)
}

/// Llama 2 70B with new adapters, see [`lora_llama2_7b`].
///
/// # Panics
/// If the configuration cannot be used.
pub fn lora_llama2_70b(lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
    init_lora(&LlamaConfig::llama2_70b(), lora, device)
}

fn init_lora(config: &LlamaConfig, lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
    match config.init_lora(lora, device) {
        Ok(model) => model,
        Err(error) => panic!("{error}"),
    }
}
