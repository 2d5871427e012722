//! The rotary embeddings of families that have one for full layers and another for those with a window.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::layers::{FULL, SLIDING};
use super::map;
use super::rope::{Outside, parameters_to_json, read_parameters};
use crate::llama::{LayerAttention, LlamaConfig, Rope, Rotary};

/// The rotary embeddings of full and of sliding layers: `rope_parameters` by layer type; `rope_scaling` is that of full
/// ones.
pub fn by_layer_type(
    fields: Fields,
    [of_full, of_sliding]: [Outside; 2],
) -> Result<[Rope; 2], String> {
    let named = fields.object("rope_parameters")?;
    if named.is_some_and(|named| !named.has(FULL) && !named.has(SLIDING)) {
        return Err(format!("rope_parameters has neither {FULL} nor {SLIDING}"));
    }
    let of = |kind| named.map_or(Ok(None), |named| named.object(kind));
    let read = |fields: Option<Fields>, outside: &Outside| match fields {
        Some(fields) => read_parameters(fields, outside),
        None => Ok(Rope::new(outside.base)),
    };
    // Where a file has both, the older setting replaces what it names.
    let mut full = of(FULL)?.map(|fields| fields.0.clone()).unwrap_or_default();
    let older = fields.object("rope_scaling")?;
    full.extend(older.into_iter().flat_map(|older| older.0.clone()));
    if full.contains_key("type") && !full.contains_key("rope_type") {
        return Err("rope_scaling: such a model needs `rope_type` in place of `type`".to_owned());
    }
    // transformers looks for it in another place, and does not find it.
    full.shift_remove("truncate");
    Ok([
        read(Some(Fields(&full)), &of_full)?,
        read(of(SLIDING)?, &of_sliding)?,
    ])
}

/// The rotary embeddings in both styles.
pub fn write_by_layer_type(config: &LlamaConfig) -> Map<String, Value> {
    let full = config.rope();
    let local = config.local_rope.clone().unwrap_or_else(|| full.clone());
    map(json!({ "rope_parameters": {
        FULL: parameters_to_json(&full),
        SLIDING: parameters_to_json(&local),
    }}))
}

impl LlamaConfig {
    /// With these rotary embeddings of full and of local layers; `layers` gives what layers see from the rotary
    /// embedding of the local ones.
    pub(super) fn set_ropes(
        &mut self,
        full: Rope,
        local: Rope,
        layers: impl FnOnce(Rotary) -> Vec<LayerAttention>,
    ) {
        let rotary = match local == full {
            true => Rotary::Global,
            false => Rotary::Local,
        };
        self.layer_attention = layers(rotary);
        let has_local = self
            .layer_attention
            .iter()
            .any(|layer| layer.rotary == Rotary::Local);
        self.local_rope = has_local.then_some(local);
        self.rope_base = full.base;
        self.rope_scaling = full.scaling;
    }
}
