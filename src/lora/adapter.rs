//! The adapter of one layer: its parameters, the method that says what they do, and the configuration that both are
//! from.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use burn::module::{
    Content, Devices, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor,
};
use burn::tensor::Device;

use super::config::LoRAConfig;
use super::layer_config::LayerConfig;
use super::method::{FULL, MethodRef, TOKEN_ROWS};
use super::params::AdapterParams;
use super::plain::one_line;
use super::shape::{LayerKind, LayerParams, LayerShape};

/// The adapter of one layer. It dereferences to its parameters.
#[derive(Debug, Clone)]
pub struct LoRAAdapter {
    config: Arc<LoRAConfig>,
    method: MethodRef,
    params: AdapterParams,
}

impl LoRAAdapter {
    /// A new adapter beside a layer with these parameters, lazy: what follows from the layer's values may be
    /// asked for after they are loaded.
    ///
    /// # Panics
    /// If the method does not adapt layers of this kind.
    pub(crate) fn new(
        layer: LayerShape,
        config: LayerConfig,
        of_layer: &LayerParams,
        device: &Device,
    ) -> Self {
        let table = config.params(&layer);
        Self {
            params: AdapterParams::new(layer, config.settings, table, of_layer, device),
            method: config.method,
            config: config.config,
        }
    }

    /// The configuration that it was made by.
    pub fn config(&self) -> &Arc<LoRAConfig> {
        &self.config
    }

    /// The method.
    pub fn method(&self) -> MethodRef {
        self.method
    }

    /// What the configuration means for its layer.
    pub(crate) fn layer_config(&self) -> LayerConfig {
        LayerConfig {
            config: self.config.clone(),
            method: self.method,
            settings: self.settings().clone(),
        }
    }

    /// Lets it be of another configuration, which means the same for its layer.
    pub(crate) fn set_config(&mut self, config: Arc<LoRAConfig>) {
        self.config = config;
    }

    /// Whether it looks up rows of a table of its own.
    pub(super) fn replaces_rows(&self) -> bool {
        self.method == MethodRef(&FULL)
    }

    /// Whether what it does to an embedding it does to an output of the same weight: with single rows it does, and
    /// otherwise where that is asked for.
    pub(crate) fn is_of_tied_output(&self) -> bool {
        self.method == MethodRef(&TOKEN_ROWS) || self.settings().ties_output
    }

    fn map_params(self, f: impl FnOnce(AdapterParams) -> AdapterParams) -> Self {
        Self {
            params: f(self.params),
            ..self
        }
    }
}

impl Deref for LoRAAdapter {
    type Target = AdapterParams;

    fn deref(&self) -> &AdapterParams {
        &self.params
    }
}

impl DerefMut for LoRAAdapter {
    fn deref_mut(&mut self) -> &mut AdapterParams {
        &mut self.params
    }
}

impl Module for LoRAAdapter {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.params.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.map_params(|params| params.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_params(|params| params.to_device(device))
    }

    fn train(self) -> Self {
        self.map_params(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_params(|params| params.valid())
    }

    fn materialize(self) -> Self {
        self.map_params(Module::materialize)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        self.params.visit(visitor);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.map_params(|params| params.map(mapper))
    }
}

impl LoRAAdapter {
    pub(super) fn add_content(&self, content: Content) -> Content {
        let content = self.params().fold(content, |content, spec| {
            content.add(spec.name, &format!("{:?}", spec.shape))
        });
        let content = match self.layer().kind {
            LayerKind::Norm => content,
            _ => content
                .add("scale", &self.scale())
                .add("dropout", &self.settings().dropout),
        };
        match self.method == MethodRef::default() {
            true => content,
            false => content.add("method", &self.method.0.name().to_owned()),
        }
    }
}

impl ModuleDisplayDefault for LoRAAdapter {
    fn content(&self, content: Content) -> Option<Content> {
        self.add_content(content.set_top_level_type("LoRAAdapter"))
            .optional()
    }
}

impl ModuleDisplay for LoRAAdapter {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }
}
