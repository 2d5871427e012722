//! A conversation in the terminal.

use std::io::{BufRead, IsTerminal, Write, stdin, stdout};

use burn_peft::generate::Chat;
use burn_peft::{Error, Result};

use crate::exit::complain;
use crate::model::ModelArgs;
use crate::sampling::Sampling;
use crate::template::chat_template;

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
    let options = args.sampling.options(1)?;
    let tokenizer = args.model.tokenizer()?;
    let (asked, adapter) = (args.chat_template.as_deref(), args.model.adapter.as_deref());
    let template = chat_template(asked, adapter, &tokenizer)?;
    let model = args.model.load()?;
    let mut chat = Chat::new(&model, &tokenizer, options)?.with_template(template);
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
    let reply = match reply {
        Ok(reply) => reply,
        Err(error @ Error::InvalidArgument { .. }) => {
            complain(format_args!("error: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if reply.is_cut {
        print("(the answer is cut off; --max-new-tokens may let it be longer)\n")?;
    }
    if reply.forgotten > 0 {
        let count = reply.forgotten;
        print(&format!(
            "(the model's context is full: the first {count} messages are forgotten)\n"
        ))?;
    }
    Ok(())
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

fn unreadable(source: std::io::Error) -> Error {
    Error::Io {
        path: "standard input".into(),
        source,
    }
}
