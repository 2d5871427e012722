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

/// Modules of a layer, below `layers.N` and `model.layers.N`. What all experts together have of a weight is a parameter of
/// Hugging Face's modules, and no module here.
const LAYER: [(&str, &str); 19] = [
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
    ("moe.gate", "mlp.gate"),
    ("moe.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
    ("moe.experts.w2", "mlp.experts.down_proj"),
    ("post_mlp_norm", "post_feedforward_layernorm"),
];

/// Modules of an expert, below `moe.experts.N` and `mlp.experts.N`. Files have the rows of `gate_up_proj` as two
/// modules.
const EXPERT: [(&str, &str); 4] = [
    ("gate_up_proj", "gate_up_proj"),
    ("w1", "gate_proj"),
    ("w2", "down_proj"),
    ("w3", "up_proj"),
];

/// Where the experts of a layer are, here and in Hugging Face's files.
const EXPERTS: [&str; 2] = ["moe.experts.", "mlp.experts."];

/// All names of a module of a decoder. Of a mixture of experts Hugging Face has no modules of linear layers, but
/// parameters.
pub(crate) fn module_names(path: &str) -> ModuleNames {
    let mut names = ModuleNames::new(path);
    let hf = to_hf(path);
    let weight = hf.as_ref().map(|module| format!("{module}.weight"));
    match expert_of(path) {
        Some((all, _)) => names.parameter = to_hf(&all),
        None => names.parameter = weight,
    }
    names.hf = hf.filter(|_| !is_in_mixture(path));
    names.is_vocabulary = ["tok_embeddings", "output"].contains(&path);
    let joint = JOINT.iter().find(|(joint, _)| path.ends_with(*joint));
    names.parts = joint.map(|(_, parts)| *parts).unwrap_or_default();
    names
}

/// Whether a module, by its path here, is part of a mixture of experts.
pub(crate) fn is_in_mixture(path: &str) -> bool {
    path.strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
        .is_some_and(|(_, inside)| inside.starts_with("moe."))
}

/// The path of what all experts have of a module, and which expert's this one is: `layers.0.moe.experts.3.w2` is
/// `layers.0.moe.experts.w2` of 3.
pub(crate) fn expert_of(path: &str) -> Option<(String, usize)> {
    let (before, rest) = path.split_once(EXPERTS[0])?;
    let (index, module) = rest.split_once('.')?;
    let all = format!("{before}{}{module}", EXPERTS[0]);
    Some((all, index.parse().ok()?))
}

/// Joint projections, and what their parts are called in other models, here and in Hugging Face's files.
const JOINT: [(&str, &[&str]); 2] = [
    ("attn.qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    (".gate_up_proj", &["w1", "w3", "gate_proj", "up_proj"]),
];

/// `layers.0.attn.q_proj` to `model.layers.0.self_attn.q_proj`.
pub(crate) fn to_hf(module: &str) -> Option<String> {
    match module
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => {
            let theirs = find(rest, true)?;
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
            let ours = find(rest, false)?;
            Some(format!("layers.{layer}.{ours}"))
        }
        None => {
            let (ours, _) = MODEL.iter().find(|(_, theirs)| *theirs == module)?;
            Some(ours.to_string())
        }
    }
}

/// The other name of a module of a layer, by ours or theirs.
fn find(name: &str, is_ours: bool) -> Option<String> {
    let in_order = |[ours, theirs]: [&'static str; 2]| match is_ours {
        true => [ours, theirs],
        false => [theirs, ours],
    };
    let other = |rows: &[(&'static str, &'static str)], name: &str| {
        let mut rows = rows.iter().map(|(ours, theirs)| in_order([ours, theirs]));
        rows.find_map(|[from, to]| (from == name).then_some(to))
    };
    let [from, to] = in_order(EXPERTS);
    match name
        .strip_prefix(from)
        .and_then(|rest| rest.split_once('.'))
    {
        Some((index, module)) => Some(format!("{to}{index}.{}", other(&EXPERT, module)?)),
        None => other(&LAYER, name).map(str::to_owned),
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
