//! A caller's mistakes that end a program, with what they say.

use burn::module::{Lora, Module};
use burn::nn;
use burn::tensor::Tensor;
use burn_peft::checkpoint::save_hf;
use burn_peft::data::{Batch, DataOrder, Sample, pack};
use burn_peft::llama::{AttentionMask, LlamaConfig};
use burn_peft::lora::{AttnModule, LoRAConfig, PlainLinear};
use burn_peft::training::{GradientOptions, accumulate_gradients, validation_loss};

use crate::common::device;
use crate::golden::base;

#[test]
#[should_panic = "padding must be on the right: row 0 has it elsewhere"]
fn padding_on_the_left() {
    let is_token = Tensor::<2>::from_floats([[0.0, 1.0, 1.0]], &device()).greater_elem(0.5);
    AttentionMask::causal(0, 3).with_padding(is_token);
}

#[test]
#[should_panic = "the model holds an adapter: save it by `save_merged_hf`, or the adapter by `save_peft`"]
fn an_adapted_model_as_a_plain_one() {
    let lora = LoRAConfig::new([AttnModule::QProj]);
    let model = LlamaConfig::llama2_7b()
        .init_lora(&lora, &device())
        .unwrap();
    let _ = save_hf(&model, "never written");
}

#[test]
#[should_panic = "the layer holds one of Burn's adapters; convert it to a LoRALinear"]
fn a_plain_layer_of_burns_adapted_one() {
    let linear = nn::LinearConfig::new(4, 3).init(&device());
    let _ = PlainLinear::from(linear.apply_lora(Lora::new(2, 4.0)));
}

fn batch_of(tokens: &[u32]) -> Batch {
    let labels = tokens.iter().map(|id| *id as i32).collect();
    let sample = Sample {
        tokens: tokens.to_vec(),
        labels,
        is_cut: false,
    };
    Batch::collate(&[&sample], 0)
}

#[test]
#[should_panic = "token id 128 in a vocabulary of 128"]
fn training_on_a_token_beyond_the_vocabulary() {
    let model = base("gqa");
    accumulate_gradients(&model, &[batch_of(&[1, 128])], GradientOptions::default());
}

#[test]
#[should_panic = "token id -1 in a vocabulary of 128"]
fn validation_on_a_label_beyond_the_vocabulary() {
    let mut batch = batch_of(&[1, 2]);
    batch.labels[1] = -1;
    let _ = validation_loss(&base("gqa"), &[batch]);
}

#[test]
#[should_panic = "a sample of 5 tokens is longer than 4"]
fn a_sample_longer_than_a_row() {
    pack(&[3, 5], 4);
}

#[test]
#[should_panic = "rank 2 of 2 processes"]
fn a_rank_beyond_the_group() {
    let order = DataOrder::new(4, 1).with_num_processes(2);
    order.shard(0, 2, 2);
}
