//! What Meta calls the tensors of a Llama, and how model-parallel processes divide them, a row per tensor.

/// Which part of a tensor each of several processes has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// All of it.
    Whole,
    /// Some of its rows.
    Rows,
    /// Rows of whole heads, of which neighbouring ones are rotated together.
    Heads,
    /// Some of its columns.
    Columns,
    /// Columns in Llama 1 and 2, rows in Llama 3.
    Either,
}

/// Ours, Meta's, and who has what of it.
type Row = (&'static str, &'static str, Split);

/// Modules outside of the layers.
const MODEL: [Row; 3] = [
    ("tok_embeddings", "tok_embeddings", Split::Either),
    ("norm", "norm", Split::Whole),
    ("output", "output", Split::Rows),
];

/// Modules of a layer, below `layers.N` here and there.
const LAYER: [Row; 9] = [
    ("sa_norm", "attention_norm", Split::Whole),
    ("attn.q_proj", "attention.wq", Split::Heads),
    ("attn.k_proj", "attention.wk", Split::Heads),
    ("attn.v_proj", "attention.wv", Split::Rows),
    ("attn.output_proj", "attention.wo", Split::Columns),
    ("mlp_norm", "ffn_norm", Split::Whole),
    ("mlp.w1", "feed_forward.w1", Split::Rows),
    ("mlp.w2", "feed_forward.w2", Split::Columns),
    ("mlp.w3", "feed_forward.w3", Split::Rows),
];

/// The frequencies of the rotary embedding, which follow from the configuration: those of the model, and of each layer in
/// Llama 1 (`layers.0.attention.inner_attention.rope.freqs`).
const ROPE: &str = "rope.freqs";

/// Whether a tensor is one of frequencies.
pub(super) fn is_rope(name: &str) -> bool {
    let before = name.strip_suffix(ROPE);
    before.is_some_and(|before| before.is_empty() || before.ends_with(".inner_attention."))
}

/// `layers.0.attn.q_proj.weight` to `layers.0.attention.wq.weight`.
pub(super) fn to_meta(key: &str) -> Option<String> {
    let of = |rows: &[Row], name: &str| {
        let row = rows.iter().find(|(ours, ..)| *ours == name)?;
        Some(row.1)
    };
    let (before, module, parameter) = parts(key)?;
    let module = match before {
        "" => of(&MODEL, module),
        _ => of(&LAYER, module),
    }?;
    Some(format!("{before}{module}.{parameter}"))
}

/// `layers.0.attention.wq.weight` to `layers.0.attn.q_proj.weight`, and how it is divided.
pub(super) fn from_meta(name: &str) -> Option<(String, Split)> {
    let of = |rows: &[Row], name: &str| {
        let row = rows.iter().find(|(_, theirs, _)| *theirs == name)?;
        Some((row.0, row.2))
    };
    let (before, module, parameter) = parts(name)?;
    let (module, split) = match before {
        "" => of(&MODEL, module),
        _ => of(&LAYER, module),
    }?;
    Some((format!("{before}{module}.{parameter}"), split))
}

/// `layers.0.`, `attention.wq` and `weight`; the first is empty outside of the layers.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let (module, parameter) = name.rsplit_once('.')?;
    let Some(rest) = module.strip_prefix("layers.") else {
        return Some(("", module, parameter));
    };
    let (_, module) = rest.split_once('.')?;
    let before = name.len() - parameter.len() - module.len() - 1;
    Some((&name[..before], module, parameter))
}

/// The layer that a tensor belongs to.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    let (layer, _) = name.strip_prefix("layers.")?.split_once('.')?;
    layer.parse().ok()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::adapter::get_params;
    use crate::llama::LlamaConfig;

    #[test]
    fn every_key_of_a_llama_maps_there_and_back() {
        let model = LlamaConfig::llama2_7b().init(&Device::default());
        for (key, _) in get_params(&model).iter() {
            let name = to_meta(key).unwrap();
            assert_eq!(from_meta(&name).unwrap().0, *key);
        }
        let wo = "layers.3.attention.wo.weight";
        assert_eq!(to_meta("layers.3.attn.output_proj.weight").unwrap(), wo);
        assert_eq!(from_meta(wo).unwrap().1, Split::Columns);
        assert_eq!(layer_of(wo), Some(3));
    }

    #[test]
    fn foreign_names_have_no_counterpart() {
        for name in [
            ROPE,
            "layers.0.attention.wqkv.weight",
            "wq.weight",
            "layers.wq",
        ] {
            assert_eq!(from_meta(name), None, "{name}");
        }
        assert_eq!(to_meta("layers.0.attn.q_proj.lora_a.weight"), None);
        assert_eq!(layer_of("layers.x.attention.wq.weight"), None);
        let of_layer = "layers.0.attention.inner_attention.rope.freqs";
        assert!(is_rope(ROPE) && is_rope(of_layer));
        assert!(!is_rope("layers.0.other_rope.freqs") && !is_rope("rope.weight"));
    }
}
