//! What a run came to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::SUMMARY;
use crate::files::read_text;
use crate::training::Validation;
use crate::training::validations::nan_for_null;
use crate::{Error, Result};

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The optimizer steps.
    pub steps: usize,
    /// The steps among them that were left out, as their loss or gradients were no numbers.
    #[serde(default)]
    pub skipped_steps: usize,
    /// The loss of the last step that was not left out.
    #[serde(deserialize_with = "nan_for_null")]
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
    /// The best validation of all and its step, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_validation: Option<Validation>,
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
