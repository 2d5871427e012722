//! Direct preference optimization: trains an adapter on pairs of answers, a preferred one and another. The reference is the
//! same model with its adapter off, so no second model is held.
//!
//! ```text
//! cargo run --release --example dpo -- [--model DIR --pairs FILE.jsonl] [--output DIR]
//! ```
//!
//! A line of `FILE` has a `prompt`, the `chosen` answer and the `rejected` one. Without it the tiny model of this repository
//! learns to answer in one word: the right one is preferred to what it says by itself.

#[path = "../src/bin/burn-peft/device.rs"]
mod device;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer, save_peft};
use burn_peft::data::{Batch, DataOrder, Sample, check_vocab, load_alpaca};
use burn_peft::generate::{GenerateOptions, Prompt, generate_text};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::{AdamWConfig, Dpo, LrSchedule, ScheduleKind, Trainer};
use burn_peft::{Error, Result};
use clap::Parser;
use serde::Deserialize;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");

/// Train an adapter on preferences.
#[derive(Parser)]
struct Args {
    /// A Hugging Face folder with its tokenizer, one of Meta's, or a GGUF file.
    #[arg(long, default_value = TINY)]
    model: PathBuf,
    /// JSON lines with `prompt`, `chosen` and `rejected`.
    #[arg(long)]
    pairs: Option<PathBuf>,
    /// How much it is worth how far the model goes from the base.
    #[arg(long, default_value_t = 0.1)]
    beta: f64,
    /// The rank of the adapter, on all linear layers of the attention.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    #[arg(long, default_value_t = 5e-4)]
    lr: f64,
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Pairs a step.
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    batch_size: usize,
    /// auto, flex, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Where to save the adapter, as PEFT does.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: String,
    chosen: String,
    rejected: String,
}

fn main() -> ExitCode {
    match train(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Args) -> Result<()> {
    let device = device::from_name(&args.device, 0)?.autodiff();
    let lora = LoRAConfig::new(AttnModule::ALL)
        .with_rank(args.rank)
        .with_alpha(2.0 * args.rank as f64);
    let mut model = load_model(&args.model, &lora, &LoadOptions::new(&device))?;
    let tokenizer = load_tokenizer(&args.model, &model.config)?;
    let pairs = match &args.pairs {
        Some(path) => read_pairs(path)?,
        None => own_pairs(&model, &tokenizer)?,
    };
    let samples = samples(&pairs, &tokenizer)?;
    check_vocab(&samples, model.vocab_size())?;

    let loss = Dpo::new(args.beta);
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: args.lr,
        warmup_steps: args.steps / 10,
        total_steps: args.steps,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule).with_max_grad_norm(Some(1.0));
    let order = DataOrder::new(pairs.len(), args.batch_size.min(pairs.len()));
    let batch = |pairs: &[usize]| {
        let rows = pairs
            .iter()
            .flat_map(|pair| &samples[2 * pair..2 * pair + 2]);
        Batch::collate(&rows.collect::<Vec<_>>(), 0)
    };
    for step in 0..args.steps {
        let micro: Vec<_> = order.step(step).iter().map(|pairs| batch(pairs)).collect();
        let output;
        (model, output) = trainer.step_by(&loss, model, &micro);
        if step % 10 == 0 || step + 1 == args.steps {
            let margins = loss.margins(&model, &micro[0]);
            let right = margins.iter().filter(|margin| **margin > 0.0).count();
            let (loss, of) = (output.loss, margins.len());
            println!("step {step:4}  loss {loss:.4}  pairs the right way round {right} of {of}");
        }
    }
    if let Some(dir) = &args.output {
        save_peft(&model, &lora, dir)?;
    }
    Ok(())
}

fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let refused = |message: String| Error::Format {
        path: path.to_owned(),
        message,
    };
    let pair = |(line, text)| {
        serde_json::from_str(text).map_err(|error| refused(format!("line {}: {error}", line + 1)))
    };
    let pairs: Vec<Pair> = lines.map(pair).collect::<Result<_>>()?;
    match pairs.is_empty() {
        true => Err(refused("there is no pair".into())),
        false => Ok(pairs),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

/// The right answers to the tiny model's records, and what it says by itself.
fn own_pairs(model: &TransformerDecoder, tokenizer: &Tokenizer) -> Result<Vec<Pair>> {
    let mut records = load_alpaca(Path::new(TINY).join("alpaca_train.json"))?;
    records.truncate(64);
    let prompts = records
        .iter()
        .map(|record| Prompt::from(record).encode(tokenizer));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let answers = generate_text(model, tokenizer, &prompts, &GenerateOptions::greedy(16))?;
    let pairs = records.iter().zip(answers);
    let pairs = pairs.filter(|(record, answer)| record.output != *answer);
    Ok(pairs
        .map(|(record, answer)| Pair {
            prompt: record.prompt(),
            chosen: record.output.clone(),
            rejected: answer,
        })
        .collect())
}

/// The answers of all pairs as samples, the preferred one of each first.
fn samples(pairs: &[Pair], tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
    let answers = pairs
        .iter()
        .flat_map(|pair| [&pair.chosen, &pair.rejected].map(|answer| (&pair.prompt, answer)));
    answers
        .map(|(prompt, answer)| Sample::from_prompt(prompt, answer, tokenizer, false, Some(512)))
        .collect()
}
