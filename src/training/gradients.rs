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
use burn::tensor::{Device, Gradients, Int, Tensor};

use super::neftune::noise;
use super::options::{Activations, GradientOptions, LOSS_CHUNK_ROWS};
use crate::adapter::{initialize_params, packed_layouts};
use crate::data::{Batch, IGNORE_INDEX};
use crate::llama::{Context, TransformerDecoder};
use crate::lora::Routes;
use crate::ops::{self, backward_from, cross_entropy_sum};
use crate::weight::is_trained;

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
        forward: Forward::new(model, batch, options.seed)
            .with_noise(batch, options.neftune_noise_alpha),
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
    let dtype = model.tok_embeddings.weight.compute_dtype();
    let chosen = config.experts.as_ref().map_or(1, |e| e.per_token);
    let widest = widest.max(chosen * config.embed_dim);
    let activations = tokens * widest * dtype.size();
    let logits = tokens.min(loss_chunk_rows) * config.vocab_size * size_of::<f32>();
    let tiles = packed_layouts(model).into_values();
    let tile = tiles.map(|layout| ops::decoded_at_once(&layout)).max();
    let tile = tile.unwrap_or(0) * dtype.size();
    ops::prepare_memory(&device, activations.max(logits).max(tile) as u64);
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
    let predictions = Predictions::new(batch, top, forward.routes())?;
    let losses = predictions
        .chunks(LOSS_CHUNK_ROWS)
        .map(|chunk| head_loss(&model, chunk));
    Some(read_sum(losses.collect()))
}

/// A forward pass over one batch.
struct Forward<'a> {
    model: &'a TransformerDecoder,
    ids: Tensor<2, Int>,
    context: Context,
    /// What is added to the embeddings.
    noise: Option<Tensor<3>>,
}

impl<'a> Forward<'a> {
    fn new(model: &'a TransformerDecoder, batch: &Batch, seed: u64) -> Self {
        assert_in_vocab(batch, model.vocab_size());
        let device = model.norm.weight.lazy_device();
        Self {
            model,
            ids: batch.input_tensor(&device),
            context: context(model, batch, &device).with_seed(seed),
            noise: None,
        }
    }

    fn with_noise(self, batch: &Batch, alpha: Option<f64>) -> Self {
        let (dim, device) = (self.model.config.embed_dim, self.ids.device());
        let seed = self.context.seed.unwrap_or_default();
        let noise = alpha.map(|alpha| noise(batch, dim, alpha, seed, &device));
        Self { noise, ..self }
    }

    fn embed(&self) -> Tensor<3> {
        let embedded = self.model.embed(self.ids.clone(), &self.context);
        match &self.noise {
            Some(noise) => {
                let noise = noise.clone().cast(embedded.dtype());
                embedded + noise
            }
            None => embedded,
        }
    }

    fn layers(&self, indices: Range<usize>, x: Tensor<3>) -> Tensor<3> {
        self.model.apply_layers(indices, x, &self.context, None)
    }

    /// A layer without a graph.
    fn untracked_layer(&self, index: usize, x: Tensor<3>) -> Tensor<3> {
        let layer = self.model.layers[index].clone().no_grad();
        self.context.seed_layer(index);
        layer.forward(x, &self.context, None)
    }

    fn routes(&self) -> Option<&Routes> {
        self.context.routes.as_ref()
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

/// The context of a batch, from what is known of it without reading from the device.
fn context(model: &TransformerDecoder, batch: &Batch, device: &Device) -> Context {
    let (segments, seq_len) = (&batch.segments, batch.seq_len);
    let context = match (batch.is_packed(), batch.is_padded()) {
        (true, _) => Context::packed(&model.config, segments, seq_len, device),
        (false, false) => Context::causal(&model.config, 0, seq_len, device),
        (false, true) => {
            let lengths: Vec<_> = segments.iter().map(|row| row.iter().sum()).collect();
            Context::padded(&model.config, &lengths, seq_len, device)
        }
    };
    context.with_routes(batch.adapters.clone().map(Routes::new))
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
        for index in 0..model.layers.len() {
            if index.is_multiple_of(group) {
                inputs.push((index..(index + group).min(model.layers.len()), x.clone()));
            }
            x = self.forward.untracked_layer(index, x);
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
        let predictions = Predictions::new(batch, top, self.forward.routes())?;
        let (mut losses, mut row_grads) = (Vec::new(), Vec::new());
        for chunk in predictions.chunks(self.loss_chunk_rows) {
            let rows = chunk.hidden.require_grad();
            let chunk = Chunk {
                hidden: rows.clone(),
                ..chunk
            };
            let chunk = head_loss(model, chunk) / self.divisor;
            let mut grads = chunk.backward();
            losses.push(chunk.inner());
            let grad = rows.grad_remove(&mut grads);
            row_grads.push(grad.expect("the rows are leaves of the graph"));
            self.accumulate(&mut grads);
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

    /// Whether the embedding or a layer before `end` has a parameter to train.
    fn trains_below(&self, end: usize) -> bool {
        let model = self.forward.model;
        trains(&model.tok_embeddings) || model.layers[..end].iter().any(trains)
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
    routes: Option<Routes>,
}

/// Some of them.
struct Chunk {
    /// `[size, dim]`.
    hidden: Tensor<2>,
    /// `[size]`.
    targets: Tensor<1, Int>,
    /// The adapter of each.
    routes: Option<Routes>,
}

impl Predictions {
    /// None if no token has a label.
    fn new(batch: &Batch, top: Tensor<3>, routes: Option<&Routes>) -> Option<Self> {
        let (rows, targets) = batch.predictions();
        let shape @ [batch_size, seq, dim] = top.dims();
        let row_of = |row: &i32| *row as usize / seq;
        (!rows.is_empty()).then(|| Self {
            hidden: top.detach().reshape([batch_size * seq, dim]),
            shape,
            routes: routes.map(|routes| routes.of_rows(rows.iter().map(row_of))),
            rows,
            targets,
        })
    }

    /// So many at a time, the last chunk maybe shorter.
    fn chunks(&self, size: usize) -> impl Iterator<Item = Chunk> {
        let device = self.hidden.device();
        let rows = self.rows.chunks(size);
        rows.zip(self.targets.chunks(size))
            .enumerate()
            .map(move |(index, (rows, targets))| {
                let places = index * size..index * size + rows.len();
                let routes = self.routes.as_ref();
                let rows = Tensor::from_ints(rows, &device);
                Chunk {
                    hidden: self.hidden.clone().select(0, rows),
                    targets: Tensor::from_ints(targets, &device),
                    routes: routes.map(|routes| routes.of_rows(places)),
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

/// The summed loss of some hidden states.
fn head_loss(model: &TransformerDecoder, chunk: Chunk) -> Tensor<1> {
    let [size, dim] = chunk.hidden.dims();
    let logits = match &chunk.routes {
        None => model.head(chunk.hidden.unsqueeze(), None),
        // Each with its own adapter is a row of its own.
        routes => model.head(chunk.hidden.reshape([size, 1, dim]), routes.as_ref()),
    };
    cross_entropy_sum(logits.flatten(0, 1), chunk.targets)
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

/// Whether a module whose trained parameters have values has one.
fn trains<M: Module>(module: &M) -> bool {
    let mut any = AnyTrained(false);
    module.visit(&mut any);
    any.0
}

struct AnyTrained(bool);

impl ModuleVisitor for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= is_trained(param);
    }
}
