use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScheduleKind {
    /// Down along half a cosine, to 0 at the end.
    Cosine,
    /// Down along a line, to 0 at the end.
    Linear,
    /// Not at all.
    Constant,
}

/// Linear warmup from 0, then one of [`ScheduleKind`]; the values of transformers'
/// `get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    /// What follows the warmup.
    pub kind: ScheduleKind,
    /// The highest learning rate.
    pub lr: f64,
    /// The number of warmup steps.
    pub warmup_steps: usize,
    /// The number of all steps, warmup included.
    pub total_steps: usize,
}

impl LrSchedule {
    /// The learning rate of a step, counted from 0.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        self.lr
            * match self.kind {
                ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
                ScheduleKind::Linear => 1.0 - progress,
                ScheduleKind::Constant => 1.0,
            }
    }
}
