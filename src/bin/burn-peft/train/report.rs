//! What a run prints.

use std::io::{IsTerminal, stderr, stdout};
use std::path::Path;
use std::time::Duration;

use burn_peft::Result;
use burn_peft::data::{Dataset, SftData};
use burn_peft::ops::{MatmulPrecision, lacks_cublas, matmul_precision};
use burn_peft::training::{EstimateConfig, LrSchedule, RunDir, Trainer, require_memory};
use indicatif::{ProgressBar, ProgressStyle};

use super::launch::Member;
use crate::memory::print_memory;
use crate::say::tell;

/// What is trained on what.
pub fn print_work(model: &Path, source: &Path, data: &SftData) {
    let (count, source) = (data.samples.len(), source.display());
    let model = model.display();
    tell(&format!(
        "{model} is finetuned on {count} records of {source}.\n"
    ));
}

const WITHOUT_CUBLAS: &str = "\
Matrices are not multiplied by cuBLAS, and a step takes several times as long: put the folder with
libcublas.so into LD_LIBRARY_PATH (scripts/install_cublas.sh brings one where there is no CUDA toolkit),
and use a driver of CUDA 12.5 or newer.";

const ROUNDED: &str = "Activations are rounded, in products or where they are kept (matmul_precision=highest rounds nothing).";

/// The memory that the run will take on the device, and whether that could be faster.
///
/// # Errors
/// Those of [`require_memory`].
pub fn print_device(config: &EstimateConfig, member: &Member) -> Result<()> {
    print_memory(config, member.device, member.num_local);
    if matmul_precision() == MatmulPrecision::Medium {
        say!("{ROUNDED}");
    }
    say!();
    if lacks_cublas(member.device) {
        say!("{WITHOUT_CUBLAS}\n");
    }
    require_memory(config, member.device, member.num_local)
}

pub fn print_notes(notes: &[String], schedule: &LrSchedule) {
    for note in notes.iter().chain(&long_warmup(schedule)) {
        tell(&format!("note: {note}"));
    }
}

/// A warm-up that takes more than a part of the run was meant for a longer one.
fn long_warmup(schedule: &LrSchedule) -> Option<String> {
    const LONG: usize = 5;
    let (warmup, total) = (schedule.warmup_steps, schedule.total_steps);
    let what = format!("the run has {total} steps, lr_scheduler.num_warmup_steps is {warmup}");
    match warmup {
        _ if warmup >= total => Some(format!(
            "the learning rate never reaches optimizer.lr: {what}"
        )),
        _ if warmup > total / LONG => Some(format!(
            "the learning rate is below optimizer.lr for a large part of the run: {what}"
        )),
        _ => None,
    }
}

/// How long a run is, where one that goes on does so, and what becomes of its schedule if it has more epochs now.
pub fn print_progress(run: &RunDir, trainer: &Trainer, steps_per_epoch: usize, is_over: bool) {
    let (step, schedule) = (trainer.step, &trainer.schedule);
    let total = schedule.total_steps;
    say!("{steps_per_epoch} steps an epoch, {total} in all");
    if is_over {
        say!("the training is done, {step} steps of {total}; what follows it is done again");
    } else if run.is_resumed() {
        say!("going on after step {step} of {total}");
    }
    if let Some(epochs) = run.epochs_before() {
        tell(&format!(
            "note: the run had {epochs} epoch(s) until now; the learning rate goes on along the schedule of all \
             {total} steps: {:.3e} at step {}",
            schedule.lr_at(step),
            step + 1
        ));
    }
}

/// Tokens per second of the steps alone.
#[derive(Default)]
pub struct Speed {
    tokens: usize,
    time: Duration,
    /// Those of the last step.
    pub last: f64,
}

impl Speed {
    pub fn add(&mut self, tokens: usize, time: Duration) {
        self.tokens += tokens;
        self.time += time;
        self.last = tokens as f64 / time.as_secs_f64();
    }

    pub fn mean(&self) -> f64 {
        match self.tokens {
            0 => 0.0,
            tokens => tokens as f64 / self.time.as_secs_f64(),
        }
    }
}

/// A bar with loss and tokens/s on a terminal; in a log file, a line now and then.
pub struct Progress {
    bar: ProgressBar,
    total_steps: usize,
    is_shown: bool,
}

impl Progress {
    pub fn new(total_steps: usize, done: usize, is_shown: bool) -> Self {
        let bar = match is_shown {
            true => ProgressBar::new(total_steps as u64).with_style(style(DURING)),
            false => ProgressBar::hidden(),
        };
        Self {
            bar: bar.with_position(done as u64),
            total_steps,
            is_shown,
        }
    }

    /// The training begins: what came before is no part of its time.
    pub fn begin(&self) {
        self.bar.reset_elapsed();
        self.bar.reset_eta();
    }

    pub fn show(&self, step: usize, loss: f64, tokens_per_second: f64) {
        let message = format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s");
        let is_tick = step.is_multiple_of(self.total_steps.div_ceil(20));
        let is_log = !(stdout().is_terminal() && stderr().is_terminal());
        if self.is_shown && is_tick && is_log {
            say!("step {step} of {}: {message}", self.total_steps);
        }
        self.bar.set_message(message);
        self.bar.set_position(step as u64);
    }

    /// A line above the bar.
    pub fn say(&self, line: &str) {
        if self.is_shown {
            self.bar.suspend(|| tell(line));
        }
    }

    /// The training has ended, maybe before its last step.
    pub fn finish(&self) {
        self.bar.set_style(style(AT_END));
        self.bar.abandon();
    }
}

/// The bar takes what the words leave of a line.
const DURING: &str = "{pos}/{len} steps, {msg}, {eta} left {wide_bar}";
const AT_END: &str = "{pos}/{len} steps in {elapsed}, {msg} {wide_bar}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_that_ends_early_has_not_made_all_steps() {
        let progress = Progress::new(10, 2, false);
        progress.begin();
        progress.show(3, 1.5, 100.0);
        progress.finish();
        assert_eq!(progress.bar.position(), 3);
        assert!(progress.bar.is_finished());
    }
}
