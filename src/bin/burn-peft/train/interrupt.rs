//! Ending early without losing what was learned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRAConfig;
use burn_peft::training::{RunDir, Trainer};
use burn_peft::{Error, Result};

use crate::exit::complain;

/// The state after the last complete step, which is saved if the training fails or the program is told to
/// end: by Ctrl-C, by a closed terminal, by a scheduler, or by the launcher of several processes when one of them has died.
/// Each process saves what all have, as nobody knows who is left.
#[derive(Clone, Default)]
pub struct LastStep(Arc<Mutex<Kept>>);

/// What is known of the last complete step.
#[derive(Default)]
pub enum Kept {
    /// There is none yet, or another takes its place.
    #[default]
    Nothing,
    /// What it has come to.
    Unsaved(Box<State>),
    /// It is in a checkpoint of this run.
    Saved { run: PathBuf, step: usize },
}

impl Kept {
    pub fn saved(run: &RunDir, step: usize) -> Self {
        let run = run.path().to_owned();
        Self::Saved { run, step }
    }
}

/// What a checkpoint is made of.
pub struct State {
    pub run: RunDir,
    pub lora: LoRAConfig,
    pub model: TransformerDecoder,
    pub trainer: Trainer,
}

impl LastStep {
    /// Saves the state that is kept when the program is told to end, from now on.
    ///
    /// # Errors
    /// If the system lets no signal be watched.
    pub fn watch() -> Result<Self> {
        let last = Self::default();
        watch_signals(last.clone()).map_err(|source| Error::Io {
            path: "signals".into(),
            source,
        })?;
        Ok(last)
    }

    /// The kept state, to be replaced. The end of the program waits meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves what is kept and not saved, if anything is, after an error or a panic, and says so.
    pub fn rescue(&self, error: Option<&Error>) {
        if !matches!(*self.lock(), Kept::Unsaved(_)) {
            return;
        }
        let hint = match error {
            Some(Error::Diverged { .. }) => "",
            _ => GO_ON,
        };
        // What has failed may be the device that the adapter is on.
        let saved = match catch_unwind(AssertUnwindSafe(|| self.save(hint))) {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => format!("; the last step is not saved: {error}"),
            Err(_) => "; the last step is not saved, as it cannot be read from the device".into(),
        };
        complain(format_args!("the training has failed{saved}"));
    }

    /// Saves what is kept, and says so in the second half of a sentence.
    fn save(&self, hint: &str) -> Result<String> {
        let kept = self.lock();
        let (run, step) = match &*kept {
            Kept::Unsaved(state) if state.trainer.step > 0 => {
                let State { run, trainer, .. } = &**state;
                run.save_checkpoint(&state.model, &state.lora, trainer)?;
                (run.path(), trainer.step)
            }
            Kept::Saved { run, step } => (run.as_path(), *step),
            _ => return Ok("; no step is complete yet".into()),
        };
        let run = run.display();
        Ok(format!("; step {step} is saved in {run}{hint}"))
    }
}

const GO_ON: &str = ": go on from it by resume_from_checkpoint=true";

#[cfg(unix)]
fn watch_signals(last: LastStep) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::low_level::{exit, signal_name};

    let closed = Some(SIGHUP).filter(|_| !ignores_closed_terminal());
    let watched = [SIGINT, SIGTERM].into_iter().chain(closed);
    let mut signals = signal_hook::iterator::Signals::new(watched)?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        let by = match signal {
            SIGINT => "by Ctrl-C",
            SIGHUP => "as its terminal was closed",
            _ => "from outside, by a scheduler or as another process of the training has died",
        };
        let name = signal_name(signal).unwrap_or("a signal");
        match last.save(GO_ON) {
            Ok(saved) => complain(format_args!("\nended {by} ({name}){saved}")),
            Err(error) => complain(format_args!(
                "\nended {by} ({name}); the last step is not saved: {error}"
            )),
        }
        // Without waiting for threads that wait for another process.
        exit(128 + signal);
    });
    Ok(())
}

/// Whether a closed terminal does not end the program, as under `nohup`; it is taken to be so where nobody tells.
#[cfg(unix)]
fn ignores_closed_terminal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal_hook::consts::SIGHUP - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn watch_signals(_last: LastStep) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_last_step() {
        let last = LastStep::default();
        assert_eq!(last.save("").unwrap(), "; no step is complete yet");
        let run = PathBuf::from("run");
        *last.lock() = Kept::Saved { run, step: 7 };
        let said = last.save(", go on").unwrap();
        assert_eq!(said, "; step 7 is saved in run, go on");
    }
}
