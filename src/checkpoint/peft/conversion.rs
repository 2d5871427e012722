//! Adapters that begin with a part of their base (PiSSA, OLoRA) as plain ones, for the base as it was.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use indexmap::IndexMap;

use super::LayerConfigs;
use crate::adapter::{adapter_layers, to_host};
use crate::llama::TransformerDecoder;
use crate::llama::names::to_hf;
use crate::lora::{
    Init, LORA_A, LORA_B, LayerConfig, LoRAAdapter, LoRAConfig, SHIFT_A, SHIFT_B, key_prefix,
};

/// The configuration of twice the rank and the same scale.
pub(super) fn config(config: &LoRAConfig, layers: &LayerConfigs) -> LoRAConfig {
    let factor = if config.use_rslora { 2f64.sqrt() } else { 2.0 };
    let mut new = config.clone().with_init(Init::Kaiming);
    new.rank *= 2;
    new.alpha *= factor;
    (new.rank_pattern, new.alpha_pattern) = (IndexMap::new(), IndexMap::new());
    // What began with no part of its base (an embedding) has the rank that it had. The first match counts.
    for (
        path,
        LayerConfig {
            method, settings, ..
        },
    ) in layers
    {
        if *method == config.method && !settings.begins_with_base {
            let name = to_hf(path).expect("an adapted layer has a name");
            new.rank_pattern.insert(name.clone(), settings.rank);
            new.alpha_pattern.insert(name, settings.alpha);
        }
    }
    let ranks = config.rank_pattern.iter();
    new.rank_pattern
        .extend(ranks.map(|(key, rank)| (key.clone(), 2 * rank)));
    let alphas = config.alpha_pattern.iter();
    new.alpha_pattern
        .extend(alphas.map(|(key, alpha)| (key.clone(), factor * alpha)));
    new
}

/// `[A; A₀]` and `[B, -B₀]` of every layer that has them, by the keys of A and B.
pub(super) fn factors(model: &TransformerDecoder, adapter: &str) -> HashMap<String, TensorData> {
    let mut factors = HashMap::new();
    for (path, layer) in adapter_layers(model, adapter) {
        let Some([a, b]) = converted(&layer) else {
            continue;
        };
        for (name, value) in [(LORA_A, a), (LORA_B, b)] {
            let key = format!("{}{name}", key_prefix(&path, adapter));
            factors.insert(key, to_host(value));
        }
    }
    factors
}

/// The factors of a plain adapter of twice the rank; none if the adapter began with no part of its base.
pub(super) fn converted(layer: &LoRAAdapter) -> Option<[Tensor<2>; 2]> {
    let value = |name| Some(layer.matrix_param(name)?.val().set_require_grad(false));
    let a = Tensor::cat(vec![value(LORA_A)?, value(SHIFT_A)?], 0);
    let b = Tensor::cat(vec![value(LORA_B)?, -value(SHIFT_B)?], 1);
    Some([a, b])
}
