//! Merging into a checkpoint, and saving a packed model as a dense one, hold one weight at a time. A program of its own:
//! the peak memory is that of the process.

#[path = "support/at_hand.rs"]
mod at_hand;

use std::path::Path;

use at_hand::left_out;
use burn::tensor::Device;
use burn_peft::adapter::{initialize_adapters, initialize_params};
use burn_peft::checkpoint::{
    MergedCheckpoint, load_hf_as, read_hf_config, save_hf, save_peft_adapter,
};
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::training::peak_memory_bytes;
use burn_peft::weight::Quantization;

/// Set for the process that makes the files, whose memory is not to count.
const MAKE: &str = "MERGE_MEMORY_MAKE";

fn config() -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(2000)
        .with_num_layers(20)
        .with_num_heads(8)
        .with_num_kv_heads(8)
        .with_head_dim(64)
        .with_embed_dim(512)
        .with_intermediate_dim(2048)
}

fn make(dir: &Path) {
    let model = config().init(&Device::default());
    initialize_params(&model);
    save_hf(&model, dir).unwrap();
    let lora = LoRAConfig::new(AttnModule::ALL).with_mlp(true);
    let model = initialize_adapters(model.with_adapters(&lora).unwrap(), 1);
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.join("adapter")).unwrap();
}

#[test]
fn one_weight_is_held_at_a_time() {
    if let Some(dir) = std::env::var_os(MAKE) {
        return make(dir.as_ref());
    }
    let Some(_) = peak_memory_bytes() else {
        return left_out(
            "memory",
            "this system does not tell a process's peak memory",
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let maker = std::process::Command::new(std::env::current_exe().unwrap())
        .env(MAKE, dir.path())
        .status();
    assert!(maker.unwrap().success());
    let bytes = std::fs::metadata(dir.path().join("model.safetensors"))
        .unwrap()
        .len();
    let largest = 4 * 2048 * 512;
    assert!(bytes > 60 * largest);

    let risen = |what: &str, run: &dyn Fn()| {
        let before = peak_memory_bytes().unwrap();
        run();
        let risen = peak_memory_bytes().unwrap() - before;
        println!(
            "{what}: {} kB for files of {} kB",
            risen / 1000,
            bytes / 1000
        );
        risen
    };
    let adapter = dir.path().join("adapter");
    let merging = risen("merging", &|| {
        let merged = MergedCheckpoint::open(dir.path(), &adapter).unwrap();
        merged.save_hf(dir.path().join("merged")).unwrap();
    });
    assert!(merging < 12 * largest, "{merging} bytes to merge");

    let mut model = read_hf_config(dir.path()).unwrap().init(&Device::default());
    load_hf_as(&mut model, dir.path(), Quantization::Nf4).unwrap();
    let saving = risen("saving", &|| {
        save_hf(&model, dir.path().join("dense")).unwrap()
    });
    assert!(saving < 6 * largest, "{saving} bytes to save");
    let dense = std::fs::metadata(dir.path().join("dense/model.safetensors")).unwrap();
    assert!(dense.len() > bytes * 9 / 10);
}
