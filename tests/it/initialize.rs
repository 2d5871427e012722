//! The first values of adapters.

use burn::tensor::{Device, TensorData};
use burn_peft::adapter::{
    ParamCount, StateDict, adapter_state_dict, initialize_adapters, state_dict,
};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, LoRAConfig};

use crate::common::{device, floats};

fn model(lora: LoRAConfig, device: &Device) -> TransformerDecoder {
    let config = LlamaConfig::llama2_7b()
        .with_vocab_size(64)
        .with_num_layers(2)
        .with_num_heads(4)
        .with_num_kv_heads(2)
        .with_head_dim(16)
        .with_embed_dim(64)
        .with_intermediate_dim(96)
        .with_max_seq_len(32);
    config.init_lora(&lora, device).unwrap()
}

fn all() -> LoRAConfig {
    LoRAConfig::new(AttnModule::ALL).with_mlp(true).with_rank(4)
}

fn adapter(lora: LoRAConfig, seed: u64, device: &Device) -> StateDict {
    adapter_state_dict(&initialize_adapters(model(lora, device), seed))
}

fn bits(values: &TensorData) -> Vec<u32> {
    floats(values).into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_seed_gives_the_same_adapter_on_every_device() {
    let expected = adapter(all(), 7, &device());
    let found = adapter(all(), 7, &Device::flex().autodiff());
    assert_eq!(found.len(), expected.len());
    for (name, values) in &found {
        assert_eq!(bits(values), bits(&expected[name]), "{name}");
    }
}

#[test]
fn a_layers_adapter_does_not_depend_on_others() {
    let value = LoRAConfig::new([AttnModule::VProj]).with_rank(4);
    let (alone, among_others) = (adapter(value, 3, &device()), adapter(all(), 3, &device()));
    assert_eq!(alone.len(), 4);
    for (name, values) in &alone {
        assert_eq!(bits(values), bits(&among_others[name]), "{name}");
    }
}

/// Five standard deviations of what chance gives are allowed.
#[test]
fn a_is_kaiming_uniform_and_b_zero() {
    let values = adapter(all().with_rank(16), 1, &device());
    for (name, data) in &values {
        let numbers = floats(data);
        if name.ends_with("lora_b.weight") {
            assert!(numbers.iter().all(|x| *x == 0.0), "{name}");
            continue;
        }
        let k = 1.0 / (data.shape()[1] as f64).sqrt();
        let count = numbers.len() as f64;
        let mean_of = |f: &dyn Fn(f64) -> f64| {
            numbers.iter().map(|x| f(f64::from(*x) / k)).sum::<f64>() / count
        };
        assert!(mean_of(&|x| f64::from(x.abs() > 1.0)) == 0.0, "{name}");
        // The moments of U(-1, 1): 0 and 1/3, with variances 1/3 and 4/45.
        assert!(
            mean_of(&|x| x).abs() < 5.0 * (1.0 / 3.0 / count).sqrt(),
            "{name}"
        );
        let square = mean_of(&|x| x * x);
        assert!(
            (square - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / count).sqrt(),
            "{name}"
        );
    }
    let mut seen: Vec<Vec<u32>> = Vec::new();
    let other_seed = adapter(all().with_rank(16), 2, &device());
    let drawn = values
        .iter()
        .chain(&other_seed)
        .filter(|(name, _)| name.contains("lora_a"));
    for (name, data) in drawn {
        let first = bits(data)[..8].to_vec();
        assert!(!seen.contains(&first), "{name} has another's numbers");
        seen.push(first);
    }
}

#[test]
fn all_else_stays() {
    let lora = all().with_dora(true);
    let model = model(lora, &device());
    let (before, count) = (state_dict(&model), ParamCount::of(&model));
    let model = initialize_adapters(model, 5);
    assert_eq!(ParamCount::of(&model), count);
    for (name, values) in state_dict(&model) {
        let is_drawn = name.contains("lora_a");
        assert_eq!(bits(&values) != bits(&before[&name]), is_drawn, "{name}");
    }
}
