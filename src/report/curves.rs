use std::collections::BTreeMap;
use std::path::Path;

use crate::training::MetricsLog;
use crate::{Error, Result};

/// The metrics of a run by name and optimizer step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curves {
    /// What legends call the run.
    pub name: String,
    metrics: BTreeMap<String, BTreeMap<usize, f64>>,
}

impl Curves {
    /// None yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            metrics: BTreeMap::new(),
        }
    }

    /// Reads `metrics.jsonl` in a run's folder, by whose name the run is called. Of a step that is there twice the later
    /// line counts; numbers that are missing are gaps.
    ///
    /// # Errors
    /// Those of [`MetricsLog::read`], and [`Error::Format`] if there are no losses.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("metrics.jsonl");
        let mut curves = Self::new(name_of(folder.as_ref()));
        for metrics in MetricsLog::read(&path)? {
            for (name, value) in metrics.iter() {
                curves.add(name, metrics.step(), value);
            }
        }
        match curves.of("loss").is_some() {
            true => Ok(curves),
            false => Err(Error::format(path, "holds no losses")),
        }
    }

    /// Adds a number, or replaces it. What is none in f32, in which a run computes, is a gap: no axis has room for it.
    pub fn add(&mut self, metric: &str, step: usize, value: f64) {
        if !(value as f32).is_finite() {
            return;
        }
        let curve = self.metrics.entry(metric.to_owned()).or_default();
        curve.insert(step, value);
    }

    /// A metric by step, if the run has told any.
    pub fn of(&self, metric: &str) -> Option<&BTreeMap<usize, f64>> {
        self.metrics.get(metric)
    }
}

/// The folder's own name, also where the path (`.`, say) does not show it.
fn name_of(folder: &Path) -> String {
    let full = folder.canonicalize();
    let full = full.unwrap_or_else(|_| folder.to_owned());
    let name = full.file_name().unwrap_or(full.as_os_str());
    name.to_string_lossy().into_owned()
}
