//! What a training loop is made of: loss, optimizer, schedule, clipping, the step, metrics, run
//! folders. The loop itself is the reader's own, see `examples/finetune.rs`. Prints nothing.

mod adamw;
mod clip;
mod estimate;
mod experts;
mod gradients;
mod hidden_states;
mod log_probs;
mod metrics;
mod neftune;
mod nonfinite;
mod options;
pub mod recipe;
mod run;
mod schedule;
mod sequence_loss;
mod step;
mod validations;

pub use crate::ops::cross_entropy_sum;
pub use adamw::{AdamW, AdamWConfig};
pub use clip::{clip_grad_norm, grad_norm};
pub use estimate::{
    Bytes, Change, EstimateConfig, MemoryEstimate, Moment, Suggestion, estimate, require_memory,
    saved_bytes_per_layer, suggestions,
};
pub use gradients::{lm_loss_sum, sample_log_probs};
pub use hidden_states::{DecoderPass, HiddenStates};
pub use log_probs::SampleLogProb;
pub use metrics::{
    CsvMetrics, MetricFormat, MetricLogger, Metrics, MetricsLog, TensorBoardMetrics,
    available_memory_bytes, installed_memory_bytes, peak_memory_bytes,
};
pub use nonfinite::nonfinite_records;
pub use options::{Activations, GradientOptions, LossNormalization};
pub(crate) use run::{Before, RunConfig};
pub use run::{ExactMatch, Resume, RunDir, RunOptions, SavePlan, Summary, available_disk_bytes};
pub use schedule::{LrSchedule, ScheduleKind};
pub use sequence_loss::{Dpo, SequenceLoss};
pub use step::{
    StepGradients, StepOutput, Trainer, accumulate_gradients, validation_loss, validation_loss_in,
};
pub use validations::{Validation, Validations};
