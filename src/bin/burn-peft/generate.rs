//! Asks a model one question.

use std::io::{Write, stdout};

use burn_peft::data::AlpacaRecord;
use burn_peft::generate::{End, Prompt, TextGeneration, generate_text};
use burn_peft::tokenizer::{ChatTemplate, Conversation, Tokenizer};
use burn_peft::{Error, Result};

use crate::exit::complain;
use crate::model::ModelArgs;
use crate::sampling::Sampling;
use crate::template::chat_template;

/// Ask a model, with or without an adapter, by Alpaca's prompt.
#[derive(clap::Args)]
pub struct Args {
    /// What to do.
    instruction: String,
    /// What to do it with.
    #[arg(long, default_value = "")]
    input: String,
    /// By the chat template in place of Alpaca's prompt: one that lies beside the adapter, else the tokenizer's own, else
    /// ChatML.
    #[arg(long)]
    chat: bool,
    /// A file with another chat template, or chatml.
    #[arg(long, requires = "chat")]
    chat_template: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: Sampling,
    /// The number of answers.
    #[arg(long, default_value_t = 1)]
    answers: usize,
}

pub fn run(args: &Args) -> Result<()> {
    let mut options = args.sampling.options(args.answers)?;
    let tokenizer = args.model.tokenizer()?;
    let template = template(args, &tokenizer)?;
    let prompt = prompt(args, template.as_ref(), &tokenizer)?;
    let model = args.model.load()?;
    if let Some(template) = &template {
        options = options.with_end_of_turn(template, &tokenizer, &model.config);
    }
    if args.answers > 1 {
        for text in generate_text(&model, &tokenizer, &[prompt], &options)? {
            writeln!(stdout(), "---\n{text}").map_err(unread)?;
        }
        return Ok(());
    }
    let mut generation = TextGeneration::new(&model, &tokenizer, &[prompt], &options)?;
    for pieces in &mut generation {
        for piece in pieces? {
            write!(stdout(), "{}", piece.text).map_err(unread)?;
        }
        stdout().flush().map_err(unread)?;
    }
    writeln!(stdout()).map_err(unread)?;
    let answer = &generation.generation().answers()[0];
    if answer.end == Some(End::Length) && answer.tokens.len() == options.max_new_tokens {
        complain("note: the answer is cut off; --max-new-tokens lets it be longer");
    }
    Ok(())
}

/// Nobody waits for the rest of the answer.
fn unread(source: std::io::Error) -> Error {
    let path = "standard output".into();
    Error::Io { path, source }
}

fn template(args: &Args, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let (asked, adapter) = (args.chat_template.as_deref(), args.model.adapter.as_deref());
    let template = args.chat.then(|| chat_template(asked, adapter, tokenizer));
    template.transpose()
}

fn prompt(args: &Args, template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let record = AlpacaRecord::new(&args.instruction).with_input(&args.input);
    match template {
        None => Prompt::from(&record).encode(tokenizer),
        // Without the answer, which is not there yet.
        Some(template) => template.prompt(&Conversation::from(&record).up_to(1), tokenizer),
    }
}
