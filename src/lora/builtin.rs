//! To and from Burn's own layers: [`burn::nn::Linear`], [`burn::nn::Embedding`] and [`burn::module::LoraAdapter`].

use burn::module::{LoraAdapter, Param, ParamId};
use burn::nn;
use burn::tensor::Tensor;

use super::layer_config::LayerConfig;
use super::method::{LORA_A, LORA_B};
use super::shape::{LayerParams, LayerShape};
use super::slot::{AdapterSlot, DEFAULT_ADAPTER};
use super::{LoRAAdapter, LoRAConfig, LoRAEmbedding, LoRALinear, PlainLinear};
use crate::weight::untracked;
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
            weight: transposed(linear.weight).into(),
            bias: linear.bias,
        }
    }
}

impl From<PlainLinear> for nn::Linear {
    /// Gives weight and bias back to Burn's layer; the weight is viewed transposed, nothing is copied.
    fn from(linear: PlainLinear) -> Self {
        Self {
            weight: transposed(linear.weight.into_dense()),
            bias: linear.bias,
        }
    }
}

impl From<nn::Linear> for LoRALinear {
    /// Takes over weight, bias and, if one is attached, Burn's adapter.
    fn from(linear: nn::Linear) -> Self {
        let adapter = linear.weight.adapter().map(LoRAAdapter::from);
        let base = PlainLinear {
            weight: transposed(linear.weight).into(),
            bias: linear.bias,
        };
        let mut layer = Self::from(base);
        if let Some(adapter) = adapter {
            layer.adapters.insert(DEFAULT_ADAPTER, adapter);
        }
        layer
    }
}

impl From<nn::Embedding> for LoRAEmbedding {
    /// Takes over the table, which lies as in this crate's layer; nothing is copied.
    ///
    /// # Panics
    /// If one of Burn's adapters is attached to the table: there is none like it here. Merge it by
    /// [`Module::materialize`](burn::module::Module::materialize) first.
    fn from(embedding: nn::Embedding) -> Self {
        assert!(
            embedding.weight.adapter().is_none(),
            "the embedding holds one of Burn's adapters; merge it by `materialize` first"
        );
        Self {
            weight: embedding.weight.into(),
            adapters: AdapterSlot::new(),
        }
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
        Self::from(PlainLinear::from(linear)).with_adapter(config)
    }
}

impl From<&LoraAdapter> for LoRAAdapter {
    /// The same update, as a plain LoRA of this rank and scale.
    fn from(adapter: &LoraAdapter) -> Self {
        let [in_dim, rank] = adapter.a.lazy_shape().dims();
        let [_, out_dim] = adapter.b.lazy_shape().dims();
        let config = LoRAConfig::default()
            .with_rank(rank)
            .with_alpha(adapter.scale * rank as f64);
        let mut new = Self::new(
            LayerShape::linear(in_dim, out_dim, false),
            LayerConfig::of(config.into()),
            &LayerParams::default(),
            &adapter.a.lazy_device(),
        );
        // Not by way of alpha, which may round it.
        new.set_scale(adapter.scale);
        new.set_matrix_param(LORA_A, transposed(adapter.a.clone()));
        new.set_matrix_param(LORA_B, transposed(adapter.b.clone()));
        new
    }
}

impl TryFrom<LoRAAdapter> for LoraAdapter {
    type Error = Error;

    /// The dropout, which Burn's adapter does not have, is left out: only a further training would tell.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an adapter with anything beside `A` and `B`, such as DoRA's magnitude, which
    /// Burn's adapter does not have.
    fn try_from(adapter: LoRAAdapter) -> Result<Self> {
        let mut others = adapter
            .params()
            .filter(|spec| ![LORA_A, LORA_B].contains(&spec.name));
        if let Some(other) = others.next() {
            return Err(Error::InvalidArgument {
                name: "adapter",
                message: format!(
                    "Burn's LoraAdapter has no `{}`; merge the layer instead",
                    other.name
                ),
            });
        }
        let factor = |name| {
            let param = adapter.matrix_param(name);
            transposed(param.expect("a LoRA has both factors").clone())
        };
        Ok(Self {
            a: factor(LORA_A),
            b: factor(LORA_B),
            scale: adapter.scale(),
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
