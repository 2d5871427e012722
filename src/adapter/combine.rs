//! Several adapters of a model made into one.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;

use super::attach::{
    adapter_config, adapter_layers, check_name, detached, require_attached, train_only,
};
use crate::lora::{
    Combination, CombineOptions, Factors, LORA, LORA_A, LORA_B, LayerConfig, LoRAAdapter,
    LoRAConfig, MethodRef, ParamSpec, SHIFT_A, SHIFT_B, Targets, combine, edit_layers, seed_of,
};
use crate::{Error, Result};

/// Combines adapters of a model, each with its weight, into a new one called `name`, which then acts alone. A layer
/// that one of them does not adapt has the combination of the others.
///
/// Each adapter counts with its own scale on each layer: rsLoRA and patterns of ranks and alphas are combined rightly.
///
/// ```no_run
/// use burn_peft::adapter::combine_adapters;
/// use burn_peft::lora::{CombineOptions, Combination};
/// # fn both(model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// let weights = [("french", 0.7), ("poems", 0.3)];
/// let options = CombineOptions::default().with_density(0.5);
/// let model = combine_adapters(model, &weights, Combination::Ties, &options, "both")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if the model has no adapter of such a name, one has anything beside LoRA's factors (DoRA's
/// magnitude, biases, modules trained as a whole), or the kind cannot combine them, see
/// [`combine`](crate::lora::combine).
pub fn combine_adapters<M: Module>(
    model: M,
    weights: &[(&str, f64)],
    kind: Combination,
    options: &CombineOptions,
    name: &str,
) -> Result<M> {
    check_name(name)?;
    let mut paths = BTreeSet::new();
    let mut adapters = Vec::new();
    for (adapter, weight) in weights {
        require_attached(&model, adapter)?;
        let layers = adapter_layers(&model, adapter);
        for (path, layer) in &layers {
            require_factors(adapter, path, layer)?;
            paths.insert(path.clone());
        }
        adapters.push((layers, *weight));
    }
    let mut combined = Vec::new();
    for path in &paths {
        let mut layers = Vec::new();
        for (of_adapter, weight) in &adapters {
            let layer = of_adapter.iter().find(|(other, _)| other == path);
            layers.extend(layer.map(|(_, layer)| (layer, *weight)));
        }
        let factors: Vec<Factors> = layers.iter().map(|(layer, _)| factors_of(layer)).collect();
        let weights: Vec<f64> = layers.iter().map(|(_, weight)| *weight).collect();
        let options = options.clone().with_seed(seed_of(path, options.seed));
        combined.push((path.clone(), combine(kind, &factors, &weights, &options)?));
    }
    let config = weights
        .first()
        .and_then(|(first, _)| adapter_config(&model, first))
        .ok_or_else(|| invalid("no adapter is named".into()))?;
    Ok(with_factors(model, &config, combined, name))
}

fn invalid(message: String) -> Error {
    Error::InvalidArgument {
        name: "adapters",
        message,
    }
}

fn require_factors(adapter: &str, path: &str, layer: &LoRAAdapter) -> Result<()> {
    if layer.settings().ties_output {
        return Err(invalid(format!(
            "`{adapter}` adapts `{path}` and the output by one pair of factors (ensure_weight_tying), which cannot be \
             combined; merge it instead"
        )));
    }
    let factors = [LORA_A, LORA_B, SHIFT_A, SHIFT_B];
    let other = |spec: &&ParamSpec| !factors.contains(&spec.name);
    match layer.params().find(other) {
        None => Ok(()),
        Some(other) => Err(invalid(format!(
            "`{adapter}` has `{}` on `{path}`; only LoRA's factors can be combined, merge it instead",
            other.name
        ))),
    }
}

/// What an adapter adds to its layer, as factors: with what the base lost for it, if it begins with a part of it.
fn factors_of(layer: &LoRAAdapter) -> Factors {
    let factor = |name| Some(layer.matrix_param(name)?.val().set_require_grad(false));
    let own = [LORA_A, LORA_B].map(|name| factor(name).expect("a LoRA has both factors"));
    let [a, b] = match [SHIFT_A, SHIFT_B].map(factor) {
        [Some(a), Some(b)] => {
            let [own_a, own_b] = own;
            [
                Tensor::cat(vec![own_a, a], 0),
                Tensor::cat(vec![own_b, -b], 1),
            ]
        }
        _ => own,
    };
    Factors::new(a, b, layer.scale())
}

/// The model with an adapter of these factors on the layers of these paths.
fn with_factors<M: Module>(
    model: M,
    like: &LoRAConfig,
    combined: Vec<(String, Factors)>,
    name: &str,
) -> M {
    let config = Arc::new(config_of(like, &combined));
    let attached = name.to_owned();
    let model = edit_layers(detached(model, name), move |place, layer| {
        let Some((_, factors)) = combined.iter().find(|(path, _)| path == place.path) else {
            return layer.slot_mut().set_active(&[]);
        };
        let mut own = LayerConfig::of(config.clone());
        (own.settings.rank, own.settings.alpha) = (factors.rank(), alpha_of(factors));
        let mut adapter = LoRAAdapter::new(layer.shape(), own, &place.params, &place.device());
        adapter.set_matrix(LORA_A, factors.a.clone());
        adapter.set_matrix(LORA_B, factors.b.clone());
        layer.freeze_base();
        layer.slot_mut().insert(&attached, adapter);
    });
    train_only(model, name)
}

/// With which the scale is that of the factors.
fn alpha_of(factors: &Factors) -> f64 {
    factors.scale * factors.rank() as f64
}

/// A plain LoRA on these layers, whose ranks may differ.
fn config_of(like: &LoRAConfig, combined: &[(String, Factors)]) -> LoRAConfig {
    let ranks = combined.iter().map(|(_, factors)| factors.rank());
    let rank = ranks.max().unwrap_or(like.rank);
    let others = || combined.iter().filter(|(_, f)| f.rank() != rank);
    let key = |path: &String| path.replace('.', r"\.");
    LoRAConfig::default()
        .with_targets(Targets::names(combined.iter().map(|(path, _)| path)))
        .with_method(MethodRef(&LORA))
        .with_rank(rank)
        .with_alpha(rank as f64)
        .with_rank_pattern(others().map(|(path, f)| (key(path), f.rank())))
        .with_alpha_pattern(others().map(|(path, f)| (key(path), alpha_of(f))))
}
