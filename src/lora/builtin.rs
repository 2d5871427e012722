//! To and from Burn's own layers: [`burn::nn::Linear`] and [`burn::module::LoraAdapter`].

use burn::module::{LoraAdapter, Param, ParamId};
use burn::nn;
use burn::tensor::Tensor;

use super::plain::untracked;
use super::{LoRAAdapter, LoRAConfig, LoRALinear, PlainLinear};
use crate::{Error, Result};

impl From<nn::Linear> for PlainLinear {
    /// Takes over weight and bias; the weight is viewed transposed, nothing is copied.
    ///
    /// # Panics
    /// If an adapter is attached to the weight: go through [`LoRALinear::from`] then.
    fn from(linear: nn::Linear) -> Self {
        assert!(
            linear.weight.adapter().is_none(),
            "the layer holds one of Burn's adapters; convert it to a LoRALinear"
        );
        Self {
            weight: transposed(linear.weight),
            bias: linear.bias,
        }
    }
}

impl From<PlainLinear> for nn::Linear {
    /// Gives weight and bias back to Burn's layer; the weight is viewed transposed, nothing is copied.
    fn from(linear: PlainLinear) -> Self {
        Self {
            weight: transposed(linear.weight),
            bias: linear.bias,
        }
    }
}

impl From<nn::Linear> for LoRALinear {
    /// Takes over weight, bias and, if one is attached, Burn's adapter.
    fn from(linear: nn::Linear) -> Self {
        let adapter = linear.weight.adapter().map(LoRAAdapter::from);
        let base = PlainLinear {
            weight: transposed(linear.weight),
            bias: linear.bias,
        };
        Self { base, adapter }
    }
}

impl LoRALinear {
    /// Wraps one of Burn's linear layers: its weight and bias are frozen, a new adapter is added.
    ///
    /// Clones of a layer whose values are still lazy share them: a clone is frozen with it.
    ///
    /// # Panics
    /// If [`LoRAConfig::validate_adapter`] fails, or if one of Burn's adapters is attached to the weight:
    /// [`LoRALinear::from`] takes it over.
    pub fn from_linear(linear: nn::Linear, config: &LoRAConfig) -> Self {
        Self {
            base: PlainLinear::from(linear),
            adapter: None,
        }
        .with_adapter(config)
    }
}

impl From<&LoraAdapter> for LoRAAdapter {
    fn from(adapter: &LoraAdapter) -> Self {
        let linear = |weight: &Param<Tensor<2>>| PlainLinear {
            weight: transposed(weight.clone()),
            bias: None,
        };
        Self {
            lora_a: linear(&adapter.a),
            lora_b: linear(&adapter.b),
            magnitude: None,
            scale: adapter.scale,
            dropout: 0.0,
            training: Param::from_bool(true),
        }
    }
}

impl TryFrom<LoRAAdapter> for LoraAdapter {
    type Error = Error;

    /// The dropout, which Burn's adapter does not have, is left out: only a further training would tell.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an adapter with DoRA's magnitude, which Burn's adapter does not have.
    fn try_from(adapter: LoRAAdapter) -> Result<Self> {
        if adapter.magnitude.is_some() {
            return Err(Error::InvalidArgument {
                name: "adapter",
                message: "Burn's LoraAdapter has no magnitude of DoRA; merge the layer instead"
                    .into(),
            });
        }
        Ok(Self {
            a: transposed(adapter.lora_a.weight),
            b: transposed(adapter.lora_b.weight),
            scale: adapter.scale,
        })
    }
}

/// The transposed parameter: a new leaf with a new id, trained if the old one was, and saved as it lies,
/// whatever layout Burn's layer was saved in.
fn transposed(param: Param<Tensor<2>>) -> Param<Tensor<2>> {
    let (_, value, mapper) = param.consume();
    let require_grad = value.is_require_grad();
    let value = untracked(value).transpose().set_require_grad(require_grad);
    Param::from_mapped_value(ParamId::new(), value, mapper)
        .save_mapper(|weight| weight)
        .load_mapper(|weight| weight)
}
