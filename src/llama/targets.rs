//! What a configuration of adapters means for a model with experts, in whose files their weights have had other names.

use std::borrow::Cow;

use super::LlamaConfig;
use crate::lora::{LoRAConfig, MlpModule, Naming, Targets};
use crate::{Error, Result};

/// What modules of a layer with experts were called in transformers 4, and the parameters that they are now. PEFT
/// renames so whatever layer a module is in; the name of the parameter itself, which no module has, means it here.
const RENAMED: [(&str, &str); 5] = [
    (GATE, GATE_UP),
    (UP, GATE_UP),
    (GATE_UP, GATE_UP),
    ("down_proj", "down_proj"),
    ("gate", "gate.weight"),
];
const GATE: &str = "gate_proj";
const UP: &str = "up_proj";
const GATE_UP: &str = "gate_up_proj";

/// The configuration in the words of a model: the same, unless the model has experts.
///
/// # Errors
/// [`Error::InvalidArgument`] if gate or up of the experts is named without the other.
pub(crate) fn for_model<'a>(
    lora: &'a LoRAConfig,
    model: &LlamaConfig,
) -> Result<Cow<'a, LoRAConfig>> {
    if model.experts.is_none() {
        return Ok(Cow::Borrowed(lora));
    }
    match lora.naming {
        Naming::HuggingFace => renamed(lora).map(Cow::Owned),
        Naming::Any => Ok(Cow::Owned(with_feed_forward(lora, model))),
    }
}

/// In the names of transformers 5, as PEFT converts a configuration. Gate and up have one `A` of both ranks then, and the
/// scale that they had.
fn renamed(lora: &LoRAConfig) -> Result<LoRAConfig> {
    let names = match &lora.targets {
        Targets::Names(names) => names.clone(),
        Targets::AllLinear => all_linear(),
        Targets::Pattern(_) => return Ok(lora.clone()),
    };
    let has = |module: &str| names.iter().any(|name| is_called(name, module));
    if has(GATE) != has(UP) {
        return Err(Error::InvalidArgument {
            name: "targets",
            message: format!(
                "{GATE} and {UP} of experts are one weight, which has one adapter; name both"
            ),
        });
    }
    let mut new = lora.clone();
    if has(GATE) {
        let key = format!(r".*\.{GATE_UP}");
        new.rank_pattern.insert(key.clone(), 2 * lora.rank);
        new.alpha_pattern.insert(key, 2.0 * lora.alpha);
    }
    let mut modules = Vec::new();
    for name in names {
        match RENAMED.iter().find(|(old, _)| is_called(&name, old)) {
            None => modules.push(name),
            Some((_, parameter)) if new.target_parameters.iter().any(|p| p == parameter) => {}
            Some((_, parameter)) => new.target_parameters.push((*parameter).to_owned()),
        }
    }
    new.targets = Targets::Names(modules);
    Ok(new)
}

fn is_called(name: &str, module: &str) -> bool {
    name.rsplit('.').next() == Some(module)
}

fn all_linear() -> Vec<String> {
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].into_iter();
    let others = RENAMED.iter().map(|(old, _)| *old);
    let others = others.filter(|old| *old != GATE_UP);
    attention.chain(others).map(str::to_owned).collect()
}

/// With the experts' gate and up, which are one layer, where both of a feed-forward block are named.
fn with_feed_forward(lora: &LoRAConfig, model: &LlamaConfig) -> LoRAConfig {
    let mut new = lora.clone();
    let Targets::Names(names) = &mut new.targets else {
        return new;
    };
    let parts = [MlpModule::W1, MlpModule::W3].map(MlpModule::name);
    let has = |module: &str| names.iter().any(|name| name == module);
    if !parts.into_iter().all(has) {
        return new;
    }
    if !has(GATE_UP) {
        names.push(GATE_UP.to_owned());
    }
    let mut layers = 0..model.num_layers;
    if layers.all(|layer| model.experts_of(layer).is_some()) {
        names.retain(|name| !parts.contains(&name.as_str()));
    }
    new
}
