//! Where a traversal stands in the module tree: the names of parameters, and which of them belong
//! to an adapter.

/// The container types that leave no trace in names: a `LoRALinear`'s weight is `q_proj.weight`,
/// not `q_proj.base.weight`, with and without an adapter.
const TRANSPARENT: &str = "Struct:LoRALinear";
/// The container types below which every parameter belongs to an adapter: this crate's and Burn's.
const ADAPTERS: [&str; 2] = ["Struct:LoRAAdapter", "Struct:LoraAdapter"];

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
        let visible = self.levels.iter().filter(|(_, c)| c != TRANSPARENT);
        let names: Vec<&str> = visible.map(|(name, _)| name.as_str()).collect();
        names.join(".")
    }

    /// Whether that parameter belongs to an adapter: decided by the type that holds it, not by its
    /// name.
    pub(crate) fn in_adapter(&self) -> bool {
        self.levels
            .iter()
            .any(|(_, container)| ADAPTERS.contains(&container.as_str()))
    }
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
