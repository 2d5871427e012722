//! Conversations: what a training has of them, and one with what it came to. The chat template writes them, and the loss
//! counts what the assistant says.
//!
//! ```text
//! cargo run --release --example chat_data
//! ```
//!
//! A line of a file of conversations is `{"messages": [{"role": "user", "content": ".."}, {"role": "assistant", ..}]}`;
//! here Alpaca's records become some.

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer};
use burn_peft::data::{Dataset, RecordEncoder, SftData, SftOptions};
use burn_peft::generate::{Chat, GenerateOptions};
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
const STEPS: usize = 30;

pub fn main() -> Result<()> {
    let lora = LoRAConfig::new(AttnModule::ALL).with_mlp(true);
    let options = LoadOptions::new(&Device::default().autodiff());
    let mut model = load_model(TINY, &lora, &options)?;
    let tokenizer = load_tokenizer(TINY, &model.config)?;

    let encoder = RecordEncoder::new(&tokenizer).with_as_conversations(true);
    let options = SftOptions::new(model.config.context_len(), model.config.vocab_size);
    let options = options.with_batch_size(8);
    let data = SftData::load(format!("{TINY}/alpaca_train.json"), encoder, &options)?;
    let first = data.samples.sample(0)?;
    for (span, is_counted) in first.spans() {
        let text = tokenizer.show(&first.tokens[span])?;
        let what = if is_counted { "counted" } else { "given" };
        println!("{what:>8}: {text:?}");
    }

    let schedule = LrSchedule {
        kind: ScheduleKind::Linear,
        lr: 3e-3,
        warmup_steps: 0,
        total_steps: STEPS,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    for step in 0..STEPS {
        (model, _) = trainer.step(model, &data.step(step)?);
    }
    println!("loss {:.3}", trainer.last_loss.unwrap_or(f64::NAN));

    // This tokenizer has no template, so it is ChatML.
    let mut chat = Chat::new(&model, &tokenizer, GenerateOptions::greedy(24))?;
    for question in ["What is a tyre made of?", "What is a window made of?"] {
        println!("{question}\n  {}", chat.ask(question, |_| {})?.text);
    }
    Ok(())
}
