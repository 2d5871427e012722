//! How good a model is, and with an adapter how good its base is beside it: perplexity of a text, multiple choice by
//! likelihood, and the answers to records, whose perplexity and exact matches are told: `burn-peft evaluate`.
//!
//! ```text
//! cargo run --release --example evaluate -- --model DIR|FILE.gguf [--adapter DIR] \
//!     [--text FILE] [--choices FILE.jsonl] [--records FILE [--exact-match] [--chat-template FILE]]
//! ```
//!
//! The definitions are those of the lm-evaluation-harness. Without `--model` it is the tiny model of this repository, and
//! its held-out records.

#[path = "../src/bin/burn-peft/device.rs"]
mod device;
#[path = "../src/bin/burn-peft/evaluate.rs"]
mod evaluate;
#[path = "../src/bin/burn-peft/exit.rs"]
mod exit;
#[path = "../src/bin/burn-peft/model.rs"]
mod model;
#[path = "../src/bin/burn-peft/template.rs"]
mod template;

use std::process::ExitCode;

use clap::Parser;

const DEFAULT_MODEL: Option<&str> =
    Some(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny"));

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: evaluate::Args,
}

fn main() -> ExitCode {
    exit::exit_code(evaluate::run(&Cli::parse().args))
}
