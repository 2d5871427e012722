//! What a run's folder has to know of its run.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::DType;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use super::Resume;
use crate::files::read_text;
use crate::settings::setters;
use crate::training::{MetricFormat, Trainer};
use crate::{Error, Result};

/// What a [`RunDir`](super::RunDir) has to know of its run. A
/// [`RecipeConfig`](crate::training::recipe::RecipeConfig) becomes one; a loop of your own makes it.
///
/// ```
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
/// use burn_peft::training::{Resume, RunDir, RunOptions};
///
/// # fn main() -> burn_peft::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("run");
/// let lora = LoRAConfig::new([QProj, VProj]);
/// let options = RunOptions::new(&path, &lora).with_resume(Resume::Auto);
/// let run = RunDir::open(options, 0, 1)?; // the first process of one
/// run.begin()?;
/// assert!(!run.is_resumed() && path.join("config.yaml").exists());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunOptions {
    /// The run's folder.
    pub path: PathBuf,
    /// Whether the run goes on, and from which checkpoint.
    pub resume: Resume,
    /// Whether a new run deletes what another has left in the folder.
    pub overwrite: bool,
    /// The epochs of the whole run, which may grow when it goes on.
    pub epochs: usize,
    /// What adapters name as their base.
    pub base_name: Option<String>,
    /// What the run reads, by the names of the settings: what lies in the results of the run before is not deleted.
    pub inputs: Vec<(String, PathBuf)>,
    /// When checkpoints are saved and what becomes of them.
    pub saves: SavePlan,
    /// The forms of the metrics.
    pub metrics: Vec<MetricFormat>,
    pub(crate) config: Arc<dyn RunConfig>,
}

impl RunOptions {
    /// A run of one epoch that begins, in a folder of its own. `config` is what makes the run what it is: it is written
    /// into the folder as `config.yaml`, and a run that goes on must have the same.
    ///
    /// # Panics
    /// If `config` cannot be JSON: if a key of a map in it is no text, say.
    pub fn new(path: impl AsRef<Path>, config: &impl Serialize) -> Self {
        let config = serde_json::to_value(config).expect("a configuration is plain data");
        Self::of_config(path.as_ref(), Arc::new(Plain(config)))
    }

    pub(crate) fn of_config(path: &Path, config: Arc<dyn RunConfig>) -> Self {
        Self {
            path: path.to_owned(),
            resume: Resume::No,
            overwrite: false,
            epochs: 1,
            base_name: None,
            inputs: Vec::new(),
            saves: SavePlan::default(),
            metrics: Vec::new(),
            config,
        }
    }

    setters! {
        with_resume => resume: Resume,
        with_overwrite => overwrite: bool,
        with_epochs => epochs: usize,
        with_base_name => base_name: Option<String>,
        with_inputs => inputs: Vec<(String, PathBuf)>,
        with_saves => saves: SavePlan,
        with_metrics => metrics: Vec<MetricFormat>,
    }
}

/// When a run saves checkpoints, and what it writes beside them. One is saved at the end in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SavePlan {
    /// The steps between checkpoints.
    pub every_n_steps: Option<usize>,
    /// Whether one is saved at the end of each epoch.
    pub every_epoch: bool,
    /// How many are kept, the last ones; none keeps all. [`RunDir::keep_last_checkpoints`](super::RunDir::keep_last_checkpoints)
    /// deletes the others.
    pub keep_last: Option<usize>,
    /// Whether that of the best validation is saved.
    pub best: bool,
    /// The type of the base's weights in the merged model, if the run saves one.
    pub merged: Option<DType>,
}

impl SavePlan {
    setters! {
        with_every_n_steps => every_n_steps: Option<usize>,
        with_every_epoch => every_epoch: bool,
        with_keep_last => keep_last: Option<usize>,
        with_best => best: bool,
        with_merged => merged: Option<DType>,
    }

    /// Whether a checkpoint is due after the steps that a trainer has done.
    ///
    /// # Panics
    /// If a number of steps is 0.
    pub fn is_due(&self, trainer: &Trainer, steps_per_epoch: usize) -> bool {
        let step = trainer.step;
        let is_regular = self.every_n_steps.is_some_and(|n| step.is_multiple_of(n));
        let ends_epoch = self.every_epoch && step.is_multiple_of(steps_per_epoch);
        is_regular || ends_epoch || step >= trainer.schedule.total_steps
    }
}

/// What makes a run what it is, as its folder keeps it.
pub(crate) trait RunConfig: Debug + Send + Sync {
    /// The text of `config.yaml`.
    fn to_yaml(&self) -> String;

    /// What the run had that wrote this `config.yaml`. `knows_base` says whether its base is known by its content, so that
    /// the place may differ.
    ///
    /// # Errors
    /// Those of reading the file.
    fn compare(&self, file: &Path, knows_base: bool) -> Result<Before>;
}

/// The configuration that a run had before.
pub(crate) struct Before {
    /// Its epochs, where the configuration says.
    pub epochs: Option<usize>,
    /// In which keys it was another run.
    pub differences: Vec<String>,
}

/// A configuration of which every value must stay.
#[derive(Debug)]
struct Plain(Value);

impl RunConfig for Plain {
    fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.0).expect("a tree of plain values is YAML")
    }

    fn compare(&self, file: &Path, _knows_base: bool) -> Result<Before> {
        let parse = |text: &str| -> Result<IndexMap<String, Value>> {
            let value: Value = serde_saphyr::from_str(text)
                .map_err(|error| Error::format(file, error.without_snippet()))?;
            let mut leaves = IndexMap::new();
            add_leaves(&value, "", &mut leaves);
            Ok(leaves)
        };
        // Both by the same way: YAML may write a number otherwise than it was.
        let (old, new) = (parse(&read_text(file)?)?, parse(&self.to_yaml())?);
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let show = |value: Option<&Value>| value.map_or("not there".into(), Value::to_string);
        let differing = keys
            .into_iter()
            .filter(|key| old.get(*key) != new.get(*key));
        let differing = differing.map(|key| {
            let [old, new] = [old.get(key), new.get(key)].map(show);
            format!("`{key}` was {old}, now {new}")
        });
        Ok(Before {
            epochs: None,
            differences: differing.collect(),
        })
    }
}

/// The values below the keys of a tree, under dotted names.
fn add_leaves(value: &Value, name: &str, leaves: &mut IndexMap<String, Value>) {
    let Value::Object(fields) = value else {
        leaves.insert(name.to_owned(), value.clone());
        return;
    };
    for (key, value) in fields {
        let separator = if name.is_empty() { "" } else { "." };
        add_leaves(value, &format!("{name}{separator}{key}"), leaves);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training::{AdamWConfig, LrSchedule, ScheduleKind};

    #[test]
    fn a_configuration_of_ones_own_is_compared_value_by_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let config = json!({
            "rank": 8, "alpha": 16.0, "lr": 1e-4, "name": "no", "none": null,
            "modules": ["q_proj"], "pattern": { "a.b": 2 }, "empty": {},
        });
        let plain = |config: &Value| Plain(config.clone());
        std::fs::write(&file, plain(&config).to_yaml()).unwrap();
        let differences = |config: &Value| plain(config).compare(&file, true).unwrap().differences;
        assert_eq!(differences(&config), Vec::<String>::new());
        let mut other = config.clone();
        other["rank"] = 4.into();
        other["modules"] = json!(["q_proj", "v_proj"]);
        other["pattern"]["c"] = 1.into();
        assert_eq!(
            differences(&other),
            [
                "`modules` was [\"q_proj\"], now [\"q_proj\",\"v_proj\"]",
                "`pattern.c` was not there, now 1",
                "`rank` was 8, now 4",
            ]
        );
        std::fs::write(&file, "rank: [8\n").unwrap();
        let error = plain(&config).compare(&file, true).err().unwrap();
        assert!(error.to_string().contains("config.yaml"), "{error}");
    }

    #[test]
    fn when_a_checkpoint_is_due() {
        let schedule = LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1.0,
            warmup_steps: 0,
            total_steps: 12,
        };
        let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
        let mut due = |plan: SavePlan| {
            let is_due = |step: &usize| {
                trainer.step = *step;
                plan.is_due(&trainer, 4)
            };
            (1..=12).filter(is_due).collect::<Vec<_>>()
        };
        assert_eq!(due(SavePlan::default()), [12]);
        assert_eq!(
            due(SavePlan::default().with_every_n_steps(Some(5))),
            [5, 10, 12]
        );
        assert_eq!(due(SavePlan::default().with_every_epoch(true)), [4, 8, 12]);
    }
}
