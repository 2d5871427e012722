use std::collections::HashMap;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Tensor};
use indexmap::IndexMap;

use super::clip::{clip_factor, grad_norm, param_norms, scale_each, scale_gradients, squared_norm};
use super::gradients::{lm_loss_sum, micro_batch_gradients, read_sum};
use super::hidden_states::HiddenStates;
use super::options::{Activations, GradientOptions, LossNormalization};
use super::sequence_loss::SequenceLoss;
use super::{AdamW, AdamWConfig, LrSchedule, Validations};
use crate::adapter::get_params;
use crate::data::Batch;
use crate::distributed::{ProcessGroup, SingleProcess, reduce_gradients};
use crate::ops::mix;
use crate::{Error, Result};

/// What a step's loss is divided by, for one of its micro-batches.
fn divisor<M>(
    normalization: LossNormalization,
    loss: Option<&dyn SequenceLoss<M>>,
    batch: &Batch,
    step: &StepCounts,
) -> f64 {
    match normalization {
        LossNormalization::StepTokens => step.losses,
        LossNormalization::MicroBatchMean => losses_of(loss, batch) as f64 * step.micro_batches,
    }
}

/// How many losses a batch has: of tokens with a label, or of samples.
fn losses_of<M>(loss: Option<&dyn SequenceLoss<M>>, batch: &Batch) -> usize {
    loss.map_or_else(|| batch.num_label_tokens(), |loss| loss.count(batch))
}

/// What a step has, all members of a group together.
#[derive(Debug, Clone, Copy)]
struct StepCounts {
    /// Losses that are summed.
    losses: f64,
    micro_batches: f64,
    /// Tokens, padding not counted.
    tokens: f64,
    /// The micro-batches of lower ranks.
    micro_batches_before: usize,
}

impl StepCounts {
    fn gather<M>(
        group: &dyn ProcessGroup,
        batches: &[Batch],
        loss: Option<&dyn SequenceLoss<M>>,
    ) -> Result<Self> {
        let losses: usize = batches.iter().map(|batch| losses_of(loss, batch)).sum();
        let tokens: usize = batches.iter().map(Batch::num_tokens).sum();
        let mine = [losses as f64, batches.len() as f64, tokens as f64];
        let all = group.all_gather(&mine)?;
        let (members, _) = all.as_chunks::<3>();
        let total = |count: usize| members.iter().map(|counts| counts[count]).sum();
        let before = members[..group.rank()].iter().map(|counts| counts[1]);
        let losses = total(0);
        if losses == 0.0 {
            let message = "no token of the step has a label, so there is nothing to learn: leave out records without \
                           labels, such as those that `max_seq_len` cuts before their answers";
            return Err(nothing("labels", message));
        }
        Ok(Self {
            losses,
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
    /// The normalised loss before the update.
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

impl StepGradients {
    /// The gradients, by the parameters' ids.
    pub fn params(&self) -> &GradientsParams {
        &self.grads
    }

    /// The norms of the gradients of single parameters, by their names in the state dict of `model`, in its order.
    pub fn norms<M: Module>(&self, model: &M) -> IndexMap<String, f64> {
        param_norms(model, &self.grads)
    }

    /// The norms of all gradients of each layer: of all parameters that begin with `layers.0`, and so on; what belongs to
    /// no layer stands under the name of its own module.
    pub fn layer_norms<M: Module>(&self, model: &M) -> IndexMap<String, f64> {
        let mut squares = IndexMap::new();
        for (name, norm) in self.norms(model) {
            *squares.entry(layer_of(&name)).or_insert(0.0) += norm * norm;
        }
        let norms = squares.into_iter();
        norms
            .map(|(layer, square): (_, f64)| (layer, square.sqrt()))
            .collect()
    }

    /// Multiplies each parameter's gradient by what `factor` gives for its name; [`Self::grad_norm`] becomes that of the new
    /// gradients.
    pub fn scale<M: Module>(&mut self, model: &M, factor: impl Fn(&str) -> f64) {
        let params = get_params(model);
        let factors = params.iter().map(|(name, info)| (info.id, factor(name)));
        let factors: HashMap<_, _> = factors.collect();
        self.edit(model, |grads| {
            scale_each(model, grads, |id| factors.get(&id).copied().unwrap_or(1.0));
        });
    }

    /// Changes the gradients in any way; [`Self::grad_norm`] becomes that of the new ones. Members of a group must all do the
    /// same.
    pub fn edit<M: Module>(&mut self, model: &M, change: impl FnOnce(&mut GradientsParams)) {
        change(&mut self.grads);
        self.grad_norm = grad_norm(model, &self.grads);
    }
}

/// The module of a layer's parameter: the path up to the first number.
fn layer_of(name: &str) -> String {
    let mut parts = name.split('.');
    let is_index = |part: &&str| part.parse::<usize>().is_ok();
    match parts.position(|part| is_index(&part)) {
        Some(index) => name
            .split('.')
            .take(index + 1)
            .collect::<Vec<_>>()
            .join("."),
        None => name.split('.').next().unwrap_or_default().to_owned(),
    }
}

/// The loss and the gradients of a step of several micro-batches.
///
/// # Panics
/// If [`Activations::Recompute`] asks for 0 layers at a time, a chunk of the loss has no rows, no token has a label, or a
/// token's id is not below the model's `vocab_size`: [`check_vocab`](crate::data::check_vocab) tells beforehand.
pub fn accumulate_gradients<M: HiddenStates>(
    model: &M,
    batches: &[Batch],
    options: GradientOptions,
) -> (f64, GradientsParams) {
    let counts = StepCounts::gather::<M>(&SingleProcess, batches, None);
    let counts = counts.unwrap_or_else(|error| panic!("{error}"));
    let (losses, grads) = gradients_of(model, batches, None, counts, options);
    (read_sum(losses), grads)
}

/// The part of a step's loss and gradients that some of its micro-batches make, the loss as parts to
/// add up.
///
/// Dropout follows from the micro-batch's number in the step, whoever makes it.
fn gradients_of<M: HiddenStates>(
    model: &M,
    batches: &[Batch],
    loss: Option<&dyn SequenceLoss<M>>,
    counts: StepCounts,
    options: GradientOptions,
) -> (Vec<Tensor<1>>, GradientsParams) {
    model.prepare(batches, options.loss_chunk_rows);
    let mut accumulator = GradientsAccumulator::new();
    let divisor = |batch| divisor(options.normalization, loss, batch, &counts);
    let scale = loss_scale(model, batches.iter().map(divisor));
    let micro_batches = (counts.micro_batches_before..).zip(batches);
    let losses = micro_batches.flat_map(|(index, batch)| {
        let divisor = divisor(batch) / scale;
        let options = GradientOptions {
            seed: mix(options.seed, index as u64),
            ..options
        };
        micro_batch_gradients(model, batch, loss, divisor, options, &mut accumulator)
    });
    let mut losses: Vec<_> = losses.collect();
    let mut grads = accumulator.grads();
    model.complete(&mut grads);
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
fn loss_scale<M: HiddenStates>(model: &M, divisors: impl Iterator<Item = f64>) -> f64 {
    match model.compute_dtype() {
        DType::F16 => {
            let smallest = divisors.filter(|divisor| *divisor >= 1.0).reduce(f64::min);
            smallest.unwrap_or(1.0).log2().floor().exp2()
        }
        _ => 1.0,
    }
}

fn nothing(name: &'static str, message: &str) -> Error {
    let message = message.to_owned();
    Error::InvalidArgument { name, message }
}

/// The mean loss over all labelled tokens of some batches, without a graph and without dropout.
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no batch, or no token has a label.
///
/// # Panics
/// If a token's id is not below the model's `vocab_size`.
pub fn validation_loss<M: HiddenStates>(model: &M, batches: &[Batch]) -> Result<f64> {
    validation_loss_in(&SingleProcess, model, batches)
}

/// The same, with the batches dealt out to the members of a group, each of which has all of them.
///
/// # Errors
/// As [`validation_loss`], and [`Error::PeerLost`] if a member has ended.
///
/// # Panics
/// As [`validation_loss`].
pub fn validation_loss_in<M: HiddenStates>(
    group: &dyn ProcessGroup,
    model: &M,
    batches: &[Batch],
) -> Result<f64> {
    let tokens: usize = batches.iter().map(Batch::num_label_tokens).sum();
    if tokens == 0 {
        let message =
            "there is nothing to validate on: give records that have a token with a label";
        return Err(nothing("batches", message));
    }
    let mine = batches.iter().skip(group.rank()).step_by(group.size());
    let loss: f64 = mine.filter_map(|batch| lm_loss_sum(model, batch)).sum();
    let losses = group.all_gather(&[loss])?;
    Ok(losses.iter().sum::<f64>() / tokens as f64)
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

    /// Divides the loss of a step in another way, see [`LossNormalization`].
    pub fn with_normalization(mut self, normalization: LossNormalization) -> Self {
        self.options.normalization = normalization;
        self
    }

    /// Keeps activations for the backward pass, or computes them again there, see [`Activations`].
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

    /// Draws the dropout and the noise of the steps by another [seed](GradientOptions::seed).
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
    /// As [`accumulate_gradients`], and as [`AdamW::step`]. Where no token has a label, [`Self::gradients`] gives an error.
    pub fn step<M: HiddenStates>(&mut self, model: M, batches: &[Batch]) -> (M, StepOutput) {
        let gradients = self.gradients(&SingleProcess, &model, batches);
        let gradients = gradients.unwrap_or_else(|error| panic!("{error}"));
        self.update(model, gradients)
    }

    /// The same step by another loss than the cross entropy, over whole samples: [`Dpo`](super::Dpo), or one of your own.
    ///
    /// # Panics
    /// As [`Self::step`], and as the loss.
    pub fn step_by<M: HiddenStates>(
        &mut self,
        loss: &dyn SequenceLoss<M>,
        model: M,
        batches: &[Batch],
    ) -> (M, StepOutput) {
        let gradients = self.gradients_by(Some(loss), &SingleProcess, &model, batches);
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
    /// [`Error::PeerLost`] if a member has ended; [`Error::InvalidArgument`] if no token of any member has a label, and at
    /// the first step if the name of a learning-rate factor is that of no parameter.
    ///
    /// # Panics
    /// As [`accumulate_gradients`].
    pub fn gradients<M: HiddenStates>(
        &self,
        group: &dyn ProcessGroup,
        model: &M,
        batches: &[Batch],
    ) -> Result<StepGradients> {
        self.gradients_by(None, group, model, batches)
    }

    /// The same by a loss over whole samples, if one is given.
    ///
    /// # Errors
    /// As [`Self::gradients`].
    ///
    /// # Panics
    /// As [`accumulate_gradients`], and as the loss.
    pub fn gradients_by<M: HiddenStates>(
        &self,
        loss: Option<&dyn SequenceLoss<M>>,
        group: &dyn ProcessGroup,
        model: &M,
        batches: &[Batch],
    ) -> Result<StepGradients> {
        let options = GradientOptions {
            seed: mix(self.options.seed, self.step as u64),
            ..self.options
        };
        self.optimizer.check_lr_factors(model)?;
        let counts = StepCounts::gather(group, batches, loss)?;
        let (losses, grads) = gradients_of(model, batches, loss, counts, options);
        let (grads, losses) = reduce_gradients(group, model, grads, losses)?;
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
    pub fn update<M: Module>(&mut self, model: M, gradients: StepGradients) -> (M, StepOutput) {
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
