use burn::tensor::Device;

use super::{LlamaConfig, TransformerDecoder};
use crate::lora::LoRAConfig;

/// For each `base, lora_base: "Name"` the model with random weights, and with new adapters.
macro_rules! builders {
    ($($base:ident, $lora:ident: $name:literal;)*) => {
        $(
            #[doc = concat!($name, " with random weights, lazy: nothing is allocated before weights are loaded or used.")]
            pub fn $base(device: &Device) -> TransformerDecoder {
                LlamaConfig::$base().init(device)
            }

            #[doc = concat!($name, " with new adapters, lazy; everything but the adapters is frozen.")]
            ///
            /// # Panics
            /// If the configuration cannot be used. Where it comes from a user, call
            /// [`LlamaConfig::init_lora`], which returns an error instead.
            pub fn $lora(lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
                init_lora(&LlamaConfig::$base(), lora, device)
            }
        )*

        /// The published models that there are builders of.
        pub const PRESETS: &[(&str, fn() -> LlamaConfig)] = &[$((stringify!($base), LlamaConfig::$base)),*];
    };
}

builders! {
    llama2_7b, lora_llama2_7b: "Llama 2 7B";
    llama2_13b, lora_llama2_13b: "Llama 2 13B";
    llama2_70b, lora_llama2_70b: "Llama 2 70B";
    llama3_8b, lora_llama3_8b: "Llama 3 8B";
    llama3_1_8b, lora_llama3_1_8b: "Llama 3.1 8B";
    llama3_1_70b, lora_llama3_1_70b: "Llama 3.1 70B";
    llama3_2_1b, lora_llama3_2_1b: "Llama 3.2 1B";
    llama3_2_3b, lora_llama3_2_3b: "Llama 3.2 3B";
    llama3_3_70b, lora_llama3_3_70b: "Llama 3.3 70B";
    mistral_7b, lora_mistral_7b: "Mistral 7B v0.3";
    ministral3_3b, lora_ministral3_3b: "Ministral 3 3B";
    ministral3_8b, lora_ministral3_8b: "Ministral 3 8B";
    ministral3_14b, lora_ministral3_14b: "Ministral 3 14B";
    qwen2_5_0_5b, lora_qwen2_5_0_5b: "Qwen2.5 0.5B";
    qwen2_5_1_5b, lora_qwen2_5_1_5b: "Qwen2.5 1.5B";
    qwen2_5_3b, lora_qwen2_5_3b: "Qwen2.5 3B";
    qwen2_5_7b, lora_qwen2_5_7b: "Qwen2.5 7B";
    qwen2_5_14b, lora_qwen2_5_14b: "Qwen2.5 14B";
    qwen2_5_32b, lora_qwen2_5_32b: "Qwen2.5 32B";
    qwen2_5_72b, lora_qwen2_5_72b: "Qwen2.5 72B";
    qwen3_0_6b, lora_qwen3_0_6b: "Qwen3 0.6B";
    qwen3_1_7b, lora_qwen3_1_7b: "Qwen3 1.7B";
    qwen3_4b, lora_qwen3_4b: "Qwen3 4B";
    qwen3_8b, lora_qwen3_8b: "Qwen3 8B";
    qwen3_14b, lora_qwen3_14b: "Qwen3 14B";
    qwen3_32b, lora_qwen3_32b: "Qwen3 32B";
    smollm2_135m, lora_smollm2_135m: "SmolLM2 135M";
    smollm2_360m, lora_smollm2_360m: "SmolLM2 360M";
    smollm2_1_7b, lora_smollm2_1_7b: "SmolLM2 1.7B";
    smollm3_3b, lora_smollm3_3b: "SmolLM3 3B";
    olmo2_1b, lora_olmo2_1b: "OLMo 2 1B";
    olmo2_7b, lora_olmo2_7b: "OLMo 2 7B";
    olmo2_13b, lora_olmo2_13b: "OLMo 2 13B";
    olmo2_32b, lora_olmo2_32b: "OLMo 2 32B";
    olmo3_7b, lora_olmo3_7b: "OLMo 3 7B";
    olmo3_32b, lora_olmo3_32b: "OLMo 3 32B";
    granite3_2b, lora_granite3_2b: "Granite 3.3 2B";
    granite3_8b, lora_granite3_8b: "Granite 3.3 8B";
    phi3_mini_4k, lora_phi3_mini_4k: "Phi-3-mini for 4096 tokens";
    phi3_medium_4k, lora_phi3_medium_4k: "Phi-3-medium for 4096 tokens";
    phi4_mini, lora_phi4_mini: "Phi-4-mini";
    phi4, lora_phi4: "Phi-4";
    gemma2_2b, lora_gemma2_2b: "Gemma 2 2B";
    gemma2_9b, lora_gemma2_9b: "Gemma 2 9B";
    gemma2_27b, lora_gemma2_27b: "Gemma 2 27B";
    gemma3_270m, lora_gemma3_270m: "Gemma 3 270M";
    gemma3_1b, lora_gemma3_1b: "Gemma 3 1B";
    gemma3_4b, lora_gemma3_4b: "Gemma 3 4B";
    gemma3_12b, lora_gemma3_12b: "Gemma 3 12B";
    gemma3_27b, lora_gemma3_27b: "Gemma 3 27B";
}

fn init_lora(config: &LlamaConfig, lora: &LoRAConfig, device: &Device) -> TransformerDecoder {
    match config.init_lora(lora, device) {
        Ok(model) => model,
        Err(error) => panic!("{error}"),
    }
}
