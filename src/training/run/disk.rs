//! Whether what a run will write has room on the disk.

use std::path::Path;

use super::{RunDir, SavePlan};
use crate::adapter::ParamCount;
use crate::training::Trainer;
use crate::{Error, Result};

/// A trained element of a checkpoint: its value and AdamW's two moments, in f32.
const CHECKPOINT_BYTES: u64 = 12;
const ADAPTER_BYTES: u64 = 4;

/// The bytes that may still be written to the disk of a folder that exists. None where nobody tells: on anything
/// but Unix. A quota is not seen.
pub fn available_disk_bytes(path: impl AsRef<Path>) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(path.as_ref()).ok()?;
        Some(disk.f_bavail * disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

impl RunDir {
    /// Checks that what the run will write at least has room on the disk: checkpoints as they are kept, the
    /// adapter, the merged model.
    ///
    /// # Errors
    /// [`Error::DiskSpace`] if it has not.
    pub fn require_space(
        &self,
        count: &ParamCount,
        trainer: &Trainer,
        steps_per_epoch: usize,
    ) -> Result<()> {
        let needed = bytes_to_write(&self.options.saves, count, trainer, steps_per_epoch);
        match available_disk_bytes(&self.path) {
            Some(available) if available < needed => Err(Error::DiskSpace {
                path: self.path.clone(),
                needed,
                available,
            }),
            _ => Ok(()),
        }
    }
}

/// At least: names, headers and logs are left out, and of a base that is packed all that it takes more when it is merged.
fn bytes_to_write(
    saves: &SavePlan,
    count: &ParamCount,
    trainer: &Trainer,
    steps_per_epoch: usize,
) -> u64 {
    let (trained, all) = (count.trainable as u64, count.total as u64);
    let checkpoints = num_checkpoints(saves, trainer, steps_per_epoch);
    let of_base = saves.merged.map_or(0, |dtype| dtype.size() as u64);
    let checkpoints = checkpoints.saturating_mul(CHECKPOINT_BYTES * trained);
    checkpoints.saturating_add(ADAPTER_BYTES * trained + of_base * (all - trained))
}

/// The most new checkpoints that there are at a time.
fn num_checkpoints(saves: &SavePlan, trainer: &Trainer, steps_per_epoch: usize) -> u64 {
    let (done, total) = (trainer.step, trainer.schedule.total_steps);
    let multiples = |of: usize| total / of - done / of;
    let regular = saves.every_n_steps.map_or(0, multiples);
    let epochs = if saves.every_epoch {
        multiples(steps_per_epoch)
    } else {
        0
    };
    // The one at the end, unless it is one of these.
    let saved = regular.max(epochs).max(usize::from(done < total));
    let kept = saves.keep_last.map_or(saved, |count| {
        // The new one is there before an old one is deleted.
        saved.min(count + 1 + usize::from(saves.best))
    });
    kept as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::RunOptions;
    use crate::training::recipe::RecipeConfig;

    fn with(overrides: &[&str]) -> RecipeConfig {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        RecipeConfig::default().with_overrides(&overrides).unwrap()
    }

    #[test]
    fn what_a_run_writes_at_least() {
        const ADAPTER: u64 = 4 * 100;
        const CHECKPOINT: u64 = 12 * 100;
        let count = ParamCount {
            total: 1100,
            trainable: 100,
        };
        let only = "save_adapter_weights_only=true";
        for (overrides, done, expected) in [
            (&["dtype=f32"] as &[&str], 0, CHECKPOINT + ADAPTER + 4000),
            (&["dtype=bf16"], 0, CHECKPOINT + ADAPTER + 2000),
            (&[only], 0, CHECKPOINT + ADAPTER),
            (&[only], 40, ADAPTER),
            (&[only, "save_every_n_steps=8"], 0, 5 * CHECKPOINT + ADAPTER),
            (
                &[only, "save_every_n_steps=8"],
                17,
                3 * CHECKPOINT + ADAPTER,
            ),
            (&[only, "save_every_n_steps=100"], 0, CHECKPOINT + ADAPTER),
            (
                &[only, "save_every_epoch=true"],
                0,
                4 * CHECKPOINT + ADAPTER,
            ),
            (
                &[only, "save_every_n_steps=1", "keep_last_n_checkpoints=2"],
                0,
                3 * CHECKPOINT + ADAPTER,
            ),
        ] {
            let config = with(overrides);
            let mut trainer = config.trainer(40);
            trainer.step = done;
            let saves = RunOptions::from(&config).saves;
            let bytes = bytes_to_write(&saves, &count, &trainer, 10);
            assert_eq!(bytes, expected, "{overrides:?}, {done} steps done");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_run_that_no_disk_has_room_for() {
        let dir = tempfile::tempdir().unwrap();
        assert!(available_disk_bytes(dir.path()).unwrap() > 0);
        assert!(available_disk_bytes(dir.path().join("none")).is_none());
        let mut config = with(&["save_every_n_steps=1"]);
        config.output_dir = dir.path().to_owned();
        let run = RunDir::join(&config, 1);
        let count = ParamCount {
            total: 2_000_000_000,
            trainable: 1_000_000_000,
        };
        let require = |steps| run.require_space(&count, &config.trainer(steps), steps);
        let error = require(1_000_000_000).unwrap_err();
        assert!(matches!(error, Error::DiskSpace { .. }), "{error}");
        let error = error.to_string();
        for text in [
            dir.path().to_str().unwrap(),
            "12000000008.0 GB",
            "keep_last_n_checkpoints",
            "save_adapter_weights_only=true",
        ] {
            assert!(error.contains(text), "`{text}` is not in: {error}");
        }
    }
}
