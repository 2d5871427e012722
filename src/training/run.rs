mod checkpoints;
mod disk;
mod logs;
mod options;
mod resume;
mod summary;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::data::weighted_paths;
use crate::files::{
    create_dir, is_temporary, read_bytes, remove_if_there, write_bytes, write_text,
};
use crate::{Error, Result};
use checkpoints::{Start, has_checkpoint, is_cut_off};

pub use disk::available_disk_bytes;
pub(crate) use options::{Before, RunConfig};
pub use options::{RunOptions, SavePlan};
pub use resume::Resume;
pub use summary::{ExactMatch, Summary};

/// The folder of a run.
///
/// ```text
/// output_dir/
///   config.yaml            the effective configuration
///   metrics.jsonl          a line a logged step; metrics.csv and tensorboard/ if they are asked for
///   checkpoints/step_N/    a PEFT adapter folder, the optimizer's state, the step and the configuration
///   adapter/               the final adapter, in PEFT's format
///   merged/                the final model, in Hugging Face's format
///   summary.json           what came out; its presence says that the run is finished
/// ```
///
/// While a run is going on, `.lock` in its folder is locked, so that no other goes on there.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    options: Arc<RunOptions>,
    num_processes: usize,
    /// The [`fingerprint`](crate::data::fingerprint) of what is trained on, where it is known.
    data: Option<u64>,
    /// The fingerprint of the base, where it is known.
    base: Option<u64>,
    /// Where the run goes on, if it does not begin.
    start: Option<Start>,
    /// The locked file, in the process that began the run or went on with it.
    lock: Option<Arc<File>>,
}

const CONFIG: &str = "config.yaml";
const LOCK: &str = ".lock";
const METRICS: &str = "metrics.jsonl";
const TABLE: &str = "metrics.csv";
const TENSORBOARD: &str = "tensorboard";
const SUMMARY: &str = "summary.json";
const CHECKPOINTS: &str = "checkpoints";

impl RunDir {
    /// Begins a run of `num_processes` processes in its folder. With
    /// [`overwrite`](RunOptions::overwrite) the checkpoints, the adapter and the merged model of another run there are
    /// deleted. One process does this; the others [`join`](Self::join).
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written, [`Error::Resume`] if it holds a run that is not to be
    /// overwritten, what no run has left, or what this one reads, such as the merged model of the run before;
    /// or if another run is going on there.
    pub fn create(options: impl Into<RunOptions>, num_processes: usize) -> Result<Self> {
        let run = Self::claim(options, num_processes)?;
        run.begin()?;
        Ok(run)
    }

    /// The first half of [`create`](Self::create), before the time that loading a model takes: checks
    /// that a run may begin in the folder, and keeps others from it. What is there is left as it is.
    ///
    /// # Errors
    /// Those of [`create`](Self::create).
    pub fn claim(options: impl Into<RunOptions>, num_processes: usize) -> Result<Self> {
        Self::join(options, num_processes).claimed()
    }

    fn claimed(self) -> Result<Self> {
        create_dir(&self.path)?;
        let run = self.locked()?;
        run.require_free()?;
        Ok(run)
    }

    /// Checks that the run may begin in its folder, unless it goes on with one there. Touches no file.
    ///
    /// # Errors
    /// [`Error::Resume`] if the folder holds a run that is not to be overwritten, what no run has left, or what this one
    /// reads.
    pub fn require_free(&self) -> Result<()> {
        if self.saved_step().is_some() {
            return Ok(());
        }
        let results = self.results();
        let is_run = self.path.join(CONFIG).exists();
        let is_lost = |result: &Path| is_run && holds_cut_off_only(result);
        let mut left = results.iter().filter(|result| holds_something(result));
        let Some(left) = left.find(|result| !is_lost(result)) else {
            return Ok(());
        };
        if !is_run {
            let message = format!(
                "{} is there, which no run has left; choose another output_dir",
                left.display()
            );
            return Err(self.error(&message));
        }
        let is_finished = self.path.join(SUMMARY).exists();
        if !self.options.overwrite {
            let what = if is_finished {
                "finished"
            } else {
                "not finished"
            };
            let instead = match !is_finished && has_checkpoint(&self.path)? {
                true => "go on with it by resume_from_checkpoint=true, ",
                false => "",
            };
            let message = format!(
                "this folder holds a run that is {what}; {instead}choose another output_dir, or delete \
                 its checkpoints, adapter and merged model by overwrite_output_dir=true"
            );
            return Err(self.error(&message));
        }
        self.require_unread()
    }

    /// The second half of [`create`](Self::create): deletes the results of the run before, and writes the
    /// configuration. Of a run that goes on it deletes what came after its checkpoint; one that goes on from another
    /// run's gets the metrics of that one.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be done.
    ///
    /// # Panics
    /// If the folder was neither [claimed](Self::claim) nor [locked](Self::locked).
    pub fn begin(&self) -> Result<()> {
        assert!(
            self.lock.is_some(),
            "a run begins in a folder that it has claimed"
        );
        match &self.start {
            Some(start) if start.is_own => {
                // The run is not finished any more.
                remove_if_there(&self.path.join(SUMMARY))?;
                return self.delete_later_checkpoints(start);
            }
            Some(start) => self.take_metrics(&start.run())?,
            None => {}
        }
        for result in self.results().iter().filter(|result| result.exists()) {
            match result.is_dir() {
                true => fs::remove_dir_all(result),
                false => fs::remove_file(result),
            }
            .map_err(Error::io(result))?;
        }
        write_text(&self.path.join(CONFIG), &self.options.config.to_yaml())
    }

    /// Begins the metrics with those of another run.
    fn take_metrics(&self, run: &Path) -> Result<()> {
        let path = run.join(METRICS);
        match path.exists() {
            true => write_bytes(&self.metrics_path(), &read_bytes(&path)?),
            false => Ok(()),
        }
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

    /// Checks that the run reads nothing of the results of the run before.
    fn require_unread(&self) -> Result<()> {
        let folders = self.results();
        let checkpoint = match &self.options.resume {
            Resume::From(path) => Some(("resume_from_checkpoint".to_owned(), path.clone())),
            _ => None,
        };
        let inputs = checkpoint.iter().chain(&self.options.inputs);
        let inputs = inputs.filter_map(|(key, input)| {
            let paths = weighted_paths(input).ok()?;
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
        let folders = checkpoints.chain([adapter, merged, self.path.clone()]);
        for file in folders.flat_map(|folder| entries(&folder)) {
            if is_temporary(&file.file_name()) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// The run that another of `num_processes` processes begins; touches no file.
    pub fn join(options: impl Into<RunOptions>, num_processes: usize) -> Self {
        let options = options.into();
        Self {
            path: options.path.clone(),
            options: Arc::new(options),
            num_processes,
            data: None,
            base: None,
            start: None,
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

    /// The run as one of the base of this [fingerprint](crate::checkpoint::base_fingerprint), which checkpoints note and
    /// [`load_checkpoint`] compares. Where the base lies may change.
    ///
    /// [`load_checkpoint`]: Self::load_checkpoint
    pub fn on_base(mut self, fingerprint: u64) -> Self {
        self.base = Some(fingerprint);
        self
    }

    /// The processes that the run began with, which decide how many samples a step has.
    pub fn num_processes(&self) -> usize {
        self.num_processes
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the run was opened with.
    pub fn options(&self) -> &RunOptions {
        &self.options
    }

    /// Where the metrics are logged.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Where the final adapter goes.
    pub fn adapter_dir(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Where the merged model goes.
    pub fn merged_dir(&self) -> PathBuf {
        self.path.join("merged")
    }

    /// Writes `summary.json`, which marks the run as finished.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn finish(&self, summary: &Summary) -> Result<()> {
        write_json(&self.path.join(SUMMARY), summary)
    }

    fn error(&self, message: &str) -> Error {
        Error::Resume {
            path: self.path.clone(),
            message: message.to_owned(),
        }
    }
}

/// Whether this is the folder of checkpoints of which none was written to its end.
fn holds_cut_off_only(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders = entries.map(|entry| entry.path());
    path.ends_with(CHECKPOINTS) && folders.all(|folder| is_cut_off(&folder))
}

/// Whether this is a file, or a folder with something in it.
fn holds_something(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("plain numbers serialise");
    write_text(path, &(text + "\n"))
}
