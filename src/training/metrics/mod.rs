//! What a training tells of itself, step by step, and the files that it goes to.

mod csv;
mod jsonl;
mod memory;
mod tensorboard;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Result;

pub use csv::CsvMetrics;
pub use jsonl::MetricsLog;
pub use memory::{available_memory_bytes, installed_memory_bytes, peak_memory_bytes};
pub use tensorboard::TensorBoardMetrics;

/// Where the metrics of a training go.
///
/// ```
/// use burn_peft::training::{MetricLogger, Metrics};
///
/// struct Loudest(f64);
///
/// impl MetricLogger for Loudest {
///     fn log(&mut self, metrics: &Metrics) -> burn_peft::Result<()> {
///         self.0 = metrics.get("grad_norm").map_or(self.0, |norm| norm.max(self.0));
///         Ok(())
///     }
/// }
///
/// let mut loudest = Loudest(0.0);
/// loudest.log(&Metrics::new(1).with("loss", 2.5).with("grad_norm", 0.75))?;
/// assert_eq!(loudest.0, 0.75);
/// # Ok::<(), burn_peft::Error>(())
/// ```
pub trait MetricLogger {
    /// Writes the metrics of a step or a validation, so that they are there if the program ends at once.
    ///
    /// # Errors
    /// Those of writing.
    fn log(&mut self, metrics: &Metrics) -> Result<()>;
}

/// A form in which a run's metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MetricFormat {
    /// `metrics.jsonl` in the run's folder, a JSON object a line. It is always written.
    Jsonl,
    /// `metrics.csv` beside it.
    Csv,
    /// An event file in the folder `tensorboard`.
    Tensorboard,
}

/// What is known of a step or a validation after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    step: usize,
    /// Seconds since 1970.
    #[serde(default)]
    time: f64,
    #[serde(flatten)]
    values: Map<String, Value>,
}

impl Metrics {
    /// Nothing yet of this step, now.
    pub fn new(step: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            step,
            time: now.map_or(0.0, |time| time.as_secs_f64()),
            values: Map::new(),
        }
    }

    /// The same with one more number. One that is not finite, or none, is known to be missing.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }

    /// The steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// When it was, in seconds since 1970; 0 where a file does not say.
    pub fn time(&self) -> f64 {
        self.time
    }

    /// The number of a name, if it is there and not missing.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }

    /// Whether there is such a number, also one that is missing.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The numbers that are not missing, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        let values = self.values.iter();
        values.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
    }
}
