//! Talks to a model in the terminal, by its chat template: `burn-peft chat`.
//!
//! ```text
//! cargo run --release --example chat -- --model DIR|FILE.gguf [--adapter DIR]
//! ```
//!
//! Without `--model` it is the tiny model of this repository.

#[path = "../src/bin/burn-peft/chat.rs"]
mod chat;
#[path = "../src/bin/burn-peft/device.rs"]
mod device;
#[path = "../src/bin/burn-peft/exit.rs"]
mod exit;
#[path = "../src/bin/burn-peft/model.rs"]
mod model;
#[path = "../src/bin/burn-peft/sampling.rs"]
mod sampling;
#[path = "../src/bin/burn-peft/template.rs"]
mod template;

use std::process::ExitCode;

use clap::Parser;

const DEFAULT_MODEL: Option<&str> =
    Some(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny"));

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: chat::Args,
}

fn main() -> ExitCode {
    exit::exit_code(chat::run(&Cli::parse().args))
}
