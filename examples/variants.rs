//! The kinds of adapters side by side: so many parameters each, and the loss after the same steps.
//!
//! ```text
//! cargo run --release --example variants
//! ```

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::adapter::ParamCount;
use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer, read_base_config};
use burn_peft::data::{RecordEncoder, SftData, SftOptions};
use burn_peft::lora::{AttnModule, Init, LoRAConfig};
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
const STEPS: usize = 10;

pub fn main() -> Result<()> {
    let config = read_base_config(TINY)?;
    let tokenizer = load_tokenizer(TINY, &config)?;
    let options = SftOptions::new(config.context_len(), config.vocab_size).with_batch_size(8);
    let encoder = RecordEncoder::new(&tokenizer);
    let data = SftData::load(format!("{TINY}/alpaca_train.json"), encoder, &options)?;

    let lora = || LoRAConfig::new(AttnModule::ALL);
    let variants = [
        ("LoRA", lora()),
        ("LoRA of rank 2", lora().with_rank(2)),
        ("rsLoRA", lora().with_rslora(true)),
        ("DoRA", lora().with_dora(true)),
        ("PiSSA", lora().with_init(Init::Pissa)),
        ("LoRA-FA", lora().with_frozen_a(true)),
        ("LoRA, B with bias", lora().with_lora_bias(true)),
        ("LoRA+", lora()),
    ];
    for (name, lora) in variants {
        let options = LoadOptions::new(&Device::default().autodiff());
        let mut model = load_model(TINY, &lora, &options)?;
        let schedule = LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1e-3,
            warmup_steps: 0,
            total_steps: STEPS,
        };
        let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
        if name == "LoRA+" {
            trainer = trainer.with_lr_factor("lora_b.weight", 16.0);
        }
        for step in 0..STEPS {
            (model, _) = trainer.step(model, &data.step(step)?);
        }
        let (count, loss) = (ParamCount::of(&model).trainable, trainer.last_loss);
        println!(
            "{name:<20}{count:>8} parameters, loss {:.3}",
            loss.unwrap_or(f64::NAN)
        );
    }
    Ok(())
}
