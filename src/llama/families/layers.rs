//! What the layers of a family see, in a `config.json`.

use serde_json::Value;

use super::fields::Fields;
use crate::llama::{LayerAttention, LlamaConfig, Rotary, Span};

pub const FULL: &str = "full_attention";
pub const SLIDING: &str = "sliding_attention";

/// Which layers have a window: by `layer_types`, else by a rule for the index of a layer.
pub fn sliding_layers(
    fields: Fields,
    num_layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, String> {
    let Some(types) = fields.get::<Vec<String>>("layer_types")? else {
        return Ok((0..num_layers).map(rule).collect());
    };
    if types.len() != num_layers {
        let given = types.len();
        return Err(format!(
            "layer_types: {given} are given for {num_layers} layers"
        ));
    }
    let is_sliding = |kind: &String| match kind.as_str() {
        SLIDING => Ok(true),
        FULL => Ok(false),
        other => Err(format!(
            "layer_types: `{other}` is not one of {FULL}, {SLIDING}"
        )),
    };
    types.iter().map(is_sliding).collect()
}

/// What layers see of which some have a window and `rotary`.
pub fn windowed(sliding: Vec<bool>, window: Option<usize>, rotary: Rotary) -> Vec<LayerAttention> {
    LayerAttention::pattern(sliding.into_iter().map(|is_sliding| match is_sliding {
        true => LayerAttention {
            span: window.map_or(Span::Full, Span::Window),
            rotary,
        },
        false => LayerAttention::default(),
    }))
}

/// The window of the layers that have one.
pub fn window(config: &LlamaConfig) -> Option<usize> {
    let mut layers = config.layer_attention.iter();
    layers.find_map(|layer| layer.span.tokens())
}

/// `layer_types` of a model.
pub fn layer_types(config: &LlamaConfig) -> Value {
    let layers = (0..config.num_layers).map(|layer| config.attention_of(layer));
    let kinds = layers.map(|attention| match attention.span {
        Span::Full if attention.rotary != Rotary::Local => FULL,
        _ => SLIDING,
    });
    kinds.collect::<Vec<_>>().into()
}
