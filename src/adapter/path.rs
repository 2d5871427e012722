//! Where a traversal stands in the module tree: the names of parameters, and which of them belong
//! to an adapter.

use crate::lora::{KEPT, TRAINED};

/// The container type below which every parameter belongs to one of Burn's own adapters.
const BURNS: &str = "Struct:LoraAdapter";

/// Name and container type of the weight of Burn's `Linear`.
const BURNS_WEIGHT: (&str, &str) = ("weight", "Struct:Linear");

/// Follows `enter_module` and `exit_module` of a module visitor or mapper.
#[derive(Debug, Default)]
pub(crate) struct Path {
    /// Name and container type of each level.
    levels: Vec<(String, String)>,
}

impl Path {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.levels.push((name.to_owned(), container.to_owned()));
    }

    pub(crate) fn exit(&mut self) {
        self.levels.pop();
    }

    /// The state-dict key of the parameter that is being visited.
    pub(crate) fn key(&self) -> String {
        let names: Vec<&str> = self.levels.iter().map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    /// Whether that parameter is the weight of Burn's `Linear`, `[in, out]`.
    pub(crate) fn is_burns_weight(&self) -> bool {
        let last = self.levels.last();
        last.is_some_and(|(name, container)| (name.as_str(), container.as_str()) == BURNS_WEIGHT)
    }

    /// Whether that parameter belongs to an adapter, and then whether it is trained: decided by the type that
    /// holds it, not by its name.
    pub(crate) fn role(&self) -> Role {
        let is_below = |container: &str| self.levels.iter().any(|(_, c)| c == container);
        match () {
            () if is_below(KEPT) => Role::KeptByAdapter,
            () if is_below(TRAINED) || is_below(BURNS) => Role::Adapter,
            () => Role::Base,
        }
    }
}

/// Whose a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The base model's.
    Base,
    /// An adapter's, to train.
    Adapter,
    /// An adapter's, which its training leaves alone.
    KeptByAdapter,
}

/// The `enter_module` and `exit_module` of a visitor or mapper with a field `path: Path`.
macro_rules! follow_path {
    () => {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
    };
}
pub(crate) use follow_path;
