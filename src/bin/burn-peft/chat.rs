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
        println!("{HELP}");
    }
    let mut lines = stdin().lock().lines();
    loop {
        if is_terminal {
            print!("> ");
            let _ = stdout().flush();
        }
        let Some(line) = lines.next().transpose().map_err(unreadable)? else {
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => chat.reset(),
            command if command.starts_with('/') => println!("{HELP}"),
            question => answer(&mut chat, question)?,
        }
    }
}

/// Prints an answer as it comes. A question that cannot be asked does not end the conversation.
fn answer(chat: &mut Chat, question: &str) -> Result<()> {
    let reply = chat.ask(question, |piece| {
        print!("{piece}");
        // That a terminal is gone is seen by the end of the input.
        let _ = stdout().flush();
    });
    println!();
    match reply {
        Ok(reply) if reply.forgotten > 0 => {
            let count = reply.forgotten;
            println!("(the model's context is full: the first {count} messages are forgotten)");
        }
        Ok(_) => {}
        Err(error @ Error::InvalidArgument { .. }) => eprintln!("error: {error}"),
        Err(error) => return Err(error),
    }
    Ok(())
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
