//! A 70B model costs no memory before its weights are used. A process of its own, since the peak
//! that is measured is the process's.

#[path = "support/at_hand.rs"]
mod at_hand;

use at_hand::left_out;
use burn::tensor::Device;
use burn_peft::adapter::{ParamCount, get_adapter_params, get_params, set_trainable_params};
use burn_peft::llama::{llama2_70b, lora_llama2_70b};
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::peak_memory_bytes;

const ALLOWED: u64 = 64 << 20;

#[test]
fn a_70b_model_costs_nothing_before_it_is_used() {
    let device = Device::default().autodiff();
    let Some(before) = peak_memory_bytes() else {
        return left_out(
            "memory",
            "this system does not tell a process's peak memory",
        );
    };
    let base = llama2_70b(&device);
    assert_eq!(ParamCount::of(&base).total, 68_976_648_192);
    assert!(format!("{base}").contains("q_proj"));

    let lora = LoRAConfig::new(AttnModule::ALL)
        .with_mlp(true)
        .with_output(true);
    let model = lora_llama2_70b(&lora, &device);
    let adapter = get_adapter_params(&model);
    // Seven adapters of two matrices in each of 80 layers, and one on the output.
    assert_eq!(adapter.len(), 2 * (7 * 80 + 1));
    assert_eq!(
        get_params(&model).len(),
        get_params(&base).len() + adapter.len()
    );
    assert_eq!(ParamCount::of(&model).trainable, adapter.num_elements());

    let queries = adapter.filter(|name, _| name.contains("q_proj"));
    let model = set_trainable_params(model, &queries);
    assert_eq!(ParamCount::of(&model).trainable, queries.num_elements());
    assert!(format!("{model}").contains("lora_a"));

    let used = peak_memory_bytes().unwrap_or(u64::MAX) - before;
    assert!(used < ALLOWED, "{used} bytes");
}
