//! A recipe's run: what its folder has to know, and which adapter it has.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;

use super::{BestCheckpoint, RecipeConfig};
use crate::Result;
use crate::checkpoint::{base_model_name, is_hf_folder};
use crate::lora::{Init, LoRAConfig};
use crate::training::{Before, RunConfig, RunDir, RunOptions, SavePlan};

impl From<&RecipeConfig> for RunOptions {
    fn from(config: &RecipeConfig) -> Self {
        let of_base = || config.checkpoint_dir.as_ref().map(base_model_name);
        let inputs = [
            ("checkpoint_dir", &config.checkpoint_dir),
            ("adapter_checkpoint", &config.adapter_checkpoint),
            ("tokenizer", &config.tokenizer),
            ("dataset", &config.dataset),
            ("validation_dataset", &config.validation_dataset),
        ];
        let inputs = inputs
            .into_iter()
            .filter_map(|(key, path)| Some((key.to_owned(), path.clone()?)));
        Self::of_config(&config.output_dir, Arc::new(config.clone()))
            .with_resume(config.resume_from_checkpoint.clone())
            .with_overwrite(config.overwrite_output_dir)
            .with_epochs(config.epochs)
            .with_base_name(config.base_model_name.clone().or_else(of_base))
            .with_inputs(inputs.collect())
            .with_saves(config.saves())
            .with_metrics(config.metric_logger.clone())
    }
}

impl RunConfig for RecipeConfig {
    fn to_yaml(&self) -> String {
        Self::to_yaml(self)
    }

    fn compare(&self, file: &Path, knows_base: bool) -> Result<Before> {
        let old = Self::of_run(file)?;
        let mut differences = old.difference(self);
        if !knows_base {
            differences.extend(old.other_base(self));
        }
        Ok(Before {
            epochs: Some(old.epochs),
            differences,
        })
    }
}

impl RecipeConfig {
    /// Whether the merged model is made of the numbers in a base's files: of a Hugging Face folder that was packed for the
    /// training alone. What LoftQ begins with makes up for the error of the packed numbers; of an adapter to begin with nobody
    /// knows.
    pub fn merges_into_files(&self, base: &Path) -> bool {
        let is_packed_here = self.quantize_base.is_some() && is_hf_folder(base);
        let is_for_packed =
            self.init_lora_weights == Init::Loftq || self.adapter_checkpoint.is_some();
        is_packed_here && !is_for_packed
    }

    fn saves(&self) -> SavePlan {
        let base = self.checkpoint_dir.as_deref();
        // Whose weights have two bytes at least.
        let dtype = match base.is_some_and(|base| self.merges_into_files(base)) {
            true => DType::BF16,
            false => self.dtype.into(),
        };
        let merged = (!self.save_adapter_weights_only).then_some(dtype);
        SavePlan::default()
            .with_every_n_steps(self.save_every_n_steps)
            .with_every_epoch(self.save_every_epoch)
            .with_keep_last(self.keep_last_n_checkpoints)
            .with_best(self.best_checkpoint != BestCheckpoint::None)
            .with_merged(merged)
    }

    /// The adapter of a run: that of the checkpoint that it goes on from, and else the one that it
    /// [begins with](Self::adapter_config).
    ///
    /// # Errors
    /// Those of [`RunDir::adapter_config`] and [`Self::adapter_config`].
    pub fn adapter_config_of(&self, run: &RunDir) -> Result<LoRAConfig> {
        match run.is_resumed() {
            true => {
                let lora = run.adapter_config()?;
                Ok(self.trains(lora.unwrap_or_else(|| self.lora())))
            }
            false => self.adapter_config(),
        }
    }
}
