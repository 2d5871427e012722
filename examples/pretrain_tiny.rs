//! Makes all that `lora_alpaca` uses without arguments: the text of a small world, the records, the
//! tokenizer, and a tiny Llama pre-trained on the text, by full finetuning of random weights through
//! the same library. Takes about ten minutes on two cores.
//!
//! ```text
//! cargo run --release --example pretrain_tiny
//! ```

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "support/tiny_files.rs"]
mod tiny_files;
#[path = "support/tiny_world.rs"]
mod tiny_world;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use burn_peft::adapter::{ParamCount, initialize_params};
use burn_peft::checkpoint::{read_hf_config, save_hf};
use burn_peft::data::Batch;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use clap::Parser;
use indicatif::ProgressIterator;

/// Make and pre-train the tiny Llama of this repository.
#[derive(Parser)]
struct Args {
    /// The folder that holds config.json and gets all other files.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny"))]
    folder: PathBuf,
    /// The number of optimizer steps.
    #[arg(long, default_value_t = 4000)]
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
    /// The seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    allocator::keep_freed_memory();
    let args = Args::parse();
    tiny_files::write(&args.folder)?;
    let mut text = TokenStream::read(&args.folder)?;
    let device = Device::default().autodiff();
    device.seed(args.seed);
    let mut model = read_hf_config(&args.folder)?.init(&device);
    initialize_params(&model);
    println!("{}", ParamCount::of(&model));

    let adamw = AdamWConfig::default()
        .with_betas((0.9, 0.95))
        .with_weight_decay(0.05);
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: args.lr,
        warmup_steps: args.steps / 30,
        total_steps: args.steps,
    };
    let mut trainer = Trainer::new(adamw, schedule).with_max_grad_norm(Some(1.0));
    let started = Instant::now();
    for step in (0..args.steps).progress() {
        let batch = text.batch(args.batch_size, args.seq_len);
        let (next, output) = trainer.step(model, &[batch]);
        model = next;
        if step.is_multiple_of(args.steps.div_ceil(20)) || step + 1 == args.steps {
            let tokens = (step + 1) * args.batch_size * args.seq_len;
            let speed = tokens as f64 / started.elapsed().as_secs_f64();
            println!("step {step}: loss {:.4}, {speed:.0} tokens/s", output.loss);
        }
    }
    save_hf(&model, &args.folder)?;
    Ok(())
}

/// The documents, one after the other and over again, as an endless stream of tokens.
struct TokenStream {
    tokens: Vec<u32>,
    position: usize,
}

impl TokenStream {
    fn read(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let tokenizer = Tokenizer::from_dir(folder)?;
        let corpus = fs::read_to_string(folder.join("corpus.txt"))?;
        let mut tokens = Vec::new();
        for document in corpus.split_terminator("\n</s>\n") {
            tokens.extend(tokenizer.bos_id());
            tokens.extend(tokenizer.encode(document)?);
            tokens.extend(tokenizer.eos_id());
        }
        println!("{} tokens of text", tokens.len());
        Ok(Self {
            tokens,
            position: 0,
        })
    }

    /// The next tokens, in full rows that are all to be predicted.
    fn batch(&mut self, batch_size: usize, seq_len: usize) -> Batch {
        let needed = batch_size * seq_len;
        let endless = self.tokens.iter().cycle().skip(self.position).take(needed);
        let input_ids: Vec<i32> = endless.map(|id| *id as i32).collect();
        self.position = (self.position + needed) % self.tokens.len();
        Batch {
            labels: input_ids.clone(),
            input_ids,
            segments: vec![vec![seq_len]; batch_size],
            batch_size,
            seq_len,
            adapters: None,
        }
    }
}
