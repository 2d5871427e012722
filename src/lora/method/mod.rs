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

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::params::{AdapterParams, AdapterSettings, FirstValue, ParamSpec};
use super::plain::PlainLinear;
use super::shape::{LayerKind, LayerParams, LayerShape};
use crate::ops::DropoutMask;
pub use crate::ops::Kept;
use crate::weight::FrozenWeight;

pub use dora::DORA;
pub(super) use full::trained_bias;
pub use full::{BIAS, FULL};
pub(crate) use full::{FULL_WEIGHT, TRAINED_BIAS};
pub use lora::LORA;
pub(super) use lora::added_bias;
pub(crate) use lora::{LORA_A, LORA_B, LORA_B_BIAS, SHIFT_A, SHIFT_B};
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
        adapter: &AdapterParams,
        base: &PlainLinear,
        x: Tensor<3>,
        y: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3>;

    /// The output of a linear layer without its bias, where the adapter acts alone: for methods that have a
    /// better way than [`Self::add_update`] on `W x`.
    fn forward(
        &self,
        adapter: &AdapterParams,
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
        _adapter: &AdapterParams,
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
        adapter: &AdapterParams,
        layer: &LayerShape,
        base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2>;

    /// What a training with this method holds beside its parameters, for the estimate of memory.
    fn kept(&self, layer: &LayerShape, settings: &AdapterSettings) -> Kept;
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
            serde::de::Error::custom(format!(
                "`{name}` is no adapter method of this crate's, which are {names}; `load_adapter_with` is given one \
                 of your own"
            ))
        })
    }
}
