//! Adapters of experts, whose weights are two parameters a layer in transformers: PEFT has one pair of factors of each for
//! all experts.
//!
//! Of E experts and rank r, `lora_A` is `[E·r, in]`, expert after expert, and `lora_B` `[out, E·r]`, in which column
//! `ρ·E + e` is the ρ-th of expert e. Where a configuration names both parameters, `gate_up_proj` has the infix
//! `base_layer`.

use std::collections::{BTreeMap, HashSet};

use burn::tensor::TensorData;

use super::super::composed::{Form, stacked};
use super::super::weights::Weights;
use super::keys::PREFIX;
use crate::adapter::{StateDict, adapter_layers};
use crate::llama::TransformerDecoder;
use crate::llama::names::{expert_of, is_in_mixture, module_names};
use crate::lora::{LORA, LORA_B, LoRAAdapter, MethodRef};

/// The parameters of Hugging Face's module with the experts of a layer, that first which PEFT wraps first.
const PARAMETERS: [&str; 2] = ["gate_up_proj", "down_proj"];
/// What a wrapped module is below its wrapper.
const WRAPPED: &str = "base_layer";
/// The two of a module in files of transformers 4, in the order in which they are rows of one here.
const HALVES: [&str; 2] = ["gate_proj", "up_proj"];

/// Which parameters of a layer's experts have adapters, by Hugging Face's names.
pub(super) struct AdaptedParameters(HashSet<String>);

impl AdaptedParameters {
    pub fn of<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        let of_experts = paths.filter(|path| expert_of(path).is_some());
        Self(
            of_experts
                .filter_map(|path| module_names(path).parameter)
                .collect(),
        )
    }

    /// PEFT's name of the module that has the factors of a parameter: the last that wraps it is called as the module.
    fn module(&self, parameter: &str) -> Option<String> {
        let (module, name) = parameter.rsplit_once('.')?;
        let [first, second] = PARAMETERS;
        let is_inner = name == first && self.0.contains(&format!("{module}.{second}"));
        Some(match is_inner {
            true => format!("{module}.{WRAPPED}"),
            false => module.to_owned(),
        })
    }
}

/// The factors of all experts that are one tensor in a file.
#[derive(Default)]
pub(super) struct Stack {
    /// The keys of the experts' own, in their order.
    pub keys: Vec<String>,
    pub is_b: bool,
}

/// What the factors of experts are called in files.
#[derive(Default)]
pub(super) struct Stacks {
    by_name: BTreeMap<String, Stack>,
    /// Keys of factors that files of transformers 4 have in two: `A` one below the other, `B` along a diagonal.
    in_halves: Vec<String>,
}

/// A name of a tensor in a file, and the key of what it is.
pub(super) type Named = (String, String);

impl Stacks {
    /// Adds a factor of an expert: what it is in a file of PEFT's, and the names that files have had.
    pub fn add(
        &mut self,
        path: &str,
        [ours, factor]: [&str; 2],
        key: &str,
        adapted: &AdaptedParameters,
    ) -> Option<(String, Vec<Named>)> {
        let (_, expert) = expert_of(path)?;
        let parameter = module_names(path).parameter?;
        let name = format!("{PREFIX}{}.{factor}", adapted.module(&parameter)?);
        let stack = self.by_name.entry(name.clone()).or_default();
        stack.keys.push(key.to_owned());
        stack.is_b = ours == LORA_B;
        let (before, last) = parameter.rsplit_once('.')?;
        let old = |module: &str| format!("{PREFIX}{before}.{expert}.{module}.{factor}");
        let mut named = vec![(name.clone(), name.clone())];
        match last == PARAMETERS[0] {
            true => {
                self.in_halves.push(key.to_owned());
                named.extend(HALVES.map(|half| (old(half), half_key(key, half))));
            }
            false => named.push((old(last), key.to_owned())),
        }
        Some((name, named))
    }

    /// The stack that a tensor of a file is.
    pub fn get(&self, name: &str) -> Option<&Stack> {
        self.by_name.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stack)> {
        self.by_name
            .iter()
            .map(|(name, stack)| (name.as_str(), stack))
    }

    /// Makes the factors of experts of the tensors that a file has.
    pub fn compose(&self, weights: &mut Weights) {
        for (name, stack) in &self.by_name {
            let count = stack.keys.len();
            let Some(&[rows, columns]) = weights.dense_shape(name) else {
                continue;
            };
            let keys = stack.keys.clone();
            if stack.is_b && columns.is_multiple_of(count) {
                let of_expert = |first| Form::Columns { first, step: count };
                weights.split(name, keys, &[rows, columns / count], of_expert);
            } else if !stack.is_b && rows.is_multiple_of(count) {
                let numbers = rows / count * columns;
                let of_expert = |expert| Form::Stretch(expert * numbers..(expert + 1) * numbers);
                weights.split(name, keys, &[rows / count, columns], of_expert);
            }
        }
        for key in &self.in_halves {
            let form = match key.ends_with(LORA_B) {
                true => Form::Diagonal,
                false => Form::Below,
            };
            weights.join(key, HALVES.map(|half| half_key(key, half)), form);
        }
    }

    /// The tensors of all stacks whose parts are there.
    pub fn tensors(&self, values: &StateDict) -> Vec<(String, TensorData)> {
        let tensors = self.iter().filter_map(|(name, stack)| {
            let parts = stack.keys.iter().map(|key| values.get(key).cloned());
            let parts = parts.collect::<Option<Vec<_>>>()?;
            Some((name.to_owned(), stacked(stack.is_b, parts)))
        });
        tensors.collect()
    }
}

/// A key of no parameter.
fn half_key(key: &str, half: &str) -> String {
    format!("{key} of {half}")
}

/// Whether PEFT adapts a layer as a parameter and no module: in a model with experts what the feed-forward blocks have, of
/// layers without experts too, whose modules PEFT takes for those of experts.
pub(super) fn is_parameter(model: &TransformerDecoder, path: &str) -> bool {
    model.config.experts.is_some() && (is_in_mixture(path) || path.contains(".mlp."))
}

/// Checks that PEFT has adapters such as a model has of parameters: plain ones, alike for all experts of a layer.
pub(super) fn require_representable(model: &TransformerDecoder, name: &str) -> Result<(), String> {
    let layers = adapter_layers(model, name);
    let of_parameters = layers.iter().filter(|(path, _)| is_parameter(model, path));
    let mut by_layer: BTreeMap<String, Vec<&LoRAAdapter>> = BTreeMap::new();
    for (path, adapter) in of_parameters {
        if adapter.method() != MethodRef(&LORA) || adapter.settings().lora_bias {
            return Err(format!(
                "PEFT has only plain LoRA of experts and what stands in their place, not what `{path}` has; merge the \
                 adapter"
            ));
        }
        if let Some((all, _)) = expert_of(path) {
            by_layer.entry(all).or_default().push(adapter);
        }
    }
    let count = model.config.experts.as_ref().map(|experts| experts.count);
    match by_layer
        .iter()
        .find(|(_, adapters)| Some(adapters.len()) != count || !are_alike(adapters))
    {
        None => Ok(()),
        Some((all, _)) => Err(format!(
            "PEFT has one adapter of `{all}` for all experts, of one rank and one scale; merge the adapter"
        )),
    }
}

fn are_alike(adapters: &[&LoRAAdapter]) -> bool {
    let kind = |adapter: &LoRAAdapter| (adapter.rank(), adapter.scale());
    adapters
        .iter()
        .all(|other| kind(other) == kind(adapters[0]))
}
