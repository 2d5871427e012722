//! Whether a model has what a configuration names: a name that means nothing is a slip of the pen, which would change
//! what is trained without a word.

use std::collections::{BTreeSet, HashSet};

use burn::module::Module;

use super::params::get_params;
use crate::error::nearest;
use crate::lora::{Entry, LayerKind, LoRAConfig, ModuleNames, Naming, Targets, ends_with_name};
use crate::{Error, Result};

/// The layers of a model that can hold adapters.
pub(super) struct Layers<'a, M> {
    pub model: &'a M,
    /// Their names and kinds.
    pub known: &'a [(ModuleNames, LayerKind)],
}

impl<M: Module> Layers<'_, M> {
    /// Checks every entry of a configuration of the user's own. One of a folder of PEFT's may have entries that mean
    /// nothing, as in PEFT.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the first that means nothing, with the nearest name that does.
    pub fn require_all_named(&self, config: &LoRAConfig) -> Result<()> {
        self.require_no_block(config)?;
        if config.naming != Naming::Any {
            return Ok(());
        }
        for targets in one_by_one(&config.targets) {
            self.require("targets", Entry::Targets(&targets, Some(config.method)))?;
        }
        for exclude in config.exclude.iter().flat_map(one_by_one) {
            self.require("exclude", Entry::Targets(&exclude, None))?;
        }
        self.require_layers(config)?;
        for key in config.rank_pattern.keys() {
            self.require("rank_pattern", Entry::Pattern("rank_pattern", key))?;
        }
        for key in config.alpha_pattern.keys() {
            self.require("alpha_pattern", Entry::Pattern("alpha_pattern", key))?;
        }
        for end in &config.modules_to_save {
            self.require("modules_to_save", Entry::Whole(end))?;
        }
        for end in config.trainable_token_indices.keys() {
            self.require("trainable_token_indices", Entry::Rows(end))?;
        }
        Ok(())
    }

    /// A layer is trained as a whole, several together are not.
    fn require_no_block(&self, config: &LoRAConfig) -> Result<()> {
        let is_block = |name: &&String| config.is_block(name, self.known.iter().map(|(n, _)| n));
        match config.modules_to_save.iter().find(is_block) {
            None => Ok(()),
            Some(block) => Err(invalid(
                "modules_to_save",
                format!(
                    "`{block}` is a block of several layers, which is not trained as a whole here; name the layers in \
                     it, or merge the adapter where it was made and load the merged model"
                ),
            )),
        }
    }

    /// An entry must mean a layer, and one that can be what it asks for.
    fn require(&self, setting: &'static str, entry: Entry<'_>) -> Result<()> {
        let mut unsuited = None;
        for (names, kind) in self.known {
            match entry.names(names)? {
                true if entry.suits(*kind) => return Ok(()),
                true => unsuited = unsuited.or(Some((&names.path, *kind))),
                false => {}
            }
        }
        let message = match (unsuited, entry) {
            (Some((path, kind)), entry) => unsuited_message(entry, path, kind),
            (None, Entry::Targets(Targets::AllLinear, _)) => return Ok(()),
            (None, Entry::Targets(Targets::Pattern(pattern), _)) => format!(
                "no module's whole path matches the pattern `{pattern}`; `.*` before it matches what precedes; the \
                 model's layers are {}",
                self.some(|names| &names.path)
            ),
            (None, Entry::Targets(Targets::Names(names), _)) => self.not_found(&names[0]),
            (None, Entry::Pattern(_, key)) => self.not_found(key),
            (None, Entry::Whole(end)) => self.not_found(end) + self.beside(end),
            (None, Entry::Rows(end)) => self.not_found(end),
        };
        Err(invalid(setting, message))
    }

    fn require_layers(&self, config: &LoRAConfig) -> Result<()> {
        let wanted = config.layers.as_deref().unwrap_or_default();
        if !wanted.is_empty() && matches!(config.targets, Targets::Pattern(_)) {
            let message = "a pattern selects modules by their whole paths, whatever layer they are in; put the layers \
                           into the pattern";
            return Err(invalid("layers", message.into()));
        }
        let mut found = BTreeSet::new();
        for (names, _) in self.known {
            found.extend(config.layer_of(names)?);
        }
        let Some(missing) = wanted.iter().find(|index| !found.contains(index)) else {
            return Ok(());
        };
        let there_are = match (found.first(), found.last()) {
            (Some(first), Some(last)) => format!("its layers are {first} to {last}"),
            _ => format!("no path has an index before a name, as `layers.{missing}.NAME` does"),
        };
        let message = format!("the model has no layer {missing}; {there_are}");
        Err(invalid("layers", message))
    }

    /// Why nothing has an adapter though every entry means something.
    pub fn nothing_adapted(&self, config: &LoRAConfig) -> Error {
        let is_narrowed = config.exclude.is_some() || config.layers.is_some();
        if is_narrowed && config.naming == Naming::Any {
            let message = "of the modules that the targets name, `exclude` and `layers` leave none";
            return invalid("targets", message.to_owned());
        }
        let mut elsewhere = config.clone();
        elsewhere.layers = None;
        let is_elsewhere = |(names, _): &(ModuleNames, LayerKind)| elsewhere.names_module(names);
        if let Some(layers) = &config.layers
            && self.known.iter().any(is_elsewhere)
        {
            let message =
                format!("the model has no layer of {layers:?} with the modules of the targets");
            return invalid("layers", message);
        }
        let in_its_words = self.known.iter().filter_map(|(names, _)| {
            let mut own = names.by_naming(config.naming);
            own.next()
        });
        let paths: Vec<&str> = in_its_words.collect();
        let hint = match &config.targets {
            Targets::Pattern(pattern) if !paths.is_empty() => {
                let example = paths.iter().find(|path| ends_with_name(path, pattern));
                format!(
                    "`{pattern}` must match a whole path, such as {}; for modules by the ends of their paths give a list",
                    example.unwrap_or(&paths[0])
                )
            }
            _ => format!(
                "the model's layers are {}",
                some_of(paths.iter().map(|path| last_part(path)))
            ),
        };
        invalid("targets", format!("no module matches the targets; {hint}"))
    }

    fn not_found(&self, name: &str) -> String {
        if self.is_foreign(name) {
            return format!("`{name}` is none of this crate's layers, which alone hold adapters");
        }
        if let Some(joint) = self.joint_of(name) {
            return format!(
                "no module is called `{name}`; it is a part of `{joint}` in this model"
            );
        }
        let names = self
            .known
            .iter()
            .flat_map(|(names, _)| names.by_naming(Naming::Any));
        let ends = names.flat_map(|name| [name, last_part(name)]);
        let hint = match nearest(name, ends, 1).pop() {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "the model's layers are {}",
                self.some(|names| last_part(&names.path))
            ),
        };
        format!("no module is called `{name}`; {hint}")
    }

    /// The module that has one of this name, of other models, in it.
    fn joint_of(&self, name: &str) -> Option<&str> {
        let mut known = self.known.iter().map(|(names, _)| names);
        let joint = known.find(|names| names.parts.contains(&last_part(name)))?;
        Some(last_part(&joint.path))
    }

    /// Whether the model has a module of this name that is no layer of this crate's, or holds some.
    fn is_foreign(&self, name: &str) -> bool {
        let params = get_params(self.model);
        let is_named = |path: &str| path == name || ends_with_name(path, name);
        let mut paths = params.names().flat_map(|key| {
            let ends = key.match_indices('.');
            ends.map(|(end, _)| &key[..end])
        });
        paths.any(is_named)
    }

    fn beside(&self, name: &str) -> &'static str {
        match self.is_foreign(name) {
            true => "; `set_trainable_params` trains a module of Burn's beside them",
            false => "",
        }
    }

    /// The names of the layers, a few of them.
    fn some<'a>(&'a self, name: impl Fn(&'a ModuleNames) -> &'a str) -> String {
        some_of(self.known.iter().map(|(names, _)| name(names)))
    }
}

/// Names without repetition, a few of them.
fn some_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut seen = HashSet::new();
    let names: Vec<&str> = names.filter(|name| seen.insert(*name)).collect();
    match names.is_empty() {
        true => "none of this crate's".to_owned(),
        false => names[..names.len().min(12)].join(", "),
    }
}

/// Names one by one, or what is not names as it is.
fn one_by_one(targets: &Targets) -> Vec<Targets> {
    match targets {
        Targets::Names(names) => names.iter().map(|name| Targets::names([name])).collect(),
        other => vec![other.clone()],
    }
}

fn unsuited_message(entry: Entry<'_>, path: &str, kind: LayerKind) -> String {
    let what = match kind {
        LayerKind::Linear => "a linear layer",
        LayerKind::Embedding => "an embedding",
        LayerKind::Norm => "a norm, which `modules_to_save` trains as a whole",
    };
    match entry {
        Entry::Targets(_, Some(method)) => {
            format!("`{method:?}` does not adapt `{path}`, {what}")
        }
        _ => format!("`{path}` has no rows of tokens: it is {what}"),
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}
