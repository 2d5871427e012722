use std::collections::BTreeSet;
use std::sync::Arc;

use super::{LoadReport, ParamSet};
use crate::lora::{LayerConfig, LayerShape, LoRAConfig, METHODS, ModuleNames, Naming};
use crate::{Error, Result};

/// Which modules have an adapter: those of certain names (`q_proj`, `w1`, ..., or those of your own
/// model), those that a [`LoRAConfig`] selects, or those of [`get_adapter_params`](super::get_adapter_params).
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedModules(By);

#[derive(Debug, Clone, PartialEq)]
enum By {
    Config(Arc<LoRAConfig>),
    /// The keys of the adapters' parameters.
    Key(BTreeSet<String>),
}

impl From<&LoRAConfig> for AdaptedModules {
    fn from(config: &LoRAConfig) -> Self {
        Self(By::Config(Arc::new(config.clone())))
    }
}

impl<const N: usize> From<[&str; N]> for AdaptedModules {
    fn from(names: [&str; N]) -> Self {
        names.into_iter().collect()
    }
}

impl<S: Into<String>> FromIterator<S> for AdaptedModules {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self::from(&LoRAConfig::new(names))
    }
}

impl From<&ParamSet> for AdaptedModules {
    fn from(adapters: &ParamSet) -> Self {
        Self(By::Key(adapters.names().map(Into::into).collect()))
    }
}

impl AdaptedModules {
    /// Whether a state-dict key is an adapter parameter of one of these modules.
    fn is_adapter_key(&self, key: &str) -> bool {
        match &self.0 {
            By::Key(keys) => keys.contains(key),
            By::Config(config) => KINDS.iter().any(|layer| is_adapter_key(config, key, layer)),
        }
    }
}

/// Above every rank and token.
const LARGE: usize = u32::MAX as usize;

/// A layer of each kind: the names of an adapter's parameters do not depend on sizes.
const KINDS: [LayerShape; 3] = [
    LayerShape::linear(LARGE, LARGE, true),
    LayerShape::embedding(LARGE, LARGE),
    LayerShape::norm(LARGE),
];

/// Whether a key is that of an adapter's parameter, for every method that there is, and a layer of this kind has
/// the adapter by the configuration: any method's, so that what an adapter should not have is not taken for a
/// base's weight.
fn is_adapter_key(config: &Arc<LoRAConfig>, key: &str, layer: &LayerShape) -> bool {
    let own = [config.method.0].into_iter();
    let methods = own.chain(METHODS).filter(|m| m.adapts(layer.kind));
    let settings = LayerConfig::of(config.clone()).settings;
    let mut names = methods
        .flat_map(|method| method.params(layer, &settings))
        .map(|spec| spec.name);
    let module = names.find_map(|name| key.strip_suffix(name)?.strip_suffix('.'));
    module.is_some_and(|module| {
        let found = LayerConfig::of_layer(config, &ModuleNames::new(module), layer);
        config.naming == Naming::HuggingFace || found.is_ok_and(|s| s.is_some())
    })
}

/// The keys that [`validate_state_dict_for_lora`] compares: those of a model, and those of the state dicts that are to fill it.
///
/// ```
/// use burn_peft::adapter::{StateDictKeys, validate_state_dict_for_lora};
///
/// let set = |keys: &[&str]| keys.iter().map(|key| key.to_string()).collect();
/// let mut keys = StateDictKeys::default();
/// keys.full_model = set(&["q_proj.weight", "q_proj.lora_a.weight", "q_proj.lora_b.weight"]);
/// keys.base = Some(set(&["q_proj.weight"]));
/// keys.lora = Some(set(&["q_proj.lora_a.weight"])); // its other half is missing
/// let error = validate_state_dict_for_lora(["q_proj"], keys).unwrap_err();
/// assert!(error.to_string().contains("missing from the adapter: q_proj.lora_b.weight"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateDictKeys {
    /// The keys of the LoRA model.
    pub full_model: BTreeSet<String>,
    /// The keys of the adapter's state dict, if there is one.
    pub lora: Option<BTreeSet<String>>,
    /// The keys of the base model's state dict, if there is one.
    pub base: Option<BTreeSet<String>>,
    /// The keys of the LoRA model of what its adapters keep and do not train, see [`LoadReport::kept`].
    pub kept: BTreeSet<String>,
}

impl From<&LoadReport> for StateDictKeys {
    /// The keys of a base load.
    fn from(base: &LoadReport) -> Self {
        let full_model = base.loaded.iter().chain(&base.missing).cloned().collect();
        Self {
            full_model,
            lora: None,
            base: Some(found(base)),
            kept: base.kept.iter().cloned().collect(),
        }
    }
}

fn found(report: &LoadReport) -> BTreeSet<String> {
    let keys = report.loaded.iter().chain(&report.unexpected);
    keys.cloned().collect()
}

/// Checks that a base state dict and an adapter state dict together make up a LoRA model.
///
/// A key is an adapter key if it is `lora_a.weight`, `lora_b.weight` or `magnitude` of one of the
/// named modules, or one of the given [`ParamSet`], or one that an adapter keeps untrained:
/// `validate_state_dict_for_lora(&get_adapter_params(&model), &report)` suits every model, a Llama whose modules are
/// named as in Hugging Face's files too. Of the dicts that are given, the base must have every other key of the model and
/// no adapter key, the adapter must have every adapter key and no other, and neither may have keys
/// that the model does not have or that the other has too.
///
/// # Errors
/// [`Error::StateDict`] with every key at fault and the rule that it breaks.
pub fn validate_state_dict_for_lora(
    modules: impl Into<AdaptedModules>,
    keys: impl Into<StateDictKeys>,
) -> Result<()> {
    let (modules, keys) = (modules.into(), keys.into());
    let empty = BTreeSet::new();
    let is_adapter = |key: &&String| keys.kept.contains(*key) || modules.is_adapter_key(key);
    let is_base = |key: &&String| !is_adapter(key);
    let mut problems = Vec::new();
    let mut report = |rule: &str, keys: Vec<&String>| {
        problems.extend(keys.into_iter().map(|key| format!("{rule}: {key}")));
    };
    if let Some(base) = &keys.base {
        let missing = keys.full_model.difference(base).filter(is_base);
        report("missing from the base model", missing.collect());
        let adapter = base.iter().filter(is_adapter);
        report("adapter key in the base model", adapter.collect());
    }
    if let Some(lora) = &keys.lora {
        let missing = keys.full_model.difference(lora).filter(is_adapter);
        report("missing from the adapter", missing.collect());
        let foreign = lora.iter().filter(is_base);
        report("not an adapter key, but in the adapter", foreign.collect());
    }
    let base = keys.base.as_ref().unwrap_or(&empty);
    let lora = keys.lora.as_ref().unwrap_or(&empty);
    report(
        "in both the base model and the adapter",
        base.intersection(lora).collect(),
    );
    let given: BTreeSet<String> = base.union(lora).cloned().collect();
    let unknown = given.difference(&keys.full_model);
    report("not a key of the model", unknown.collect());
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::StateDict { problems }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|k| k.to_string()).collect()
    }

    const FULL: [&str; 4] = [
        "q_proj.weight",
        "q_proj.lora_a.weight",
        "q_proj.lora_b.weight",
        "k_proj.weight",
    ];
    const BASE: [&str; 2] = ["q_proj.weight", "k_proj.weight"];
    const LORA: [&str; 2] = ["q_proj.lora_a.weight", "q_proj.lora_b.weight"];

    fn problems(base: Option<&[&str]>, lora: Option<&[&str]>) -> Vec<String> {
        let keys = StateDictKeys {
            full_model: set(&FULL),
            base: base.map(set),
            lora: lora.map(set),
            ..Default::default()
        };
        match validate_state_dict_for_lora(["q_proj"], keys) {
            Ok(()) => Vec::new(),
            Err(Error::StateDict { problems }) => problems,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn complete_dicts_are_accepted() {
        assert!(problems(Some(&BASE), Some(&LORA)).is_empty());
        assert!(problems(Some(&BASE), None).is_empty());
        assert!(problems(None, Some(&LORA)).is_empty());
    }

    #[test]
    fn each_rule_names_every_key() {
        let none: &[&str] = &[];
        assert_eq!(problems(Some(none), None).len(), 2);
        assert_eq!(problems(None, Some(none)).len(), 2);
        assert_eq!(
            problems(Some(&FULL), Some(&LORA)),
            [
                "adapter key in the base model: q_proj.lora_a.weight",
                "adapter key in the base model: q_proj.lora_b.weight",
                "in both the base model and the adapter: q_proj.lora_a.weight",
                "in both the base model and the adapter: q_proj.lora_b.weight",
            ]
        );
        let lora = [LORA[0], LORA[1], "k_proj.weight"];
        assert_eq!(
            problems(None, Some(&lora)),
            ["not an adapter key, but in the adapter: k_proj.weight"]
        );
        let base = [BASE[0], BASE[1], "o_proj.weight"];
        assert_eq!(
            problems(Some(&base), None),
            ["not a key of the model: o_proj.weight"]
        );
    }

    #[test]
    fn other_modules_adapters_do_not_count() {
        let keys = StateDictKeys {
            full_model: set(&["k_proj.lora_a.weight"]),
            base: None,
            lora: Some(set(&["k_proj.lora_a.weight"])),
            ..Default::default()
        };
        assert!(validate_state_dict_for_lora(["q_proj"], keys).is_err());
    }
}
