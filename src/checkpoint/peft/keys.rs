//! The names of tensors in PEFT's files.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::TensorData;

use super::super::keys::module_to_hf;
use super::super::weights::Weights;
use super::experts::{AdaptedParameters, Stack, Stacks};
use crate::adapter::{StateDict, StateReader, adapter_layers, transposed};
use crate::llama::{Output, TransformerDecoder};
use crate::lora::{FULL, LayerKind, MethodRef, key_prefix};

/// Prefix of PEFT's keys in front of Hugging Face's module names.
pub(super) const PREFIX: &str = "base_model.model.";
/// Hugging Face's name of the output.
const HEAD: &str = "lm_head";

/// The state-dict keys of a model's adapter by their names in PEFT's files.
pub(super) struct PeftKeys {
    ours: HashMap<String, String>,
    theirs: HashMap<String, String>,
    /// Further names of an embedding's parameters that are a tied output's too, with our keys.
    of_output: Vec<OfOutput>,
    /// Hugging Face's names of the modules that are trained or kept as a whole.
    whole: Vec<String>,
    stacks: Stacks,
}

/// A name of an embedding's parameter as a tied output's.
struct OfOutput {
    name: String,
    ours: String,
    /// Whether the value there is transposed: `A` of the output is `Bᵀ` of the embedding.
    is_turned_over: bool,
}

/// The end of PEFT's name of an embedding's parameter, that of the output's, and whether the value there is transposed.
const TIED: [(&str, &str, bool); 4] = [
    ("weight", "weight", false),
    (TOKEN_ROWS, TOKEN_ROWS, false),
    ("lora_embedding_A", "lora_B.weight", true),
    ("lora_embedding_B", "lora_A.weight", true),
];
const TOKEN_ROWS: &str = "token_adapter.trainable_tokens_delta";

impl PeftKeys {
    pub(super) fn of(model: &TransformerDecoder, adapter: &str) -> Self {
        let mut keys = Self {
            ours: HashMap::new(),
            theirs: HashMap::new(),
            of_output: Vec::new(),
            whole: Vec::new(),
            stacks: Stacks::default(),
        };
        let is_tied = matches!(model.output, Output::Tied(_));
        let layers = adapter_layers(model, adapter);
        let adapted = AdaptedParameters::of(layers.iter().map(|(path, _)| path.as_str()));
        for (path, layer) in layers {
            let module = module_to_hf(&path)
                .unwrap_or_else(|| panic!("`{path}` has no name in a PEFT folder"));
            let of_output =
                is_tied && layer.layer().kind == LayerKind::Embedding && layer.is_of_tied_output();
            for spec in layer.params().filter(|spec| !spec.peft_name.is_empty()) {
                let ours = format!("{}{}", key_prefix(&path, adapter), spec.name);
                let factor = [spec.name, spec.peft_name];
                match keys.stacks.add(&path, factor, &ours, &adapted) {
                    Some((name, named)) => {
                        keys.ours.extend(named);
                        keys.theirs.insert(ours, name);
                    }
                    None => keys.add(&module, spec.peft_name, ours, of_output),
                }
            }
            let is_whole = layer.method() == MethodRef(&FULL);
            keys.whole.extend(is_whole.then_some(module));
            keys.whole.extend(of_output.then(|| HEAD.to_owned()));
        }
        keys
    }

    /// Adds a parameter of a module, which may be a tied output's too.
    fn add(&mut self, module: &str, peft_name: &str, ours: String, of_output: bool) {
        let theirs = format!("{PREFIX}{module}.{peft_name}");
        let tied = TIED
            .into_iter()
            .filter(|(end, ..)| of_output && *end == peft_name);
        self.of_output
            .extend(tied.map(|(_, end, is_turned_over)| OfOutput {
                name: format!("{PREFIX}{HEAD}.{end}"),
                ours: ours.clone(),
                is_turned_over,
            }));
        self.ours.insert(theirs.clone(), ours.clone());
        self.theirs.insert(ours, theirs);
    }

    /// Makes the factors of experts of the tensors that a file has.
    pub(super) fn compose(&self, weights: &mut Weights) {
        self.stacks.compose(weights);
    }

    /// What a tensor is that has the factors of all experts, by its name in PEFT's files.
    pub(super) fn stack(&self, name: &str) -> Option<&Stack> {
        self.stacks.get(name)
    }

    /// Values of parameters by their names in PEFT's files.
    pub(super) fn tensors(&self, values: StateDict) -> StateDict {
        let mut tensors = StateDict::from_iter(self.stacks.tensors(&values));
        let own = values.into_iter().filter_map(|(key, value)| {
            let name = self.theirs(&key)?;
            self.stack(&name).is_none().then_some((name, value))
        });
        tensors.extend(own);
        tensors
    }

    pub(super) fn into_theirs(self) -> BTreeMap<String, String> {
        self.theirs.into_iter().collect()
    }

    /// PEFT's name of one of our keys.
    pub(super) fn theirs(&self, key: &str) -> Option<String> {
        self.theirs.get(key).cloned()
    }

    fn find_of_output(&self, name: &str) -> Option<&OfOutput> {
        let name = canonical(name);
        self.of_output
            .iter()
            .find(|of_output| of_output.name == name)
    }

    /// Our key of a tied output's tensor that is the embedding's as it is.
    pub(super) fn of_tied_output(&self, name: &str) -> Option<String> {
        let found = self
            .find_of_output(name)
            .filter(|found| !found.is_turned_over);
        found.map(|found| found.ours.clone())
    }

    /// Our key of a tied output's tensor that is the embedding's transposed.
    pub(super) fn turned_over(&self, name: &str) -> Option<&str> {
        let found = self
            .find_of_output(name)
            .filter(|found| found.is_turned_over);
        found.map(|found| found.ours.as_str())
    }

    /// Whether a tensor of a file says nothing that another does not, or that the model computes with.
    pub(super) fn is_passed_over(&self, name: &str) -> bool {
        let is_original = || original_of(name).is_some_and(|module| self.whole.contains(&module));
        self.turned_over(name).is_some() || is_original()
    }

    /// PEFT's name of an embedding's parameter as a tied output's, and its value there. Of single rows PEFT writes one.
    pub(super) fn also_of_output(&self, reader: &StateReader) -> Option<(String, TensorData)> {
        let mut all = self.of_output.iter();
        let found = all.find(|o| o.ours == reader.key && !o.name.ends_with(TOKEN_ROWS))?;
        let value = reader.read();
        let value = match found.is_turned_over {
            true => transposed(value),
            false => value,
        };
        Some((found.name.clone(), value))
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

/// A tensor with a base weight of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseWeight {
    /// Whether it is the output's, or else the embedding's.
    pub is_output: bool,
    /// What PEFT has put around the module.
    pub wrapper: Wrapper,
}

/// What PEFT puts around a module, which then keeps the base's weight under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// Nothing: the weight is the base's, or that of a module which is saved whole.
    None,
    /// A low-rank adapter.
    Adapter,
    /// A copy that is trained as a whole.
    Whole,
    /// Trained rows.
    Rows,
}

impl Wrapper {
    const ALL: [Self; 4] = [Self::Rows, Self::Adapter, Self::Whole, Self::None];

    /// What stands between the module's name and its weight's.
    pub(super) fn infix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Adapter => ".base_layer",
            Self::Whole => ".original_module",
            Self::Rows => ".token_adapter.base_layer",
        }
    }
}

/// The name of a base weight in a file, by Hugging Face's name of its module.
pub(super) fn base_name(module: &str, wrapper: Wrapper) -> String {
    format!("{PREFIX}{module}{}.weight", wrapper.infix())
}

/// The base weight of embedding or output that a tensor holds by its name.
pub(super) fn base_weight(name: &str) -> Option<BaseWeight> {
    let name = canonical(name);
    let module = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    let mut wrappers = Wrapper::ALL.into_iter();
    let found = wrappers.find_map(|wrapper| Some((module.strip_suffix(wrapper.infix())?, wrapper)));
    let (module, wrapper) = found?;
    let is_output = match module {
        "lm_head" => true,
        "model.embed_tokens" | "embed_tokens" => false,
        _ => return None,
    };
    Some(BaseWeight { is_output, wrapper })
}

/// The module whose weight or bias a tensor keeps for when its trained copy is switched off.
pub(super) fn original_of(name: &str) -> Option<String> {
    let name = canonical(name);
    let (module, parameter) = name.strip_prefix(PREFIX)?.rsplit_once('.')?;
    let module = module.strip_suffix(Wrapper::Whole.infix())?;
    ["weight", "bias"]
        .contains(&parameter)
        .then(|| module.to_owned())
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
        for wrapper in Wrapper::ALL {
            for (module, is_output) in [("lm_head", true), ("model.embed_tokens", false)] {
                let found = base_weight(&base_name(module, wrapper));
                assert_eq!(found, Some(BaseWeight { is_output, wrapper }));
            }
            assert_eq!(base_weight(&base_name("model.norm", wrapper)), None);
        }
        let bias = "base_model.model.model.layers.0.mlp.up_proj.original_module.bias";
        assert_eq!(original_of(bias).unwrap(), "model.layers.0.mlp.up_proj");
        assert_eq!(original_of("model.norm.weight"), None);
    }
}
