use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::tensor::Tensor;

use super::attach::{adapter_layers, train_only};
use super::{lasting_tensor, to_host};
use crate::lora::init::{ActivationStatistics, check_rho, largest_rank, redistribute_ranks};
use crate::lora::{
    AdaptedLayer, BIAS, Init, LORA_A, LORA_B, LayerConfig, LayerKind, LoRAAdapter, LoRAConfig,
    Naming, Place, Targets, TrainedBias, collect_layers, edit_layers, record_inputs,
};
use crate::{Error, Result};

/// Gives the adapters that act on linear layers EVA's first values: `A` the directions in which the layer's inputs vary
/// most, `B` zero. Paischer et al., *Parameter Efficient Fine-tuning via Explained Variance Adaptation*,
/// <https://arxiv.org/abs/2410.07170>.
///
/// `run` is given the model, without dropout and without a graph, to go through batches of the training's own data with:
/// a few hundred tokens are enough.
///
/// With `rho` above 1 (PEFT's default is 2) the ranks are redistributed: as many as before in sum, to the directions that
/// explain most of their layer's variance, but none more than `rho` times what it was, see
/// [`redistribute_ranks`]. The alphas change with them, so that alpha / r stays, and layers of rank 0 lose their adapter,
/// as in PEFT. The adapter's configuration ([`adapter_config`](super::adapter_config)) then names its layers by their
/// paths, with a rank and an alpha for each that differs; estimate the memory and save by that one. With `rho` 1 each
/// layer keeps its rank.
///
/// ```no_run
/// use burn_peft::adapter::initialize_eva;
/// # use burn::tensor::{Int, Tensor};
/// # use burn_peft::llama::TransformerDecoder;
/// # fn begun(model: TransformerDecoder, batches: Vec<Tensor<2, Int>>) -> burn_peft::Result<()> {
///
/// let model = initialize_eva(model, 2.0, |model| {
///     for ids in &batches {
///         model.forward(ids.clone(), None);
///     }
/// })?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if `rho` is below 1, no adapter acts on a linear layer, or a layer has seen fewer inputs than
/// the rank that it may get, is narrower than that, or has seen one that is no number.
pub fn initialize_eva<M: Module>(model: M, rho: f64, run: impl FnOnce(&M)) -> Result<M> {
    check_rho(rho)?;
    let layers = collect_layers(&model, target);
    let Some(name) = layers.first().map(|layer| layer.adapter.clone()) else {
        return Err(no_linear_adapter());
    };
    let layers: Vec<Target> = layers.into_iter().filter(|l| l.adapter == name).collect();
    let statistics = layers.iter().map(|layer| {
        let largest = largest_rank(layer.config.settings.rank, rho);
        (layer.id, ActivationStatistics::new(layer.in_dim, largest))
    });
    let valid = model.valid();
    let inputs = record_inputs(statistics.collect(), || run(&valid))?;
    let mut directions = Vec::new();
    let mut ratios = Vec::new();
    for layer in &layers {
        let statistics = &inputs[&layer.id];
        directions
            .push(layer.directions(statistics, largest_rank(layer.config.settings.rank, rho))?);
        ratios.push(statistics.explained_variance_ratios());
    }
    let ranks: Vec<usize> = layers
        .iter()
        .map(|layer| layer.config.settings.rank)
        .collect();
    let ranks = redistribute_ranks(&ranks, &ratios, rho)?;
    let begun = layers.into_iter().zip(directions).zip(ranks);
    let begun = begun.map(|((layer, directions), rank)| (layer, directions, rank));
    Ok(with_directions(model, &name, begun.collect()))
}

pub(super) fn no_linear_adapter() -> Error {
    Error::InvalidArgument {
        name: "model",
        message: "no adapter acts on a linear layer; put some on by `with_adapters`".into(),
    }
}

/// A linear layer with an adapter that acts.
struct Target {
    path: String,
    /// The weight's, by which inputs are recorded.
    id: ParamId,
    in_dim: usize,
    /// The adapter's name.
    adapter: String,
    config: LayerConfig,
}

fn target(place: &Place<'_>, layer: &dyn AdaptedLayer) -> Option<Target> {
    let name = layer.slot().active_name()?;
    let adapter = layer.slot().get(name)?;
    let is_linear = layer.shape().kind == LayerKind::Linear && !layer.is_tied();
    adapter.matrix_param(LORA_A).filter(|_| is_linear)?;
    let [_, in_dim] = layer.shape().dims;
    Some(Target {
        path: place.path.to_owned(),
        id: place.params.weight.as_ref()?.id(),
        in_dim,
        adapter: name.to_owned(),
        config: adapter.layer_config(),
    })
}

impl Target {
    /// The leading directions of its inputs, `[count, in]`.
    fn directions(&self, inputs: &ActivationStatistics, count: usize) -> Result<Tensor<2>> {
        let of_layer = |error: Error| Error::InvalidArgument {
            name: "inputs",
            message: format!("`{}`: {error}", self.path),
        };
        Ok(inputs.first_values(count, 1).map_err(of_layer)?.a)
    }

    /// What the layer's adapter is with another rank; none if it needs none.
    fn with_rank(&self, rank: usize, config: Arc<LoRAConfig>) -> Option<LayerConfig> {
        let mut new = self.config.clone();
        if rank > 0 {
            new.settings.rank = rank;
            new.settings.alpha = self.alpha(rank);
            new.settings.init = config.init;
            new.settings.begins_with_base = false;
            new.config = config;
            return Some(new);
        }
        // As for every layer without an adapter of low rank.
        let trains_bias = config.bias == TrainedBias::All && new.settings.trains_bias;
        trains_bias.then(|| LayerConfig::of(config).with_method(&BIAS, |_| {}))
    }

    fn alpha(&self, rank: usize) -> f64 {
        let settings = &self.config.settings;
        settings.alpha * rank as f64 / settings.rank as f64
    }
}

/// The model with the adapter of this name begun anew on layers, each with directions, of which its rank's are taken.
fn with_directions<M: Module>(model: M, name: &str, begun: Vec<(Target, Tensor<2>, usize)>) -> M {
    let config = Arc::new(config_of(&model, name, &begun));
    let begun: HashMap<_, _> = begun
        .into_iter()
        .map(|(layer, directions, rank)| (layer.path.clone(), (layer, directions, rank)))
        .collect();
    let (begun, adapter) = (Rc::new(RefCell::new(begun)), name.to_owned());
    let model = edit_layers(model, move |place, layer| {
        let slot = layer.slot_mut();
        let Some((target, directions, rank)) = begun.borrow_mut().remove(place.path) else {
            if let Some(other) = slot.get_mut(&adapter) {
                other.set_config(config.clone());
            }
            return;
        };
        let Some(own) = target.with_rank(rank, config.clone()) else {
            slot.remove(&adapter);
            return;
        };
        let (shape, device) = (layer.shape(), place.device());
        let mut new = LoRAAdapter::new(shape, own, &place.params, &device);
        if rank > 0 {
            // By way of the host: the directions know no autodiff.
            let a = to_host(directions.narrow(0, 0, rank));
            new.set_matrix(LORA_A, lasting_tensor(a, &device));
            new.set_matrix(LORA_B, Tensor::zeros([shape.dims[0], rank], &device));
        }
        if let Some(old) = layer.slot_mut().get_mut(&adapter) {
            *old = new;
        }
    });
    train_only(model, name)
}

/// The adapter's configuration with new ranks: by the paths of its layers, if a rank has changed.
fn config_of<M: Module>(model: &M, name: &str, begun: &[(Target, Tensor<2>, usize)]) -> LoRAConfig {
    let of_model = adapter_layers(model, name);
    let (_, first) = of_model.first().expect("a layer has this adapter");
    let mut config = (**first.config()).clone().with_init(Init::Eva);
    if begun
        .iter()
        .all(|(layer, _, rank)| *rank == layer.config.settings.rank)
    {
        return config;
    }
    let mut targets = Vec::new();
    (config.rank_pattern, config.alpha_pattern) = Default::default();
    for (path, adapter) in &of_model {
        let settings = adapter.settings();
        let new = begun.iter().find(|(layer, ..)| layer.path == *path);
        let (rank, alpha) = match new {
            Some((layer, _, rank)) => (*rank, layer.alpha(*rank)),
            None => (settings.rank, settings.alpha),
        };
        if adapter.method() != config.method || rank == 0 {
            continue;
        }
        let key = path.replace('.', r"\.");
        if rank != config.rank {
            config.rank_pattern.insert(key.clone(), rank);
        }
        if alpha != config.alpha {
            config.alpha_pattern.insert(key, alpha);
        }
        targets.push(path.clone());
    }
    config.targets = Targets::Names(targets);
    (config.exclude, config.layers, config.naming) = (None, None, Naming::Any);
    config
}
