//! Lays the curves of several runs over each other: `burn-peft plot`.
//!
//! ```sh
//! cargo run --release --example plot_loss -- RUN_DIR [RUN_DIR...] [-o loss.svg] [--smooth 0.9] [--all]
//! ```

#[path = "../src/bin/burn-peft/exit.rs"]
mod exit;
#[path = "../src/bin/burn-peft/plot.rs"]
mod plot;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: plot::Args,
}

fn main() -> ExitCode {
    exit::exit_code(plot::run(&Cli::parse().args))
}
