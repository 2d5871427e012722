//! Shows how a model's files are read, for those who want to compare that with another program.
//!
//! ```text
//! cargo run --release --example inspect -- --model PATH
//! echo '["Hello world", " 1234"]' | cargo run --release --example inspect -- --tokenizer PATH
//! cargo run --release --example inspect -- --tokenizer PATH --records chats.jsonl [--train-on last]
//! ```
//!
//! `PATH` is a model folder or a GGUF file, or for `--tokenizer` a tokenizer's file. Prints one JSON line:
//! the model's sizes, or the special tokens, the ids of each text without them, and what these decode to; or
//! for each record of a file the text that the chat template writes, its ids, and for each id whether the
//! loss counts it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_peft::checkpoint::read_base_config;
use burn_peft::data::{Format, IGNORE_INDEX, Record, RecordEncoder, load_records};
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::{Error, Result};
use clap::Parser;
use serde_json::{Value, json};

/// Print a model's sizes, or the ids of texts.
#[derive(Parser)]
struct Args {
    /// A model folder, Hugging Face's or Meta's, or a GGUF file, whose sizes to print.
    #[arg(
        long,
        required_unless_present = "tokenizer",
        conflicts_with = "tokenizer"
    )]
    model: Option<PathBuf>,
    /// A model folder, a tokenizer's file or a GGUF file, for texts on the standard input, a JSON list.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Records to show as a training has them, in place of texts.
    #[arg(long, requires = "tokenizer")]
    records: Option<PathBuf>,
    /// A chat template, or chatml, in place of the tokenizer's own.
    #[arg(long, requires = "records")]
    chat_template: Option<String>,
    /// What the loss counts: assistant, last or all.
    #[arg(long, requires = "records", default_value = "assistant")]
    train_on: String,
    /// The text has a prompt for the next answer at its end.
    #[arg(long, requires = "records")]
    generation_prompt: bool,
}

fn main() -> ExitCode {
    match inspect(&Args::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn inspect(args: &Args) -> Result<Value> {
    match (&args.model, &args.tokenizer) {
        (Some(model), _) => sizes(model),
        (None, Some(path)) => {
            let tokenizer = match path.is_dir() {
                true => Tokenizer::from_dir(path)?,
                false => Tokenizer::from_file(path)?,
            };
            match &args.records {
                Some(records) => show_records(&tokenizer, records, args),
                None => tokenize(&tokenizer),
            }
        }
        (None, None) => Ok(Value::Null),
    }
}

fn show_records(tokenizer: &Tokenizer, path: &Path, args: &Args) -> Result<Value> {
    let template = ChatTemplate::choose(args.chat_template.as_deref(), tokenizer)?;
    let train_on =
        serde_json::from_value(json!(args.train_on)).map_err(|_| Error::InvalidArgument {
            name: "train-on",
            message: "give assistant, last or all".into(),
        })?;
    let records = load_records(path, Format::Auto)?.into_conversations();
    let encoder = RecordEncoder::new(tokenizer)
        .with_template(Some(template.clone()))
        .with_train_on(train_on);
    let show = |record: &Record| {
        let text = match record {
            Record::Chat(conversation) => {
                Some(template.render(conversation, args.generation_prompt)?.text)
            }
            _ => None,
        };
        let sample = encoder.encode(record)?;
        let mask = sample
            .labels
            .iter()
            .map(|label| u8::from(*label != IGNORE_INDEX));
        Ok(json!({ "text": text, "ids": sample.tokens, "mask": mask.collect::<Vec<_>>() }))
    };
    let or_error =
        |shown: Result<Value>| shown.unwrap_or_else(|error| json!({ "error": error.to_string() }));
    Ok(records
        .as_slice()
        .iter()
        .map(|record| or_error(show(record)))
        .collect())
}

fn sizes(path: &Path) -> Result<Value> {
    Ok(json!(read_base_config(path)?))
}

fn tokenize(tokenizer: &Tokenizer) -> Result<Value> {
    let ids = texts()?.into_iter().map(|text| tokenizer.encode(&text));
    let ids = ids.collect::<Result<Vec<_>>>()?;
    let decoded = ids.iter().map(|ids| tokenizer.decode(ids));
    Ok(json!({
        "ids": ids,
        "decoded": decoded.collect::<Result<Vec<_>>>()?,
        "bos": tokenizer.bos_id(),
        "eos": tokenizer.eos_id(),
        "pad": tokenizer.pad_id(usize::MAX),
        "vocab_size": tokenizer.vocab_size(),
        "chat_template": tokenizer.chat_template(),
    }))
}

fn texts() -> Result<Vec<String>> {
    let path = Path::new("standard input");
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|error| Error::Format {
        path: path.to_owned(),
        message: format!("a list of texts is needed: {error}"),
    })
}
