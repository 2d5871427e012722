//! `burn-peft`: LoRA finetuning on the command line. `burn-peft help` lists what it does.

#[macro_use]
mod say;

mod allocator;
mod chat;
mod device;
mod evaluate;
mod exit;
mod export;
mod generate;
mod memory;
mod merge;
mod model;
mod plan;
mod plot;
mod sampling;
mod template;
mod train;

use std::env;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// There is no model and no data set that a run would take if none is named.
const EMBEDDED: Option<train::Embedded> = None;
const DEFAULT_MODEL: Option<&str> = None;

/// LoRA finetuning: train an adapter, talk to it, evaluate it, merge it, hand it on.
#[derive(Parser)]
#[command(name = "burn-peft", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(train::Args),
    Chat(chat::Args),
    Generate(generate::Args),
    Evaluate(evaluate::Args),
    Merge(merge::Args),
    Export(export::Args),
    Plot(plot::Args),
    Plan(plan::Args),
}

fn main() -> ExitCode {
    let verb = env::args_os().nth(1);
    let has_keys = verb.is_some_and(|verb| verb == "train" || verb == "plan");
    let arguments = env::args_os().map(|argument| match has_keys {
        true => train::without_dashes(argument),
        false => argument,
    });
    let done = match Cli::parse_from(arguments).verb {
        Verb::Train(args) => return train::run(&args),
        Verb::Chat(args) => chat::run(&args),
        Verb::Generate(args) => generate::run(&args),
        Verb::Evaluate(args) => evaluate::run(&args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Plot(args) => plot::run(&args),
        Verb::Plan(args) => plan::run(&args),
    };
    exit::exit_code(done)
}
