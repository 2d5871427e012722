use burn::optim::{GradientsAccumulator, GradientsParams};

use super::gradients::{Activations, LOSS_CHUNK_ROWS, lm_loss_sum, micro_batch_gradients, mix};
use super::{AdamW, AdamWConfig, LrSchedule, clip_grad_norm, grad_norm};
use crate::data::Batch;
use crate::llama::TransformerDecoder;

/// What a step's summed loss is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossNormalization {
    /// By the labelled tokens of all its micro-batches: the step equals one with a single large
    /// batch, however it is cut.
    #[default]
    StepTokens,
    /// Each micro-batch by its own labelled tokens and the number of micro-batches: the mean of
    /// means that many PyTorch loops compute.
    MicroBatchMean,
}

impl LossNormalization {
    fn divisors(self, batches: &[Batch]) -> Vec<f64> {
        let tokens = |batch: &Batch| batch.num_label_tokens() as f64;
        let total: f64 = batches.iter().map(tokens).sum();
        let divisor = |batch: &Batch| match self {
            Self::StepTokens => total,
            Self::MicroBatchMean => tokens(batch) * batches.len() as f64,
        };
        batches.iter().map(divisor).collect()
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutput {
    /// The normalised loss before the update.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The norm of all gradients before clipping.
    pub grad_norm: f64,
    /// The tokens that went through the model, padding not counted.
    pub num_tokens: usize,
}

/// How a step forms its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientOptions {
    /// What the loss is divided by.
    pub normalization: LossNormalization,
    /// Where the backward pass gets activations from.
    pub activations: Activations,
    /// How many rows of logits exist at a time, at least 1; only tokens with a label have one.
    pub loss_chunk_rows: usize,
    /// The seed of the step's dropout.
    pub seed: u64,
}

impl Default for GradientOptions {
    fn default() -> Self {
        Self {
            normalization: LossNormalization::default(),
            activations: Activations::default(),
            loss_chunk_rows: LOSS_CHUNK_ROWS,
            seed: 0,
        }
    }
}

/// The loss and the gradients of a step of several micro-batches.
///
/// # Panics
/// If [`Activations::Recompute`] asks for 0 layers at a time, or a chunk of the loss has no rows.
pub fn accumulate_gradients(
    model: &TransformerDecoder,
    batches: &[Batch],
    options: GradientOptions,
) -> (f64, GradientsParams) {
    let mut accumulator = GradientsAccumulator::new();
    let divisors = options.normalization.divisors(batches);
    let micro_batches = batches.iter().zip(divisors).enumerate();
    let losses = micro_batches.filter_map(|(index, (batch, divisor))| {
        let options = GradientOptions {
            seed: mix(options.seed, index as u64),
            ..options
        };
        micro_batch_gradients(model, batch, divisor, options, &mut accumulator)
    });
    let loss = losses.sum();
    (loss, accumulator.grads())
}

/// The mean loss over all labelled tokens of some batches, without a graph and without dropout.
pub fn validation_loss(model: &TransformerDecoder, batches: &[Batch]) -> f64 {
    let losses = batches.iter().filter_map(|batch| lm_loss_sum(model, batch));
    let tokens: usize = batches.iter().map(Batch::num_label_tokens).sum();
    losses.sum::<f64>() / tokens.max(1) as f64
}

/// Optimizer, schedule and clipping of a training, and how far it has come.
#[derive(Debug, Clone)]
pub struct Trainer {
    /// The optimizer with its state.
    pub optimizer: AdamW,
    /// The learning rates.
    pub schedule: LrSchedule,
    /// The norm above which gradients are clipped.
    pub max_grad_norm: Option<f64>,
    /// What the loss of a step is divided by.
    pub normalization: LossNormalization,
    /// Where the backward pass gets activations from.
    pub activations: Activations,
    /// How many rows of logits exist at a time.
    pub loss_chunk_rows: usize,
    /// The seed from which each step's dropout follows.
    pub seed: u64,
    /// The number of steps done.
    pub step: usize,
    /// The loss of the last step done.
    pub last_loss: Option<f64>,
}

impl Trainer {
    /// A training that has not begun.
    pub fn new(config: AdamWConfig, schedule: LrSchedule) -> Self {
        Self {
            optimizer: AdamW::new(config),
            schedule,
            max_grad_norm: None,
            normalization: LossNormalization::default(),
            activations: Activations::default(),
            loss_chunk_rows: LOSS_CHUNK_ROWS,
            seed: 0,
            step: 0,
            last_loss: None,
        }
    }

    /// Clips gradients to this norm.
    pub fn with_max_grad_norm(mut self, max_norm: Option<f64>) -> Self {
        self.max_grad_norm = max_norm;
        self
    }

    /// Another normalisation.
    pub fn with_normalization(mut self, normalization: LossNormalization) -> Self {
        self.normalization = normalization;
        self
    }

    /// Activations kept or computed again.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// So many rows of logits at a time: fewer take less memory, more are faster.
    pub fn with_loss_chunk_rows(mut self, rows: usize) -> Self {
        self.loss_chunk_rows = rows;
        self
    }

    /// Another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// One optimizer step over one or more micro-batches.
    ///
    /// Dropout follows from `seed`, the number of the step, the micro-batch and the layer, so a
    /// training that was stopped and resumed draws the same as one that ran through, and one that
    /// computes activations again the same as one that keeps them.
    pub fn step(
        &mut self,
        model: TransformerDecoder,
        batches: &[Batch],
    ) -> (TransformerDecoder, StepOutput) {
        let options = GradientOptions {
            normalization: self.normalization,
            activations: self.activations,
            loss_chunk_rows: self.loss_chunk_rows,
            seed: mix(self.seed, self.step as u64),
        };
        let (loss, mut grads) = accumulate_gradients(&model, batches, options);
        let grad_norm = match self.max_grad_norm {
            Some(max_norm) => clip_grad_norm(&model, &mut grads, max_norm),
            None => grad_norm(&model, &grads),
        };
        let lr = self.schedule.lr_at(self.step);
        let model = self.optimizer.step(lr, model, grads);
        self.step += 1;
        self.last_loss = Some(loss);
        let output = StepOutput {
            loss,
            lr,
            grad_norm,
            num_tokens: batches.iter().map(Batch::num_tokens).sum(),
        };
        (model, output)
    }
}
