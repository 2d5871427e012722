//! What tensors are called here and in Hugging Face's and PEFT's files.

use crate::llama::names;
pub(super) use crate::llama::names::to_hf as module_to_hf;

pub(super) const EMBEDDING: &str = "tok_embeddings.weight";
pub(super) const OUTPUT: &str = "output.weight";

/// `layers.0.attn.q_proj.weight` to `model.layers.0.self_attn.q_proj.weight`.
pub(super) fn to_hf(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    Some(format!("{}.{parameter}", names::to_hf(module)?))
}

/// The reverse of [`to_hf`].
pub(super) fn from_hf(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    Some(format!("{}.{parameter}", names::from_hf(module)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::get_params;
    use crate::llama::LlamaConfig;
    use burn::tensor::Device;

    #[test]
    fn every_key_of_a_model_maps_there_and_back() {
        let config = LlamaConfig {
            qkv_bias: true,
            ..LlamaConfig::llama2_7b()
        };
        let model = config.init(&Device::default());
        for (key, _) in get_params(&model).iter() {
            assert_eq!(from_hf(&to_hf(key).unwrap()).as_deref(), Some(key));
        }
    }

    #[test]
    fn foreign_names_have_no_counterpart() {
        assert_eq!(from_hf("model.layers.0.self_attn.qkv_proj.weight"), None);
        assert_eq!(from_hf("model.layers.0.self_attn.q_proj"), None);
        assert_eq!(names::last_part_to_hf("w2"), Some("down_proj"));
    }
}
