//! How a LoRA training step grows: its time against the tokens of a batch, the layers and the
//! rank, and its memory against the layers when activations are computed again. Each series is
//! printed beside the straight line that fits it, and drawn if `--plot` names a file.
//!
//! The sequences always have 128 tokens, so that attention costs the same per token. A point is the
//! median of nine steps; the points of a series take turns, so that they share a busy machine.
//!
//! Memory is the peak of what a step allocates. Weights, adapters and optimizer state, which grow
//! with the layers as well, are alive before it and left out.
//!
//! ```text
//! cargo bench --bench scaling -- --plot docs/images/scaling.svg
//! ```

#[path = "../tests/support/counting.rs"]
mod counting;
#[path = "support/lines.rs"]
mod lines;
#[path = "support/statistics.rs"]
mod statistics;
#[path = "support/training.rs"]
mod training;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn_peft::training::Activations;
use clap::Parser;
use counting::{Counting, live_bytes, peak_bytes, reset_peak};
use lines::{Series, plot};
use mimalloc::MiMalloc;
use statistics::median;
use training::{Case, DIM, Training};

#[derive(Parser)]
struct Args {
    /// The picture, an SVG file.
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const BASE: Case = Case {
    rows: 4,
    seq_len: 128,
    layers: 4,
    rank: 8,
    activations: Activations::Keep,
};
const LAYERS: [usize; 4] = [2, 4, 6, 8];
const WARMUP_STEPS: usize = 2;
const TIMED_STEPS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let measurements = [
        time_against_tokens,
        time_against_layers,
        time_against_rank,
        memory_against_layers,
    ];
    let series = measurements.map(|measure| {
        let series = measure();
        println!("{series}");
        series
    });
    let [.., memory] = &series;
    print_memory_of_a_layer(memory);
    if let Some(path) = &args.plot {
        plot(&series, path)?;
    }
    Ok(())
}

fn time_against_tokens() -> Series {
    let cases = [1, 2, 4, 8].map(|rows| (rows * BASE.seq_len, Case { rows, ..BASE }));
    time_against("tokens", &cases)
}

fn time_against_layers() -> Series {
    let cases = LAYERS.map(|layers| (layers, Case { layers, ..BASE }));
    time_against("layers", &cases)
}

fn time_against_rank() -> Series {
    let cases = [4, 64, 128, 192, 256].map(|rank| (rank, Case { rank, ..BASE }));
    time_against("rank", &cases)
}

fn time_against(x_name: &'static str, cases: &[(usize, Case)]) -> Series {
    Series {
        title: "Time of a step",
        x_name,
        y_name: "ms",
        points: medians(cases, |cost| cost.ms),
    }
}

fn memory_against_layers() -> Series {
    let activations = Activations::Recompute { layers: 1 };
    let base = Case {
        activations,
        ..BASE
    };
    let cases = LAYERS.map(|layers| (layers, Case { layers, ..base }));
    Series {
        title: "Peak memory of a recomputed step",
        x_name: "layers",
        y_name: "MB",
        points: medians(&cases, |cost| cost.mb),
    }
}

fn print_memory_of_a_layer(memory: &Series) {
    let slope = memory.line().slope;
    let hidden_state = (BASE.rows * BASE.seq_len * DIM * size_of::<f32>()) as f64 / 1e6;
    let ratio = slope / hidden_state;
    println!("a layer adds {slope:.3} MB, {ratio:.3} of a hidden state's {hidden_state:.3} MB");
}

/// What varies, and the median of a cost of the steps.
fn medians(cases: &[(usize, Case)], cost: impl Fn(&StepCost) -> f64) -> Vec<(f64, f64)> {
    let mut trainings: Vec<_> = cases
        .iter()
        .map(|(_, case)| (Training::new(case), Vec::new()))
        .collect();
    for _ in 0..WARMUP_STEPS + TIMED_STEPS {
        for (training, costs) in &mut trainings {
            costs.push(cost(&measure_step(training)));
        }
    }
    let medians = trainings
        .into_iter()
        .map(|(_, mut costs)| median(costs.split_off(WARMUP_STEPS)));
    cases.iter().map(|(x, _)| *x as f64).zip(medians).collect()
}

struct StepCost {
    ms: f64,
    /// The peak of memory above what was alive before the step.
    mb: f64,
}

fn measure_step(training: &mut Training) -> StepCost {
    let before = live_bytes();
    reset_peak();
    let started = Instant::now();
    training.step();
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let mb = (peak_bytes() - before) as f64 / 1e6;
    StepCost { ms, mb }
}

#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);
