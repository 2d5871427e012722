//! Asks a model one question.

use std::io::{Write, stdout};

use burn_peft::data::AlpacaRecord;
use burn_peft::generate::{Prompt, TextGeneration, generate_text};
use burn_peft::tokenizer::Conversation;
use burn_peft::{Error, Result};

use crate::model::ModelArgs;
use crate::sampling::Sampling;

/// Ask a model, with or without an adapter, by Alpaca's prompt.
#[derive(clap::Args)]
pub struct Args {
    /// What to do.
    instruction: String,
    /// What to do it with.
    #[arg(long, default_value = "")]
    input: String,
    /// By the model's chat template in place of Alpaca's prompt.
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: Sampling,
    /// The number of answers.
    #[arg(long, default_value_t = 1)]
    answers: usize,
}

pub fn run(args: &Args) -> Result<()> {
    let (tokenizer, model) = (args.model.tokenizer()?, args.model.load()?);
    let options = args.sampling.options().with_answers(args.answers);
    let prompt = prompt(args).encode(&tokenizer)?;
    if args.answers > 1 {
        for text in generate_text(&model, &tokenizer, &[prompt], &options)? {
            writeln!(stdout(), "---\n{text}").map_err(unread)?;
        }
        return Ok(());
    }
    for pieces in TextGeneration::new(&model, &tokenizer, &[prompt], &options)? {
        for piece in pieces? {
            write!(stdout(), "{}", piece.text).map_err(unread)?;
        }
        stdout().flush().map_err(unread)?;
    }
    writeln!(stdout()).map_err(unread)
}

/// Nobody waits for the rest of the answer.
fn unread(source: std::io::Error) -> Error {
    let path = "standard output".into();
    Error::Io { path, source }
}

fn prompt(args: &Args) -> Prompt {
    let record = AlpacaRecord::new(&args.instruction).with_input(&args.input);
    match args.chat {
        // Without the answer, which is not there yet.
        true => Conversation::from(&record).up_to(1).into(),
        false => Prompt::from(&record),
    }
}
