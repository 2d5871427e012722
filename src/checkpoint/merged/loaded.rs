//! Merging the adapters of a model that is loaded, one weight after the other.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use super::layers::{self, Layer};
use crate::Result;
use crate::adapter::{StateReader, state_readers};
use crate::checkpoint::hf::{MAX_SHARD_BYTES, save_weights};
use crate::llama::TransformerDecoder;

/// The weights of [`TransformerDecoder::merge_lora`], of which each is merged when it is read and none is kept.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if an adapter has brought a bias that the files of such a model
/// have no place for.
pub(in crate::checkpoint) fn merged_readers(
    model: &TransformerDecoder,
) -> Result<Vec<StateReader>> {
    let layers = layers::of(model);
    layers::require_places(&layers)?;
    let (own, parted): (Vec<_>, Vec<_>) = layers
        .into_iter()
        .map(Rc::new)
        .partition(|layer| layer.path == layer.base_path);
    let own = own.into_iter();
    let own: HashMap<String, Rc<Layer>> = own.map(|layer| (layer.path.clone(), layer)).collect();
    let merged = |reader: StateReader| {
        let layer = own.get(layers::module_of(&reader.key));
        match layer.filter(|layer| layer.changes(&reader.key)) {
            Some(layer) => merged(reader, layer, model),
            None => reader,
        }
    };
    let mut readers: Vec<_> = base_readers(model).map(merged).collect();
    // An output that was the embedding.
    for layer in parted {
        let weight = base_readers(model)
            .find(|reader| layers::module_of(&reader.key) == layer.base_path)
            .expect("a weight of the model");
        readers.push(self::merged(weight, &layer, model));
    }
    Ok(readers)
}

/// Writes a model with its adapters merged, as [`save_hf`] writes [`TransformerDecoder::merge_lora`]. Each weight is merged
/// when it is written, so the merged model is never held: of a base that is packed one weight at a time is dense, in f32.
///
/// # Errors
/// Those of [`save_hf`].
///
/// [`save_hf`]: crate::checkpoint::save_hf
pub fn save_merged_hf(model: &TransformerDecoder, dir: impl AsRef<Path>) -> Result<()> {
    let (readers, config) = (merged_readers(model)?, model.merged_config());
    save_weights(readers, &config, dir.as_ref(), MAX_SHARD_BYTES)
}

fn base_readers(model: &TransformerDecoder) -> impl Iterator<Item = StateReader> {
    let readers = state_readers(model).into_iter();
    readers.filter(|reader| !reader.is_adapter())
}

/// What merging makes of a base weight, for a layer which is that weight's or takes it over.
fn merged(weight: StateReader, layer: &Rc<Layer>, model: &TransformerDecoder) -> StateReader {
    let (_, name) = weight
        .key
        .rsplit_once('.')
        .expect("a parameter has a layer");
    let (key, shape) = (format!("{}.{name}", layer.path), layer.shape_of(name));
    let (layer, device) = (layer.clone(), model.norm.weight.lazy_device());
    let of_key = key.clone();
    weight.mapped(key, shape, move |base| layer.merged(&of_key, base, &device))
}
