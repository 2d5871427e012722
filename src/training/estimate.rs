//! How much memory a training will take, before anything is allocated.

mod layer;
mod suggest;

use std::fmt;
use std::ops::Range;

use burn::tensor::{DType, Device};

use self::layer::{Adapters, Layer, Linear, Table};
use super::Activations;
use super::options::LOSS_CHUNK_ROWS;
use super::recipe::RecipeConfig;
use crate::llama::LlamaConfig;
use crate::lora::LoRAConfig;
use crate::ops::{AttentionBody, QUERY_BLOCK, attention_body, compute_dtype};

pub use suggest::{Change, Suggestion, suggestions};

/// The bytes of a number in adapters and moments.
const F32: usize = size_of::<f32>();

/// A training, as far as its memory depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct EstimateConfig {
    /// The sizes of the model.
    pub model: LlamaConfig,
    /// The adapters; none if all weights are trained.
    pub lora: Option<LoRAConfig>,
    /// The rows of a micro-batch.
    pub batch_size: usize,
    /// The tokens of a row, padding included.
    pub seq_len: usize,
    /// The micro-batches of a step.
    pub micro_batches: usize,
    /// The type of the base weights.
    pub dtype: DType,
    /// The type of activations, see [`compute_dtype`].
    pub compute_dtype: DType,
    /// What the attention has in memory.
    pub attention: AttentionBody,
    /// Where the backward pass gets activations from.
    pub activations: Activations,
    /// The rows of logits that exist at a time.
    pub loss_chunk_rows: usize,
}

impl EstimateConfig {
    /// One micro-batch a step, a base in f32, all activations kept, on the fused CPU path.
    pub fn new(
        model: LlamaConfig,
        lora: Option<LoRAConfig>,
        batch_size: usize,
        seq_len: usize,
    ) -> Self {
        Self {
            model,
            lora,
            batch_size,
            seq_len,
            micro_batches: 1,
            dtype: DType::F32,
            compute_dtype: DType::F32,
            attention: AttentionBody::Cache,
            activations: Activations::Keep,
            loss_chunk_rows: LOSS_CHUNK_ROWS,
        }
    }

    /// Another type of the base weights.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// On a device: in what type it computes with a base of this type, and how.
    pub fn on_device(mut self, device: &Device) -> Self {
        self.compute_dtype = compute_dtype(device, self.dtype);
        self.attention = attention_body(device, self.compute_dtype, self.model.head_dim);
        self
    }

    /// Activations kept or recomputed.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }
}

impl RecipeConfig {
    /// The training that this recipe asks for, with these adapters ([`RecipeConfig::adapter_config`]), on rows of up to
    /// `seq_len` tokens.
    pub fn estimate_config(
        &self,
        model: &LlamaConfig,
        lora: &LoRAConfig,
        seq_len: usize,
        device: &Device,
    ) -> EstimateConfig {
        let trainer = self.trainer(1);
        let config = EstimateConfig {
            micro_batches: self.gradient_accumulation_steps,
            dtype: self.dtype.into(),
            activations: trainer.options.activations,
            loss_chunk_rows: trainer.options.loss_chunk_rows,
            ..EstimateConfig::new(model.clone(), Some(lora.clone()), self.batch_size, seq_len)
        };
        config.on_device(device)
    }
}

/// The memory of a training at the moment at which it is largest, in bytes.
///
/// ```
/// use burn_peft::llama::LlamaConfig;
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
/// use burn_peft::training::{EstimateConfig, estimate};
///
/// let lora = LoRAConfig::new([QProj, VProj]);
/// let config = EstimateConfig::new(LlamaConfig::llama2_7b(), Some(lora), 2, 512);
/// let memory = estimate(&config);
/// assert_eq!(memory.weights, 4 * 6_738_415_616);
/// assert_eq!(memory.adapters, 4 * 4_194_304);
/// println!("{memory}");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The base model.
    pub weights: u64,
    /// The adapters.
    pub adapters: u64,
    /// The gradients that exist at that moment.
    pub gradients: u64,
    /// AdamW's moments, and at [`Moment::Update`] what the update of the largest parameter forms.
    pub optimizer: u64,
    /// What the forward pass keeps, and what a layer's pass forms beside it.
    pub activations: u64,
    /// The rows of logits that exist at a time, and the gradients of their hidden states.
    pub loss: u64,
    /// When it is.
    pub moment: Moment,
}

/// A moment at which memory may be at its largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moment {
    /// The forward pass of a layer, in which DoRA forms a weight anew.
    Forward,
    /// The loss: its last rows of logits, or when the gradients of all rows are brought together.
    Loss,
    /// The backward pass of a layer.
    Backward,
    /// The optimizer's update.
    Update,
}

impl MemoryEstimate {
    /// The sum of all parts.
    pub fn total(&self) -> u64 {
        self.weights
            + self.adapters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.loss
    }
}

/// The peak memory of a training from its second step on, when the optimizer has its state. Nothing
/// is allocated.
///
/// The moments of a step are compared, each with the gradients and activations that exist then; the
/// largest counts. All tokens of a batch are taken to have a label.
///
/// The estimate is of the tensors: what an operation keeps for the backward pass is in the table of
/// [`ops`](crate::ops), the same on every backend but for the type of activations
/// ([`EstimateConfig::on_device`]). What an operation forms and drops while it runs is that of the fused
/// CPU path and, but for the scores of a block of queries, of the kernels for GPUs; portable bodies
/// form more.
///
/// Not in it: the program and its data; what threads hold for matrix products, about 1 MB each, and
/// the activations in bf16 that a product on the CPU takes, one layer's input rounded by
/// [`MatmulPrecision::Medium`](crate::ops::MatmulPrecision), or with AMX at most 6 kB a token; freed memory
/// that an allocator keeps, and what is unused in the pages of a GPU's memory pool; loading; merged
/// weights, which [`merge_lora`](crate::llama::TransformerDecoder::merge_lora) forms one after another, in
/// the place of the base's unless the model has clones.
///
/// # Panics
/// If [`Activations::Recompute`] asks for 0 layers at a time.
pub fn estimate(config: &EstimateConfig) -> MemoryEstimate {
    let step = Step::new(config);
    let moments = step.layers().chain([step.loss(), step.update()]);
    let largest = moments.max_by_key(MemoryEstimate::total);
    largest.expect("there are at least two moments")
}

/// The bytes that the forward pass of one layer keeps for the backward pass, its output included;
/// with what `config` says of rows, adapters and sizes.
///
/// `input_is_tracked` holds for all layers but the first (and for that too if the embedding is
/// trained): nothing is kept for what lies below the lowest adapter. Of adapters that differ from layer to layer, it
/// is the first layer's.
pub fn saved_bytes_per_layer(config: &EstimateConfig, input_is_tracked: bool) -> u64 {
    let tokens = config.batch_size * config.seq_len;
    let layer = Layer::new(config, &Adapters::new(config), 0, input_is_tracked);
    activation_bytes(config, tokens * layer.saved())
}

/// The bytes of so many numbers in activations.
fn activation_bytes(config: &EstimateConfig, numbers: usize) -> u64 {
    (numbers * config.compute_dtype.size()) as u64
}

/// The bytes of so many f32 numbers.
fn bytes(numbers: usize) -> u64 {
    (numbers * F32) as u64
}

/// What the moments of a step are made of.
struct Step<'a> {
    config: &'a EstimateConfig,
    tokens: usize,
    num_layers: usize,
    embedding: Table,
    layers: Vec<Layer>,
    norm: Table,
    head: Linear,
    /// The layers whose activations exist together.
    group: usize,
}

impl<'a> Step<'a> {
    fn new(config: &'a EstimateConfig) -> Self {
        let adapters = Adapters::new(config);
        let embedding = Table::embedding(config, &adapters);
        let num_layers = config.model.num_layers;
        let mut layers = Vec::with_capacity(num_layers);
        let mut is_tracked = embedding.is_trained();
        for index in 0..num_layers {
            let layer = Layer::new(config, &adapters, index, is_tracked);
            is_tracked = layer.output_is_tracked();
            layers.push(layer);
        }
        let group = match config.activations {
            Activations::Keep => num_layers,
            Activations::Recompute { layers } => layers,
        };
        assert!(group > 0, "at least one layer must be recomputed at a time");
        Self {
            config,
            tokens: config.batch_size * config.seq_len,
            num_layers,
            embedding,
            layers,
            norm: Table::norm(config, &adapters, "norm"),
            head: Linear::output(config, &adapters),
            group,
        }
    }

    fn trains_all(&self) -> bool {
        self.config.lora.is_none()
    }

    fn recomputes(&self) -> bool {
        self.config.activations != Activations::Keep
    }

    fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    /// What some layers keep.
    fn saved(&self, indices: Range<usize>) -> u64 {
        let numbers: usize = indices.map(|index| self.layer(index).saved()).sum();
        self.activations(self.tokens * numbers)
    }

    fn activations(&self, numbers: usize) -> u64 {
        activation_bytes(self.config, numbers)
    }

    /// A hidden state.
    fn hidden(&self) -> u64 {
        self.activations(self.tokens * self.config.model.embed_dim)
    }

    /// The hidden states that are kept beside the activations of a group of layers.
    fn inputs(&self, group: usize) -> u64 {
        match self.recomputes() {
            true => (group as u64 + 1) * self.hidden(),
            false => {
                let of_embedding = self.activations(self.tokens * self.embedding.saved());
                u64::from(self.embedding.is_trained()) * self.hidden() + of_embedding
            }
        }
    }

    /// What is kept when a layer begins.
    fn held(&self, index: usize) -> u64 {
        let group = index / self.group;
        self.inputs(group) + self.saved(group * self.group..index)
    }

    /// A moment at which so many parameters of a micro-batch have their gradients.
    fn moment(&self, moment: Moment, with_gradient: usize) -> MemoryEstimate {
        let trained = self.trained();
        let weight_size = self.config.dtype.size();
        let gradient_size = if self.trains_all() { weight_size } else { F32 };
        let earlier = usize::from(self.config.micro_batches > 1) * trained;
        MemoryEstimate {
            weights: (self.num_weights() * weight_size) as u64,
            adapters: bytes(self.num_adapters()),
            gradients: ((earlier + with_gradient) * gradient_size) as u64,
            optimizer: 2 * bytes(trained),
            activations: 0,
            loss: 0,
            moment,
        }
    }

    /// The forward and the backward pass of every layer.
    fn layers(&self) -> impl Iterator<Item = MemoryEstimate> {
        (0..self.num_layers).flat_map(|index| {
            [
                self.forward(index),
                self.backward(index),
                self.attention_backward(index),
            ]
        })
    }

    /// The forward pass of a layer; if it is recomputed, with the gradient of its group's output.
    fn forward(&self, index: usize) -> MemoryEstimate {
        let group_end = self.num_layers.min((index / self.group + 1) * self.group);
        let (grad, with_gradient) = match self.recomputes() {
            true => (self.hidden(), self.trained_from(group_end)),
            false => (0, 0),
        };
        let activations = self.held(index) + grad + self.layer(index).forward_peak(self.tokens);
        MemoryEstimate {
            activations,
            ..self.moment(Moment::Forward, with_gradient)
        }
    }

    fn backward(&self, index: usize) -> MemoryEstimate {
        let layer = self.layer(index);
        let with_gradient = self.trained_from(index + 1) + layer.num_trained_down();
        MemoryEstimate {
            activations: self.held(index) + self.activations(self.tokens * layer.backward_peak()),
            ..self.moment(Moment::Backward, with_gradient)
        }
    }

    /// When the scores of a block of queries, the weights' gradients (both f32), the weights and the
    /// scores' gradients exist beside what the attention keeps, the gradients of its keys and values,
    /// and those of its output and of its queries.
    fn attention_backward(&self, index: usize) -> MemoryEstimate {
        let (config, layer) = (self.config, self.layer(index));
        let has_scores = config.attention == AttentionBody::Blocks;
        let queries = config.seq_len.min(QUERY_BLOCK) * usize::from(has_scores);
        let scores = config.batch_size * config.model.num_heads * queries * config.seq_len;
        let scores = 2 * bytes(scores) + 2 * self.activations(scores);
        let saved = self.activations(self.tokens * layer.attention_saved());
        let grads = 2 * bytes(self.tokens * config.model.kv_dim()) + 3 * self.hidden();
        let is_needed = u64::from(layer.has_attention_backward() && has_scores);
        MemoryEstimate {
            activations: is_needed * (self.held(index) + saved + grads + scores),
            ..self.moment(Moment::Backward, self.trained_from(index))
        }
    }

    fn loss(&self) -> MemoryEstimate {
        let kept = match self.recomputes() {
            true => self.inputs(self.num_layers.div_ceil(self.group)),
            false => self.inputs(0) + self.saved(0..self.num_layers),
        };
        let has_chunks = self.tokens > self.config.loss_chunk_rows;
        let gradients_at_once = usize::from(has_chunks) + usize::from(self.trains_all());
        MemoryEstimate {
            activations: kept.max(self.hidden()),
            loss: self.last_logits().max(self.gathered_gradients()),
            ..self.moment(Moment::Loss, gradients_at_once * self.head_trained())
        }
    }

    /// The last rows of logits with their hidden states, normed and not; the rows before have left
    /// the gradients of their hidden states.
    fn last_logits(&self) -> u64 {
        let EstimateConfig {
            model,
            dtype,
            loss_chunk_rows,
            ..
        } = self.config;
        let rows = self.tokens.min(*loss_chunk_rows);
        let num_logits = rows * model.vocab_size;
        // In half precision a gradient of the logits is multiplied by the loss's factor in f32.
        let is_half = self.activations(1) < bytes(1);
        let widened = u64::from(is_half) * bytes(num_logits);
        let logits = self.activations(num_logits * self.head.outputs_at_once()) + widened;
        let weight = self.head.combined_bytes(*dtype);
        self.activations((self.tokens + rows) * model.embed_dim) + logits.max(weight)
    }

    /// The rows' gradients one after another, and at their places.
    fn gathered_gradients(&self) -> u64 {
        2 * self.hidden()
    }

    /// All gradients, and what the update of the largest parameter forms in f32: its square or its
    /// product with a factor, and a copy if it is in half precision. The last moment of a backward
    /// pass that trains the embedding is as large: its gradient exists twice, or three times if it
    /// is the output projection's too.
    fn update(&self) -> MemoryEstimate {
        let EstimateConfig { model, dtype, .. } = self.config;
        let has_two = self.trains_all() && (model.tie_embeddings || *dtype != DType::F32);
        let moment = self.moment(Moment::Update, self.trained());
        MemoryEstimate {
            optimizer: moment.optimizer + (1 + u64::from(has_two)) * bytes(self.largest_trained()),
            ..moment
        }
    }

    /// The numbers of the base model.
    fn num_weights(&self) -> usize {
        let model = &self.config.model;
        let output = if model.tie_embeddings { 0 } else { 1 };
        self.layers.iter().map(Layer::num_weights).sum::<usize>()
            + self.embedding.num_weights() * (1 + output)
            + self.norm.num_weights()
    }

    /// The numbers of all adapters.
    fn num_adapters(&self) -> usize {
        let layers = self.layers.iter().map(Layer::num_adapter).sum::<usize>();
        layers + self.embedding.num_adapter() + self.norm.num_adapter() + self.head.num_adapter()
    }

    /// The numbers of all trained parameters.
    fn trained(&self) -> usize {
        match self.trains_all() {
            true => self.num_weights(),
            false => self.trained_from(0) + self.embedding.num_trained(),
        }
    }

    /// The numbers of the trained parameters in this layer and after it.
    fn trained_from(&self, layer: usize) -> usize {
        let layers = self.layers[layer..].iter().map(Layer::num_trained);
        layers.sum::<usize>() + self.head_trained()
    }

    /// The numbers of the trained parameters after the last layer.
    fn head_trained(&self) -> usize {
        self.head.num_trained() + self.norm.num_trained()
    }

    /// The numbers of the largest trained parameter.
    fn largest_trained(&self) -> usize {
        let layers = self.layers.iter().map(Layer::largest_trained);
        let others = [
            self.embedding.largest_trained(),
            self.head.largest_trained(),
        ];
        layers.chain(others).max().unwrap_or(0)
    }
}

/// An amount of memory, shown as `13.5 GB` or `16.8 MB` (powers of ten).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let text = match self.0 {
            1_000_000_000.. => format!("{:.1} GB", bytes / 1e9),
            _ => format!("{:.1} MB", bytes / 1e6),
        };
        f.pad(&text)
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("adapters", self.adapters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("loss", self.loss),
        ];
        for (name, bytes) in parts {
            writeln!(f, "{name:<12}{:>9}", Bytes(bytes))?;
        }
        write!(
            f,
            "{:<12}{:>9}, {}",
            "total",
            Bytes(self.total()),
            self.moment
        )
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "in a layer's forward pass",
            Self::Loss => "when the loss is computed",
            Self::Backward => "in a layer's backward pass",
            Self::Update => "when the optimizer updates",
        })
    }
}
