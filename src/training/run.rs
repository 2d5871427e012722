use std::cmp::Reverse;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Trainer;
use super::recipe::RecipeConfig;
use crate::adapter::Adapter;
use crate::checkpoint::{
    load_any_adapter, load_state_dict_file, read_adapter_config, save_adapter, save_peft,
    save_peft_unconverted, save_peft_with_base, save_state_dict,
};
use crate::data::weighted_paths;
use crate::files::{create_dir, is_temporary, read_text, write_text};
use crate::llama::TransformerDecoder;
use crate::lora::{DEFAULT_ADAPTER, Init, LoRAConfig};
use crate::{Error, Result};

/// The folder of a run.
///
/// ```text
/// output_dir/
///   config.yaml            the effective configuration
///   metrics.jsonl          a line a logged step
///   checkpoints/step_N/    a PEFT adapter folder, the optimizer's state and the step
///   adapter/               the final adapter, in PEFT's format
///   merged/                the final model, in Hugging Face's format
///   summary.json           what came out; its presence says that the run is finished
/// ```
///
/// While a run is going on, `.lock` in its folder is locked, so that no other goes on there.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    /// The base model, by which checkpoints name theirs.
    base: Option<PathBuf>,
    num_processes: usize,
    /// The [`fingerprint`](crate::data::fingerprint) of what is trained on, where it is known.
    data: Option<u64>,
    /// The locked file, in the process that began the run or went on with it.
    lock: Option<Arc<File>>,
}

/// What `trainer.json` holds. It is written last: a checkpoint without it is not complete.
#[derive(Serialize, Deserialize)]
struct TrainerState {
    step: usize,
    loss: Option<f64>,
    /// The steps of the whole run, which follow from the number of records.
    total_steps: Option<usize>,
    /// The fingerprint of the training data.
    data: Option<u64>,
    /// The processes that the run began with.
    #[serde(default = "one")]
    num_processes: usize,
}

fn one() -> usize {
    1
}

const CONFIG: &str = "config.yaml";
const LOCK: &str = ".lock";
const SUMMARY: &str = "summary.json";
const CHECKPOINTS: &str = "checkpoints";
/// An adapter that PEFT has no form for.
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";

const NO_CHECKPOINT: &str = "there is no checkpoint to resume from in this folder; begin anew by \
                             resume_from_checkpoint=false, or name the folder of the run as \
                             output_dir";

impl RunDir {
    /// Begins a run of `num_processes` processes in the configuration's `output_dir`. With
    /// `overwrite_output_dir` the checkpoints, the adapter and the merged model of another run there are
    /// deleted. One process does this; the others [`join`](Self::join).
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written, [`Error::Resume`] if it holds a run that is not to be
    /// overwritten, what no run has left, or what this one reads, such as the merged model of the run before;
    /// or if another run is going on there.
    pub fn create(config: &RecipeConfig, num_processes: usize) -> Result<Self> {
        let run = Self::claim(config, num_processes)?;
        run.begin(config)?;
        Ok(run)
    }

    /// The first half of [`create`](Self::create), before the time that loading a model takes: checks
    /// that a run may begin in the folder, and keeps others from it. What is there is left as it is.
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub fn claim(config: &RecipeConfig, num_processes: usize) -> Result<Self> {
        create_dir(&config.output_dir)?;
        let run = Self::join(config, num_processes).locked()?;
        let results = run.results();
        let Some(left) = results.iter().find(|result| holds_something(result)) else {
            return Ok(run);
        };
        if !run.path.join(CONFIG).exists() {
            let message = format!(
                "{} is there, which no run has left; choose another output_dir",
                left.display()
            );
            return Err(run.error(&message));
        }
        let is_finished = run.path.join(SUMMARY).exists();
        if !config.overwrite_output_dir {
            let (what, instead) = match is_finished {
                true => ("finished", ""),
                false => (
                    "not finished",
                    "go on with it by resume_from_checkpoint=true, ",
                ),
            };
            let message = format!(
                "this folder holds a run that is {what}; {instead}choose another output_dir, or delete \
                 its checkpoints, adapter and merged model by overwrite_output_dir=true"
            );
            return Err(run.error(&message));
        }
        run.require_unread(config)?;
        Ok(run)
    }

    /// The second half of [`create`](Self::create): deletes the results of the run before, and writes the
    /// configuration.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    ///
    /// # Panics
    /// If the folder was not [claimed](Self::claim).
    pub fn begin(&self, config: &RecipeConfig) -> Result<()> {
        assert!(
            self.lock.is_some(),
            "a run begins in a folder that it has claimed"
        );
        for result in self.results().iter().filter(|result| result.exists()) {
            match result.is_dir() {
                true => fs::remove_dir_all(result),
                false => fs::remove_file(result),
            }
            .map_err(Error::io(result))?;
        }
        write_text(&self.path.join(CONFIG), &config.to_yaml())
    }

    /// What a run leaves and the next one deletes, the mark of a finished one last.
    fn results(&self) -> [PathBuf; 4] {
        [
            self.path.join(CHECKPOINTS),
            self.adapter_dir(),
            self.merged_dir(),
            self.path.join(SUMMARY),
        ]
    }

    /// Checks that `config` names nothing in the results of the run before.
    fn require_unread(&self, config: &RecipeConfig) -> Result<()> {
        let folders = self.results();
        let inputs = [
            ("checkpoint_dir", &config.checkpoint_dir),
            ("adapter_checkpoint", &config.adapter_checkpoint),
            ("tokenizer", &config.tokenizer),
            ("dataset", &config.dataset),
            ("validation_dataset", &config.validation_dataset),
        ];
        let inputs = inputs.iter().filter_map(|(key, input)| {
            let paths = weighted_paths(input.as_ref()?).ok()?;
            Some(paths.into_iter().map(move |(path, _)| (key, path)))
        });
        for (key, input) in inputs.flatten() {
            let input = input.canonicalize().ok();
            let is_in = |folder: &&PathBuf| match (&input, folder.canonicalize()) {
                (Some(input), Ok(folder)) => input.starts_with(folder),
                _ => false,
            };
            if let Some(folder) = folders.iter().find(is_in) {
                return Err(self.error(&format!(
                    "`{key}` is in {}, which a new run in this folder would delete; \
                     choose another output_dir",
                    folder.display()
                )));
            }
        }
        Ok(())
    }

    /// Keeps others from going on with the run or beginning one in its folder, as long as this or a clone
    /// of it lives. Of several processes one does this. A disk that knows no locks has none.
    ///
    /// # Errors
    /// [`Error::Resume`] if another has locked it, [`Error::Io`] if the folder cannot be written.
    pub fn locked(mut self) -> Result<Self> {
        let path = self.path.join(LOCK);
        // Some network disks lock only what may be written.
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(self.error("a run in this folder is going on; choose another output_dir"))
            }
            locked => {
                // A disk that knows no locks does not tell whether another writes there.
                if locked.is_ok() {
                    self.remove_temporary();
                }
                self.lock = Some(Arc::new(file));
                Ok(self)
            }
        }
    }

    /// What a run that was killed was writing. Whatever cannot be removed does no harm.
    fn remove_temporary(&self) {
        let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
        let [checkpoints, adapter, merged, _] = self.results();
        let checkpoints = entries(&checkpoints).map(|entry| entry.path());
        let folders = checkpoints.chain([adapter, merged]);
        for file in folders.flat_map(|folder| entries(&folder)) {
            if is_temporary(&file.file_name()) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// The run that another of `num_processes` processes begins; touches no file.
    pub fn join(config: &RecipeConfig, num_processes: usize) -> Self {
        Self {
            path: config.output_dir.clone(),
            base: config.checkpoint_dir.clone(),
            num_processes,
            data: None,
            lock: None,
        }
    }

    /// The run as one that trains on samples with this [`fingerprint`](crate::data::fingerprint), which checkpoints note
    /// and [`load_checkpoint`] compares. What it validates with may change.
    ///
    /// [`load_checkpoint`]: Self::load_checkpoint
    pub fn on_data(mut self, fingerprint: u64) -> Self {
        self.data = Some(fingerprint);
        self
    }

    /// Opens the configuration's `output_dir` to go on with the run there, by any number of processes, of
    /// which one has it [`locked`](Self::locked).
    ///
    /// # Errors
    /// [`Error::Resume`] if there is no checkpoint or the run had another configuration (the
    /// message names the keys that differ), and the errors of reading the old configuration.
    pub fn resume(config: &RecipeConfig) -> Result<Self> {
        let mut run = Self::join(config, 1);
        let Some((state, _)) = run.last_checkpoint()? else {
            return Err(run.error(NO_CHECKPOINT));
        };
        run.num_processes = state.num_processes;
        let old = RecipeConfig::of_run(&run.path.join(CONFIG))?;
        let difference = old.difference(config);
        match difference.is_empty() {
            true => Ok(run),
            false => Err(run.error(&format!(
                "the run in this folder had another configuration ({}); \
                 use its own, or choose another output_dir",
                difference.join(", ")
            ))),
        }
    }

    /// The processes that the run began with, which decide how many samples a step has.
    pub fn num_processes(&self) -> usize {
        self.num_processes
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the metrics are logged.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Where the final adapter goes.
    pub fn adapter_dir(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Where the merged model goes.
    pub fn merged_dir(&self) -> PathBuf {
        self.path.join("merged")
    }

    /// Saves adapter, optimizer and step, everything that resuming needs.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written, [`Error::Adapter`] if `lora` is not the configuration
    /// that the model was built with.
    pub fn save_checkpoint(
        &self,
        model: &TransformerDecoder,
        lora: &LoRAConfig,
        trainer: &Trainer,
    ) -> Result<()> {
        let state = TrainerState {
            step: trainer.step,
            loss: trainer.last_loss,
            total_steps: Some(trainer.schedule.total_steps),
            data: self.data,
            num_processes: self.num_processes,
        };
        let dir = self.path.join(CHECKPOINTS).join(folder_of(trainer.step));
        let base = self.base.as_ref().map(|base| base.to_string_lossy());
        match base.as_deref() {
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
        write_json(&dir.join(TRAINER), &state)
    }

    /// Deletes all complete checkpoints but the last `count`.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be deleted.
    pub fn keep_last_checkpoints(&self, count: usize) -> Result<()> {
        let mut checkpoints = self.checkpoints()?;
        // A copy by another name is the user's.
        checkpoints.retain(|(state, folder)| folder.ends_with(folder_of(state.step)));
        checkpoints.sort_by_key(|(state, _)| Reverse(state.step));
        for (_, folder) in checkpoints.iter().skip(count) {
            // Without it, what is left of the folder is no checkpoint.
            let trainer = folder.join(TRAINER);
            fs::remove_file(&trainer).map_err(Error::io(&trainer))?;
            fs::remove_dir_all(folder).map_err(Error::io(folder))?;
        }
        Ok(())
    }

    /// Loads the last complete checkpoint into a model that was built for this run, and sets the
    /// trainer to it.
    ///
    /// # Errors
    /// [`Error::Resume`] if there is none, if the trainer is to do other steps in all than the run's or on
    /// other data, and the errors of [`load_any_adapter`] and of the optimizer's state. Model and trainer are unchanged then.
    pub fn load_checkpoint(
        &self,
        model: &mut TransformerDecoder,
        trainer: &mut Trainer,
    ) -> Result<()> {
        let Some((state, dir)) = self.last_checkpoint()? else {
            return Err(self.error(NO_CHECKPOINT));
        };
        let total_steps = trainer.schedule.total_steps;
        if let Some(of_run) = state.total_steps.filter(|steps| *steps != total_steps) {
            return Err(self.error(&format!(
                "the run in this folder has {of_run} steps, with today's records it would have \
                 {total_steps}; use the records that it began with, or choose another output_dir"
            )));
        }
        if let (Some(of_run), Some(today)) = (state.data, self.data)
            && of_run != today
        {
            return Err(self.error(
                "the run in this folder trains on other records, or with another tokenizer; \
                 use those that it began with, or choose another output_dir",
            ));
        }
        let path = dir.join(OPTIMIZER);
        let mut optimizer = trainer.optimizer.clone();
        optimizer
            .load_state_dict(model, &load_state_dict_file(&path)?)
            .map_err(|error| error.in_file(&path))?;
        load_any_adapter(model, adapter_in(dir))?;
        trainer.optimizer = optimizer;
        trainer.step = state.step;
        trainer.last_loss = state.loss;
        Ok(())
    }

    /// The adapters of the run of this configuration: those of the last checkpoint if it is resumed, and else those that
    /// it begins with.
    ///
    /// # Errors
    /// [`Error::Resume`] if there is no checkpoint, and those of [`RecipeConfig::adapter_config`].
    pub fn adapter_config(&self, config: &RecipeConfig) -> Result<LoRAConfig> {
        if !config.resume_from_checkpoint {
            return config.adapter_config();
        }
        let Some((_, dir)) = self.last_checkpoint()? else {
            return Err(self.error(NO_CHECKPOINT));
        };
        let lora = read_adapter_config(adapter_in(dir))?;
        Ok(config.trains(lora.unwrap_or_else(|| config.lora())))
    }

    /// Writes `summary.json`, which marks the run as finished.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn finish(&self, summary: &Summary) -> Result<()> {
        write_json(&self.path.join(SUMMARY), summary)
    }

    /// State and folder of the last complete checkpoint.
    fn last_checkpoint(&self) -> Result<Option<(TrainerState, PathBuf)>> {
        let checkpoints = self.checkpoints()?.into_iter();
        Ok(checkpoints.max_by_key(|(state, _)| state.step))
    }

    /// States and folders of the complete checkpoints.
    fn checkpoints(&self) -> Result<Vec<(TrainerState, PathBuf)>> {
        let dir = self.path.join(CHECKPOINTS);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&dir).map_err(Error::io(&dir))?;
        let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let states = folders.filter_map(|folder| {
            let text = fs::read_to_string(folder.join(TRAINER)).ok()?;
            let state: TrainerState = serde_json::from_str(&text).ok()?;
            Some((state, folder))
        });
        Ok(states.collect())
    }

    fn error(&self, message: &str) -> Error {
        Error::Resume {
            path: self.path.clone(),
            message: message.to_owned(),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The optimizer steps.
    pub steps: usize,
    /// The loss of the last step.
    pub final_loss: f64,
    /// The elements of all parameters.
    pub total_params: usize,
    /// The elements of those that were trained.
    pub trainable_params: usize,
    /// Tokens, padding not counted, per second of training.
    pub tokens_per_second: f64,
    /// The largest amount of main memory held, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// The mean loss over the validation set after the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// How held-out prompts were answered, where there are any.
    #[serde(flatten)]
    pub exact_match: Option<ExactMatch>,
}

/// Fractions of held-out prompts that were answered exactly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExactMatch {
    /// By the base model.
    pub exact_match_base: f64,
    /// By the finetuned model.
    pub exact_match_finetuned: f64,
}

impl Summary {
    /// Reads `summary.json` of a run folder.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is malformed.
    pub fn read(run_dir: impl AsRef<Path>) -> Result<Self> {
        let path = run_dir.as_ref().join(SUMMARY);
        serde_json::from_str(&read_text(&path)?).map_err(|error| Error::format(&path, error))
    }
}

/// Whether this is a file, or a folder with something in it.
fn holds_something(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

/// The adapter of a checkpoint: a PEFT folder, or a file in it.
fn adapter_in(checkpoint: PathBuf) -> PathBuf {
    let file = checkpoint.join(ADAPTER);
    if file.exists() { file } else { checkpoint }
}

fn folder_of(step: usize) -> String {
    format!("step_{step}")
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("plain numbers serialise");
    write_text(path, &(text + "\n"))
}
