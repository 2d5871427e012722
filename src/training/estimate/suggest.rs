//! What to change in a training that does not fit.

use std::fmt;

use burn::tensor::DType;

use super::{Bytes, EstimateConfig, MemoryEstimate, estimate};
use crate::ops::AttentionBody;
use crate::quantization::PackedLayout;
use crate::training::Activations;
use crate::weight::Quantization;

/// Rows are not cut to fewer tokens than this.
const SHORTEST_ROW: usize = 128;

/// A change that takes less memory. It prints as the recipe's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Activations recomputed, layer by layer.
    Recompute,
    /// Fewer rows at a time, and more micro-batches in a step so that it sees as many.
    BatchSize {
        /// The rows of a micro-batch.
        batch_size: usize,
        /// The micro-batches of a step.
        micro_batches: usize,
    },
    /// Shorter rows, in tokens.
    SeqLen(usize),
    /// A base in bf16.
    Bf16,
    /// Linear layers of the base in NF4.
    Nf4,
}

impl Change {
    fn apply(self, config: &EstimateConfig) -> EstimateConfig {
        let config = config.clone();
        match self {
            Self::Recompute => EstimateConfig {
                activations: Activations::Recompute { layers: 1 },
                ..config
            },
            Self::BatchSize {
                batch_size,
                micro_batches,
            } => EstimateConfig {
                batch_size,
                micro_batches,
                ..config
            },
            Self::SeqLen(seq_len) => EstimateConfig { seq_len, ..config },
            Self::Bf16 => {
                // The fused CPU path alone computes in another type than that of the base.
                let beside_bf16 = |dtype| match config.attention {
                    AttentionBody::Cache => dtype,
                    AttentionBody::Blocks | AttentionBody::Flash => DType::BF16,
                };
                EstimateConfig {
                    dtype: DType::BF16,
                    compute_dtype: beside_bf16(config.compute_dtype),
                    kept_dtype: beside_bf16(config.kept_dtype),
                    ..config
                }
            }
            Self::Nf4 => config.with_quantization(Some(Quantization::Nf4)),
        }
    }

    /// Recomputation, the batch size and the length of rows that fit or come closest, bf16, NF4: what
    /// changes a training's outcome least comes first.
    fn candidates(config: &EstimateConfig, available: u64) -> Vec<Self> {
        let fits = |change: &Self| estimate(&change.apply(config)).total() <= available;
        let first_that_fits = |changes: Vec<Self>| {
            let last = changes.last().copied();
            changes.into_iter().find(fits).or(last)
        };
        let rows = config.batch_size.saturating_mul(config.micro_batches);
        let batch_sizes = halvings(config.batch_size, 1).map(|batch_size| Self::BatchSize {
            batch_size,
            micro_batches: rows.div_ceil(batch_size),
        });
        let seq_lens = halvings(config.seq_len, SHORTEST_ROW).map(Self::SeqLen);
        let recompute = config.activations == Activations::Keep;
        [
            recompute.then_some(Self::Recompute),
            first_that_fits(batch_sizes.collect()),
            (config.dtype == DType::F32).then_some(Self::Bf16),
            can_be_nf4(config).then_some(Self::Nf4),
            first_that_fits(seq_lens.collect()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Whether the base of a training of adapters is dense, in layers that NF4's blocks divide.
fn can_be_nf4(config: &EstimateConfig) -> bool {
    let is_dense = config.quantization.is_none() && config.packed.is_empty();
    let model = &config.model;
    let experts = model
        .experts
        .as_ref()
        .map(|experts| experts.intermediate_dim);
    let inputs = [model.embed_dim, model.q_dim(), model.intermediate_dim];
    let is_divided = |columns| {
        let nf4 = Quantization::Nf4.block_format();
        PackedLayout::new(nf4, [1, columns]).is_ok()
    };
    is_dense && config.lora.is_some() && inputs.into_iter().chain(experts).all(is_divided)
}

/// Half of `value`, half of that, and so on, down to `least`.
fn halvings(value: usize, least: usize) -> impl Iterator<Item = usize> {
    let halve = move |value: &usize| Some(value / 2).filter(|half| *half >= least);
    std::iter::successors(halve(&value), halve)
}

/// Changes of a training, and its memory with them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Suggestion {
    /// What to change, together.
    pub changes: Vec<Change>,
    /// The memory after that.
    pub estimate: MemoryEstimate,
}

impl Suggestion {
    fn new(changes: Vec<Change>, config: &EstimateConfig) -> Self {
        let apply = |config: EstimateConfig, change: &Change| change.apply(&config);
        let changed = changes.iter().fold(config.clone(), apply);
        Self {
            changes,
            estimate: estimate(&changed),
        }
    }
}

/// What brings a training's memory down, if it is above the `available` bytes: each change alone
/// that does by 1 % or more, and, if none of them is enough, as many of them together as it takes.
///
/// # Panics
/// As [`estimate`].
pub fn suggestions(config: &EstimateConfig, available: u64) -> Vec<Suggestion> {
    let total = estimate(config).total();
    if total <= available {
        return Vec::new();
    }
    let single = |change| Suggestion::new(vec![change], config);
    let candidates = Change::candidates(config, available).into_iter();
    let mut found: Vec<Suggestion> = candidates
        .map(single)
        .filter(|suggestion| suggestion.estimate.total() <= total - total / 100)
        .collect();
    let fits = |suggestion: &Suggestion| suggestion.estimate.total() <= available;
    if found.len() > 1 && !found.iter().any(fits) {
        let changes: Vec<Change> = found.iter().flat_map(|s| s.changes.clone()).collect();
        let prefixes = (2..=changes.len()).map(|n| Suggestion::new(changes[..n].to_vec(), config));
        let together: Vec<Suggestion> = prefixes.collect();
        let enough = together.iter().position(fits).unwrap_or(together.len() - 1);
        found.push(together[enough].clone());
    }
    found
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recompute => f.write_str("enable_activation_checkpointing: true"),
            Self::BatchSize {
                batch_size,
                micro_batches,
            } => write!(
                f,
                "batch_size: {batch_size}, gradient_accumulation_steps: {micro_batches}"
            ),
            Self::SeqLen(seq_len) => write!(f, "max_seq_len: {seq_len}"),
            Self::Bf16 => f.write_str("dtype: bf16"),
            Self::Nf4 => f.write_str("quantize_base: nf4"),
        }
    }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes: Vec<String> = self.changes.iter().map(Change::to_string).collect();
        write!(
            f,
            "{:>9} with {}",
            Bytes(self.estimate.total()),
            changes.join(", ")
        )
    }
}
