use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Tensor};

use super::clip::{clip_factor, scale_gradients, squared_norm};
use super::experts::add_zeros;
use super::gradients::{lm_loss_sum, micro_batch_gradients, prepare_memory, read_sum};
use super::options::{Activations, GradientOptions, LossNormalization};
use super::{AdamW, AdamWConfig, LrSchedule, Validations};
use crate::data::Batch;
use crate::distributed::{ProcessGroup, SingleProcess, reduce_gradients};
use crate::llama::TransformerDecoder;
use crate::ops::mix;
use crate::{Error, Result};

impl LossNormalization {
    fn divisor(self, batch: &Batch, step: &StepCounts) -> f64 {
        match self {
            Self::StepTokens => step.labels,
            Self::MicroBatchMean => batch.num_label_tokens() as f64 * step.micro_batches,
        }
    }
}

/// What a step has, all members of a group together.
#[derive(Debug, Clone, Copy)]
struct StepCounts {
    /// Tokens with a label.
    labels: f64,
    micro_batches: f64,
    /// Tokens, padding not counted.
    tokens: f64,
    /// The micro-batches of lower ranks.
    micro_batches_before: usize,
}

impl StepCounts {
    fn gather(group: &dyn ProcessGroup, batches: &[Batch]) -> Result<Self> {
        let sum = |count: fn(&Batch) -> usize| batches.iter().map(count).sum::<usize>() as f64;
        let mine = [
            sum(Batch::num_label_tokens),
            batches.len() as f64,
            sum(Batch::num_tokens),
        ];
        let all = group.all_gather(&mine)?;
        let (members, _) = all.as_chunks::<3>();
        let total = |count: usize| members.iter().map(|counts| counts[count]).sum();
        let before = members[..group.rank()].iter().map(|counts| counts[1]);
        Ok(Self {
            labels: total(0),
            micro_batches: total(1),
            tokens: total(2),
            micro_batches_before: before.sum::<f64>() as usize,
        })
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepOutput {
    /// The normalised loss before the update; 0 if no token has a label.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The norm of all gradients before clipping.
    pub grad_norm: f64,
    /// The tokens that went through the model, padding not counted, those of all members of a group
    /// together.
    pub num_tokens: usize,
}

/// The gradients of a step, the same at all members of a group. [`Trainer::update`] applies them.
pub struct StepGradients {
    /// The normalised loss.
    pub loss: f64,
    /// The norm of all gradients.
    pub grad_norm: f64,
    grads: GradientsParams,
    num_tokens: usize,
}

/// The loss and the gradients of a step of several micro-batches.
///
/// # Panics
/// If [`Activations::Recompute`] asks for 0 layers at a time, a chunk of the loss has no rows, or a token's id
/// is not below the model's `vocab_size`: [`check_vocab`](crate::data::check_vocab) tells beforehand.
pub fn accumulate_gradients(
    model: &TransformerDecoder,
    batches: &[Batch],
    options: GradientOptions,
) -> (f64, GradientsParams) {
    let counts = StepCounts::gather(&SingleProcess, batches).expect(ALONE);
    let (losses, grads) = gradients_of(model, batches, counts, options);
    (read_sum(losses), grads)
}

/// The part of a step's loss and gradients that some of its micro-batches make, the loss as parts to
/// add up.
///
/// Dropout follows from the micro-batch's number in the step, whoever makes it.
fn gradients_of(
    model: &TransformerDecoder,
    batches: &[Batch],
    counts: StepCounts,
    options: GradientOptions,
) -> (Vec<Tensor<1>>, GradientsParams) {
    prepare_memory(model, batches, options.loss_chunk_rows);
    let mut accumulator = GradientsAccumulator::new();
    let divisor = |batch| options.normalization.divisor(batch, &counts);
    let scale = loss_scale(model, batches.iter().map(divisor));
    let micro_batches = (counts.micro_batches_before..).zip(batches);
    let losses = micro_batches.flat_map(|(index, batch)| {
        let divisor = divisor(batch) / scale;
        let options = GradientOptions {
            seed: mix(options.seed, index as u64),
            ..options
        };
        micro_batch_gradients(model, batch, divisor, options, &mut accumulator)
    });
    let mut losses: Vec<_> = losses.collect();
    let mut grads = accumulator.grads();
    add_zeros(model, &mut grads);
    if scale != 1.0 {
        losses = losses.into_iter().map(|loss| loss / scale).collect();
        scale_gradients(model, &mut grads, 1.0 / scale);
    }
    (losses, grads)
}

/// What the loss is multiplied by before the backward pass, and the adapters' gradients, which are f32,
/// divided by after it. In f16, whose smallest number is 6e-8, much of the gradient of a mean over thousands
/// of tokens would be zero; that of their sum is not. The scale is a power of two, which rounds nothing, and at
/// most what any micro-batch's sum of losses is divided by. Micikevicius et al.,
/// <https://arxiv.org/abs/1710.03740>, section 3.2.
fn loss_scale(model: &TransformerDecoder, divisors: impl Iterator<Item = f64>) -> f64 {
    match model.tok_embeddings.weight.compute_dtype() {
        DType::F16 => {
            let smallest = divisors.filter(|divisor| *divisor >= 1.0).reduce(f64::min);
            smallest.unwrap_or(1.0).log2().floor().exp2()
        }
        _ => 1.0,
    }
}

const ALONE: &str = "a single process loses no other";

/// The mean loss over all labelled tokens of some batches, without a graph and without dropout.
///
/// # Panics
/// If a token's id is not below the model's `vocab_size`.
pub fn validation_loss(model: &TransformerDecoder, batches: &[Batch]) -> f64 {
    validation_loss_in(&SingleProcess, model, batches).expect(ALONE)
}

/// The same, with the batches dealt out to the members of a group, each of which has all of them.
///
/// # Errors
/// [`Error::PeerLost`] if a member has ended.
///
/// # Panics
/// As [`validation_loss`].
pub fn validation_loss_in(
    group: &dyn ProcessGroup,
    model: &TransformerDecoder,
    batches: &[Batch],
) -> Result<f64> {
    let mine = batches.iter().skip(group.rank()).step_by(group.size());
    let loss: f64 = mine.filter_map(|batch| lm_loss_sum(model, batch)).sum();
    let tokens: usize = batches.iter().map(Batch::num_label_tokens).sum();
    let losses = group.all_gather(&[loss])?;
    Ok(losses.iter().sum::<f64>() / tokens.max(1) as f64)
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
    /// How gradients are formed. From its seed follows that of each step.
    pub options: GradientOptions,
    /// The number of steps done.
    pub step: usize,
    /// The loss of the last step done that was not left out.
    pub last_loss: Option<f64>,
    /// The steps among those done that were left out, see [`skip`](Self::skip).
    pub skipped_steps: usize,
    /// The validations until then.
    pub validations: Validations,
}

impl Trainer {
    /// A training that has not begun.
    pub fn new(config: AdamWConfig, schedule: LrSchedule) -> Self {
        Self {
            optimizer: AdamW::new(config),
            schedule,
            max_grad_norm: None,
            options: GradientOptions::default(),
            step: 0,
            last_loss: None,
            skipped_steps: 0,
            validations: Validations::default(),
        }
    }

    /// Multiplies the learning rate of parameters by name, see [`AdamW::with_lr_factor`].
    pub fn with_lr_factor(mut self, name: impl Into<String>, factor: f64) -> Self {
        self.optimizer = self.optimizer.with_lr_factor(name, factor);
        self
    }

    /// Clips gradients to this norm.
    pub fn with_max_grad_norm(mut self, max_norm: Option<f64>) -> Self {
        self.max_grad_norm = max_norm;
        self
    }

    /// Another normalisation.
    pub fn with_normalization(mut self, normalization: LossNormalization) -> Self {
        self.options.normalization = normalization;
        self
    }

    /// Activations kept or recomputed.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.options.activations = activations;
        self
    }

    /// Noise on the embeddings, see [`GradientOptions::neftune_noise_alpha`].
    pub fn with_neftune_noise_alpha(mut self, alpha: Option<f64>) -> Self {
        self.options.neftune_noise_alpha = alpha;
        self
    }

    /// So many rows of logits at a time: fewer take less memory, more are faster.
    pub fn with_loss_chunk_rows(mut self, rows: usize) -> Self {
        self.options.loss_chunk_rows = rows;
        self
    }

    /// Another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// One optimizer step over one or more micro-batches, in a process that trains alone.
    ///
    /// Dropout follows from the options' seed, the number of the step, the micro-batch and the layer, so a
    /// training that was stopped and resumed draws the same as one that ran through, and one that
    /// recomputes activations the same as one that keeps them.
    ///
    /// # Panics
    /// As [`accumulate_gradients`], and as [`AdamW::step`].
    pub fn step(
        &mut self,
        model: TransformerDecoder,
        batches: &[Batch],
    ) -> (TransformerDecoder, StepOutput) {
        let gradients = self.gradients(&SingleProcess, &model, batches);
        let gradients = gradients.unwrap_or_else(|error| panic!("{error}"));
        self.update(model, gradients)
    }

    /// The first half of a step of all members of a group: its gradients. `batches` are this member's
    /// micro-batches, maybe none.
    ///
    /// Two things go through the group: before the pass the counts of tokens, and after it the sum of
    /// all gradients and the loss, as one vector.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if a member has ended; [`Error::InvalidArgument`] at the first step if the name of a
    /// learning-rate factor is that of no parameter.
    ///
    /// # Panics
    /// As [`accumulate_gradients`].
    pub fn gradients(
        &self,
        group: &dyn ProcessGroup,
        model: &TransformerDecoder,
        batches: &[Batch],
    ) -> Result<StepGradients> {
        let options = GradientOptions {
            seed: mix(self.options.seed, self.step as u64),
            ..self.options
        };
        self.optimizer.check_lr_factors(model)?;
        let counts = StepCounts::gather(group, batches)?;
        let (losses, grads) = gradients_of(model, batches, counts, options);
        let (grads, losses) = match counts.labels > 0.0 {
            true => reduce_gradients(group, model, grads, losses)?,
            // Nobody has a gradient.
            false => (grads, losses),
        };
        // All is on its way before the first number is waited for.
        let squared_norm = squared_norm(model, &grads);
        Ok(StepGradients {
            loss: read_sum(losses),
            grad_norm: read_sum(squared_norm.into_iter().collect()).sqrt(),
            grads,
            num_tokens: counts.tokens as usize,
        })
    }

    /// Checks that loss and gradients are numbers, before an update spoils the adapter.
    ///
    /// # Errors
    /// [`Error::Diverged`] if one is infinite or none.
    pub fn require_finite(&self, gradients: &StepGradients) -> Result<()> {
        let (loss, grad_norm) = (gradients.loss, gradients.grad_norm);
        match loss.is_finite() && grad_norm.is_finite() {
            true => Ok(()),
            false => Err(Error::Diverged {
                step: self.step + 1,
                loss,
                grad_norm,
                skipped: self.skipped_steps,
                records: Vec::new(),
            }),
        }
    }

    /// In the place of [`update`](Self::update), leaves model and optimizer as they are: the step counts as done.
    pub fn skip(&mut self, gradients: StepGradients) -> StepOutput {
        let output = StepOutput {
            loss: gradients.loss,
            lr: self.schedule.lr_at(self.step),
            grad_norm: gradients.grad_norm,
            num_tokens: gradients.num_tokens,
        };
        self.step += 1;
        self.skipped_steps += 1;
        output
    }

    /// The second half of a step: clipping and the optimizer's update.
    pub fn update(
        &mut self,
        model: TransformerDecoder,
        gradients: StepGradients,
    ) -> (TransformerDecoder, StepOutput) {
        let StepGradients {
            loss,
            grad_norm,
            grads,
            num_tokens,
        } = gradients;
        let clipped = |max_norm| clip_factor(grad_norm, max_norm);
        let grad_scale = self.max_grad_norm.map_or(1.0, clipped);
        let lr = self.schedule.lr_at(self.step);
        let model = self.optimizer.step_scaled(lr, grad_scale, model, grads);
        self.step += 1;
        self.last_loss = Some(loss);
        let output = StepOutput {
            loss,
            lr,
            grad_norm,
            num_tokens,
        };
        (model, output)
    }
}
