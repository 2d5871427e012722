use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use burn::module::{Module, ParamId};

use crate::lora::{AdaptedLayer, LayerKind, Place, collect_layers, edit_layers};
use crate::quantization::{BlockFormat, PackedLayout};
use crate::weight::{FrozenWeight, PackedWeight, Quantization};
use crate::{Error, Result};

/// Packs the weights of linear layers into fewer bits, each after the other, and freezes them: adapters train on them,
/// merging gives a dense weight again. Biases, norms, embeddings and an output that is an embedding's weight stay what
/// they are, as do layers whose path `keeps` has.
///
/// What an adapter beside a layer has from the layer's weight (DoRA's magnitude) follows from the packed one.
///
/// ```no_run
/// use burn_peft::adapter::quantize_base;
/// use burn_peft::weight::Quantization;
/// # fn quantized(model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// let model = quantize_base(model, Quantization::Nf4, |path| path == "output")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if the blocks of the format do not divide a layer's input, or a weight holds NaN or
/// infinite numbers. The message names the layer.
pub fn quantize_base<M: Module>(
    model: M,
    quantization: Quantization,
    keeps: impl Fn(&str) -> bool + 'static,
) -> Result<M> {
    let layouts = layouts(&model, move |path, kind| {
        let packs = kind == LayerKind::Linear && !keeps(path);
        packs.then(|| quantization.block_format())
    })?;
    let error = Rc::new(RefCell::new(None));
    let first = error.clone();
    let model = edit_layers(model, move |place, layer| {
        let Some(layout) = layouts.get(place.path) else {
            return;
        };
        if first.borrow().is_none() {
            *first.borrow_mut() = pack(place, layer, *layout).err();
        }
    });
    match error.take() {
        None => Ok(model),
        Some(error) => Err(error),
    }
}

/// The same model with lazy packed weights, for a load to fill, in the layers that have a format by their path and kind.
///
/// # Errors
/// [`Error::InvalidArgument`] if the blocks of a format do not divide its layer's input.
pub(crate) fn with_lazy_packed<M: Module>(
    model: M,
    format_of: impl Fn(&str, LayerKind) -> Option<BlockFormat> + 'static,
) -> Result<M> {
    let layouts = layouts(&model, format_of)?;
    Ok(edit_layers(model, move |place, layer| {
        if let (Some(layout), Some(weight)) = (layouts.get(place.path), layer.weight_mut()) {
            let packed = PackedWeight::lazy(*layout, weight.id(), &weight.device());
            *weight = FrozenWeight::Packed(packed);
        }
    }))
}

/// The layouts of packed weights by the keys that these have in a state dict.
pub(crate) fn packed_layouts<M: Module>(model: &M) -> HashMap<String, PackedLayout> {
    let weights = packed_weights(model).into_iter();
    weights
        .map(|(key, weight)| (key, weight.layout()))
        .collect()
}

/// The packed weights by the keys that they have in a state dict.
pub(super) fn packed_weights<M: Module>(model: &M) -> HashMap<String, PackedWeight> {
    let weights = collect_layers(model, |place, layer| match layer.params().weight? {
        FrozenWeight::Packed(weight) => Some((weight_key(place.path), weight)),
        FrozenWeight::Dense(_) => None,
    });
    weights.into_iter().collect()
}

/// The ids of packed weights.
pub(super) fn packed_ids<M: Module>(model: &M) -> HashSet<ParamId> {
    let ids = collect_layers(model, |_, layer| match layer.params().weight? {
        FrozenWeight::Dense(_) => None,
        weight => Some(weight.id()),
    });
    ids.into_iter().collect()
}

/// The key of the weight of the layer at a path.
pub(crate) fn weight_key(path: &str) -> String {
    match path {
        "" => "weight".to_owned(),
        path => format!("{path}.weight"),
    }
}

/// By path, for the layers that have a format and a weight of their own.
fn layouts<M: Module>(
    model: &M,
    format_of: impl Fn(&str, LayerKind) -> Option<BlockFormat> + 'static,
) -> Result<HashMap<String, PackedLayout>> {
    let layouts = collect_layers(model, move |place, layer| {
        let weight = layer.params().weight?;
        let format = format_of(place.path, layer.shape().kind)?;
        let layout = PackedLayout::new(format, weight.shape());
        Some((
            place.path.to_owned(),
            layout.map_err(|error| at(place.path, error)),
        ))
    });
    let layouts = layouts.into_iter();
    layouts.map(|(path, layout)| Ok((path, layout?))).collect()
}

pub(super) fn pack(
    place: &Place<'_>,
    layer: &mut dyn AdaptedLayer,
    layout: PackedLayout,
) -> Result<()> {
    let Some(weight) = layer.weight_mut() else {
        return Ok(());
    };
    let mut packed = PackedWeight::lazy(layout, weight.id(), &weight.device());
    packed
        .set_values(weight.to_f32())
        .map_err(|error| at(place.path, error))?;
    *weight = FrozenWeight::Packed(packed);
    let params = layer.params();
    for (_, adapter) in layer.slot_mut().keyed_mut(place.path) {
        adapter.follow_layer(&params, |_| true);
    }
    Ok(())
}

pub(super) fn at(path: &str, error: Error) -> Error {
    Error::InvalidArgument {
        name: "model",
        message: format!("`{path}`: {error}"),
    }
}
