//! Asks a model, with or without an adapter, by Alpaca's prompt or, with `--chat`, by its chat template. Prints the answer
//! as it comes.
//!
//! ```text
//! cargo run --release --example generate -- --model DIR|FILE.gguf [--adapter DIR] "Name three colours."
//! ```
//!
//! Without `--model` it asks the tiny model of this repository.

#[path = "support/device.rs"]
mod device;

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use burn_peft::Result;
use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer};
use burn_peft::data::AlpacaRecord;
use burn_peft::generate::{GenerateOptions, Prompt, TextGeneration, generate_text};
use burn_peft::tokenizer::Conversation;
use clap::Parser;

/// Ask a model, with or without an adapter, by Alpaca's prompt.
#[derive(Parser)]
struct Args {
    /// What to do.
    instruction: String,
    /// What to do it with.
    #[arg(long, default_value = "")]
    input: String,
    /// By the model's chat template in place of Alpaca's prompt.
    #[arg(long)]
    chat: bool,
    /// A Hugging Face folder with its tokenizer, one of Meta's, or a GGUF file.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny"))]
    model: PathBuf,
    /// A PEFT folder.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// auto, flex, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The most tokens of the answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Only the K likeliest tokens can be drawn.
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the fewest tokens that have this probability together can be drawn.
    #[arg(long)]
    top_p: Option<f64>,
    /// Only tokens that have this part of the likeliest one's probability can be drawn.
    #[arg(long)]
    min_p: Option<f64>,
    /// Above 1, makes tokens that were there before less likely.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// A text before which the answer ends; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// The number of answers.
    #[arg(long, default_value_t = 1)]
    answers: usize,
    /// The seed of what a higher temperature draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    match ask(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: Args) -> Result<()> {
    let load = LoadOptions::new(&device::from_name(&args.device, 0)?);
    let model = load_model(&args.model, args.adapter.as_deref(), &load)?;
    let tokenizer = load_tokenizer(&args.model, &model.config)?;
    let options = options(&args);
    let prompt = prompt(&args).encode(&tokenizer)?;
    if args.answers > 1 {
        for text in generate_text(&model, &tokenizer, &[prompt], &options)? {
            println!("---\n{text}");
        }
        return Ok(());
    }
    for pieces in TextGeneration::new(&model, &tokenizer, &[prompt], &options)? {
        for piece in pieces? {
            print!("{}", piece.text);
        }
        // That a terminal is gone is seen by the last line.
        let _ = stdout().flush();
    }
    println!();
    Ok(())
}

fn options(args: &Args) -> GenerateOptions {
    let mut options = GenerateOptions::greedy(args.max_new_tokens)
        .with_temperature(args.temperature)
        .with_repetition_penalty(args.repetition_penalty)
        .with_stop_strings(args.stop.iter().cloned())
        .with_answers(args.answers)
        .with_seed(args.seed);
    (options.top_k, options.top_p, options.min_p) = (args.top_k, args.top_p, args.min_p);
    options
}

fn prompt(args: &Args) -> Prompt {
    let record = AlpacaRecord::new(&args.instruction).with_input(&args.input);
    match args.chat {
        // Without the answer, which is not there yet.
        true => Conversation::from(&record).up_to(1).into(),
        false => Prompt::from(&record),
    }
}
