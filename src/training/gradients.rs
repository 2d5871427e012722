//! Loss and gradients of a micro-batch, with the logits in chunks and, if asked, with the
//! activations of a few layers at a time.
//!
//! ```text
//! forward    ids ─► h₀ ─► layer ─► h₁ ─► ... ─► layer ─► top
//! head       rows of top with a label ─► norm ─► output ─► loss, ∂loss/∂top; some rows at a time
//! backward   ∂loss/∂top ─► layer ─► ... ─► the lowest layer with something to train
//! ```

use std::ops::Range;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Int, Tensor};

use super::GradientOptions;
use crate::adapter::initialize_params;
use crate::data::{Batch, IGNORE_INDEX};
use crate::llama::{AttentionMask, RotaryEmbedding, TransformerDecoder, TransformerDecoderLayer};
use crate::ops::{self, backward_from, compute_dtype, cross_entropy_sum, mix, seed_dropout};

/// How many rows of logits exist at a time, unless a step says otherwise: enough for each row of
/// the output weight to be read from memory once for many products.
pub(super) const LOSS_CHUNK_ROWS: usize = 256;

/// Where the backward pass gets the layers' activations from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// The forward pass keeps them all.
    #[default]
    Keep,
    /// The forward pass keeps the hidden state before every so many layers; the backward pass
    /// recomputes the rest, these layers at a time (activation checkpointing). Chen et al.,
    /// <https://arxiv.org/abs/1604.06174>.
    Recompute {
        /// How many layers are recomputed at a time, at least 1.
        layers: usize,
    },
}

/// The loss of a micro-batch, `sum of cross entropies / divisor`, in parts that are still on the
/// device, so that nothing waits for it; none if no token of the batch has a label. The gradients are
/// added to `accumulator`.
///
/// Each layer's dropout follows from the seed and the layer's index, so that a layer that is computed
/// again drops the same elements.
pub(super) fn micro_batch_gradients(
    model: &TransformerDecoder,
    batch: &Batch,
    divisor: f64,
    options: GradientOptions,
    accumulator: &mut GradientsAccumulator<TransformerDecoder>,
) -> Vec<Tensor<1>> {
    let mut pass = Backward {
        forward: Forward::new(model, batch, options.seed),
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

/// Lets the memory pool of a GPU hold the largest buffers of a step on these batches.
pub(super) fn prepare_memory(
    model: &TransformerDecoder,
    batches: &[Batch],
    loss_chunk_rows: usize,
) {
    let (config, device) = (&model.config, model.norm.weight.lazy_device());
    let tokens = |batch: &Batch| batch.batch_size * batch.seq_len;
    let tokens = batches.iter().map(tokens).max().unwrap_or(0);
    let widest = config
        .intermediate_dim
        .max(config.num_heads * config.head_dim);
    let dtype = compute_dtype(&device, model.tok_embeddings.weight.val().dtype());
    let activations = tokens * widest.max(config.embed_dim) * dtype.size();
    let logits = tokens.min(loss_chunk_rows) * config.vocab_size * size_of::<f32>();
    ops::prepare_memory(&device, activations.max(logits) as u64);
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
pub fn lm_loss_sum(model: &TransformerDecoder, batch: &Batch) -> Option<f64> {
    let model = model.valid();
    let forward = Forward::new(&model, batch, 0);
    let top = forward.layers(0..model.layers.len(), forward.embed());
    let predictions = Predictions::new(batch, top)?;
    let losses = predictions
        .chunks(LOSS_CHUNK_ROWS)
        .map(|(rows, targets)| head_loss(&model, rows, targets));
    Some(read_sum(losses.collect()))
}

/// The parts of a forward pass over one batch.
struct Forward<'a> {
    model: &'a TransformerDecoder,
    ids: Tensor<2, Int>,
    rope: RotaryEmbedding,
    mask: AttentionMask,
    seed: u64,
}

impl<'a> Forward<'a> {
    fn new(model: &'a TransformerDecoder, batch: &Batch, seed: u64) -> Self {
        assert_in_vocab(batch, model.config.vocab_size);
        let device = model.norm.weight.lazy_device();
        let ids = batch.input_tensor(&device);
        let (rope, mask) = positions(model, batch, &device);
        Self {
            model,
            ids,
            rope,
            mask,
            seed,
        }
    }

    fn embed(&self) -> Tensor<3> {
        self.model.tok_embeddings.forward(self.ids.clone())
    }

    fn layers(&self, indices: Range<usize>, x: Tensor<3>) -> Tensor<3> {
        indices.fold(x, |x, index| {
            self.layer(index, &self.model.layers[index], x)
        })
    }

    fn layer(&self, index: usize, layer: &TransformerDecoderLayer, x: Tensor<3>) -> Tensor<3> {
        seed_dropout(mix(self.seed, index as u64));
        layer.forward(x, &self.rope, &self.mask, None)
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

/// Rotations and mask of a batch, from what is known of it without reading from the device.
fn positions(
    model: &TransformerDecoder,
    batch: &Batch,
    device: &Device,
) -> (RotaryEmbedding, AttentionMask) {
    let (segments, seq_len) = (&batch.segments, batch.seq_len);
    let rope = match batch.is_packed() {
        true => RotaryEmbedding::within_segments(&model.config, segments, seq_len, device),
        false => RotaryEmbedding::new(&model.config, 0, seq_len, device),
    };
    let mask = match batch.is_packed() || batch.is_padded() {
        true => AttentionMask::within_segments(segments, seq_len),
        false => AttentionMask::causal(0, seq_len),
    };
    (rope, mask)
}

/// A forward pass with its backward pass.
struct Backward<'a> {
    forward: Forward<'a>,
    divisor: f64,
    loss_chunk_rows: usize,
    accumulator: &'a mut GradientsAccumulator<TransformerDecoder>,
}

impl Backward<'_> {
    fn keep(&mut self, batch: &Batch) -> Option<Vec<Tensor<1>>> {
        let all = 0..self.forward.model.layers.len();
        let top = self.forward.layers(all, self.forward.embed());
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
        for (index, layer) in model.layers.iter().enumerate() {
            if index.is_multiple_of(group) {
                inputs.push((index..(index + group).min(model.layers.len()), x.clone()));
            }
            x = self.forward.layer(index, &layer.clone().no_grad(), x);
        }
        let (losses, mut grad) = self.head(batch, x)?;
        for (indices, input) in inputs.into_iter().rev() {
            let is_lowest = !self.trains_below(indices.start);
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
        let model = self.forward.model;
        let predictions = Predictions::new(batch, top)?;
        let (mut losses, mut row_grads) = (Vec::new(), Vec::new());
        for (rows, targets) in predictions.chunks(self.loss_chunk_rows) {
            let rows = rows.require_grad();
            let chunk = head_loss(model, rows.clone(), targets) / self.divisor;
            let mut grads = chunk.backward();
            losses.push(chunk.inner());
            let grad = rows.grad_remove(&mut grads);
            row_grads.push(grad.expect("the rows are leaves of the graph"));
            self.accumulate(GradientsParams::from_module(&mut grads, model));
        }
        Some((losses, predictions.scatter(row_grads)))
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
        self.accumulate(GradientsParams::from_module(&mut grads, self.forward.model));
        input?.grad_remove(&mut grads)
    }

    fn accumulate(&mut self, grads: GradientsParams) {
        self.accumulator.accumulate(self.forward.model, grads);
    }

    /// Whether the embedding or a layer before `end` has a parameter to train.
    fn trains_below(&self, end: usize) -> bool {
        let model = self.forward.model;
        is_trained(&model.tok_embeddings) || model.layers[..end].iter().any(is_trained)
    }
}

/// The hidden states that predict a token with a label.
struct Predictions {
    /// `[batch · seq, dim]`, outside of the graph.
    hidden: Tensor<2>,
    shape: [usize; 3],
    /// Their rows in `hidden`, and the labels.
    rows: Vec<i32>,
    targets: Vec<i32>,
}

impl Predictions {
    /// None if no token has a label.
    fn new(batch: &Batch, top: Tensor<3>) -> Option<Self> {
        let (rows, targets) = batch.predictions();
        let shape @ [batch_size, seq, dim] = top.dims();
        (!rows.is_empty()).then(|| Self {
            hidden: top.detach().reshape([batch_size * seq, dim]),
            shape,
            rows,
            targets,
        })
    }

    /// Rows, `[size, dim]`, and targets, `[size]`, the last chunk maybe shorter.
    fn chunks(&self, size: usize) -> impl Iterator<Item = (Tensor<2>, Tensor<1, Int>)> {
        let device = self.hidden.device();
        let rows = self.rows.chunks(size);
        rows.zip(self.targets.chunks(size))
            .map(move |(rows, targets)| {
                let rows = Tensor::from_ints(rows, &device);
                let targets = Tensor::from_ints(targets, &device);
                (self.hidden.clone().select(0, rows), targets)
            })
    }

    /// The gradients of the rows at their places, zero elsewhere: each place takes its row, or a row
    /// of zeros after the last. Adding rows to their places is slow on a GPU, which cannot know that
    /// no two have the same.
    fn scatter(&self, mut row_grads: Vec<Tensor<2>>) -> Tensor<3> {
        let [batch, seq, dim] = self.shape;
        let (device, dtype) = (row_grads[0].device(), row_grads[0].dtype());
        row_grads.push(Tensor::zeros([1, dim], (&device, dtype)));
        let mut sources = vec![self.rows.len() as i32; batch * seq];
        for (source, row) in (0..).zip(&self.rows) {
            sources[*row as usize] = source;
        }
        let sources = Tensor::<1, Int>::from_ints(&sources[..], &device);
        Tensor::cat(row_grads, 0)
            .select(0, sources)
            .reshape(self.shape)
    }
}

/// The summed loss of some rows of hidden states, `[n, dim]`.
fn head_loss(model: &TransformerDecoder, rows: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let normed = model.norm.forward(rows.unsqueeze());
    cross_entropy_sum(model.project(normed).squeeze_dim(0), targets)
}

/// Whether a module whose parameters have values has one to train.
fn is_trained<M: Module>(module: &M) -> bool {
    let mut any = AnyTrained(false);
    module.visit(&mut any);
    any.0
}

struct AnyTrained(bool);

impl ModuleVisitor for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}
