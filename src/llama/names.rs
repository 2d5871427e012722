//! What a module is called here and in Hugging Face's files, a row per module.

use super::NormPlacement;
use crate::lora::ModuleNames;

/// Modules outside of the layers: ours, Hugging Face's.
const MODEL: [(&str, &str); 3] = [
    ("tok_embeddings", "model.embed_tokens"),
    ("norm", "model.norm"),
    ("output", "lm_head"),
];

/// The norm between attention and feed-forward block, wherever it stands.
const POST_ATTENTION: &str = "post_attention_layernorm";

/// Modules of a layer, below `layers.N` and `model.layers.N`.
const LAYER: [(&str, &str); 16] = [
    ("sa_norm", "input_layernorm"),
    ("attn.q_proj", "self_attn.q_proj"),
    ("attn.k_proj", "self_attn.k_proj"),
    ("attn.v_proj", "self_attn.v_proj"),
    ("attn.qkv_proj", "self_attn.qkv_proj"),
    ("attn.output_proj", "self_attn.o_proj"),
    ("attn.q_norm", "self_attn.q_norm"),
    ("attn.k_norm", "self_attn.k_norm"),
    ("post_sa_norm", POST_ATTENTION),
    ("mlp_norm", POST_ATTENTION),
    ("pre_mlp_norm", "pre_feedforward_layernorm"),
    ("mlp.w1", "mlp.gate_proj"),
    ("mlp.w2", "mlp.down_proj"),
    ("mlp.w3", "mlp.up_proj"),
    ("mlp.gate_up_proj", "mlp.gate_up_proj"),
    ("post_mlp_norm", "post_feedforward_layernorm"),
];

/// All names of a module of a decoder.
pub(crate) fn module_names(path: &str) -> ModuleNames {
    let mut names = ModuleNames::new(path);
    names.hf = to_hf(path);
    names.is_vocabulary = ["tok_embeddings", "output"].contains(&path);
    let joint = JOINT.iter().find(|(joint, _)| path.ends_with(*joint));
    names.parts = joint.map(|(_, parts)| *parts).unwrap_or_default();
    names
}

/// Joint projections, and what their parts are called in other models, here and in Hugging Face's files.
const JOINT: [(&str, &[&str]); 2] = [
    ("attn.qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("mlp.gate_up_proj", &["w1", "w3", "gate_proj", "up_proj"]),
];

/// `layers.0.attn.q_proj` to `model.layers.0.self_attn.q_proj`.
pub(crate) fn to_hf(module: &str) -> Option<String> {
    match module
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => {
            let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == rest)?;
            Some(format!("model.layers.{layer}.{theirs}"))
        }
        None => {
            let (_, theirs) = MODEL.iter().find(|(ours, _)| *ours == module)?;
            Some(theirs.to_string())
        }
    }
}

/// The reverse of [`to_hf`] in a model whose norms stand so.
pub(crate) fn from_hf(module: &str, norms: NormPlacement) -> Option<String> {
    match module
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, POST_ATTENTION)) => {
            let ours = if norms.is_after() {
                "post_sa_norm"
            } else {
                "mlp_norm"
            };
            Some(format!("layers.{layer}.{ours}"))
        }
        Some((layer, rest)) => {
            let (ours, _) = LAYER.iter().find(|(_, theirs)| *theirs == rest)?;
            Some(format!("layers.{layer}.{ours}"))
        }
        None => {
            let (ours, _) = MODEL.iter().find(|(_, theirs)| *theirs == module)?;
            Some(ours.to_string())
        }
    }
}

/// The last part of a module's name in Hugging Face's files: `output_proj` to `o_proj`.
pub(crate) fn last_part_to_hf(name: &str) -> Option<&'static str> {
    rows().find_map(|(ours, theirs)| (last_part(ours) == name).then_some(last_part(theirs)))
}

fn rows() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    MODEL.iter().chain(&LAYER)
}

fn last_part(module: &'static str) -> &'static str {
    module.rsplit('.').next().unwrap_or(module)
}
