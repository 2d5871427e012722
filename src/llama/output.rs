use burn::module::{
    Content, Devices, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor,
};
use burn::tensor::{Device, Tensor};

use crate::lora::{AdapterSlot, LoRAEmbedding, LoRALinear, Routes, TiedOutput};
use crate::ops::meta::MetaTensor;

/// The projection to the vocabulary.
#[derive(Debug, Clone)]
pub enum Output {
    /// By a weight of its own.
    Own(LoRALinear),
    /// By the embedding's weight, with adapters of its own.
    Tied(TiedOutput),
}

impl Output {
    /// Projects normed hidden states.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, embed_dim]`
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the last dimension of `hidden` is not `embed_dim`.
    pub fn forward(
        &self,
        hidden: Tensor<3>,
        embedding: &LoRAEmbedding,
        routes: Option<&Routes>,
    ) -> Tensor<3> {
        match self {
            Self::Own(output) => output.forward_routed(hidden, routes),
            Self::Tied(output) => output.forward_routed(hidden, embedding, routes),
        }
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, hidden: MetaTensor, embedding: &LoRAEmbedding) -> MetaTensor {
        match self {
            Self::Own(output) => output.meta(hidden),
            Self::Tied(output) => output.meta(hidden, embedding),
        }
    }

    /// The same with so many rows, see [`FrozenWeight::with_rows`](crate::weight::FrozenWeight).
    pub(super) fn with_rows(self, rows: usize) -> Self {
        match self {
            Self::Own(mut output) => {
                output.base.weight = output.base.weight.with_rows(rows);
                Self::Own(output)
            }
            Self::Tied(output) => Self::Tied(output.with_rows(rows)),
        }
    }

    /// Its adapters.
    pub fn adapters(&self) -> &AdapterSlot {
        match self {
            Self::Own(output) => &output.adapters,
            Self::Tied(output) => &output.adapters,
        }
    }
}

/// Calls a method of [`Module`] on whichever it is.
macro_rules! each {
    ($output:expr, $inner:ident => $result:expr) => {
        match $output {
            Output::Own($inner) => Output::Own($result),
            Output::Tied($inner) => Output::Tied($result),
        }
    };
}

/// As the variant's own: no variant has a level in paths, `output.lora_a.weight` is of either.
impl Module for Output {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Own(output) => output.collect_devices(devices),
            Self::Tied(output) => output.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        each!(self, output => output.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        each!(self, output => output.to_device(device))
    }

    fn train(self) -> Self {
        each!(self, output => output.train())
    }

    fn valid(&self) -> Self {
        each!(self, output => output.valid())
    }

    fn materialize(self) -> Self {
        each!(self, output => output.materialize())
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        match self {
            Self::Own(output) => output.visit(visitor),
            Self::Tied(output) => output.visit(visitor),
        }
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        each!(self, output => output.map(mapper))
    }
}

impl ModuleDisplayDefault for Output {
    fn content(&self, content: Content) -> Option<Content> {
        self.custom_content(content)
    }
}

impl ModuleDisplay for Output {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        match self {
            Self::Own(output) => output.custom_settings(),
            Self::Tied(output) => output.custom_settings(),
        }
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Own(output) => output.custom_content(content),
            Self::Tied(output) => output.custom_content(content),
        }
    }
}
