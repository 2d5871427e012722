//! What an adapter consists of and what it does to its layer, a file a method.
//!
//! A [`Method`] names its parameters in a table ([`ParamSpec`]): state-dict keys, PEFT's names, shapes, first
//! values and what is trained all follow from it. Its hooks are the mathematics: [`Method::forward`],
//! [`Method::add_update`], [`Method::merge`] and, for embeddings, [`Method::embed`].

mod dora;
mod full;
mod lora;
mod token_rows;

use std::fmt::{self, Debug};

use burn::module::Param;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::adapter::{AdapterSettings, LoRAAdapter};
use super::plain::PlainLinear;
use crate::ops::DropoutMask;
pub use crate::ops::Kept;
use crate::weight::FrozenWeight;

pub use dora::DORA;
pub(crate) use full::FULL_WEIGHT;
pub use full::{BIAS, FULL};
pub(super) use full::{TRAINED_BIAS, trained_bias};
pub use lora::LORA;
pub(super) use lora::merged_bias;
pub(crate) use lora::{LORA_A, LORA_B, SHIFT_A, SHIFT_B};
pub use token_rows::TOKEN_ROWS;

/// The methods that this crate brings.
pub const METHODS: [&dyn Method; 5] = [&LORA, &DORA, &FULL, &BIAS, &TOKEN_ROWS];

/// A way to adapt a layer.
pub trait Method: Debug + Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// Whether layers of this kind can be adapted so.
    fn adapts(&self, kind: LayerKind) -> bool;

    /// The parameters of an adapter of this method beside a layer.
    fn params(&self, layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec>;

    /// Changes the output of a linear layer without its bias.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, in_dim]`, the layer's input; `mask` drops elements of it for the adapter
    /// - `y`: `[batch, seq, out_dim]`, `W x` with the updates of adapters that act before; output the same
    fn add_update(
        &self,
        adapter: &LoRAAdapter,
        base: &PlainLinear,
        x: Tensor<3>,
        y: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3>;

    /// The output of a linear layer without its bias, where the adapter acts alone: for methods that have a
    /// better way than [`Self::add_update`] on `W x`.
    fn forward(
        &self,
        adapter: &LoRAAdapter,
        base: &PlainLinear,
        x: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let y = base.weight.product(x.clone());
        self.add_update(adapter, base, x, y, mask)
    }

    /// Changes looked-up rows of an embedding.
    ///
    /// # Shapes
    /// - `ids`: `[tokens]`, rows of `weight`, `[vocab_size, dim]`
    /// - `rows`: `[tokens, dim]`; output the same
    fn embed(
        &self,
        _adapter: &LoRAAdapter,
        _weight: &FrozenWeight,
        _ids: Tensor<1, Int>,
        _rows: Tensor<2>,
    ) -> Tensor<2> {
        unreachable!("`{}` does not adapt embeddings", self.name())
    }

    /// The weight that gives the same outputs without the adapter, in f32. `weight` is the base's with what acts before
    /// this adapter merged into it.
    ///
    /// # Shapes
    /// - `base` and `weight`: `[out_dim, in_dim]`, or `[vocab_size, dim]` of an embedding; f32, without a graph
    fn merge(
        &self,
        adapter: &LoRAAdapter,
        layer: &LayerShape,
        base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2>;

    /// What a training with this method holds beside its parameters, for the estimate of memory.
    fn kept(&self, layer: &LayerShape, settings: &AdapterSettings) -> Kept;
}

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

/// A method in a configuration, compared and written by its name.
#[derive(Clone, Copy)]
pub struct MethodRef(pub &'static dyn Method);

impl Default for MethodRef {
    fn default() -> Self {
        Self(&LORA)
    }
}

impl Debug for MethodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl PartialEq for MethodRef {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Serialize for MethodRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for MethodRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let method = METHODS.into_iter().find(|method| method.name() == name);
        method.map(Self).ok_or_else(|| {
            let names = METHODS.map(|method| method.name()).join(", ");
            serde::de::Error::custom(format!("`{name}` is no adapter method; there are {names}"))
        })
    }
}
