use crate::settings::setters;

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

/// What a step's summed loss is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LossNormalization {
    /// By the labelled tokens of all its micro-batches: the step equals one with a single large
    /// batch, however it is cut.
    #[default]
    StepTokens,
    /// Each micro-batch by its own labelled tokens and the number of micro-batches: the mean of
    /// means that many PyTorch loops compute.
    MicroBatchMean,
}

/// How a step forms its gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct GradientOptions {
    /// What the loss is divided by.
    pub normalization: LossNormalization,
    /// Where the backward pass gets activations from.
    pub activations: Activations,
    /// How many rows of logits exist at a time, at least 1; only tokens with a label have one.
    pub loss_chunk_rows: usize,
    /// How strong the noise on the embeddings is, `alpha` of NEFTune (<https://arxiv.org/abs/2310.05914>), for a sample of
    /// L tokens and vectors of d numbers uniform within `alpha / sqrt(L d)`; none is no noise.
    pub neftune_noise_alpha: Option<f64>,
    /// The seed of the dropout and of the noise on embeddings. What is drawn follows from it, the number of the step, the
    /// micro-batch and the layer, so a step that is done again, by a run that goes on, draws the same; two runs differ by it
    /// alone.
    pub seed: u64,
}

impl Default for GradientOptions {
    fn default() -> Self {
        Self {
            normalization: LossNormalization::default(),
            activations: Activations::default(),
            loss_chunk_rows: LOSS_CHUNK_ROWS,
            neftune_noise_alpha: None,
            seed: 0,
        }
    }
}

impl GradientOptions {
    setters! {
        with_normalization => normalization: LossNormalization,
        with_activations => activations: Activations,
        with_loss_chunk_rows => loss_chunk_rows: usize,
        with_neftune_noise_alpha => neftune_noise_alpha: Option<f64>,
        with_seed => seed: u64,
    }
}
