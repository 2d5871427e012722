//! A caller's mistakes that end a program, with what they say.

use burn::module::{Lora, LoraAdapter, Module};
use burn::nn;
use burn::tensor::Tensor;
use burn_peft::checkpoint::save_hf;
use burn_peft::data::{DataOrder, pack};
use burn_peft::llama::{AttentionMask, LlamaConfig};
use burn_peft::lora::{AttnModule, LoRAConfig, LoRALinear, PlainLinear};

use crate::common::device;

#[test]
#[should_panic = "padding must be on the right: row 0 has it elsewhere"]
fn padding_on_the_left() {
    let is_token = Tensor::<2>::from_floats([[0.0, 1.0, 1.0]], &device()).greater_elem(0.5);
    AttentionMask::causal(0, 3).with_padding(is_token);
}

#[test]
#[should_panic = "the model holds an adapter: save `model.merge_lora()`, or the adapter by `save_peft`"]
fn an_adapted_model_as_a_plain_one() {
    let lora = LoRAConfig::new([AttnModule::QProj]);
    let model = LlamaConfig::llama2_7b()
        .init_lora(&lora, &device())
        .unwrap();
    let _ = save_hf(&model, "never written");
}

fn dora_layer() -> LoRALinear {
    let lora = LoRAConfig::new([]).with_dora(true);
    LoRALinear::new(4, 3, &lora, false, &device())
}

#[test]
#[should_panic = "Burn's LoraAdapter has neither DoRA nor dropout"]
fn dora_as_burns_adapter() {
    let _ = LoraAdapter::from(dora_layer().adapter.unwrap());
}

#[test]
#[should_panic = "the layer holds one of Burn's adapters; convert it to a LoRALinear"]
fn a_plain_layer_of_burns_adapted_one() {
    let linear = nn::LinearConfig::new(4, 3).init(&device());
    let _ = PlainLinear::from(linear.apply_lora(Lora::new(2, 4.0)));
}

#[test]
#[should_panic = "a sample of 5 tokens is longer than 4"]
fn a_sample_longer_than_a_row() {
    pack(&[3, 5], 4);
}

#[test]
#[should_panic = "rank 2 of 2 processes"]
fn a_rank_beyond_the_group() {
    let order = DataOrder {
        num_samples: 4,
        batch_size: 1,
        accumulation_steps: 1,
        num_processes: 2,
        max_steps_per_epoch: None,
        shuffle: true,
        seed: 0,
    };
    order.shard(0, 2, 2);
}
