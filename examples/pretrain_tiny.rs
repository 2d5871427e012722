//! Pre-trains the tiny Llama that `lora_alpaca` finetunes without arguments, on text that
//! `make_tiny_data` writes: full finetuning of a model with random weights through the same
//! library.
//!
//! ```text
//! cargo run --release --example pretrain_tiny -- --output examples/assets/tiny
//! ```

#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/tiny_world.rs"]
mod tiny_world;

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::adapter::{ParamCount, initialize_params};
use burn_peft::checkpoint::{read_hf_config, save_hf};
use burn_peft::data::Batch;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use clap::Parser;
use indicatif::ProgressIterator;

/// Pre-train the tiny Llama of this repository.
#[derive(Parser)]
struct Args {
    /// The folder to write the model to.
    #[arg(long)]
    output: PathBuf,
    /// The number of optimizer steps.
    #[arg(long, default_value_t = STEPS)]
    steps: usize,
    /// The sequences of a step.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// The tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    seq_len: usize,
    /// The highest learning rate.
    #[arg(long, default_value_t = 4e-3)]
    lr: f64,
    /// The seed of the weights and of the text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

const STEPS: usize = 3000;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let args = Args::parse();
    let tokenizer = Tokenizer::from_dir(embedded::dir())?;
    let device = Device::default().autodiff();
    device.seed(args.seed);
    let mut model = read_hf_config(embedded::dir())?.init(&device);
    initialize_params(&model);
    println!("{}", ParamCount::of(&model));

    let adamw = AdamWConfig {
        betas: (0.9, 0.95),
        weight_decay: 0.05,
        ..AdamWConfig::default()
    };
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: args.lr,
        warmup_steps: args.steps / 30,
        total_steps: args.steps,
    };
    let mut trainer = Trainer::new(adamw, schedule).with_max_grad_norm(Some(1.0));
    let mut text = TokenStream::new(&tokenizer, args.seed);
    let started = Instant::now();
    for step in (0..args.steps).progress() {
        let batch = text.batch(args.batch_size, args.seq_len)?;
        let (next, output) = trainer.step(model, &[batch]);
        model = next;
        if step.is_multiple_of(args.steps.div_ceil(20)) || step + 1 == args.steps {
            let tokens = (step + 1) * args.batch_size * args.seq_len;
            let speed = tokens as f64 / started.elapsed().as_secs_f64();
            println!("step {step}: loss {:.4}, {speed:.0} tokens/s", output.loss);
        }
    }
    save_hf(&model, &args.output)
}

/// The documents of the tiny world, one after the other, as an endless stream of tokens.
struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    documents: Box<dyn Iterator<Item = String>>,
    waiting: Vec<u32>,
}

impl<'a> TokenStream<'a> {
    fn new(tokenizer: &'a Tokenizer, seed: u64) -> Self {
        Self {
            tokenizer,
            documents: Box::new(tiny_world::documents(seed)),
            waiting: Vec::new(),
        }
    }

    /// The next tokens, in full rows that are all to be predicted.
    fn batch(&mut self, batch_size: usize, seq_len: usize) -> Result<Batch> {
        let needed = batch_size * seq_len;
        while self.waiting.len() < needed {
            let text = self.documents.next().expect("the stream of documents has no end");
            self.waiting.extend(self.tokenizer.bos_id());
            self.waiting.extend(self.tokenizer.encode(&text)?);
            self.waiting.extend(self.tokenizer.eos_id());
        }
        let input_ids: Vec<i32> = self.waiting.drain(..needed).map(|id| id as i32).collect();
        Ok(Batch {
            labels: input_ids.clone(),
            input_ids,
            lengths: vec![seq_len; batch_size],
            batch_size,
            seq_len,
        })
    }
}
