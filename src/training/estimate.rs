//! How much memory a training will take, before anything is allocated.

mod step;
mod suggest;

use std::collections::BTreeMap;
use std::fmt;

use burn::tensor::{DType, Device};

use self::step::Step;
use super::options::LOSS_CHUNK_ROWS;
use super::recipe::RecipeConfig;
use super::{Activations, installed_memory_bytes};
use crate::adapter::weight_key;
use crate::llama::LlamaConfig;
use crate::lora::LoRAConfig;
use crate::ops::{AttentionBody, attention_body, compute_dtype, kept_dtype};
use crate::quantization::BlockFormat;
use crate::settings::setters;
use crate::weight::{Quantization, packed_compute_dtype};
use crate::{Error, Result};

pub use suggest::{Change, Suggestion, suggestions};

/// A training, as far as its memory depends on it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
    /// How the weights of the base's linear layers are packed, if they are.
    pub quantization: Option<Quantization>,
    /// Whether the embedding and the projection to the vocabulary are packed so, too.
    pub packs_vocabulary: bool,
    /// How the base's files have weights packed that stay so, by their keys
    /// ([`read_base_packing`](crate::checkpoint::read_base_packing)).
    pub packed: BTreeMap<String, BlockFormat>,
    /// The type of activations, see [`compute_dtype`].
    pub compute_dtype: DType,
    /// The type of activations that only the backward pass reads, see [`kept_dtype`].
    pub kept_dtype: DType,
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
            quantization: None,
            packs_vocabulary: false,
            packed: BTreeMap::new(),
            compute_dtype: DType::F32,
            kept_dtype: DType::F32,
            attention: AttentionBody::Cache,
            activations: Activations::Keep,
            loss_chunk_rows: LOSS_CHUNK_ROWS,
        }
    }

    setters! {
        with_micro_batches => micro_batches: usize,
        with_dtype => dtype: DType,
        with_quantization => quantization: Option<Quantization>,
        with_packed_vocabulary => packs_vocabulary: bool,
        with_packed => packed: BTreeMap<String, BlockFormat>,
        with_compute_dtype => compute_dtype: DType,
        with_kept_dtype => kept_dtype: DType,
        with_attention => attention: AttentionBody,
        with_activations => activations: Activations,
        with_loss_chunk_rows => loss_chunk_rows: usize,
    }

    /// On a device: in what type it computes with a base of this type, and how.
    pub fn on_device(mut self, device: &Device) -> Self {
        let is_quantized = self.packs_vocabulary && self.quantization.is_some();
        let is_packed = self.packed.contains_key(&weight_key("tok_embeddings"));
        self.compute_dtype = match is_quantized || is_packed {
            true => packed_compute_dtype(device),
            false => compute_dtype(device, self.dtype),
        };
        self.kept_dtype = kept_dtype(device, self.compute_dtype);
        let (head_dim, has_cap) = (self.model.head_dim, self.model.block.score_cap.is_some());
        self.attention = attention_body(device, self.compute_dtype, head_dim, has_cap);
        self
    }
}

impl RecipeConfig {
    /// The training that this recipe asks for, with these adapters ([`RecipeConfig::adapter_config`]), on rows of up to
    /// `seq_len` tokens, with a base whose files have some weights packed
    /// ([`read_base_packing`](crate::checkpoint::read_base_packing)).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the blocks of `quantize_base` do not divide the input of a layer, and those of
    /// [`LlamaConfig::init_lora`].
    pub fn estimate_config(
        &self,
        model: &LlamaConfig,
        packed: BTreeMap<String, BlockFormat>,
        lora: &LoRAConfig,
        seq_len: usize,
        device: &Device,
    ) -> Result<EstimateConfig> {
        let trainer = self.trainer(1);
        let mut config = EstimateConfig {
            micro_batches: self.gradient_accumulation_steps,
            dtype: self.dtype.into(),
            quantization: self.quantize_base,
            packs_vocabulary: self.quantize_vocabulary,
            packed,
            activations: trainer.options.activations,
            loss_chunk_rows: trainer.options.loss_chunk_rows,
            ..EstimateConfig::new(model.clone(), Some(lora.clone()), self.batch_size, seq_len)
        };
        let room = step::adapted(&config)?;
        if room.resized_from.is_some() {
            // It is dense then, whatever the files have.
            config.packs_vocabulary = false;
            for layer in ["tok_embeddings", "output"] {
                config.packed.remove(&weight_key(layer));
            }
        }
        let format = self
            .base_format()
            .with_packed_vocabulary(config.packs_vocabulary);
        let room = room.with_lazy_base(format, config.packed.clone());
        room.map_err(in_words_of_keys)?;
        Ok(config.on_device(device))
    }
}

fn in_words_of_keys(error: Error) -> Error {
    match error {
        Error::InvalidArgument { message, .. } => Error::InvalidArgument {
            name: "quantize_base",
            message,
        },
        other => other,
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
/// A step is run on tensors that have sizes and no numbers: forward, loss, backward and update of a model whose
/// parameters are never given a value. Each operation says what it keeps and forms ([`ops`](crate::ops)), each adapter
/// method too ([`Kept`](crate::ops::Kept)); the largest moment counts. All tokens of a batch are taken to have a label.
///
/// The estimate is of the tensors, the same on every backend but for the type of activations
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
/// If [`Activations::Recompute`] asks for 0 layers at a time, a chunk of the loss has no rows, the sizes make up no model
/// ([`LlamaConfig::validate`]), a pattern of the adapters' configuration is no regular expression, a layer has no such
/// rank or row, or its input is not divided by the blocks of a quantization; or if no backend is enabled.
pub fn estimate(config: &EstimateConfig) -> MemoryEstimate {
    Step::new(config).largest()
}

/// Checks that trainings of which so many run on this machine do not take more memory than it has, swap included.
///
/// # Errors
/// [`Error::Memory`] if they do: the first that allocates too much would be killed.
///
/// # Panics
/// As [`estimate`].
pub fn require_memory(config: &EstimateConfig, device: &Device, num_local: usize) -> Result<()> {
    let needed = estimate(config).total().saturating_mul(num_local as u64);
    match installed_memory_bytes(device) {
        Some(installed) if installed < needed => Err(Error::Memory { needed, installed }),
        _ => Ok(()),
    }
}

/// The bytes that the forward pass of one layer keeps for the backward pass, its output included;
/// with what `config` says of rows, adapters and sizes.
///
/// `input_is_tracked` holds for all layers but the first (and for that too if the embedding is
/// trained): nothing is kept for what lies below the lowest adapter. Of adapters that differ from layer to layer, it
/// is the first layer's.
///
/// # Panics
/// As [`estimate`].
pub fn saved_bytes_per_layer(config: &EstimateConfig, input_is_tracked: bool) -> u64 {
    Step::new(config).saved_by_layer(input_is_tracked)
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
