//! Where a layer holds its adapters: by name, with those that act at the moment.

use std::sync::Arc;

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use super::LoRAAdapter;

/// The name of an adapter that is given none. It leaves no trace in state-dict keys.
pub const DEFAULT_ADAPTER: &str = "default";

/// The adapters of a layer by name, in the order in which they were attached.
///
/// State-dict keys are `lora_a.weight` for the adapter called [`DEFAULT_ADAPTER`], and `NAME.lora_a.weight` for
/// others.
#[derive(Debug, Clone, Default)]
pub struct AdapterSlot {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Arc<str>,
    adapter: LoRAAdapter,
    is_active: bool,
}

impl AdapterSlot {
    /// A layer's slot without adapters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no adapter.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The adapters with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &LoRAAdapter)> {
        self.entries.iter().map(|e| (&*e.name, &e.adapter))
    }

    /// The adapter of this name.
    pub fn get(&self, name: &str) -> Option<&LoRAAdapter> {
        self.iter().find_map(|(n, a)| (n == name).then_some(a))
    }

    /// The adapter that a row of a batch asks for, if it asks for one that is here.
    pub(crate) fn named(&self, name: Option<&str>) -> impl Iterator<Item = &LoRAAdapter> {
        name.and_then(|name| self.get(name)).into_iter()
    }

    /// The adapter of this name.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut LoRAAdapter> {
        let entry = self.entries.iter_mut().find(|entry| *entry.name == *name);
        entry.map(|entry| &mut entry.adapter)
    }

    /// The adapters that act, in the order in which they do.
    pub fn active(&self) -> impl Iterator<Item = &LoRAAdapter> {
        let active = self.entries.iter().filter(|entry| entry.is_active);
        active.map(|entry| &entry.adapter)
    }

    /// The name of the first adapter that acts.
    pub(crate) fn active_name(&self) -> Option<&str> {
        let active = self.entries.iter().find(|entry| entry.is_active);
        active.map(|entry| &*entry.name)
    }

    /// Puts an adapter into the slot, in the place of one of the same name, and lets it act alone.
    ///
    /// # Panics
    /// If the name is empty.
    pub fn insert(&mut self, name: &str, adapter: LoRAAdapter) {
        assert!(!name.is_empty(), "an adapter's name must not be empty");
        self.set_active(&[]);
        let entry = Entry {
            name: name.into(),
            adapter,
            is_active: true,
        };
        match self.entries.iter_mut().find(|e| *e.name == *name) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// Takes the adapter of this name out.
    pub fn remove(&mut self, name: &str) -> Option<LoRAAdapter> {
        let index = self.entries.iter().position(|e| *e.name == *name)?;
        Some(self.entries.remove(index).adapter)
    }

    /// Lets the adapters of these names act, and no others.
    pub fn set_active(&mut self, names: &[&str]) {
        for entry in &mut self.entries {
            entry.is_active = names.contains(&&*entry.name);
        }
    }

    /// The adapters, each with what precedes its parameters' names in the state dict of a module in which the
    /// layer's path is `path`.
    pub(crate) fn keyed_mut(
        &mut self,
        path: &str,
    ) -> impl Iterator<Item = (String, &mut LoRAAdapter)> {
        let entries = self.entries.iter_mut();
        entries.map(move |entry| (key_prefix(path, &entry.name), &mut entry.adapter))
    }

    fn map_adapters(self, f: impl FnMut(LoRAAdapter) -> LoRAAdapter) -> Self {
        self.map_named({
            let mut f = f;
            move |_, adapter| f(adapter)
        })
    }

    fn map_named(self, mut f: impl FnMut(&str, LoRAAdapter) -> LoRAAdapter) -> Self {
        let entries = self.entries.into_iter().map(|entry| Entry {
            adapter: f(&entry.name, entry.adapter),
            ..entry
        });
        Self {
            entries: entries.collect(),
        }
    }
}

/// What precedes the names of an adapter's parameters in state-dict keys.
pub(crate) fn key_prefix(path: &str, name: &str) -> String {
    let levels = [path, name].into_iter();
    let visible = levels.filter(|level| !level.is_empty() && *level != DEFAULT_ADAPTER);
    visible.map(|level| format!("{level}.")).collect()
}

/// The container type of the level that an adapter with a name of its own adds to a path.
const NAMED: &str = "Adapter";

impl Module for AdapterSlot {
    fn collect_devices(&self, devices: Devices) -> Devices {
        let adapters = self.iter();
        adapters.fold(devices, |devices, (_, a)| a.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        self.map_adapters(|adapter| adapter.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_adapters(|adapter| adapter.to_device(device))
    }

    fn train(self) -> Self {
        self.map_adapters(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_adapters(|adapter| adapter.valid())
    }

    fn materialize(self) -> Self {
        self.map_adapters(Module::materialize)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        for (name, adapter) in self.iter() {
            if name == DEFAULT_ADAPTER {
                adapter.visit(visitor);
            } else {
                visitor.enter_module(name, NAMED);
                adapter.visit(visitor);
                visitor.exit_module(name, NAMED);
            }
        }
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.map_named(|name, adapter| {
            if name == DEFAULT_ADAPTER {
                return adapter.map(mapper);
            }
            mapper.enter_module(name, NAMED);
            let adapter = adapter.map(mapper);
            mapper.exit_module(name, NAMED);
            adapter
        })
    }
}
