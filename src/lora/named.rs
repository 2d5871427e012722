//! Which modules a single entry of a configuration names, so that one that names none can be told.

use super::config::LoRAConfig;
use super::layer_config::is_in;
use super::method::{Method, MethodRef, TOKEN_ROWS};
use super::shape::LayerKind;
use super::target::{ModuleNames, Naming, Targets, ends_with_name, first_match, layer_index};
use crate::Result;

/// An entry of a configuration that a user wrote.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// A name or a pattern of targets, of the method that adapts them or of what is excluded.
    Targets(&'a Targets, Option<MethodRef>),
    /// The end of a weight's name.
    Parameter(&'a String),
    /// A key of ranks or alphas, of the setting of this name.
    Pattern(&'static str, &'a String),
    /// A module that is trained as a whole.
    Whole(&'a String),
    /// An embedding some of whose rows are trained.
    Rows(&'a String),
}

impl Entry<'_> {
    /// Whether it means a module of these names.
    pub fn names(&self, names: &ModuleNames) -> Result<bool> {
        let default = LoRAConfig::default();
        Ok(match self {
            Self::Targets(Targets::AllLinear, _) => true,
            Self::Targets(targets, _) => {
                default.with_targets((*targets).clone()).names_module(names)
            }
            Self::Parameter(end) => names.is_parameter_in(std::slice::from_ref(*end)),
            Self::Pattern(setting, key) => {
                first_match([(*key, ())], names, Naming::Any, setting)?.is_some()
            }
            Self::Whole(end) => is_in(std::slice::from_ref(*end), &default, names),
            Self::Rows(end) => {
                let mut all = names.by_naming(Naming::Any);
                all.any(|name| name == *end || ends_with_name(name, end))
            }
        })
    }

    /// Whether it can be had of a layer of this kind.
    pub fn suits(&self, kind: LayerKind) -> bool {
        match self {
            Self::Targets(_, Some(method)) => method.0.adapts(kind),
            Self::Rows(_) => TOKEN_ROWS.adapts(kind),
            Self::Parameter(_) => kind == LayerKind::Linear,
            Self::Targets(_, None) | Self::Pattern(..) | Self::Whole(_) => true,
        }
    }
}

impl LoRAConfig {
    /// The index of the layer that a module of these names stands in, as [`Self::layers`] counts.
    pub(crate) fn layer_of(&self, names: &ModuleNames) -> Result<Option<usize>> {
        for name in names.by_naming(self.naming) {
            if let Some(index) = layer_index(name, &self.layers_pattern)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}
