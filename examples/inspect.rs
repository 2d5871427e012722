//! Shows how a model's files are read, for those who want to compare that with another program.
//!
//! ```text
//! cargo run --release --example inspect -- --model PATH
//! echo '["Hello world", " 1234"]' | cargo run --release --example inspect -- --tokenizer PATH
//! ```
//!
//! `PATH` is a model folder or a GGUF file, or for `--tokenizer` a tokenizer's file. Prints one JSON line: the model's sizes,
//! or the special tokens, the ids of each text without them, and what these decode to.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_peft::checkpoint::read_base_config;
use burn_peft::tokenizer::Tokenizer;
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
        (None, Some(tokenizer)) => tokenize(tokenizer),
        (None, None) => Ok(Value::Null),
    }
}

fn sizes(path: &Path) -> Result<Value> {
    Ok(json!(read_base_config(path)?))
}

fn tokenize(path: &Path) -> Result<Value> {
    let tokenizer = match path.is_dir() {
        true => Tokenizer::from_dir(path)?,
        false => Tokenizer::from_file(path)?,
    };
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
