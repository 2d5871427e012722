//! How the time of a step divides, for one process and for several:
//!
//! ```text
//! cargo bench --bench data_parallel --features mpi --no-run    # prints the program's path
//! PROGRAM; mpirun -n 2 PROGRAM
//! ```
//!
//! Each process trains with two sequences of 256 tokens a step, so that two do twice the work. A table
//! of what the processes wait for each other, and what adding up takes, then a table of the latter
//! alone for adapters of different sizes.

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "support/statistics.rs"]
mod statistics;
#[path = "support/training.rs"]
#[allow(dead_code, reason = "shared with other benches, which use the rest")]
mod training;

use std::cell::Cell;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use burn_peft::Result;
use burn_peft::distributed::ProcessGroup;
use burn_peft::training::Activations;
use statistics::median;
use training::{Case, Training};

const WARMUP_STEPS: usize = 2;
const STEPS: usize = 12;
const MEGABYTES: [usize; 4] = [1, 17, 64, 320];
const REPEATS: usize = 9;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    #[cfg(feature = "mpi")]
    let group = burn_peft::distributed::MpiGroup::init();
    #[cfg(not(feature = "mpi"))]
    let group = burn_peft::distributed::SingleProcess;
    steps(&group)?;
    match group.size() {
        1 => Ok(()),
        _ => sums(&group),
    }
}

/// A group whose waiting and adding are timed apart, in seconds.
struct Timed<'a> {
    group: &'a dyn ProcessGroup,
    waiting: Cell<f64>,
    adding: Cell<f64>,
    bytes: Cell<usize>,
}

impl Timed<'_> {
    /// Waits until all are there.
    fn meet(&self) -> Result<()> {
        let started = Instant::now();
        self.group.all_gather(&[])?;
        self.waiting
            .set(self.waiting.get() + started.elapsed().as_secs_f64());
        Ok(())
    }

    fn timed<T>(&self, exchange: impl FnOnce() -> Result<T>) -> Result<T> {
        self.meet()?;
        let started = Instant::now();
        let result = exchange();
        self.adding
            .set(self.adding.get() + started.elapsed().as_secs_f64());
        result
    }
}

impl ProcessGroup for Timed<'_> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>> {
        self.bytes.set(self.bytes.get() + 4 * values.dims()[0]);
        self.timed(|| self.group.all_reduce(values))
    }

    fn all_gather(&self, values: &[f64]) -> Result<Vec<f64>> {
        self.timed(|| self.group.all_gather(values))
    }
}

fn steps(group: &dyn ProcessGroup) -> Result<()> {
    let is_first = group.rank() == 0;
    if is_first {
        println!("processes: {}", group.size());
        println!("| rank | sent MB | step ms | computing ms | waiting ms | adding ms | tokens/s |");
        println!("|---|---|---|---|---|---|---|");
    }
    for rank in [8, 64] {
        let case = Case {
            rows: 2,
            seq_len: 256,
            layers: 8,
            rank,
            activations: Activations::Keep,
        };
        let mut training = Training::new(&case);
        let (mut seconds, mut waiting, mut adding, mut bytes) = (vec![], vec![], vec![], 0);
        for step in 0..WARMUP_STEPS + STEPS {
            let timed = Timed {
                group,
                waiting: Cell::new(0.0),
                adding: Cell::new(0.0),
                bytes: Cell::new(0),
            };
            let started = Instant::now();
            training.step_in(&timed)?;
            if step >= WARMUP_STEPS {
                seconds.push(started.elapsed().as_secs_f64());
                waiting.push(timed.waiting.get());
                adding.push(timed.adding.get());
                bytes = timed.bytes.get();
            }
        }
        let [step, waiting, adding] = [seconds, waiting, adding].map(|s| 1e3 * median(s));
        let tokens = group.size() * case.rows * case.seq_len;
        if is_first {
            println!(
                "| {rank} | {:.1} | {step:.1} | {:.1} | {waiting:.1} | {adding:.1} | {:.0} |",
                bytes as f64 / 1e6,
                step - waiting - adding,
                tokens as f64 / step * 1e3,
            );
        }
    }
    Ok(())
}

fn sums(group: &dyn ProcessGroup) -> Result<()> {
    if group.rank() == 0 {
        println!("\n| MB | adding ms | GB/s |\n|---|---|---|");
    }
    for megabytes in MEGABYTES {
        let mut seconds = Vec::new();
        for _ in 0..REPEATS {
            let values = Tensor::<1>::ones([megabytes * 250_000], &Device::default());
            group.all_gather(&[])?;
            let started = Instant::now();
            group.all_reduce(values)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        let seconds = median(seconds);
        if group.rank() == 0 {
            let speed = megabytes as f64 / 1e3 / seconds;
            println!("| {megabytes} | {:.1} | {speed:.2} |", 1e3 * seconds);
        }
    }
    Ok(())
}
