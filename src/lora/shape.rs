//! What a layer is, as far as its adapter goes.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::weight::FrozenWeight;

/// What a layer is, as far as its adapter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// `y = W x + b`.
    Linear,
    /// Row look-up.
    Embedding,
    /// A norm's weight.
    Norm,
}

/// Kind and sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerShape {
    /// The kind.
    pub kind: LayerKind,
    /// The weight's shape: `[out_dim, in_dim]`, `[vocab_size, dim]`, or `[dim, 1]` of a norm.
    pub dims: [usize; 2],
    /// Whether the layer has a bias.
    pub has_bias: bool,
}

impl LayerShape {
    /// A linear layer.
    pub const fn linear(in_dim: usize, out_dim: usize, has_bias: bool) -> Self {
        Self {
            kind: LayerKind::Linear,
            dims: [out_dim, in_dim],
            has_bias,
        }
    }

    /// An embedding.
    pub const fn embedding(vocab_size: usize, dim: usize) -> Self {
        Self {
            kind: LayerKind::Embedding,
            dims: [vocab_size, dim],
            has_bias: false,
        }
    }

    /// A norm.
    pub const fn norm(dim: usize) -> Self {
        Self {
            kind: LayerKind::Norm,
            dims: [dim, 1],
            has_bias: false,
        }
    }
}

/// A layer's own parameters.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LayerParams {
    /// The weight of a linear layer, `[out_dim, in_dim]`, or of an embedding, `[vocab_size, dim]`.
    pub weight: Option<FrozenWeight>,
    /// The bias of a linear layer, `[out_dim]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The weight of a norm, `[dim]`.
    pub norm_weight: Option<Param<Tensor<1>>>,
}

impl LayerParams {
    /// Those of a norm.
    pub fn of_norm(weight: Param<Tensor<1>>) -> Self {
        Self {
            norm_weight: Some(weight),
            ..Self::default()
        }
    }

    /// Whether every value that there is has been loaded or used.
    pub(crate) fn is_initialized(&self) -> bool {
        let vectors = [&self.bias, &self.norm_weight];
        let is_lazy = |param: &&Option<Param<Tensor<1>>>| {
            param.as_ref().is_some_and(|param| !param.is_initialized())
        };
        let has_lazy_vector = vectors.iter().any(is_lazy);
        !has_lazy_vector
            && self
                .weight
                .as_ref()
                .is_none_or(FrozenWeight::is_initialized)
    }
}
