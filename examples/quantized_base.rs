//! A packed base: what it spares, an adapter trained beside it, and the same adapter merged into the dense base.
//!
//! ```text
//! cargo run --release --example quantized_base
//! ```

use burn::tensor::{DType, Device};
use burn_peft::Result;
use burn_peft::checkpoint::{
    LoadOptions, MergeOptions, load_model, load_tokenizer, merge_files, save_peft,
};
use burn_peft::data::{RecordEncoder, SftData, SftOptions};
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{
    AdamWConfig, Bytes, EstimateConfig, LrSchedule, ScheduleKind, Trainer, estimate,
};
use burn_peft::weight::Quantization;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
const STEPS: usize = 20;

pub fn main() -> Result<()> {
    let lora = LoRAConfig::new(AttnModule::ALL);
    for (packing, quantization) in [
        ("not packed", None),
        ("int8", Some(Quantization::Int8)),
        ("NF4", Some(Quantization::Nf4)),
    ] {
        let training = EstimateConfig::new(LlamaConfig::llama2_7b(), Some(lora.clone()), 1, 512)
            .with_dtype(DType::BF16)
            .with_quantization(quantization);
        let memory = Bytes(estimate(&training).total());
        println!("a training of Llama 2 7B in bf16, {packing}: {memory}");
    }

    // NF4 packs 64 numbers of a row together, which do not divide this tiny model's rows of 352.
    let options = LoadOptions::new(&Device::default().autodiff()).with_format(Quantization::Int8);
    let mut model = load_model(TINY, &lora, &options)?;
    let tokenizer = load_tokenizer(TINY, &model.config)?;
    let options = SftOptions::new(model.config.context_len(), model.config.vocab_size);
    let encoder = RecordEncoder::new(&tokenizer);
    let data = SftData::load(format!("{TINY}/alpaca_train.json"), encoder, &options)?;
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-3,
        warmup_steps: 0,
        total_steps: STEPS,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    for step in 0..STEPS {
        let output;
        (model, output) = trainer.step(model, &data.step(step)?);
        println!("step {step}: loss {:.3}", output.loss);
    }

    // What is served is the dense base with the adapter, not the packed one.
    let folder = std::env::temp_dir().join("burn-peft-quantized-base");
    let (adapter, merged) = (folder.join("adapter"), folder.join("merged"));
    save_peft(&model, &lora, &adapter)?;
    merge_files(TINY, Some(&adapter), &merged, &MergeOptions::default())?;
    println!("merged into the dense base: {}", merged.display());
    Ok(())
}
