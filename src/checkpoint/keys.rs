//! What tensors and settings are called here and in Hugging Face's and PEFT's files.

use std::borrow::Cow;

use crate::Error;
pub(super) use crate::llama::names::to_hf as module_to_hf;
use crate::llama::{NormPlacement, names};

/// What stands before the modules of the model below its head.
const MODEL_PREFIX: &str = "model.";

pub(super) const EMBEDDING: &str = "tok_embeddings.weight";
pub(super) const OUTPUT: &str = "output.weight";

/// `layers.0.attn.q_proj.weight` to `model.layers.0.self_attn.q_proj.weight`.
pub(super) fn to_hf(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    Some(format!("{}.{parameter}", names::to_hf(module)?))
}

/// The reverse of [`to_hf`] in a model whose norms stand so; also for the model saved without its head, whose names have
/// no `model.`, and for the text model of one that reads images too.
pub(super) fn from_hf(key: &str, norms: NormPlacement) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    let module = of_text_model(module);
    let ours = names::from_hf(&module, norms);
    let ours = ours.or_else(|| names::from_hf(&format!("{MODEL_PREFIX}{module}"), norms));
    Some(format!("{}.{parameter}", ours?))
}

/// The name of a module without what stands before it in a model that reads images too.
fn of_text_model(module: &str) -> Cow<'_, str> {
    if let Some(rest) = module.strip_prefix("model.language_model.") {
        return Cow::Owned(format!("{MODEL_PREFIX}{rest}"));
    }
    Cow::Borrowed(module.strip_prefix("language_model.").unwrap_or(module))
}

/// An error about an argument in the words of a file, in which settings have these names: ours, theirs.
pub(super) fn in_words_of(error: Error, names: &[(&str, &str)]) -> String {
    match error {
        Error::InvalidArgument { name, message } => {
            let theirs = names.iter().find(|(ours, _)| *ours == name);
            let name = theirs.map_or(name, |(_, theirs)| *theirs);
            format!("`{name}`: {message}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::get_params;
    use crate::llama::{Block, LlamaConfig, QkNorm};
    use burn::tensor::Device;

    #[test]
    fn every_key_of_a_model_maps_there_and_back() {
        for (norms, is_joint) in [
            (NormPlacement::Before, false),
            (NormPlacement::Before, true),
            (NormPlacement::After, false),
            (NormPlacement::Both, false),
        ] {
            let block = Block::default()
                .with_norms(norms)
                .with_joint_projections(is_joint)
                .with_qk_norm(Some(QkNorm::Head));
            let config = LlamaConfig::llama2_7b()
                .with_qkv_bias(true)
                .with_block(block);
            let model = config.init(&Device::default());
            for (key, _) in get_params(&model).iter() {
                assert_eq!(from_hf(&to_hf(key).unwrap(), norms).as_deref(), Some(key));
            }
        }
    }

    #[test]
    fn the_model_may_be_saved_without_its_head() {
        for (theirs, ours) in [
            ("embed_tokens.weight", "tok_embeddings.weight"),
            ("layers.3.mlp.up_proj.weight", "layers.3.mlp.w3.weight"),
            ("norm.weight", "norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("language_model.model.norm.weight", "norm.weight"),
            ("model.language_model.norm.weight", "norm.weight"),
            ("language_model.lm_head.weight", "output.weight"),
        ] {
            assert_eq!(
                from_hf(theirs, NormPlacement::Before).as_deref(),
                Some(ours)
            );
        }
        assert_eq!(from_hf("model.lm_head.weight", NormPlacement::Before), None);
    }

    #[test]
    fn foreign_names_have_no_counterpart() {
        let of = |key| from_hf(key, NormPlacement::Before);
        assert_eq!(of("model.layers.0.self_attn.query_key_value.weight"), None);
        assert_eq!(of("model.layers.0.self_attn.q_proj"), None);
        assert_eq!(names::last_part_to_hf("w2"), Some("down_proj"));
    }
}
