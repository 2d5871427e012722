//! A model with random weights, made on the device in the form that it is to have.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_peft::Result;
use burn_peft::adapter::{initialize_params, quantize_base};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::LoRAConfig;
use burn_peft::weight::BaseFormat;
use clap::ValueEnum;

/// The sizes of a published model, or of one for trying out.
#[derive(Clone, Copy, ValueEnum)]
pub enum Sizes {
    #[value(name = "llama2_7b")]
    Llama2_7b,
    #[value(name = "tiny")]
    Tiny,
}

impl Sizes {
    pub fn config(self) -> LlamaConfig {
        match self {
            Self::Llama2_7b => LlamaConfig::llama2_7b(),
            Self::Tiny => LlamaConfig::llama2_7b()
                .with_num_layers(2)
                .with_num_heads(4)
                .with_num_kv_heads(4)
                .with_head_dim(16)
                .with_embed_dim(64)
                .with_intermediate_dim(192),
        }
    }
}

/// A model that fits is made even if it would not fit in f32: weights are drawn, and packed, one after another. As in
/// quantized folders, the output stays dense.
///
/// # Errors
/// If the adapters cannot be used, or the format's blocks do not divide a layer's input.
pub fn random_model(
    config: LlamaConfig,
    lora: &LoRAConfig,
    format: BaseFormat,
    device: &Device,
) -> Result<TransformerDecoder> {
    let mut model = config.init_lora(lora, device)?;
    let mut random = RandomFrozen(format.dtype);
    // The largest first, while there is nothing beside the numbers in f32 that each is rounded from.
    model.tok_embeddings = model.tok_embeddings.map(&mut random);
    model.output = model.output.map(&mut random);
    if let Some(quantization) = format.quantization {
        model = quantize_base(model, quantization, |path| path == "output")?;
    }
    let model = model.map(&mut random);
    initialize_params(&model);
    Ok(model)
}

/// Draws the dense frozen weights that have no value yet, each in the type that it is to have. Norms are ones.
struct RandomFrozen(DType);

impl ModuleMapper for RandomFrozen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.is_initialized() || param.is_require_grad() {
            return param;
        }
        let (device, shape) = (param.lazy_device(), param.lazy_shape());
        let weight = device.memory_persistent_allocations(shape, |shape| match D {
            1 => Tensor::ones(shape, (&device, self.0)),
            _ => Tensor::random(shape, Distribution::Uniform(-0.03, 0.03), (&device, self.0)),
        });
        let id = param.id;
        param.transform_for_load(weight, id)
    }
}
