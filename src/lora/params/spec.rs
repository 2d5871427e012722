//! The table of an adapter's parameters, and the settings that it follows from.

use burn::tensor::Tensor;

use crate::lora::init::Init;
use crate::lora::shape::LayerParams;

/// The settings of one layer's adapter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterSettings {
    /// The rank r of the update `B·A`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Whether to scale by `alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// The probability with which an element of the adapter's input is dropped in training.
    pub dropout: f64,
    /// How `A` and `B` begin.
    pub init: Init,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
    /// Whether a copy of the layer's bias is trained.
    pub trains_bias: bool,
    /// Whether a layer that is adapted as a whole is trained, or only keeps the values that came with the adapter.
    pub trains_layer: bool,
    /// Whether `A` keeps its first value (LoRA-FA).
    pub freeze_a: bool,
    /// Whether the adapter begins with a part of the layer's weight, which the layer loses for it.
    pub begins_with_base: bool,
    /// The rows of an embedding that are trained.
    pub token_indices: Vec<usize>,
    /// The rows of a trained embedding or output, if they are not as many as the base's.
    pub vocab_size: Option<usize>,
    /// Whether the adapter of an embedding is that of the output of the same weight too.
    pub ties_output: bool,
}

impl AdapterSettings {
    /// The factor s of the update: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// A parameter of an adapter: a row of a method's table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ParamSpec {
    /// The end of the state-dict key: `lora_a.weight`.
    pub name: &'static str,
    /// The end of the name in PEFT's files: `lora_A.weight`; empty if they do not have it.
    pub peft_name: &'static str,
    /// The shape, of one or two dimensions.
    pub shape: Vec<usize>,
    /// The value before training.
    pub first: FirstValue,
    /// Whether it is trained, or only kept.
    pub is_trained: bool,
}

impl ParamSpec {
    /// A trained matrix.
    pub fn matrix(
        name: &'static str,
        peft_name: &'static str,
        shape: [usize; 2],
        first: FirstValue,
    ) -> Self {
        Self::new(name, peft_name, shape.to_vec(), first)
    }

    /// A trained vector.
    pub fn vector(
        name: &'static str,
        peft_name: &'static str,
        len: usize,
        first: FirstValue,
    ) -> Self {
        Self::new(name, peft_name, vec![len], first)
    }

    /// The same, kept as it is by a training unless `is_trained`.
    pub fn trained(mut self, is_trained: bool) -> Self {
        self.is_trained = is_trained;
        self
    }

    fn new(
        name: &'static str,
        peft_name: &'static str,
        shape: Vec<usize>,
        first: FirstValue,
    ) -> Self {
        Self {
            name,
            peft_name,
            shape,
            first,
            is_trained: true,
        }
    }

    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum FirstValue {
    /// With zeros.
    Zeros,
    /// With numbers of `U(-k, k)`.
    Uniform(f64),
    /// With numbers of a normal distribution of this standard deviation.
    Normal(f64),
    /// A matrix that follows from the layer, f32 and without a graph.
    MatrixOfLayer(fn(&LayerParams, &AdapterSettings) -> Tensor<2>),
    /// One of two matrices that follow from the layer together, the one of this index.
    PairOfLayer(fn(&LayerParams, &AdapterSettings) -> [Tensor<2>; 2], usize),
    /// One of an orthogonal pair of a linear layer, `A` or `B`.
    Orthogonal(usize),
    /// A vector that follows from the layer, f32 and without a graph.
    VectorOfLayer(fn(&LayerParams, &AdapterSettings) -> Tensor<1>),
}
