use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};

use super::{AdamW, AdamWConfig, LrSchedule, clip_grad_norm, grad_norm, lm_loss_sum};
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

/// The loss and the gradients of a step of several micro-batches.
pub fn accumulate_gradients(
    model: &TransformerDecoder,
    batches: &[Batch],
    normalization: LossNormalization,
) -> (f64, GradientsParams) {
    let mut accumulator = GradientsAccumulator::new();
    let mut total = 0.0;
    for (batch, divisor) in batches.iter().zip(normalization.divisors(batches)) {
        let Some(sum) = lm_loss_sum(model, batch) else {
            continue;
        };
        let loss = sum / divisor;
        let grads = GradientsParams::from_grads(loss.backward(), model);
        total += f64::from(loss.into_scalar::<f32>());
        accumulator.accumulate(model, grads);
    }
    (total, accumulator.grads())
}

/// The mean loss over all labelled tokens of some batches, without a graph and without dropout.
pub fn validation_loss(model: &TransformerDecoder, batches: &[Batch]) -> f64 {
    let model = model.valid();
    let losses = batches
        .iter()
        .filter_map(|batch| lm_loss_sum(&model, batch));
    let sum: f64 = losses
        .map(|loss| f64::from(loss.into_scalar::<f32>()))
        .sum();
    let tokens: usize = batches.iter().map(Batch::num_label_tokens).sum();
    sum / tokens.max(1) as f64
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

    /// Another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// One optimizer step over one or more micro-batches.
    ///
    /// The device is seeded by `seed` and the step's number, so a training that was stopped and
    /// resumed draws the same dropout as one that ran through.
    pub fn step(
        &mut self,
        model: TransformerDecoder,
        batches: &[Batch],
    ) -> (TransformerDecoder, StepOutput) {
        seed_step(&model, self.seed, self.step);
        let (loss, mut grads) = accumulate_gradients(&model, batches, self.normalization);
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

fn seed_step(model: &TransformerDecoder, seed: u64, step: usize) {
    let device = model.norm.weight.lazy_device();
    // A step of a Weyl sequence: neighbouring seeds do not meet each other's later steps.
    device.seed(seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
}
