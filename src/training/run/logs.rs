//! The metrics of a run.

use super::{RunDir, TABLE, TENSORBOARD};
use crate::Result;
use crate::training::{
    CsvMetrics, MetricFormat, MetricLogger, Metrics, MetricsLog, TensorBoardMetrics,
};

/// What a run tells of a step, and of a validation.
const COLUMNS: [&str; 8] = [
    "epoch",
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "peak_memory_bytes",
    "device_memory_bytes",
    "val_loss",
];

impl RunDir {
    /// Where the run's metrics go, as [`metrics`](super::RunOptions::metrics) says, after so many steps. What a run that goes on has told of
    /// later steps is dropped; the other forms are written anew from `metrics.jsonl`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if a file cannot be read or written, and those of [`MetricsLog::resume`].
    pub fn metric_loggers(&self, step: usize) -> Result<Vec<Box<dyn MetricLogger>>> {
        let path = self.metrics_path();
        let log = match self.is_resumed() {
            true => MetricsLog::resume(&path, step),
            false => MetricsLog::create(&path),
        }?;
        let told = MetricsLog::read(&path)?;
        let mut loggers: Vec<Box<dyn MetricLogger>> = vec![Box::new(log)];
        for format in &self.options.metrics {
            let Some(mut logger) = self.other_logger(*format)? else {
                continue;
            };
            told.iter().try_for_each(|metrics| logger.log(metrics))?;
            loggers.push(logger);
        }
        Ok(loggers)
    }

    fn other_logger(&self, format: MetricFormat) -> Result<Option<Box<dyn MetricLogger>>> {
        Ok(match format {
            MetricFormat::Jsonl => None,
            MetricFormat::Csv => {
                let table = CsvMetrics::create(self.path.join(TABLE), &COLUMNS)?;
                Some(Box::new(table))
            }
            MetricFormat::Tensorboard => {
                let now = Metrics::new(0).time();
                let events = TensorBoardMetrics::create(self.path.join(TENSORBOARD), now)?;
                Some(Box::new(events))
            }
        })
    }
}
