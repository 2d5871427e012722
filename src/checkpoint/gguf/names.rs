//! What llama.cpp calls a model and its tensors, and how it lays out the rows of q and k.

use crate::checkpoint::hf_config::saved_model_type;
use crate::llama::{LlamaConfig, ModelType};

/// Modules outside of the layers: ours, llama.cpp's.
const MODEL: [(&str, &str); 2] = [("tok_embeddings", "token_embd"), ("output", "output")];

/// Modules of a layer, below `layers.N` and `blk.N`.
const LAYER: [(&str, &str); 7] = [
    ("attn.q_proj", "attn_q"),
    ("attn.k_proj", "attn_k"),
    ("attn.v_proj", "attn_v"),
    ("attn.output_proj", "attn_output"),
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

/// The name of a model's architecture. A Mistral is a Llama there.
pub(super) fn architecture(config: &LlamaConfig) -> &'static str {
    match saved_model_type(config) {
        ModelType::Llama | ModelType::Mistral => "llama",
        ModelType::Qwen2 => "qwen2",
    }
}

/// Whether neighbouring rows of q and k are rotated, not those half a head apart.
pub(super) fn rotates_neighbours(config: &LlamaConfig) -> bool {
    saved_model_type(config) != ModelType::Qwen2
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
}
