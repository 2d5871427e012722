//! A conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write, stdin, stdout};
use std::path::Path;

use burn_peft::generate::Chat;
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::{Error, Result};

use crate::model::ModelArgs;
use crate::sampling::Sampling;

const HELP: &str = "/reset begins a new conversation, /quit ends the program";

/// Talk to a model in the terminal, by its chat template.
///
/// A line is a question. `/reset` begins a new conversation, `/quit` or the end of the input ends the program.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: Sampling,
    /// A message of the system before all others.
    #[arg(long)]
    system: Option<String>,
    /// A file with another chat template, or chatml. Without it, one that lies beside the adapter is taken, then the
    /// tokenizer's own, then ChatML.
    #[arg(long)]
    chat_template: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let tokenizer = args.model.tokenizer()?;
    let template = template(args, &tokenizer)?;
    let model = args.model.load()?;
    let mut chat = Chat::new(&model, &tokenizer, args.sampling.options())?.with_template(template);
    if let Some(system) = &args.system {
        chat = chat.with_system(system);
    }
    let is_terminal = stdin().is_terminal();
    if is_terminal {
        print(&format!("{HELP}\n"))?;
    }
    let mut lines = stdin().lock().lines();
    loop {
        if is_terminal {
            print("> ")?;
        }
        let Some(line) = lines.next().transpose().map_err(unreadable)? else {
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => chat.reset(),
            command if command.starts_with('/') => print(&format!("{HELP}\n"))?,
            question => answer(&mut chat, question)?,
        }
    }
}

/// Prints an answer as it comes. A question that cannot be asked does not end the conversation.
fn answer(chat: &mut Chat, question: &str) -> Result<()> {
    let mut printed = Ok(());
    let reply = chat.ask(question, |piece| {
        if printed.is_ok() {
            printed = print(piece);
        }
    });
    printed?;
    print("\n")?;
    match reply {
        Ok(reply) if reply.forgotten > 0 => {
            let count = reply.forgotten;
            print(&format!(
                "(the model's context is full: the first {count} messages are forgotten)\n"
            ))
        }
        Ok(_) => Ok(()),
        Err(error @ Error::InvalidArgument { .. }) => {
            eprintln!("error: {error}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// At once. A conversation that nobody reads ends.
fn print(text: &str) -> Result<()> {
    let mut output = stdout();
    let printed = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    printed.map_err(|source| Error::Io {
        path: "standard output".into(),
        source,
    })
}

/// The template of a training that wrote conversations by another than the base's lies beside the adapter.
fn template(args: &Args, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let beside = args.model.adapter.as_deref();
    let beside = beside.map(|adapter: &Path| adapter.join("chat_template.jinja"));
    let beside = beside.filter(|file| file.exists());
    let beside = beside.and_then(|file| file.to_str().map(str::to_owned));
    let chosen = args.chat_template.clone().or(beside);
    ChatTemplate::choose(chosen.as_deref(), tokenizer)
}

fn unreadable(source: std::io::Error) -> Error {
    Error::Io {
        path: "standard input".into(),
        source,
    }
}
