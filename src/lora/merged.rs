//! What merging makes of a layer's own parameters.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use super::method::{FULL_WEIGHT, TRAINED_BIAS, added_bias};
use super::{LoRAAdapter, PlainLinear};
use crate::weight::{FrozenWeight, replace, untracked};

/// A linear layer with what acts added to it.
pub(super) fn merged(base: PlainLinear, active: &[&LoRAAdapter]) -> PlainLinear {
    let device = base.weight.device();
    PlainLinear {
        weight: merged_weight(base.weight, active),
        bias: merged_bias(base.bias, active, &device),
    }
}

/// The weight of a linear layer or an embedding with what acts added to it, in f32 and rounded once.
pub(crate) fn merged_weight(weight: FrozenWeight, active: &[&LoRAAdapter]) -> FrozenWeight {
    if active.is_empty() {
        return weight;
    }
    weight.map(|base| {
        active.iter().fold(base.clone(), |sum, adapter| {
            let method = adapter.method().0;
            method.merge(adapter, adapter.layer(), &base, sum)
        })
    })
}

/// The bias of a linear layer with what acts added to it; one where there was none if an adapter brings it.
pub(crate) fn merged_bias(
    mut bias: Option<Param<Tensor<1>>>,
    active: &[&LoRAAdapter],
    device: &Device,
) -> Option<Param<Tensor<1>>> {
    for adapter in active {
        if let Some(trained) = adapter.vector(TRAINED_BIAS) {
            bias = bias.map(|bias| replace(bias, |_| untracked(trained)));
        }
        if let Some(added) = added_bias(adapter) {
            bias = Some(match bias {
                Some(bias) => replace(bias, |bias| bias.cast(DType::F32) + added),
                None => Param::from_tensor(added.to_device(device)).no_grad(),
            });
        }
    }
    bias
}

/// The weight of a norm, or the last one that was trained in its place.
pub(crate) fn merged_norm(weight: Param<Tensor<1>>, active: &[&LoRAAdapter]) -> Param<Tensor<1>> {
    let trained = active
        .last()
        .and_then(|adapter| adapter.vector(FULL_WEIGHT));
    match trained {
        Some(trained) => replace(weight, |_| untracked(trained)),
        None => weight,
    }
}
