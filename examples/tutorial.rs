//! The LoRA tutorial's program: Llama 2 7B, with adapters, loaded, counted, saved.
//!
//! ```text
//! cargo run --release --example tutorial                  # no checkpoint: prints and counts
//! cargo run --release --example tutorial -- Llama-2-7b-hf # loads, and saves adapter and merged model
//! ```

use burn::prelude::*;
use burn_peft::llama::{llama2_7b, lora_llama2_7b};
use burn_peft::lora::{AttnModule::*, LoRAConfig};
use burn_peft::{adapter::*, checkpoint};

fn main() -> burn_peft::Result<()> {
    let device = Device::default().autodiff();
    let base = llama2_7b(&device); // lazy: nothing is allocated yet
    let lora = LoRAConfig::new([QProj, VProj]); // rank 8, alpha 16, dropout 0
    let mut model = lora_llama2_7b(&lora, &device); // the same type as `base`
    println!("{}\n{}", base.layers[0].attn, model.layers[0].attn);

    let checkpoint_dir = std::env::args().nth(1);
    if let Some(dir) = &checkpoint_dir {
        let report = checkpoint::load_hf(&mut model, dir)?; // missing and unexpected keys
        validate_state_dict_for_lora(&lora, &report)?; // only adapter tensors may be missing
    }

    let adapter = get_adapter_params(&model);
    let model = set_trainable_params(model, &adapter);
    println!("{}", ParamCount::of(&model));

    if checkpoint_dir.is_some() {
        checkpoint::save_peft(&model, &lora, "adapter/")?; // for PEFT and vLLM
        checkpoint::save_hf(&model.merge_lora(), "merged/")?; // plain Llama weights for anybody
    }
    Ok(())
}
