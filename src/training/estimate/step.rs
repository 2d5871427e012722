//! A training step on tensors without numbers: the counterpart of `training::gradients`.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Device;

use super::{EstimateConfig, MemoryEstimate, Moment};
use crate::Result;
use crate::adapter::{Role, get_params, packed_layouts};
use crate::llama::{MetaContext, TransformerDecoder};
use crate::ops::cross_entropy_meta;
use crate::ops::meta::{F32, Held, Ledger, MetaTensor, NumberSizes, ParamGrads, Purpose};
use crate::training::Activations;
use crate::weight::BaseFormat;

/// More than any memory holds, of which sizes can still be formed.
const MOST_TOKENS: usize = 1 << 36;

/// A model of these sizes with these adapters, of which nothing is allocated.
///
/// # Errors
/// If the configuration of the adapters cannot be used.
///
/// # Panics
/// If the sizes make up no model.
pub fn adapted(config: &EstimateConfig) -> Result<TransformerDecoder> {
    // Nothing is ever put there.
    #[cfg(feature = "flex")]
    let device = Device::flex();
    #[cfg(not(feature = "flex"))]
    let device = Device::default();
    let model = config.model.init(&device.autodiff());
    match &config.lora {
        None => Ok(model),
        Some(lora) => model.with_found_adapters(lora),
    }
}

/// The same with the weights of its base as they are kept.
fn model(config: &EstimateConfig) -> Result<TransformerDecoder> {
    let format = BaseFormat::new(config.dtype)
        .with_quantization(config.quantization)
        .with_packed_vocabulary(config.packs_vocabulary);
    adapted(config)?.with_lazy_base(format, config.packed.clone())
}

/// A training step.
pub struct Step<'a> {
    config: &'a EstimateConfig,
    model: TransformerDecoder,
    ledger: Ledger,
    context: MetaContext,
    /// The gradients of the micro-batches so far.
    grads: ParamGrads,
    moments: Vec<(Moment, Held)>,
}

impl<'a> Step<'a> {
    pub fn new(config: &'a EstimateConfig) -> Self {
        Self {
            config,
            model: model(config).unwrap_or_else(|error| panic!("{error}")),
            ledger: Ledger::new(
                NumberSizes {
                    activation: config.compute_dtype.size(),
                    narrowed: config.kept_dtype.size(),
                    weight: config.dtype.size(),
                },
                config.lora.is_none(),
            ),
            context: MetaContext {
                seq: config.seq_len,
                attention: config.attention,
            },
            grads: ParamGrads::default(),
            moments: Vec::new(),
        }
    }

    /// What the first layer leaves behind, its output included.
    pub fn saved_by_layer(&self, input_is_tracked: bool) -> u64 {
        let input = self
            .ledger
            .tensor(self.tokens(), self.config.model.embed_dim);
        let input = match input_is_tracked {
            true => input.leaf(),
            false => input,
        };
        let before = self.ledger.live().total();
        let _output = self.layers(0..1, input.clone());
        self.ledger.live().total() - before
    }

    /// The largest moment of the second micro-batch, or of the only one, and of the update.
    pub fn largest(mut self) -> MemoryEstimate {
        for _ in 0..self.config.micro_batches.min(2) {
            match self.config.activations {
                Activations::Keep => self.keep(),
                Activations::Recompute { layers } => self.recompute(layers),
            }
        }
        self.moments.push((Moment::Update, self.ledger.live()));
        let numbers = Numbers::of(&self.model, self.trains_base());
        let moments = self.moments.iter().map(|(moment, held)| {
            let updated = match moment {
                Moment::Update => self.formed_by_update(&numbers),
                _ => 0,
            };
            MemoryEstimate {
                weights: self.weights(&numbers) as u64,
                adapters: (numbers.adapters * F32) as u64,
                gradients: held.gradients,
                optimizer: (2 * numbers.trained * F32 + updated) as u64,
                activations: held.activations,
                loss: held.loss,
                moment: *moment,
            }
        });
        let largest = moments.max_by_key(MemoryEstimate::total);
        largest.expect("an update is always there")
    }

    /// The update of the largest parameter forms its square or its product with a factor, in f32, and a copy of one
    /// in half precision.
    fn formed_by_update(&self, numbers: &Numbers) -> usize {
        let is_half = self.trains_base() && self.config.dtype.size() < F32;
        (1 + usize::from(is_half)) * numbers.largest_trained * F32
    }

    fn weights(&self, numbers: &Numbers) -> usize {
        let packed = packed_layouts(&self.model).into_values();
        let [mut packed_numbers, mut packed_bytes] = [0; 2];
        for layout in packed {
            packed_numbers += layout.shape().iter().product::<usize>();
            packed_bytes += layout.num_bytes();
        }
        (numbers.base - packed_numbers) * self.config.dtype.size() + packed_bytes
    }

    fn trains_base(&self) -> bool {
        self.config.lora.is_none()
    }

    fn tokens(&self) -> usize {
        let tokens = self.config.batch_size.saturating_mul(self.config.seq_len);
        tokens.min(MOST_TOKENS)
    }

    /// Ends a moment.
    fn end(&mut self, moment: Moment) {
        self.moments.push((moment, self.ledger.take_peak()));
    }

    fn embed(&self) -> MetaTensor {
        let ids = self.ledger.tensor(self.tokens(), 0);
        self.model.tok_embeddings.meta(ids)
    }

    fn layers(&self, indices: Range<usize>, x: MetaTensor) -> MetaTensor {
        let layers = self.model.layers[indices].iter();
        layers.fold(x, |x, layer| layer.meta(x, self.context))
    }

    fn keep(&mut self) {
        let top = self.layers(0..self.model.layers.len(), self.embed());
        self.end(Moment::Forward);
        let grad = self.head(top.clone());
        self.end(Moment::Loss);
        self.backward(top, grad, None);
        self.end(Moment::Backward);
    }

    fn recompute(&mut self, group: usize) {
        assert!(group > 0, "at least one layer must be recomputed at a time");
        let count = self.model.layers.len();
        let mut inputs = Vec::new();
        let ledger = self.ledger.clone();
        let mut x = ledger.without_graph(|| self.embed());
        for index in 0..count {
            if index.is_multiple_of(group) {
                inputs.push((index..(index + group).min(count), x.clone()));
            }
            x = ledger.without_graph(|| self.layers(index..index + 1, x));
        }
        self.end(Moment::Forward);
        let mut grad = self.head(x);
        self.end(Moment::Loss);
        for (indices, input) in inputs.into_iter().rev() {
            let is_lowest = !self.trains_below(indices.start);
            let input = if is_lowest { input } else { input.leaf() };
            let output = self.layers(indices, input.clone());
            self.end(Moment::Forward);
            let input_grad = self.backward(output, grad, Some(&input));
            self.end(Moment::Backward);
            match input_grad {
                Some(input_grad) => grad = input_grad,
                None => return,
            }
        }
        self.backward(self.embed(), grad, None);
        self.end(Moment::Backward);
    }

    /// The loss, chunk by chunk, and its gradient for the hidden states after the last layer.
    fn head(&mut self, top: MetaTensor) -> MetaTensor {
        self.ledger.set_purpose(Purpose::Loss);
        let (tokens, dim) = (top.rows, top.width);
        let chunk_rows = self.config.loss_chunk_rows;
        let mut row_grads = Vec::new();
        let count = tokens.div_ceil(chunk_rows);
        // Those between the first and the last two leave what the first leaves, and take no more.
        let between = count.saturating_sub(3);
        for index in (0..count.min(1)).chain(1 + between..count) {
            let rows = chunk_rows.min(tokens - index * chunk_rows);
            let rows = self.ledger.tensor(rows, dim).leaf();
            let loss = cross_entropy_meta(self.model.head_meta(rows.clone()));
            let one = self.ledger.tensor(1, 0);
            let grad = self.backward(loss, one, Some(&rows));
            let of_others = grad.as_ref().filter(|_| index == 0);
            let of_others = of_others.map(|_| self.ledger.tensor(between * chunk_rows, dim));
            row_grads.extend(grad.into_iter().chain(of_others));
        }
        // The rows' gradients one after another, then at their places.
        let joined = self.ledger.tensor(tokens, dim);
        drop(row_grads);
        self.ledger.set_purpose(Purpose::Activations);
        let grad = self.ledger.tensor(tokens, dim);
        drop((joined, top));
        grad
    }

    /// Sends `grad` back from `output`, adds the gradients of the parameters on the way to those of the micro-batches
    /// before, and returns that of `input`.
    fn backward(
        &mut self,
        output: MetaTensor,
        grad: MetaTensor,
        input: Option<&MetaTensor>,
    ) -> Option<MetaTensor> {
        let mut grads = ParamGrads::default();
        let input_grad = self.ledger.backward(output, grad, input, &mut grads);
        self.grads.add(grads);
        input_grad
    }

    /// Whether the embedding or a layer before `end` has a parameter to train.
    fn trains_below(&self, end: usize) -> bool {
        let has_trained = |numbers: Numbers| numbers.trained > 0;
        let mut layers = self.model.layers[..end].iter();
        has_trained(Numbers::of(&self.model.tok_embeddings, self.trains_base()))
            || layers.any(|layer| has_trained(Numbers::of(layer, self.trains_base())))
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.ledger.clear();
    }
}

/// The numbers of a module's parameters.
#[derive(Debug, Default)]
struct Numbers {
    base: usize,
    adapters: usize,
    trained: usize,
    /// Those of the largest trained parameter.
    largest_trained: usize,
}

impl Numbers {
    fn of<M: Module>(module: &M, trains_base: bool) -> Self {
        let mut numbers = Self::default();
        for (_, param) in get_params(module).iter() {
            let count = param.shape.iter().product();
            match param.role {
                Role::Base => numbers.base += count,
                Role::Adapter | Role::KeptByAdapter => numbers.adapters += count,
            }
            let is_trained = match param.role {
                Role::Base => trains_base,
                Role::Adapter => true,
                Role::KeptByAdapter => false,
            };
            if is_trained {
                numbers.trained += count;
                numbers.largest_trained = numbers.largest_trained.max(count);
            }
        }
        numbers
    }
}
