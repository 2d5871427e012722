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

/// As the models' own pages tell them.
#[test]
fn other_families() {
    for (config, total) in [
        (LlamaConfig::mistral_7b(), 7_248_023_552),
        (LlamaConfig::qwen2_5_0_5b(), 494_032_768),
        (LlamaConfig::qwen2_5_1_5b(), 1_543_714_304),
        (LlamaConfig::qwen2_5_3b(), 3_085_938_688),
        (LlamaConfig::qwen2_5_7b(), 7_615_616_512),
        (LlamaConfig::qwen2_5_14b(), 14_770_033_664),
        (LlamaConfig::qwen2_5_32b(), 32_763_876_352),
        (LlamaConfig::qwen2_5_72b(), 72_706_203_648),
        (LlamaConfig::qwen3_0_6b(), 596_049_920),
        (LlamaConfig::qwen3_1_7b(), 1_720_574_976),
        (LlamaConfig::qwen3_4b(), 4_022_468_096),
        (LlamaConfig::qwen3_8b(), 8_190_735_360),
        (LlamaConfig::qwen3_14b(), 14_768_307_200),
        (LlamaConfig::qwen3_32b(), 32_762_123_264),
        (LlamaConfig::smollm2_135m(), 134_515_008),
        (LlamaConfig::smollm2_360m(), 361_821_120),
        (LlamaConfig::smollm2_1_7b(), 1_711_376_384),
        (LlamaConfig::smollm3_3b(), 3_075_098_624),
        (LlamaConfig::olmo2_1b(), 1_484_916_736),
        (LlamaConfig::olmo2_7b(), 7_298_617_344),
        (LlamaConfig::olmo2_13b(), 13_716_198_400),
        (LlamaConfig::phi3_mini_4k(), 3_821_079_552),
        (LlamaConfig::phi3_medium_4k(), 13_960_238_080),
        (LlamaConfig::phi4_mini(), 3_836_021_760),
        (LlamaConfig::phi4(), 14_659_507_200),
        (LlamaConfig::gemma2_2b(), 2_614_341_888),
        (LlamaConfig::gemma2_9b(), 9_241_705_984),
        (LlamaConfig::gemma2_27b(), 27_227_128_320),
        (LlamaConfig::gemma3_270m(), 268_098_176),
        (LlamaConfig::gemma3_1b(), 999_885_952),
    ] {
        let found = ParamCount::of(&config.init(&device())).total;
        assert_eq!(found, total, "{config:?}");
    }
}
