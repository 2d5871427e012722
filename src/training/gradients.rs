//! Loss and gradients of a micro-batch, with the logits in chunks and, if asked, with the
//! activations of a few layers at a time.
//!
//! ```text
//! forward    ids ─► h₀ ─► layer ─► h₁ ─► ... ─► layer ─► top
//! head       rows of top with a label ─► norm ─► output ─► loss, ∂loss/∂top; some rows at a time
//! backward   ∂loss/∂top ─► layer ─► ... ─► the lowest layer with something to train
//! ```
//!
//! A loss over whole samples takes the head twice: first for the samples' log-probabilities, then, once the loss has said
//! what each is worth, for the gradients.

use std::ops::Range;

use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Gradients, Int, Tensor};

use super::hidden_states::HiddenStates;
use super::log_probs::{
    SampleLogProb, TokenLogProb, log_probs, sample_log_probs_of, token_log_probs,
};
use super::neftune::Noise;
use super::options::{Activations, GradientOptions, LOSS_CHUNK_ROWS};
use super::sequence_loss::SequenceLoss;
use crate::adapter::initialize_params;
use crate::data::{Batch, IGNORE_INDEX};
use crate::ops::{backward_from, cross_entropy_sum};
use crate::weight::is_trained;

/// The loss of a micro-batch, `sum of cross entropies / divisor` or that of its samples, in parts that are still on the
/// device, so that nothing waits for it; none if no token of the batch has a label. The gradients are
/// added to `accumulator`.
///
/// Each layer's dropout follows from the seed and the layer's index, so that a layer that is computed
/// again drops the same elements.
pub(super) fn micro_batch_gradients<M: HiddenStates>(
    model: &M,
    batch: &Batch,
    loss: Option<&dyn SequenceLoss<M>>,
    divisor: f64,
    options: GradientOptions,
    accumulator: &mut GradientsAccumulator<M>,
) -> Vec<Tensor<1>> {
    let mut pass = Backward {
        forward: Forward::new(model, batch, options.seed).with_noise(Noise::of(
            batch,
            options.neftune_noise_alpha,
            options.seed,
        )),
        loss,
        divisor,
        loss_chunk_rows: options.loss_chunk_rows,
        accumulator,
    };
    match options.activations {
        Activations::Keep => pass.keep(batch),
        Activations::Recompute { layers } => pass.recompute(batch, layers),
    }
    .unwrap_or_default()
}

/// The sum of a loss's parts. This waits for the device.
pub(super) fn read_sum(parts: Vec<Tensor<1>>) -> f64 {
    match parts.is_empty() {
        true => 0.0,
        false => Tensor::cat(parts, 0).into_data().iter::<f64>().sum(),
    }
}

/// The sum of a batch's next-token losses, without a graph and without dropout; none if no token
/// of the batch has a label.
///
/// # Panics
/// If a token's id is not below the model's `vocab_size`.
pub fn lm_loss_sum<M: HiddenStates>(model: &M, batch: &Batch) -> Option<f64> {
    let model = model.valid();
    let forward = Forward::new(&model, batch, 0);
    let predictions = Predictions::new(batch, forward.top())?;
    let losses = predictions
        .chunks(LOSS_CHUNK_ROWS)
        .map(|chunk| forward.loss(chunk));
    Some(read_sum(losses.collect()))
}

/// What a model says of each sample's labelled tokens, without a graph and without dropout: row by row, and in a packed row
/// one after the other.
///
/// # Panics
/// If a token's id is not below the model's `vocab_size`.
pub fn sample_log_probs<M: HiddenStates>(model: &M, batch: &Batch) -> Vec<SampleLogProb> {
    let model = model.valid();
    let forward = Forward::new(&model, batch, 0);
    let predictions = Predictions::new(batch, forward.top());
    let tokens = predictions.map(|all| forward.log_probs(&all, LOSS_CHUNK_ROWS));
    sample_log_probs_of(batch, &tokens.unwrap_or_default())
}

/// A forward pass over one batch.
struct Forward<'a, M: HiddenStates> {
    model: &'a M,
    pass: M::Pass,
    /// What is added to the embeddings.
    noise: Option<Noise<'a>>,
}

impl<'a, M: HiddenStates> Forward<'a, M> {
    fn new(model: &'a M, batch: &Batch, seed: u64) -> Self {
        assert_in_vocab(batch, model.vocab_size());
        let pass = model.start(batch, seed);
        Self {
            model,
            pass,
            noise: None,
        }
    }

    fn with_noise(self, noise: Option<Noise<'a>>) -> Self {
        Self { noise, ..self }
    }

    fn embed(&self) -> Tensor<3> {
        let embedded = self.model.embed(&self.pass);
        match &self.noise {
            Some(noise) => noise.added_to(embedded),
            None => embedded,
        }
    }

    fn layers(&self, indices: Range<usize>, x: Tensor<3>) -> Tensor<3> {
        indices.fold(x, |x, index| self.model.layer(index, x, &self.pass))
    }

    /// The hidden states after the last layer.
    fn top(&self) -> Tensor<3> {
        self.layers(0..self.model.num_layers(), self.embed())
    }

    fn logits(&self, chunk: Chunk) -> Tensor<2> {
        self.model.logits(chunk.hidden, chunk.rows, &self.pass)
    }

    /// The summed loss of some hidden states.
    fn loss(&self, chunk: Chunk) -> Tensor<1> {
        let (targets, weights) = (chunk.targets.clone(), chunk.weights.clone());
        let logits = self.logits(chunk);
        match weights {
            None => cross_entropy_sum(logits, targets),
            Some(weights) => (log_probs(logits, targets) * weights).sum().neg(),
        }
    }

    /// What the model says of each prediction, so many at a time.
    fn log_probs(&self, predictions: &Predictions, chunk_rows: usize) -> Vec<TokenLogProb> {
        let said = predictions.chunks(chunk_rows).flat_map(|chunk| {
            let targets = chunk.targets.clone();
            token_log_probs(self.logits(chunk), targets)
        });
        let said = said.zip(&predictions.samples);
        said.map(|((log_prob, is_greedy), sample)| TokenLogProb {
            sample: *sample,
            log_prob,
            is_greedy,
        })
        .collect()
    }
}

/// A GPU reads foreign memory for an id without a row in the embedding.
fn assert_in_vocab(batch: &Batch, vocab_size: usize) {
    let labels = batch.labels.iter().filter(|id| **id != IGNORE_INDEX);
    for &id in batch.input_ids.iter().chain(labels) {
        let fits = usize::try_from(id).is_ok_and(|id| id < vocab_size);
        assert!(
            fits,
            "token id {id} in a vocabulary of {vocab_size}, in a sample (see `check_vocab`) or as padding"
        );
    }
}

/// A forward pass with its backward pass.
struct Backward<'a, M: HiddenStates> {
    forward: Forward<'a, M>,
    /// The loss over whole samples, if it is not the tokens' own.
    loss: Option<&'a dyn SequenceLoss<M>>,
    divisor: f64,
    loss_chunk_rows: usize,
    accumulator: &'a mut GradientsAccumulator<M>,
}

impl<M: HiddenStates> Backward<'_, M> {
    fn keep(&mut self, batch: &Batch) -> Option<Vec<Tensor<1>>> {
        let top = self.forward.top();
        let (losses, grad) = self.head(batch, top.clone())?;
        self.backward(top, grad, None);
        Some(losses)
    }

    fn recompute(&mut self, batch: &Batch, group: usize) -> Option<Vec<Tensor<1>>> {
        assert!(group > 0, "at least one layer must be recomputed at a time");
        let model = self.forward.model;
        // Freezing a clone of a parameter that has no value yet would freeze the parameter itself.
        initialize_params(model);
        let mut inputs = Vec::new();
        let mut x = self.forward.embed().detach();
        let num_layers = model.num_layers();
        for index in 0..num_layers {
            if index.is_multiple_of(group) {
                inputs.push((index..(index + group).min(num_layers), x.clone()));
            }
            x = model.untracked_layer(index, x, &self.forward.pass);
        }
        let (losses, mut grad) = self.head(batch, x)?;
        for (indices, input) in inputs.into_iter().rev() {
            let is_lowest = !model.trains_below(indices.start);
            let input = input.set_require_grad(!is_lowest);
            let output = self.forward.layers(indices, input.clone());
            match self.backward(output, grad, Some(input).filter(|_| !is_lowest)) {
                Some(input_grad) => grad = input_grad,
                None => return Some(losses),
            }
        }
        self.backward(self.forward.embed(), grad, None);
        Some(losses)
    }

    /// The loss, chunk by chunk, and its gradient for the hidden states after the last layer. The
    /// gradients of the head's own parameters are accumulated.
    fn head(&mut self, batch: &Batch, top: Tensor<3>) -> Option<(Vec<Tensor<1>>, Tensor<3>)> {
        let mut predictions = Predictions::new(batch, top)?;
        let of_samples = self.loss.map(|loss| {
            let (value, weights) = self.weigh(loss, batch, &predictions);
            predictions.weights = Some(weights);
            vec![value / self.divisor]
        });
        let (mut losses, mut row_grads) = (Vec::new(), Vec::new());
        for chunk in predictions.chunks(self.loss_chunk_rows) {
            let rows = chunk.hidden.require_grad();
            let chunk = Chunk {
                hidden: rows.clone(),
                ..chunk
            };
            let chunk = self.forward.loss(chunk) / self.divisor;
            let mut grads = chunk.backward();
            losses.push(chunk.inner());
            let grad = rows.grad_remove(&mut grads);
            row_grads.push(grad.expect("the rows are leaves of the graph"));
            self.accumulate(&mut grads);
        }
        let losses = of_samples.unwrap_or(losses);
        Some((losses, predictions.scatter(row_grads)))
    }

    /// The loss of a batch's samples, and what the cross entropy of each of their tokens is worth to it: the negative of the
    /// loss's derivative by the sample's log-probability.
    fn weigh(
        &self,
        loss: &dyn SequenceLoss<M>,
        batch: &Batch,
        predictions: &Predictions,
    ) -> (Tensor<1>, Vec<f32>) {
        let (forward, device) = (&self.forward, predictions.hidden.device());
        let Forward { model, pass, .. } = forward;
        model.seed_logits(pass);
        let tokens = forward.log_probs(predictions, self.loss_chunk_rows);
        let samples = sample_log_probs_of(batch, &tokens);
        let log_probs: Vec<f32> = samples
            .iter()
            .map(|sample| sample.log_prob as f32)
            .collect();
        let log_probs = Tensor::<1>::from_floats(&log_probs[..], &device).require_grad();
        let value = loss.sum(model, batch, &samples, log_probs.clone());
        let mut grads = value.backward();
        let by_sample = log_probs.grad_remove(&mut grads).map(|grad| {
            let grad = grad.into_data();
            grad.iter::<f32>().collect::<Vec<_>>()
        });
        let by_sample = by_sample.unwrap_or_else(|| vec![0.0; samples.len()]);
        let of_tokens = tokens.iter().map(|token| -by_sample[token.sample]);
        // The gradients are those of the same dropout.
        model.seed_logits(pass);
        (value.inner(), of_tokens.collect())
    }

    /// Sends `grad` back from `output`, accumulates the gradients of the parameters on the way, and
    /// returns that of `input`.
    fn backward(
        &mut self,
        output: Tensor<3>,
        grad: Tensor<3>,
        input: Option<Tensor<3>>,
    ) -> Option<Tensor<3>> {
        if !output.is_tracked() {
            return None;
        }
        let mut grads = backward_from(output, grad);
        self.accumulate(&mut grads);
        input?.grad_remove(&mut grads)
    }

    /// Adds the gradients of the parameters.
    fn accumulate(&mut self, grads: &mut Gradients) {
        let model = self.forward.model;
        let mut of_params = OfParams {
            grads,
            params: GradientsParams::new(),
        };
        model.visit(&mut of_params);
        self.accumulator.accumulate(model, of_params.params);
    }
}

/// The hidden states that predict a token with a label.
struct Predictions {
    /// `[batch · seq, dim]`, outside of the graph.
    hidden: Tensor<2>,
    shape: [usize; 3],
    /// Their places in `hidden`, their rows in the batch, and the labels.
    places: Vec<i32>,
    rows: Vec<usize>,
    targets: Vec<i32>,
    /// The sample of each, counted over all rows.
    samples: Vec<usize>,
    /// What the cross entropy of each is multiplied by, if not by 1.
    weights: Option<Vec<f32>>,
}

/// Some of them.
struct Chunk<'a> {
    /// `[size, dim]`.
    hidden: Tensor<2>,
    /// `[size]`.
    targets: Tensor<1, Int>,
    /// `[size]`.
    weights: Option<Tensor<1>>,
    /// The rows of the batch that they come from.
    rows: &'a [usize],
}

impl Predictions {
    /// None if no token has a label.
    fn new(batch: &Batch, top: Tensor<3>) -> Option<Self> {
        let (places, targets) = batch.predictions();
        let shape @ [batch_size, seq, dim] = top.dims();
        let row_of = |place: &i32| *place as usize / seq;
        (!places.is_empty()).then(|| Self {
            hidden: top.detach().reshape([batch_size * seq, dim]),
            shape,
            rows: places.iter().map(row_of).collect(),
            samples: samples_of(batch, &places),
            weights: None,
            places,
            targets,
        })
    }

    /// So many at a time, the last chunk maybe shorter.
    fn chunks(&self, size: usize) -> impl Iterator<Item = Chunk<'_>> {
        let device = self.hidden.device();
        let places = self.places.chunks(size);
        let parts = places.zip(self.targets.chunks(size)).enumerate();
        parts.map(move |(index, (places, targets))| {
            let part = index * size..index * size + places.len();
            let weights = self.weights.as_ref();
            let weights = weights.map(|all| Tensor::from_floats(&all[part.clone()], &device));
            let places = Tensor::from_ints(places, &device);
            Chunk {
                hidden: self.hidden.clone().select(0, places),
                targets: Tensor::from_ints(targets, &device),
                weights,
                rows: &self.rows[part],
            }
        })
    }

    /// The gradients of the rows at their places, zero elsewhere: each place takes its row, or a row
    /// of zeros after the last. Adding rows to their places is slow on a GPU, which cannot know that
    /// no two have the same.
    fn scatter(&self, mut row_grads: Vec<Tensor<2>>) -> Tensor<3> {
        let [batch, seq, dim] = self.shape;
        let (device, dtype) = (row_grads[0].device(), row_grads[0].dtype());
        row_grads.push(Tensor::zeros([1, dim], (&device, dtype)));
        let mut sources = vec![self.places.len() as i32; batch * seq];
        for (source, place) in (0..).zip(&self.places) {
            sources[*place as usize] = source;
        }
        let sources = Tensor::<1, Int>::from_ints(&sources[..], &device);
        Tensor::cat(row_grads, 0)
            .select(0, sources)
            .reshape(self.shape)
    }
}

/// The sample of each of some positions, which are counted over all rows of a batch.
fn samples_of(batch: &Batch, positions: &[i32]) -> Vec<usize> {
    let mut of_positions = vec![0; batch.batch_size * batch.seq_len];
    let mut sample = 0;
    for (row, lengths) in batch.segments.iter().enumerate() {
        let mut start = row * batch.seq_len;
        for length in lengths {
            of_positions[start..start + length].fill(sample);
            (start, sample) = (start + length, sample + 1);
        }
    }
    let positions = positions.iter();
    positions
        .map(|position| of_positions[*position as usize])
        .collect()
}

/// Takes the gradients of parameters out of all gradients, as [`GradientsParams::from_module`] does, which would decode
/// packed weights.
struct OfParams<'a> {
    grads: &'a mut Gradients,
    params: GradientsParams,
}

impl ModuleVisitor for OfParams<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if is_trained(param)
            && let Some(grad) = param.val().grad_remove(self.grads)
        {
            self.params.register(param.id, grad);
        }
    }
}
