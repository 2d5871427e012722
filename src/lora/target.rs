//! Which modules of a model an adapter is put on, and what differs between them: names, paths, patterns.

use std::fmt;
use std::str::FromStr;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::python_regex::{full_match, match_start};
use crate::error::nearest;
use crate::{Error, Result};

/// A linear layer of the attention, as a name for [`Targets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnModule {
    /// The query projection.
    QProj,
    /// The key projection.
    KProj,
    /// The value projection.
    VProj,
    /// The projection of the heads' outputs.
    OutputProj,
}

impl AttnModule {
    /// All of them, in the model's order.
    pub const ALL: [Self; 4] = [Self::QProj, Self::KProj, Self::VProj, Self::OutputProj];

    /// The field's name in the model and in state-dict keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OutputProj => "output_proj",
        }
    }
}

impl fmt::Display for AttnModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AttnModule {
    type Err = Error;

    /// Parses a module's name; `o_proj`, the name in Hugging Face's Llama, means `output_proj`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other name, with the nearest valid one.
    fn from_str(name: &str) -> Result<Self> {
        let wanted = if name == "o_proj" {
            "output_proj"
        } else {
            name
        };
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|m| m.name() == wanted)
            .ok_or_else(|| Error::Config {
                origin: "lora_attn_modules".into(),
                key: "lora_attn_modules".into(),
                line: None,
                message: format!(
                    "unknown attention module `{name}`; choose from {}",
                    names.join(", ")
                ),
                nearest: nearest(name, names, 1),
            })
    }
}

/// A linear layer of the feed-forward block, as a name for [`Targets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpModule {
    /// The gate projection (`gate_proj` in Hugging Face's Llama).
    W1,
    /// The down projection (`down_proj`).
    W2,
    /// The up projection (`up_proj`).
    W3,
}

impl MlpModule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::W1, Self::W2, Self::W3];

    /// The field's name in the model and in state-dict keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }
}

impl From<AttnModule> for String {
    fn from(module: AttnModule) -> Self {
        module.name().into()
    }
}

impl From<MlpModule> for String {
    fn from(module: MlpModule) -> Self {
        module.name().into()
    }
}

/// Modules of a model.
///
/// ```
/// use burn_peft::lora::{LoRAConfig, Targets};
///
/// let by_name = LoRAConfig::new(["q_proj", "layers.0.mlp.w2"]);
/// let by_pattern = LoRAConfig::default().with_targets(Targets::pattern(r".*\.(q|v)_proj"));
/// let all = LoRAConfig::default().with_targets(Targets::AllLinear);
/// # let _ = (by_name, by_pattern, all);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Targets {
    /// Those whose path is one of these, or ends with one after a dot.
    Names(Vec<String>),
    /// Those whose whole path matches a regular expression.
    Pattern(String),
    /// Every linear layer but the output projection of a Llama; of a model of your own every one, as in PEFT of a model
    /// that is not of transformers.
    AllLinear,
}

impl From<&str> for Targets {
    /// The modules of one name or path.
    fn from(name: &str) -> Self {
        Self::names([name])
    }
}

impl Targets {
    /// Those of these names or paths.
    pub fn names(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }

    /// Those whose whole path matches `pattern`, an expression of Python's `re`, as PEFT's are.
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Self::Pattern(pattern.into())
    }

    /// Whether it names an embedding or output, which with `ensure_weight_tying` have one adapter: as in PEFT, a
    /// pattern does by the last part of the path alone.
    pub(super) fn names_vocabulary(&self, path: &str) -> Result<bool> {
        let path = match self {
            Self::Pattern(_) => path.rsplit('.').next().unwrap_or(path),
            _ => path,
        };
        Ok(self.find(path, Place::Elsewhere, TARGETS)? != Match::No)
    }

    /// Whether it names nothing, so that nothing can match.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }

    /// Checks that a pattern is one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] of this name.
    pub(super) fn validate(&self, setting: &'static str) -> Result<()> {
        match self {
            Self::Pattern(pattern) => full_match(pattern, setting).map(drop),
            _ => Ok(()),
        }
    }

    /// How a module is matched; `setting` is what these targets are.
    fn find(&self, path: &str, kind: Place, setting: &'static str) -> Result<Match> {
        let found = match self {
            Self::Names(names) if names.iter().any(|name| name == path) => Match::Whole,
            Self::Names(names) => Match::of(names.iter().any(|name| ends_with_name(path, name))),
            Self::Pattern(pattern) => {
                let regex = full_match(pattern, setting)?;
                match regex
                    .is_match(path)
                    .map_err(too_complex(pattern, setting))?
                {
                    true => Match::Whole,
                    false => Match::No,
                }
            }
            Self::AllLinear => Match::of(kind == Place::Inside),
        };
        Ok(found)
    }
}

/// The settings that targets can be.
pub(super) const TARGETS: &str = "targets";
pub(super) const EXCLUDE: &str = "exclude";
const LAYERS_PATTERN: &str = "layers_pattern";
pub(super) const RANK_PATTERN: &str = "rank_pattern";
pub(super) const ALPHA_PATTERN: &str = "alpha_pattern";

/// What [`Targets::AllLinear`] asks of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A linear layer other than the output projection.
    Inside,
    /// Anything else.
    Elsewhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    /// By the end of its path, which `layers_to_transform` may refuse.
    Suffix,
    /// By its whole path or by a pattern.
    Whole,
}

impl Match {
    fn of(found: bool) -> Self {
        if found { Self::Suffix } else { Self::No }
    }
}

/// Which of a module's names a configuration speaks of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Naming {
    /// Its path in the module tree, or its name in Hugging Face's files where it has one.
    #[default]
    Any,
    /// Its name in Hugging Face's files: what the configuration of an adapter that PEFT made speaks of.
    HuggingFace,
}

/// A module's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleNames {
    /// The path in the module tree: `layers.0.attn.q_proj`.
    pub path: String,
    /// The name in Hugging Face's files: `model.layers.0.self_attn.q_proj`.
    pub hf: Option<String>,
    /// Whether it stands at the vocabulary: the embedding, or the projection to the logits.
    pub is_vocabulary: bool,
    /// The modules of other models that are one in it.
    pub parts: &'static [&'static str],
}

impl ModuleNames {
    pub fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            hf: None,
            is_vocabulary: false,
            parts: &[],
        }
    }

    pub fn by_naming(&self, naming: Naming) -> impl Iterator<Item = &str> {
        let own = Some(self.path.as_str()).filter(|_| naming == Naming::Any);
        own.into_iter().chain(self.hf.as_deref())
    }
}

/// Targets with what narrows them down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub targets: &'a Targets,
    pub exclude: Option<&'a Targets>,
    pub layers: Option<&'a [usize]>,
    pub layers_pattern: &'a [String],
    pub naming: Naming,
}

impl Selection<'_> {
    /// Whether a module of these names is selected.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a pattern that is no regular expression.
    pub fn selects(&self, names: &ModuleNames, place: Place) -> Result<bool> {
        for name in names.by_naming(self.naming) {
            if let Some(exclude) = self.exclude
                && exclude.find(name, place, EXCLUDE)? != Match::No
            {
                return Ok(false);
            }
        }
        for name in names.by_naming(self.naming) {
            let found = self.targets.find(name, place, TARGETS)?;
            if found == Match::Whole || found == Match::Suffix && self.in_layers(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the first layer index in a path is one of the layers; no layers are all.
    fn in_layers(&self, name: &str) -> Result<bool> {
        let Some(layers) = self.layers.filter(|layers| !layers.is_empty()) else {
            return Ok(true);
        };
        let index = layer_index(name, self.layers_pattern)?;
        Ok(index.is_some_and(|index| layers.contains(&index)))
    }
}

/// The index behind the first part of a path that one of `patterns` matches, or that any name precedes.
pub(super) fn layer_index(path: &str, patterns: &[String]) -> Result<Option<usize>> {
    if patterns.is_empty() {
        return index_behind(r"(?:|.*?\.)[^.]*", path);
    }
    for pattern in patterns {
        if let Some(index) = index_behind(&before_index(pattern), path)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn index_behind(start: &str, path: &str) -> Result<Option<usize>> {
    let regex = index_regex(start)?;
    let captures = regex
        .captures(path)
        .map_err(too_complex(start, LAYERS_PATTERN))?;
    let index = captures.and_then(|captures| captures.iter().last()??.as_str().parse().ok());
    Ok(index)
}

/// As PEFT has it, without a group around the pattern.
fn before_index(pattern: &str) -> String {
    format!(r"(?:^|.*?\.){pattern}")
}

fn index_regex(start: &str) -> Result<Regex> {
    match_start(&format!(r"{start}\.(\d+)\."), LAYERS_PATTERN)
}

/// Checks that what precedes the index of a layer is a regular expression.
///
/// # Errors
/// [`Error::InvalidArgument`] if it is none.
pub(super) fn validate_layers_pattern(pattern: &str) -> Result<()> {
    index_regex(&before_index(pattern)).map(drop)
}

/// Whether a path ends with a name after a dot.
pub(crate) fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.ends_with('.'))
}

/// The value of the first key, in order, that matches the end of a path: `^(.*\.)?(KEY)$`. `setting` is what has the
/// keys.
pub(crate) fn first_match<'a, T>(
    patterns: impl IntoIterator<Item = (&'a String, T)>,
    names: &ModuleNames,
    naming: Naming,
    setting: &'static str,
) -> Result<Option<T>> {
    for (key, value) in patterns {
        let regex = end_of_path(key, setting)?;
        for name in names.by_naming(naming) {
            if regex.is_match(name).map_err(too_complex(key, setting))? {
                return Ok(Some(value));
            }
        }
    }
    Ok(None)
}

/// `^(.*\.)?(KEY)$`, to whose first group a `\1` in the key would refer, as in PEFT.
pub(super) fn end_of_path(key: &str, setting: &'static str) -> Result<Regex> {
    match_start(&format!(r"(.*\.)?({key})$"), setting)
}

fn too_complex(pattern: &str, name: &'static str) -> impl Fn(fancy_regex::Error) -> Error {
    move |error| Error::InvalidArgument {
        name,
        message: format!("the regular expression `{pattern}` cannot be matched: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(targets: &Targets, path: &str, hf: Option<&str>) -> bool {
        let names = ModuleNames {
            hf: hf.map(Into::into),
            ..ModuleNames::new(path)
        };
        let selection = Selection {
            targets,
            exclude: None,
            layers: None,
            layers_pattern: &[],
            naming: Naming::Any,
        };
        selection.selects(&names, Place::Inside).unwrap()
    }

    #[test]
    fn module_names_parse_back() {
        for module in AttnModule::ALL {
            assert_eq!(module.to_string().parse::<AttnModule>().unwrap(), module);
        }
        assert_eq!(
            "o_proj".parse::<AttnModule>().unwrap(),
            AttnModule::OutputProj
        );
    }

    #[test]
    fn unknown_module_names_the_nearest() {
        let message = "q_porj".parse::<AttnModule>().unwrap_err().to_string();
        assert!(message.contains("q_porj"), "{message}");
        assert!(message.contains("did you mean `q_proj`"), "{message}");
    }

    #[test]
    fn names_match_whole_parts_of_a_path() {
        let q = "layers.11.attn.q_proj";
        assert!(selected(&Targets::names(["q_proj"]), q, None));
        assert!(selected(&Targets::names(["attn.q_proj"]), q, None));
        assert!(selected(&Targets::names([q]), q, None));
        assert!(!selected(&Targets::names(["proj"]), q, None));
        assert!(!selected(&Targets::names(["1.attn.q_proj"]), q, None));
        assert!(selected(
            &Targets::names(["o_proj"]),
            "layers.0.attn.output_proj",
            Some("model.layers.0.self_attn.o_proj")
        ));
    }

    #[test]
    fn patterns_match_whole_paths() {
        let q = "layers.0.attn.q_proj";
        assert!(selected(&Targets::pattern(r".*\.(q|v)_proj"), q, None));
        assert!(!selected(&Targets::pattern(r"(q|v)_proj"), q, None));
        assert!(!selected(
            &Targets::pattern(r"(?!.*q_proj).*_proj"),
            q,
            None
        ));
        let names = ModuleNames::new(q);
        let bad = Targets::pattern("(");
        let selection = Selection {
            targets: &bad,
            exclude: None,
            layers: None,
            layers_pattern: &[],
            naming: Naming::Any,
        };
        let error = selection.selects(&names, Place::Inside).unwrap_err();
        assert!(error.to_string().contains("regular expression"), "{error}");
    }

    #[test]
    fn layers_are_those_of_the_first_index() {
        for (path, patterns, expected) in [
            ("model.layers.3.experts.7.up_proj", &[][..], Some(3)),
            ("layers.3.attn.q_proj", &[], Some(3)),
            (
                "model.layers.3.self_attn.q_proj",
                &["layers".to_owned()],
                Some(3),
            ),
            ("model.layers.3.self_attn.q_proj", &["h".to_owned()], None),
            ("lm_head", &[], None),
        ] {
            assert_eq!(layer_index(path, patterns).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn the_first_pattern_in_order_counts() {
        let patterns = [("q_proj".to_owned(), 4), (".*_proj".to_owned(), 8)];
        let value = |path: &str| {
            let patterns = patterns.iter().map(|(key, value)| (key, *value));
            first_match(
                patterns,
                &ModuleNames::new(path),
                Naming::Any,
                "rank_pattern",
            )
            .unwrap()
        };
        assert_eq!(value("layers.0.attn.q_proj"), Some(4));
        assert_eq!(value("layers.0.attn.k_proj"), Some(8));
        assert_eq!(value("layers.0.mlp.w1"), None);
    }
}
