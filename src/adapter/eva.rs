use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use burn::module::{Module, ParamId};
use burn::tensor::Tensor;

use crate::lora::init::ActivationStatistics;
use crate::lora::{
    AdaptedLayer, Inputs, LORA_A, LORA_B, LayerKind, Place, collect_layers, edit_layers,
    record_inputs,
};
use crate::{Error, Result};

/// Gives the adapters that act on linear layers EVA's first values: `A` the directions in which the layer's inputs vary
/// most, `B` zero. Paischer et al., *Parameter Efficient Fine-tuning via Explained Variance Adaptation*,
/// <https://arxiv.org/abs/2410.07170>.
///
/// `run` is given the model, without dropout and without a graph, to go through batches of the training's own data with:
/// a few hundred tokens are enough. Ranks stay as they are; [`redistribute_ranks`](crate::lora::init::redistribute_ranks)
/// is the paper's way to choose them.
///
/// ```no_run
/// use burn_peft::adapter::initialize_eva;
/// # use burn::tensor::{Int, Tensor};
/// # use burn_peft::llama::TransformerDecoder;
/// # fn begun(model: TransformerDecoder, batches: Vec<Tensor<2, Int>>) -> burn_peft::Result<()> {
///
/// let model = initialize_eva(model, |model| {
///     for ids in &batches {
///         model.forward(ids.clone(), None);
///     }
/// })?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if a layer has seen fewer inputs than its adapter's rank, or one that is no number.
pub fn initialize_eva<M: Module>(model: M, run: impl FnOnce(&M)) -> Result<M> {
    let layers = collect_layers(&model, |place, layer| {
        Some((wanted(place, layer)?, place.path.to_owned()))
    });
    let statistics = layers
        .iter()
        .map(|((id, in_dim, rank), _)| (*id, ActivationStatistics::new(*in_dim, *rank)));
    let valid = model.valid();
    let inputs = record_inputs(statistics.collect(), || run(&valid))?;
    let values = Rc::new(RefCell::new(HashMap::new()));
    for ((id, _, rank), path) in &layers {
        let first = first_values(&inputs, id, *rank, path)?;
        values.borrow_mut().insert(path.clone(), first);
    }
    Ok(edit_layers(model, move |place, layer| {
        let Some(a) = values.borrow_mut().remove(place.path) else {
            return;
        };
        let Some(adapter) = layer.slot_mut().active_mut().next() else {
            return;
        };
        let b = adapter.matrix(LORA_B).set_require_grad(false).zeros_like();
        adapter.set_matrix(LORA_A, a.to_device(&place.device()));
        adapter.set_matrix(LORA_B, b);
    }))
}

/// The weight's id, the layer's width and the adapter's rank, where there is such an adapter.
fn wanted(place: &Place<'_>, layer: &dyn AdaptedLayer) -> Option<(ParamId, usize, usize)> {
    let adapter = layer.slot().active().next()?;
    let is_linear = layer.shape().kind == LayerKind::Linear && !layer.is_tied();
    adapter.matrix_param(LORA_A).filter(|_| is_linear)?;
    let [_, in_dim] = layer.shape().dims;
    Some((place.params.weight.as_ref()?.id(), in_dim, adapter.rank()))
}

fn first_values(inputs: &Inputs, id: &ParamId, rank: usize, path: &str) -> Result<Tensor<2>> {
    let of_layer = |error: Error| Error::InvalidArgument {
        name: "inputs",
        message: format!("`{path}`: {error}"),
    };
    let first = inputs[id].first_values(rank, 1).map_err(of_layer)?;
    Ok(first.a)
}
