//! Several adapters on one base: trained in one batch, each by rows of its own, asked one by one, and made into one.
//!
//! ```text
//! cargo run --release --example several_adapters
//! ```

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::adapter::{
    Adapter, combine_adapters, disabled, set_active_adapters, train_adapters,
};
use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer, save_adapter};
use burn_peft::data::{AlpacaRecord, Batch, RecordEncoder, SftData, SftOptions};
use burn_peft::generate::{GenerateOptions, answer};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{AttnModule, Combination, CombineOptions, LoRAConfig};
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
const STEPS: usize = 30;
const NAMES: [&str; 2] = ["left", "right"];

pub fn main() -> Result<()> {
    let lora = LoRAConfig::new(AttnModule::ALL).with_mlp(true);
    let device = Device::default().autodiff();
    let mut model = load_model(TINY, None, &LoadOptions::new(&device))?;
    for name in NAMES {
        model = model.with_named_adapters(&lora, name)?;
    }
    let mut model = train_adapters(model);
    let tokenizer = load_tokenizer(TINY, &model.config)?;

    let options = SftOptions::new(model.config.context_len(), model.config.vocab_size);
    let options = options.with_batch_size(8);
    let encoder = RecordEncoder::new(&tokenizer);
    let data = SftData::load(format!("{TINY}/alpaca_train.json"), encoder, &options)?;
    let schedule = LrSchedule {
        kind: ScheduleKind::Linear,
        lr: 3e-3,
        warmup_steps: 0,
        total_steps: STEPS,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    for step in 0..STEPS {
        // Every other row is the left one's.
        let routed = data.step(step)?.into_iter().map(|batch: Batch| {
            let names = (0..batch.batch_size).map(|row| Some(NAMES[row % 2]));
            batch.with_adapters(names)
        });
        (model, _) = trainer.step(model, &Vec::from_iter(routed));
    }

    let question = AlpacaRecord::new("What is a tyre made of?");
    let ask = |model: &TransformerDecoder| {
        answer(model, &tokenizer, &question, &GenerateOptions::greedy(24))
    };
    println!("{:>6}: {}", "base", ask(&disabled(&model))?);
    for name in NAMES {
        let model = set_active_adapters(model.clone(), &[name])?;
        println!("{name:>6}: {}", ask(&model)?);
    }
    let halves = NAMES.map(|name| (name, 0.5));
    let options = CombineOptions::default();
    let model = combine_adapters(model, &halves, Combination::Cat, &options, "both")?;
    println!(
        "{:>6}: {}",
        "both",
        ask(&set_active_adapters(model.clone(), &["both"])?)?
    );
    let path = std::env::temp_dir().join("burn-peft-both.safetensors");
    save_adapter(&Adapter::of(&model, "both")?, path)
}
