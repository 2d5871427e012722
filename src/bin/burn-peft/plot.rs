//! Lays the curves of several runs over each other.

use std::io::{Write, stdout};
use std::path::PathBuf;

use burn_peft::Result;
use burn_peft::report::{Curves, SMOOTHING, draw_curves, draw_loss};

/// Draw the loss curves of one or more runs into one picture.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs, each with a metrics.jsonl.
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// The picture, .svg or .png.
    #[arg(short, long, default_value = "loss.svg", value_name = "FILE")]
    output: PathBuf,
    /// How much of the running average each step keeps: from 0, no smoothing, to below 1.
    #[arg(long, default_value_t = SMOOTHING, value_parser = fraction)]
    smooth: f64,
    /// Learning rate, gradient norm, memory and tokens per second too, a chart each.
    #[arg(long)]
    all: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut runs = args
        .runs
        .iter()
        .map(Curves::read)
        .collect::<Result<Vec<_>>>()?;
    name_apart(&mut runs, &args.runs);
    match args.all {
        true => draw_curves(&runs, args.smooth, &args.output),
        false => draw_loss(&runs, args.smooth, &args.output),
    }?;
    let _ = writeln!(stdout(), "wrote {}", args.output.display());
    Ok(())
}

/// Runs whose folders have the same name get the path as it was written instead.
fn name_apart(runs: &mut [Curves], folders: &[PathBuf]) {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (run, folder) in runs.iter_mut().zip(folders) {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = folder.display().to_string();
        }
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_string())?;
    if (0.0..1.0).contains(&value) {
        Ok(value)
    } else {
        Err("expected a number from 0 to below 1".into())
    }
}
