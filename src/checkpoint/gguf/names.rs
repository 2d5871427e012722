//! What llama.cpp calls the tensors of a model.

use crate::llama::Block;
use crate::llama::names::expert_of;

/// Modules outside of the layers: ours, llama.cpp's.
const MODEL: [(&str, &str); 3] = [
    ("tok_embeddings", "token_embd"),
    ("norm", "output_norm"),
    ("output", "output"),
];

/// Modules of a layer, below `layers.N` and `blk.N`. Of two that have one name there a model has only one.
const LAYER: [(&str, &str); 19] = [
    ("sa_norm", "attn_norm"),
    ("attn.q_proj", "attn_q"),
    ("attn.k_proj", "attn_k"),
    ("attn.v_proj", "attn_v"),
    ("attn.qkv_proj", "attn_qkv"),
    ("attn.output_proj", "attn_output"),
    ("attn.q_norm", "attn_q_norm"),
    ("attn.k_norm", "attn_k_norm"),
    ("post_sa_norm", "post_attention_norm"),
    ("mlp_norm", "ffn_norm"),
    (PRE_MLP_NORM, "ffn_norm"),
    ("mlp.w1", "ffn_gate"),
    ("mlp.w2", "ffn_down"),
    ("mlp.w3", "ffn_up"),
    (GATE_UP, "ffn_up"),
    ("post_mlp_norm", "post_ffw_norm"),
    ("moe.gate", "ffn_gate_inp"),
    // All experts have one tensor, and gate and up one each.
    ("moe.experts.gate_up_proj", GATE_OF_EXPERTS),
    ("moe.experts.w2", "ffn_down_exps"),
];
const GATE_OF_EXPERTS: &str = "ffn_gate_exps";
const UP_OF_EXPERTS: &str = "ffn_up_exps";
const PRE_MLP_NORM: &str = "pre_mlp_norm";
const GATE_UP: &str = "mlp.gate_up_proj";

/// `blk.0.ffn_gate_exps.weight` to `blk.0.ffn_up_exps.weight`; none of another tensor.
pub(super) fn up_of_experts(gate: &str) -> Option<String> {
    let is_gate = gate.split('.').any(|part| part == GATE_OF_EXPERTS);
    is_gate.then(|| gate.replace(GATE_OF_EXPERTS, UP_OF_EXPERTS))
}

/// The reverse of [`up_of_experts`].
pub(super) fn gate_of_experts(up: &str) -> Option<String> {
    let is_up = up.split('.').any(|part| part == UP_OF_EXPERTS);
    is_up.then(|| up.replace(UP_OF_EXPERTS, GATE_OF_EXPERTS))
}

/// `layers.0.attn.q_proj` to `blk.0.attn_q`; of an expert's module the name of what all experts have of it.
pub(super) fn to_gguf(module: &str) -> Option<String> {
    if let Some((all, _)) = expert_of(module) {
        return to_gguf(&all);
    }
    let find = |rows: &[(&str, &'static str)], name: &str| {
        let row = rows.iter().find(|(ours, _)| *ours == name);
        row.map(|(_, theirs)| *theirs)
    };
    match module.strip_prefix("layers.") {
        Some(rest) => {
            let (layer, name) = rest.split_once('.')?;
            Some(format!("blk.{layer}.{}", find(&LAYER, name)?))
        }
        None => find(&MODEL, module).map(str::to_owned),
    }
}

/// `blk.0.attn_q.weight` to `layers.0.attn.q_proj.weight`, in a model of such layers.
pub(super) fn from_gguf(name: &str, block: &Block) -> Option<String> {
    let is_here = |ours: &str| match ours {
        PRE_MLP_NORM => block.norms.is_before() && block.norms.is_after(),
        "mlp_norm" => !block.norms.is_after(),
        GATE_UP => block.joint_projections,
        "mlp.w3" => !block.joint_projections,
        _ => true,
    };
    let find = |rows: &[(&'static str, &str)], name: &str| {
        let mut rows = rows.iter().filter(|(ours, _)| is_here(ours));
        let row = rows.find(|(_, theirs)| *theirs == name);
        row.map(|(ours, _)| *ours)
    };
    let (module, parameter) = name.rsplit_once('.')?;
    let module = match module.strip_prefix("blk.") {
        Some(rest) => {
            let (layer, name) = rest.split_once('.')?;
            format!("layers.{layer}.{}", find(&LAYER, name)?)
        }
        None => find(&MODEL, module)?.to_owned(),
    };
    Some(format!("{module}.{parameter}"))
}

/// Whether a parameter, by our name, has rows that are rotated.
pub(super) fn is_rotated(key: &str) -> bool {
    ["q_proj", "k_proj"]
        .into_iter()
        .any(|module| key.contains(&format!(".attn.{module}.")))
}

/// Whether a parameter, by our name, is a norm's weight, which llama.cpp's files have 1 added to where a
/// model multiplies by `1 + w`.
pub(super) fn is_norm(key: &str) -> bool {
    key.ends_with("norm.weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::NormPlacement;

    #[test]
    fn modules_of_a_model_have_names() {
        assert_eq!(to_gguf("layers.3.mlp.w2").unwrap(), "blk.3.ffn_down");
        assert_eq!(to_gguf("tok_embeddings").unwrap(), "token_embd");
        let expert = to_gguf("layers.3.moe.experts.5.gate_up_proj").unwrap();
        assert_eq!(expert, "blk.3.ffn_gate_exps");
        let up = up_of_experts(&expert).unwrap();
        assert_eq!(up, "blk.3.ffn_up_exps");
        assert_eq!(gate_of_experts(&up), Some(expert));
        assert_eq!(up_of_experts("blk.3.ffn_gate"), None);
        assert_eq!(to_gguf("layers.3.mlp"), None);
        assert_eq!(to_gguf("head"), None);
    }

    #[test]
    fn names_of_tensors_there_and_back() {
        let (plain, joint) = (
            Block::default(),
            Block::default().with_joint_projections(true),
        );
        let both = Block::default().with_norms(NormPlacement::Both);
        for (ours, block) in MODEL
            .iter()
            .map(|(ours, _)| ((*ours).to_owned(), &plain))
            .chain(LAYER.iter().map(|(ours, _)| {
                let block = match *ours {
                    PRE_MLP_NORM => &both,
                    GATE_UP => &joint,
                    _ => &plain,
                };
                (format!("layers.12.{ours}"), block)
            }))
        {
            let name = format!("{}.weight", to_gguf(&ours).unwrap());
            assert_eq!(from_gguf(&name, block), Some(format!("{ours}.weight")));
        }
        let bias = from_gguf("blk.3.attn_q.bias", &plain).unwrap();
        assert_eq!(bias, "layers.3.attn.q_proj.bias");
        assert!(is_rotated(&bias) && is_rotated("layers.0.attn.k_proj.weight"));
        assert!(!is_rotated("layers.0.attn.v_proj.weight") && !is_rotated("output.weight"));
        assert!(is_norm("norm.weight") && is_norm("layers.0.attn.q_norm.weight"));
        assert!(!is_norm("output.weight"));
        for other in [
            "blk.0.attn_sinks.weight",
            "blk.0.attn_q",
            "rope_freqs.weight",
        ] {
            assert_eq!(from_gguf(other, &plain), None, "{other}");
        }
        let after = Block::default().with_norms(NormPlacement::After);
        assert_eq!(from_gguf("blk.0.ffn_norm.weight", &after), None);
    }
}
