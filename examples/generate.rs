//! Asks a model, with or without an adapter, by Alpaca's prompt or, with `--chat`, by its chat template. Prints the answer
//! as it comes: `burn-peft generate`.
//!
//! ```text
//! cargo run --release --example generate -- --model DIR|FILE.gguf [--adapter DIR] "Name three colours."
//! ```
//!
//! Without `--model` it asks the tiny model of this repository.

#[path = "../src/bin/burn-peft/device.rs"]
mod device;
#[path = "../src/bin/burn-peft/exit.rs"]
mod exit;
#[path = "../src/bin/burn-peft/generate.rs"]
mod generate;
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
    args: generate::Args,
}

fn main() -> ExitCode {
    exit::exit_code(generate::run(&Cli::parse().args))
}
