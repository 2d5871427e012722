//! The names of tensors in PEFT's files.

use std::collections::{BTreeMap, HashMap};

use super::super::keys::module_to_hf;
use crate::adapter::adapter_layers;
use crate::llama::TransformerDecoder;
use crate::lora::key_prefix;

/// Prefix of PEFT's keys in front of Hugging Face's module names.
const PREFIX: &str = "base_model.model.";

/// The state-dict keys of a model's adapter by their names in PEFT's files.
pub(super) struct PeftKeys {
    ours: HashMap<String, String>,
    theirs: HashMap<String, String>,
}

impl PeftKeys {
    pub(super) fn of(model: &TransformerDecoder, adapter: &str) -> Self {
        let mut keys = Self {
            ours: HashMap::new(),
            theirs: HashMap::new(),
        };
        for (path, layer) in adapter_layers(model, adapter) {
            let module = module_to_hf(&path)
                .unwrap_or_else(|| panic!("`{path}` has no name in a PEFT folder"));
            for spec in layer.params().filter(|spec| !spec.peft_name.is_empty()) {
                let ours = format!("{}{}", key_prefix(&path, adapter), spec.name);
                let theirs = format!("{PREFIX}{module}.{}", spec.peft_name);
                keys.ours.insert(theirs.clone(), ours.clone());
                keys.theirs.insert(ours, theirs);
            }
        }
        keys
    }

    pub(super) fn into_theirs(self) -> BTreeMap<String, String> {
        self.theirs.into_iter().collect()
    }

    /// PEFT's name of one of our keys.
    pub(super) fn theirs(&self, key: &str) -> Option<String> {
        self.theirs.get(key).cloned()
    }

    /// Our key of a tensor in a file, however the file writes its name.
    pub(super) fn ours(&self, name: &str) -> Option<String> {
        let name = canonical(name);
        let with_model = || canonical(&format!("model.{}", &name[PREFIX.len()..]));
        let found = self
            .ours
            .get(&name)
            .or_else(|| self.ours.get(&with_model()));
        found.cloned()
    }
}

/// A tensor's name as PEFT writes it: with the prefix, without the adapter's name `default`, without the wrapper of
/// modules that are saved whole, and with DoRA's magnitude as a parameter.
pub(super) fn canonical(name: &str) -> String {
    let module = name.strip_prefix(PREFIX).unwrap_or(name);
    let parts: Vec<&str> = module.split('.').collect();
    let parts = parts
        .iter()
        .enumerate()
        .filter(|(index, part)| match **part {
            "default" | "modules_to_save" => false,
            "weight" => *index == 0 || !parts[..*index].contains(&"lora_magnitude_vector"),
            _ => true,
        });
    let parts: Vec<&str> = parts.map(|(_, part)| *part).collect();
    format!("{PREFIX}{}", parts.join("."))
}

/// The module whose own weight a tensor is, as PEFT saves it beside an adapter, in Hugging Face's words; and
/// whether the module has an adapter there.
pub(super) fn base_module(name: &str) -> Option<(String, bool)> {
    let name = canonical(name);
    let module = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    let base = module.strip_suffix(".base_layer");
    let (module, is_adapted) = (base.unwrap_or(module), base.is_some());
    let module = match module {
        "embed_tokens" => "model.embed_tokens",
        other => other,
    };
    let is_vocabulary = ["model.embed_tokens", "lm_head"].contains(&module);
    is_vocabulary.then(|| (module.to_owned(), is_adapted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tensor_has_many_names() {
        let q = "model.layers.0.self_attn.q_proj";
        for (name, expected) in [
            (format!("{PREFIX}{q}.lora_A.weight"), "lora_A.weight"),
            (
                format!("{PREFIX}{q}.lora_A.default.weight"),
                "lora_A.weight",
            ),
            (format!("{q}.lora_A.weight"), "lora_A.weight"),
            (
                format!("{q}.lora_magnitude_vector.default.weight"),
                "lora_magnitude_vector",
            ),
            (
                format!("{q}.lora_magnitude_vector.weight"),
                "lora_magnitude_vector",
            ),
        ] {
            assert_eq!(canonical(&name), format!("{PREFIX}{q}.{expected}"));
        }
        assert_eq!(
            canonical("lm_head.modules_to_save.default.weight"),
            "base_model.model.lm_head.weight"
        );
    }

    #[test]
    fn weights_that_peft_saves_beside_an_adapter() {
        let found = |name: &str| base_module(&format!("{PREFIX}{name}"));
        let head = |adapted| Some(("lm_head".to_owned(), adapted));
        assert_eq!(found("lm_head.base_layer.weight"), head(true));
        assert_eq!(found("lm_head.weight"), head(false));
        assert_eq!(
            found("model.embed_tokens.weight"),
            Some(("model.embed_tokens".to_owned(), false))
        );
        assert_eq!(found("model.norm.weight"), None);
    }
}
