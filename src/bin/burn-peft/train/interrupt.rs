//! Ending early without losing what was learned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRAConfig;
use burn_peft::training::{RunDir, Trainer};
use burn_peft::{Error, Result};

/// The state after the last complete step, which is saved if the training fails or the program is told to
/// end: by Ctrl-C, by a scheduler, or by the launcher of several processes when one of them has died. Each
/// process saves what all have, as nobody knows who is left.
#[derive(Clone, Default)]
pub struct LastStep(Arc<Mutex<Option<State>>>);

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
    pub fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves what is kept, if anything is, after an error or a panic, and says so.
    pub fn rescue(&self, error: Option<&Error>) {
        if self.lock().is_none() {
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
        say(format!("the training has failed{saved}\n"));
    }

    /// Saves what is kept, and says so in the second half of a sentence.
    fn save(&self, hint: &str) -> Result<String> {
        let state = self.lock();
        let Some(state) = state.as_ref().filter(|state| state.trainer.step > 0) else {
            return Ok("; no step is complete yet".into());
        };
        state
            .run
            .save_checkpoint(&state.model, &state.lora, &state.trainer)?;
        Ok(format!(
            "; step {} is saved in {}{hint}",
            state.trainer.step,
            state.run.path().display()
        ))
    }
}

const GO_ON: &str = ": go on from it by resume_from_checkpoint=true";

/// At once, as other processes print too.
fn say(lines: String) {
    eprint!("{lines}");
}

#[cfg(unix)]
fn watch_signals(last: LastStep) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::low_level::{exit, signal_name};

    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        let by = match signal {
            SIGINT => "by Ctrl-C",
            _ => "from outside, by a scheduler or as another process of the training has died",
        };
        let name = signal_name(signal).unwrap_or("a signal");
        match last.save(GO_ON) {
            Ok(saved) => say(format!("\nended {by} ({name}){saved}\n")),
            Err(error) => say(format!(
                "\nended {by} ({name}); the last step is not saved: {error}\n"
            )),
        }
        // Without waiting for threads that wait for another process.
        exit(128 + signal);
    });
    Ok(())
}

#[cfg(not(unix))]
fn watch_signals(_last: LastStep) -> std::io::Result<()> {
    Ok(())
}
