//! Parameter counts of the published models.

use burn_peft::adapter::ParamCount;
use burn_peft::llama::{LlamaConfig, llama2_7b, lora_llama2_7b};
use burn_peft::lora::{AttnModule, LoRAConfig};

use crate::common::device;

#[test]
fn llama2_7b_and_its_adapters() {
    assert_eq!(ParamCount::of(&llama2_7b(&device())).total, 6_738_415_616);
    let qv = LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]);
    let all = LoRAConfig::new(AttnModule::ALL).with_mlp(true);
    let qvo = [AttnModule::QProj, AttnModule::VProj, AttnModule::OutputProj];
    let qvo = LoRAConfig::new(qvo).with_mlp(true);
    for (lora, trainable) in [(qv, 4_194_304), (all, 19_988_480), (qvo, 17_891_328)] {
        let count = ParamCount::of(&lora_llama2_7b(&lora, &device()));
        assert_eq!(count.trainable, trainable);
        assert_eq!(count.total, 6_738_415_616 + trainable);
    }
}

#[test]
fn other_sizes() {
    for (config, total) in [
        (LlamaConfig::llama2_13b(), 13_015_864_320),
        (LlamaConfig::llama2_70b(), 68_976_648_192),
        (LlamaConfig::llama3_8b(), 8_030_261_248),
        (LlamaConfig::llama3_1_8b(), 8_030_261_248),
        (LlamaConfig::llama3_1_70b(), 70_553_706_496),
        (LlamaConfig::llama3_2_1b(), 1_235_814_400),
        (LlamaConfig::llama3_2_3b(), 3_212_749_824),
    ] {
        assert_eq!(ParamCount::of(&config.init(&device())).total, total);
    }
}
