//! The checkpoints of a run: what they hold, which are kept, and how a run goes on from one.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Before, CHECKPOINTS, CONFIG, Resume, RunDir, RunOptions, write_json};
use crate::adapter::{Adapter, adapter_state_dict};
use crate::checkpoint::{
    load_any_adapter, load_state_dict_file, read_adapter_config, save_adapter, save_peft,
    save_peft_unconverted, save_peft_with_base, save_state_dict,
};
use crate::files::{create_dir, read_text, write_text};
use crate::llama::TransformerDecoder;
use crate::lora::{DEFAULT_ADAPTER, Init, LoRAConfig};
use crate::training::{Trainer, Validation, Validations};
use crate::{Error, Result};

/// An adapter that PEFT has no form for.
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";
/// More than any machines have, so that the samples of a step are still a number.
const MOST_PROCESSES: usize = 1 << 20;

const NO_CHECKPOINT: &str = "there is no complete checkpoint to resume from in this folder; begin anew by \
                             resume_from_checkpoint=false, or name the folder of the run as \
                             output_dir";

/// Checks that all numbers of the adapter are finite.
fn require_finite(model: &TransformerDecoder, step: usize) -> Result<()> {
    for (key, value) in adapter_state_dict(model) {
        if let Some(number) = value.iter::<f32>().find(|number| !number.is_finite()) {
            return Err(Error::InvalidArgument {
                name: "optimizer",
                message: format!(
                    "{key} is {number} after step {step}, which is not saved: begin anew with a lower optimizer.lr, or \
                     with clip_grad_norm"
                ),
            });
        }
    }
    Ok(())
}

/// What `trainer.json` holds. It is written last: a checkpoint without it is not complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TrainerState {
    pub step: usize,
    loss: Option<f64>,
    /// The steps that were left out.
    #[serde(default)]
    skipped_steps: usize,
    /// The steps of the whole run, which follow from the number of records.
    total_steps: Option<usize>,
    /// The epochs of the whole run.
    epochs: Option<usize>,
    /// The fingerprint of the training data.
    data: Option<u64>,
    /// The fingerprint of the base.
    pub base: Option<u64>,
    /// The validations until then.
    #[serde(default)]
    validations: Validations,
    /// The processes that the run began with.
    #[serde(default = "one")]
    pub num_processes: usize,
}

fn one() -> usize {
    1
}

impl TrainerState {
    /// What cannot be of a checkpoint in this folder, which may be a copy by a name of the user's.
    fn contradiction(&self, folder: &Path) -> Option<String> {
        let step = self.step;
        let of_name = step_of(folder).filter(|name| *name != step);
        if let Some(name) = of_name {
            return Some(format!("it is of step {step}, its folder of step {name}"));
        }
        let total = self.total_steps.filter(|total| step > *total);
        if let Some(total) = total {
            return Some(format!("it is of step {step} of {total}"));
        }
        let processes = self.num_processes;
        if !(1..=MOST_PROCESSES).contains(&processes) {
            return Some(format!("it is of {processes} processes"));
        }
        (self.epochs == Some(0)).then(|| "it is of no epoch".to_owned())
    }
}

/// A complete checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    pub state: TrainerState,
    pub folder: PathBuf,
}

impl Checkpoint {
    /// That of a folder, if it is one that was written to its end.
    ///
    /// # Errors
    /// Those of reading its `trainer.json`, which is written as a whole: something else has changed it.
    fn in_folder(folder: PathBuf) -> Result<Option<Self>> {
        let path = folder.join(TRAINER);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_text(&path)?;
        let state = serde_json::from_str(&text).map_err(|error| error.to_string());
        let state = state.and_then(|state: TrainerState| match state.contradiction(&folder) {
            None => Ok(state),
            Some(message) => Err(message),
        });
        match state {
            Ok(state) => Ok(Some(Self { state, folder })),
            Err(message) => Err(Error::format(
                path,
                format!(
                    "{message}; delete this checkpoint's folder to go on from the one before it"
                ),
            )),
        }
    }

    /// The one in a folder, or the last one of the run in it.
    fn at(path: &Path) -> Result<Self> {
        let missing = || {
            Error::Resume {
            path: path.to_owned(),
            message: "this is neither a complete checkpoint (checkpoints/step_N of a run) nor a run with one; \
                      name one of these as resume_from_checkpoint"
                .into(),
        }
        };
        match Self::in_folder(path.to_owned())? {
            Some(checkpoint) => Ok(checkpoint),
            None => last_of(path)?.ok_or_else(missing),
        }
    }

    /// The folder of its run.
    fn run(&self) -> PathBuf {
        // Also that of `step_3`, said in the folder of checkpoints.
        let folder = self.folder.canonicalize();
        let folder = folder.unwrap_or_else(|_| self.folder.clone());
        let run = folder.parent().and_then(Path::parent);
        run.map_or(folder.clone(), Path::to_owned)
    }

    /// The file of the configuration that it was saved with; those of older versions have none but their run's.
    fn config(&self) -> PathBuf {
        let own = self.folder.join(CONFIG);
        match own.exists() {
            true => own,
            false => self.run().join(CONFIG),
        }
    }

    /// What holds the adapter: a PEFT folder, or a file in it.
    fn adapter(&self) -> PathBuf {
        let file = self.folder.join(ADAPTER);
        if file.exists() {
            file
        } else {
            self.folder.clone()
        }
    }
}

/// Where a run goes on.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub checkpoint: Checkpoint,
    /// The epochs of the run at that time.
    epochs: usize,
    /// Whether it is a checkpoint of the run itself, not of another one.
    pub is_own: bool,
}

impl RunDir {
    /// The folder of a run that begins or goes on, as [`resume`](RunOptions::resume) says. The first of `num_processes`
    /// processes keeps others from it: by [`claim`](Self::claim), or if the run goes on by [`locked`](Self::locked).
    ///
    /// # Errors
    /// Those of [`claim`](Self::claim), [`resume`](Self::resume) and [`locked`](Self::locked).
    pub fn open(options: impl Into<RunOptions>, rank: usize, num_processes: usize) -> Result<Self> {
        let options = options.into();
        let run = match checkpoint_to_resume(&options)? {
            Some(checkpoint) => Self::going_on_from(checkpoint, options)?,
            None => Self::join(options, num_processes),
        };
        match (rank, run.saved_step().is_some()) {
            (0, true) => run.locked(),
            (0, false) => run.claimed(),
            _ => Ok(run),
        }
    }

    /// Goes on with the run in its folder, or, if [`resume`](RunOptions::resume) names a checkpoint of
    /// another run, with what that one had come to; by any number of processes, of which one has it
    /// [`locked`](Self::locked).
    ///
    /// # Errors
    /// [`Error::Resume`] if there is no checkpoint or the run had another configuration (the
    /// message names the keys that differ), and the errors of reading the old configuration.
    pub fn resume(options: impl Into<RunOptions>) -> Result<Self> {
        let options = options.into();
        let found = match checkpoint_to_resume(&options)? {
            None => last_of(&options.path)?,
            found => found,
        };
        let found = found.ok_or_else(|| no_checkpoint(&options.path))?;
        Self::going_on_from(found, options)
    }

    fn going_on_from(checkpoint: Checkpoint, options: RunOptions) -> Result<Self> {
        let knows_base = checkpoint.state.base.is_some();
        let before = options.config.compare(&checkpoint.config(), knows_base)?;
        let Before {
            epochs,
            differences,
        } = before;
        let mut run = Self::join(options, checkpoint.state.num_processes);
        let is_own = match (run.path.canonicalize(), checkpoint.folder.canonicalize()) {
            (Ok(run), Ok(folder)) => folder.starts_with(run),
            _ => false,
        };
        if !differences.is_empty() {
            return Err(Error::Resume {
                path: if is_own { run.path } else { checkpoint.run() },
                message: format!(
                    "the run in this folder had another configuration ({}); \
                     use its own, or choose another output_dir",
                    differences.join(", ")
                ),
            });
        }
        run.start = Some(Start {
            epochs: epochs.or(checkpoint.state.epochs).unwrap_or(1),
            checkpoint,
            is_own,
        });
        Ok(run)
    }

    /// Whether the run goes on from a checkpoint.
    pub fn is_resumed(&self) -> bool {
        self.start.is_some()
    }

    /// The step of that checkpoint, if it is in the run's own folder.
    pub fn saved_step(&self) -> Option<usize> {
        let start = self.start.as_ref().filter(|start| start.is_own);
        start.map(|start| start.checkpoint.state.step)
    }

    /// The epochs that the run had until now, if it goes on to more.
    pub fn epochs_before(&self) -> Option<usize> {
        let epochs = self.start.as_ref()?.epochs;
        (epochs != self.options.epochs).then_some(epochs)
    }

    /// Saves adapter, optimizer and step, everything that resuming needs.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written, [`Error::Adapter`] if `lora` is not the configuration
    /// that the model was built with, [`Error::InvalidArgument`] if an update has made the adapter infinite or no number: no
    /// run goes on from that.
    pub fn save_checkpoint(
        &self,
        model: &TransformerDecoder,
        lora: &LoRAConfig,
        trainer: &Trainer,
    ) -> Result<()> {
        let state = TrainerState {
            step: trainer.step,
            loss: trainer.last_loss,
            skipped_steps: trainer.skipped_steps,
            total_steps: Some(trainer.schedule.total_steps),
            epochs: Some(self.options.epochs),
            data: self.data,
            base: self.base,
            validations: trainer.validations,
            num_processes: self.num_processes,
        };
        require_finite(model, trainer.step)?;
        let dir = self.path.join(CHECKPOINTS).join(folder_of(trainer.step));
        match self.options.base_name.as_deref() {
            // Nobody finds again what random vectors found.
            _ if matches!(lora.init, Init::PissaRandomized { .. }) => {
                create_dir(&dir)?;
                save_adapter(&Adapter::of(model, DEFAULT_ADAPTER)?, dir.join(ADAPTER))?;
            }
            // The optimizer goes on with A and B as they are.
            base if lora.init.shifts_base() => {
                save_peft_unconverted(model, DEFAULT_ADAPTER, base, &dir)?;
            }
            Some(base) => save_peft_with_base(model, lora, base, &dir)?,
            None => save_peft(model, lora, &dir)?,
        }
        save_state_dict(&trainer.optimizer.state_dict(model), dir.join(OPTIMIZER))?;
        let config = self.options.config.to_yaml();
        write_text(&dir.join(CONFIG), &config)?;
        write_json(&dir.join(TRAINER), &state)?;
        // Of a run that went on, it has been that of its last checkpoint until now.
        write_text(&self.path.join(CONFIG), &config)
    }

    /// Deletes all complete checkpoints but the last `count` and that of the best validation.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be deleted.
    pub fn keep_last_checkpoints(&self, count: usize) -> Result<()> {
        let mut checkpoints = readable_checkpoints(&self.path)?;
        checkpoints.sort_by_key(|checkpoint| Reverse(checkpoint.state.step));
        let best = checkpoints
            .first()
            .and_then(|last| last.state.validations.best);
        let is_best =
            |checkpoint: &&Checkpoint| best.is_some_and(|best| best.step == checkpoint.state.step);
        let old = checkpoints.iter().skip(count);
        old.filter(|checkpoint| !is_best(checkpoint))
            .try_for_each(delete)
    }

    /// Deletes the checkpoints after the one that the run goes on from, and what is left of those that were not written, or
    /// not deleted, to their end.
    pub(super) fn delete_later_checkpoints(&self, start: &Start) -> Result<()> {
        let folders = own_folders(&self.path)?.into_iter();
        for folder in folders.filter(|folder| folder.is_dir() && is_cut_off(folder)) {
            fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        let mut checkpoints = readable_checkpoints(&self.path)?;
        checkpoints.retain(|other| other.state.step > start.checkpoint.state.step);
        checkpoints.iter().try_for_each(delete)
    }

    /// Loads the checkpoint that the run goes on from, or else its last complete one, into a model that was built for
    /// this run, and sets the trainer to it.
    ///
    /// # Errors
    /// [`Error::Resume`] if there is none, if the trainer is to do other steps an epoch than the run's, on
    /// other data or another base, and the errors of [`load_any_adapter`] and of the optimizer's state. Model and
    /// trainer are unchanged then.
    pub fn load_checkpoint(
        &self,
        model: &mut TransformerDecoder,
        trainer: &mut Trainer,
    ) -> Result<()> {
        let checkpoint = self.start_or_last()?;
        self.require_same_run(&checkpoint.state, trainer.schedule.total_steps)?;
        let path = checkpoint.folder.join(OPTIMIZER);
        let mut optimizer = trainer.optimizer.clone();
        optimizer
            .load_state_dict(model, &load_state_dict_file(&path)?)
            .map_err(|error| error.in_file(&path))?;
        load_any_adapter(model, checkpoint.adapter())?;
        trainer.optimizer = optimizer;
        trainer.step = checkpoint.state.step;
        trainer.last_loss = checkpoint.state.loss;
        trainer.skipped_steps = checkpoint.state.skipped_steps;
        trainer.validations = checkpoint.state.validations;
        Ok(())
    }

    /// Loads the adapter of the best validation, of a run that has saved it.
    ///
    /// # Errors
    /// [`Error::Resume`] if there is no checkpoint of that step, and the errors of [`load_any_adapter`].
    pub fn load_best(&self, model: &mut TransformerDecoder, best: Validation) -> Result<()> {
        let folder = self.path.join(CHECKPOINTS).join(folder_of(best.step));
        let Some(checkpoint) = Checkpoint::in_folder(folder)? else {
            return Err(self.error(&format!(
                "the best validation was after step {}, of which there is no checkpoint; \
                 use the last step by best_checkpoint=none",
                best.step
            )));
        };
        load_any_adapter(model, checkpoint.adapter()).map(drop)
    }

    fn require_same_run(&self, state: &TrainerState, total_steps: usize) -> Result<()> {
        let today = self.options.epochs;
        let before = self.start.as_ref().map_or(today, |s| s.epochs);
        let before = state.epochs.unwrap_or(before);
        // The numbers of a file may be any.
        let product = |steps: usize, epochs: usize| steps as u128 * epochs as u128;
        if let Some(of_run) = state.total_steps
            && product(of_run, today) != product(total_steps, before)
        {
            return Err(self.error(&format!(
                "the run in this folder has {of_run} steps in {before} epoch(s), with today's records it would have \
                 {total_steps} in {today}; use the records that it began with, or choose another output_dir"
            )));
        }
        let differs = |of_run: Option<u64>, today: Option<u64>| {
            of_run
                .zip(today)
                .is_some_and(|(of_run, today)| of_run != today)
        };
        if differs(state.data, self.data) {
            return Err(self.error(
                "the run in this folder trains on other records, or with another tokenizer; \
                 use those that it began with, or choose another output_dir",
            ));
        }
        if differs(state.base, self.base) {
            return Err(self.error(
                "the run in this folder has another base: the weights or the configuration in checkpoint_dir are not \
                 those that it began with; name the base that it began with, wherever it lies now, or choose \
                 another output_dir",
            ));
        }
        Ok(())
    }

    /// The configuration of the adapter in the checkpoint that the run goes on from; none if it begins.
    ///
    /// # Errors
    /// Those of [`read_adapter_config`].
    pub fn adapter_config(&self) -> Result<Option<LoRAConfig>> {
        match &self.start {
            Some(start) => read_adapter_config(start.checkpoint.adapter()),
            None => Ok(None),
        }
    }

    fn start_or_last(&self) -> Result<Checkpoint> {
        match &self.start {
            Some(start) => Ok(start.checkpoint.clone()),
            None => last_of(&self.path)?.ok_or_else(|| no_checkpoint(&self.path)),
        }
    }
}

impl Start {
    /// The folder of the run that it is a checkpoint of.
    pub fn run(&self) -> PathBuf {
        self.checkpoint.run()
    }
}

/// Whether what lies in a run's folder of checkpoints is one that was not written to its end.
pub(super) fn is_cut_off(folder: &Path) -> bool {
    step_of(folder).is_some() && !folder.join(TRAINER).exists()
}

/// The step in the name of a run's own checkpoint; none of a copy by another name, which is the user's.
fn step_of(folder: &Path) -> Option<usize> {
    let name = folder.file_name()?.to_str()?;
    let step = name.strip_prefix("step_")?.parse().ok()?;
    (folder_of(step) == name).then_some(step)
}

/// The checkpoint that a run is asked to go on from.
fn checkpoint_to_resume(options: &RunOptions) -> Result<Option<Checkpoint>> {
    match &options.resume {
        Resume::No => Ok(None),
        Resume::Auto => last_of(&options.path),
        Resume::From(path) => Checkpoint::at(path).map(Some),
        Resume::Last => match last_of(&options.path)? {
            None => Err(no_checkpoint(&options.path)),
            found => Ok(found),
        },
    }
}

fn no_checkpoint(run: &Path) -> Error {
    Error::Resume {
        path: run.to_owned(),
        message: NO_CHECKPOINT.into(),
    }
}

/// The last complete checkpoint of the run in a folder.
fn last_of(run: &Path) -> Result<Option<Checkpoint>> {
    let folders = own_folders(run)?.into_iter();
    let found: Vec<_> = folders.map(Checkpoint::in_folder).collect::<Result<_>>()?;
    let found = found.into_iter().flatten();
    Ok(found.max_by_key(|checkpoint| checkpoint.state.step))
}

pub(super) fn has_checkpoint(run: &Path) -> Result<bool> {
    Ok(last_of(run)?.is_some())
}

/// The complete checkpoints of the run in a folder. One that cannot be read is no reason to end a training.
fn readable_checkpoints(run: &Path) -> Result<Vec<Checkpoint>> {
    let folders = own_folders(run)?.into_iter();
    let found = folders.filter_map(|folder| Checkpoint::in_folder(folder).ok());
    Ok(found.flatten().collect())
}

/// The folders of the checkpoints of the run in a folder.
fn own_folders(run: &Path) -> Result<Vec<PathBuf>> {
    let dir = run.join(CHECKPOINTS);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&dir).map_err(Error::io(&dir))?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(folders.filter(|folder| step_of(folder).is_some()).collect())
}

fn delete(checkpoint: &Checkpoint) -> Result<()> {
    let folder = &checkpoint.folder;
    // Without it, what is left of the folder is no checkpoint.
    let trainer = folder.join(TRAINER);
    fs::remove_file(&trainer).map_err(Error::io(&trainer))?;
    fs::remove_dir_all(folder).map_err(Error::io(folder))
}

fn folder_of(step: usize) -> String {
    format!("step_{step}")
}
