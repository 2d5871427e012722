//! Asks a model, with or without an adapter, by Alpaca's prompt or, with `--chat`, by its chat template.
//!
//! ```text
//! cargo run --release --example generate -- --model DIR|FILE.gguf [--adapter DIR] "Name three colours."
//! ```
//!
//! Without `--model` it asks the tiny model of this repository.

#[path = "support/answer.rs"]
mod answer;
#[path = "support/device.rs"]
mod device;

use std::path::PathBuf;
use std::process::ExitCode;

use burn_peft::Result;
use burn_peft::checkpoint::{load_any_base, load_peft, read_base_config, read_peft_config};
use burn_peft::data::AlpacaRecord;
use burn_peft::generate::GenerateOptions;
use burn_peft::tokenizer::{ChatEncoder, ChatTemplate, Conversation, Tokenizer};
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
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// The seed of what a higher temperature draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    match ask(Args::parse()) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: Args) -> Result<String> {
    let device = device::from_name(&args.device, 0)?;
    let tokenizer = match args.model.is_dir() {
        true => Tokenizer::from_dir(&args.model)?,
        false => Tokenizer::from_file(&args.model)?,
    };
    let config = read_base_config(&args.model)?;
    let mut model = match &args.adapter {
        None => config.init(&device),
        Some(adapter) => config.init_lora(&read_peft_config(adapter)?, &device)?,
    };
    load_any_base(&mut model, &args.model)?;
    if let Some(adapter) = &args.adapter {
        load_peft(&mut model, adapter)?;
    }
    let options = GenerateOptions::greedy(args.max_new_tokens)
        .with_temperature(args.temperature)
        .with_seed(args.seed);
    let record = AlpacaRecord {
        instruction: args.instruction,
        input: args.input,
        output: String::new(),
    };
    if args.chat {
        let mut question = Conversation::from(&record);
        question.messages.pop();
        let prompt = prompt(&tokenizer, &question)?;
        return answer::go_on(&model, &tokenizer, &prompt, &options);
    }
    answer::answer(&model, &tokenizer, &record, &options)
}

fn prompt(tokenizer: &Tokenizer, question: &Conversation) -> Result<Vec<u32>> {
    let template = ChatTemplate::choose(None, tokenizer)?;
    let tokens = ChatEncoder::new(tokenizer).encode(&template.render(question, true)?)?;
    Ok(tokens.into_iter().map(|token| token.id).collect())
}
