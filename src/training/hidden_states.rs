//! What a training asks of a model.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor};

use super::experts::add_zeros;
use crate::adapter::packed_layouts;
use crate::data::Batch;
use crate::llama::{Context, TransformerDecoder};
use crate::lora::Routes;
use crate::ops;
use crate::weight::is_trained;

/// A model that gives hidden states layer by layer, and logits of some of them: what a [`Trainer`](super::Trainer) trains, with
/// chunks of logits, packing, recomputation and groups. [`TransformerDecoder`] is one; so is any module that says these few
/// things.
///
/// ```
/// use burn::nn;
/// use burn::prelude::*;
/// use burn_peft::data::Batch;
/// use burn_peft::lora::LoRALinear;
/// use burn_peft::training::HiddenStates;
///
/// /// Predicts a token from the one before it.
/// #[derive(Module, Debug)]
/// struct Bigrams {
///     embedding: nn::Embedding,
///     layers: Vec<LoRALinear>,
///     output: LoRALinear,
/// }
///
/// impl HiddenStates for Bigrams {
///     type Pass = Tensor<2, Int>;
///
///     fn vocab_size(&self) -> usize {
///         self.embedding.weight.shape()[0]
///     }
///
///     fn num_layers(&self) -> usize {
///         self.layers.len()
///     }
///
///     fn start(&self, batch: &Batch, _seed: u64) -> Self::Pass {
///         batch.input_tensor(&self.embedding.weight.lazy_device())
///     }
///
///     fn embed(&self, ids: &Self::Pass) -> Tensor<3> {
///         self.embedding.forward(ids.clone())
///     }
///
///     fn layer(&self, index: usize, hidden: Tensor<3>, _: &Self::Pass) -> Tensor<3> {
///         hidden.clone() + self.layers[index].forward(hidden).tanh()
///     }
///
///     fn logits(&self, hidden: Tensor<2>, _rows: &[usize], _: &Self::Pass) -> Tensor<2> {
///         self.output.forward(hidden)
///     }
/// }
/// ```
pub trait HiddenStates: Module {
    /// What is made of a batch once for all layers: its ids as a tensor, masks.
    type Pass;

    /// The number of token ids.
    fn vocab_size(&self) -> usize;

    /// The number of layers, which [`Activations::Recompute`](super::Activations::Recompute) recomputes some at a time.
    fn num_layers(&self) -> usize;

    /// What the layers are told of a batch. Dropout that follows from `seed` is the same when a layer is computed again.
    fn start(&self, batch: &Batch, seed: u64) -> Self::Pass;

    /// The embedded tokens, `[batch, seq, dim]`.
    fn embed(&self, pass: &Self::Pass) -> Tensor<3>;

    /// The hidden states after a layer, of the same shape as before it.
    fn layer(&self, index: usize, hidden: Tensor<3>, pass: &Self::Pass) -> Tensor<3>;

    /// The logits, `[states, vocab_size]`, of some hidden states after the last layer, `[states, dim]`; `rows` are the rows
    /// of the batch that they come from.
    fn logits(&self, hidden: Tensor<2>, rows: &[usize], pass: &Self::Pass) -> Tensor<2>;

    /// The same as [`layer`](Self::layer) without a graph.
    fn untracked_layer(&self, index: usize, hidden: Tensor<3>, pass: &Self::Pass) -> Tensor<3> {
        self.clone().no_grad().layer(index, hidden, pass)
    }

    /// Called before the logits of a batch's hidden states are formed, so that dropout among them can be the same each time.
    fn seed_logits(&self, _pass: &Self::Pass) {}

    /// Whether the embedding or a layer before this one has a parameter to train; where none has, the backward pass ends.
    fn trains_below(&self, _layer: usize) -> bool {
        true
    }

    /// Called before a step, to prepare a device's memory.
    fn prepare(&self, _batches: &[Batch], _loss_chunk_rows: usize) {}

    /// Called with the gradients of a step before they are reduced.
    fn complete(&self, _grads: &mut GradientsParams) {}

    /// The type in which hidden states are computed. In f16 the loss is scaled.
    fn compute_dtype(&self) -> DType {
        DType::F32
    }
}

/// The ids of a batch and the context of its tokens.
#[derive(Debug)]
pub struct DecoderPass {
    ids: Tensor<2, Int>,
    context: Context,
}

impl HiddenStates for TransformerDecoder {
    type Pass = DecoderPass;

    fn vocab_size(&self) -> usize {
        TransformerDecoder::vocab_size(self)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn start(&self, batch: &Batch, seed: u64) -> DecoderPass {
        let device = self.norm.weight.lazy_device();
        DecoderPass {
            ids: batch.input_tensor(&device),
            context: context(self, batch, &device).with_seed(seed),
        }
    }

    fn embed(&self, pass: &DecoderPass) -> Tensor<3> {
        TransformerDecoder::embed(self, pass.ids.clone(), &pass.context)
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, pass: &DecoderPass) -> Tensor<3> {
        self.apply_layers(index..index + 1, hidden, &pass.context, None)
    }

    fn logits(&self, hidden: Tensor<2>, rows: &[usize], pass: &DecoderPass) -> Tensor<2> {
        let [size, dim] = hidden.dims();
        let logits = match &pass.context.routes {
            None => self.head(hidden.unsqueeze(), None),
            // Each with its own adapter is a row of its own.
            Some(routes) => {
                let routes = routes.of_rows(rows.iter().copied());
                self.head(hidden.reshape([size, 1, dim]), Some(&routes))
            }
        };
        logits.flatten(0, 1)
    }

    fn untracked_layer(&self, index: usize, hidden: Tensor<3>, pass: &DecoderPass) -> Tensor<3> {
        let layer = self.layers[index].clone().no_grad();
        pass.context.seed_layer(index);
        layer.forward(hidden, &pass.context, None)
    }

    fn seed_logits(&self, pass: &DecoderPass) {
        pass.context.seed_layer(self.layers.len());
    }

    fn trains_below(&self, layer: usize) -> bool {
        trains(&self.tok_embeddings) || self.layers[..layer].iter().any(trains)
    }

    /// Lets the memory pool of a GPU hold the largest buffers of a step on these batches.
    fn prepare(&self, batches: &[Batch], loss_chunk_rows: usize) {
        let (config, device) = (&self.config, self.norm.weight.lazy_device());
        let tokens = |batch: &Batch| batch.batch_size * batch.seq_len;
        let tokens = batches.iter().map(tokens).max().unwrap_or(0);
        let widest = config
            .intermediate_dim
            .max(config.num_heads * config.head_dim);
        let dtype = self.compute_dtype();
        let chosen = config.experts.as_ref().map_or(1, |e| e.per_token);
        let widest = widest.max(chosen * config.embed_dim);
        let activations = tokens * widest * dtype.size();
        let logits = tokens.min(loss_chunk_rows) * config.vocab_size * size_of::<f32>();
        let tiles = packed_layouts(self).into_values();
        let tile = tiles.map(|layout| ops::decoded_at_once(&layout)).max();
        let tile = tile.unwrap_or(0) * dtype.size();
        ops::prepare_memory(&device, activations.max(logits).max(tile) as u64);
    }

    fn complete(&self, grads: &mut GradientsParams) {
        add_zeros(self, grads);
    }

    fn compute_dtype(&self) -> DType {
        self.tok_embeddings.weight.compute_dtype()
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
