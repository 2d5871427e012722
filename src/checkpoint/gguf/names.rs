//! What llama.cpp calls a model and its tensors, and how it lays out the rows of q and k.

use crate::llama::families::saved_family;
use crate::llama::{LlamaConfig, RopeScaling};

/// Modules outside of the layers: ours, llama.cpp's.
const MODEL: [(&str, &str); 3] = [
    ("tok_embeddings", "token_embd"),
    ("norm", "output_norm"),
    ("output", "output"),
];

/// Modules of a layer, below `layers.N` and `blk.N`.
const LAYER: [(&str, &str); 9] = [
    ("sa_norm", "attn_norm"),
    ("attn.q_proj", "attn_q"),
    ("attn.k_proj", "attn_k"),
    ("attn.v_proj", "attn_v"),
    ("attn.output_proj", "attn_output"),
    ("mlp_norm", "ffn_norm"),
    ("mlp.w1", "ffn_gate"),
    ("mlp.w2", "ffn_down"),
    ("mlp.w3", "ffn_up"),
];

/// `layers.0.attn.q_proj` to `blk.0.attn_q`.
pub(super) fn to_gguf(module: &str) -> Option<String> {
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

/// `blk.0.attn_q.weight` to `layers.0.attn.q_proj.weight`.
pub(super) fn from_gguf(name: &str) -> Option<String> {
    let find = |rows: &[(&'static str, &str)], name: &str| {
        let row = rows.iter().find(|(_, theirs)| *theirs == name);
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

/// A kind of model in GGUF files.
#[derive(Debug)]
pub(super) struct Architecture {
    pub name: &'static str,
    /// The families of such models, by their names in `config.json`. A file of it is read as the first.
    pub families: &'static [&'static str],
    /// Whether neighbouring rows of q and k are rotated, not those half a head apart.
    pub rotates_neighbours: bool,
}

/// The architectures that are read and written. A Mistral is a Llama there.
pub(super) static ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "llama",
        families: &["llama", "mistral"],
        rotates_neighbours: true,
    },
    Architecture {
        name: "qwen2",
        families: &["qwen2"],
        rotates_neighbours: false,
    },
];

/// The architecture of a model; what it lacks, if there is none.
pub(super) fn architecture(config: &LlamaConfig) -> Result<&'static Architecture, String> {
    let model_type = saved_family(config).map_or(&*config.model_type, |family| family.model_type);
    let mut all = ARCHITECTURES.iter();
    let found = all.find(|architecture| architecture.families.contains(&model_type));
    let found = found.ok_or_else(|| {
        let names = ARCHITECTURES
            .iter()
            .flat_map(|architecture| architecture.families);
        let names = names.copied().collect::<Vec<_>>().join(", ");
        format!("a `{model_type}` is not one of the models that are written as GGUF: {names}")
    })?;
    if config.layer_attention.len() > 1 {
        return Err("windows of only some layers have no place in a GGUF file".to_owned());
    }
    match &config.rope_scaling {
        None | Some(RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. }) => Ok(found),
        Some(_) => {
            Err("of scaled rotary embeddings GGUF files get linear and Llama 3.1's".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_a_model_have_names() {
        assert_eq!(to_gguf("layers.3.mlp.w2").unwrap(), "blk.3.ffn_down");
        assert_eq!(to_gguf("tok_embeddings").unwrap(), "token_embd");
        assert_eq!(to_gguf("layers.3.mlp"), None);
        assert_eq!(to_gguf("head"), None);
    }

    #[test]
    fn names_of_tensors_there_and_back() {
        for module in MODEL
            .iter()
            .map(|(ours, _)| (*ours).to_owned())
            .chain(LAYER.iter().map(|(ours, _)| format!("layers.12.{ours}")))
        {
            let name = format!("{}.weight", to_gguf(&module).unwrap());
            assert_eq!(from_gguf(&name), Some(format!("{module}.weight")));
        }
        let bias = from_gguf("blk.3.attn_q.bias").unwrap();
        assert_eq!(bias, "layers.3.attn.q_proj.bias");
        assert!(is_rotated(&bias) && is_rotated("layers.0.attn.k_proj.weight"));
        assert!(!is_rotated("layers.0.attn.v_proj.weight") && !is_rotated("output.weight"));
        for other in [
            "blk.0.attn_q_norm.weight",
            "blk.0.attn_q",
            "rope_freqs.weight",
        ] {
            assert_eq!(from_gguf(other), None, "{other}");
        }
    }
}
