use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::{Context, LlamaConfig};
use crate::lora::{LoRALinear, MlpModule};
use crate::ops::meta::MetaTensor;
use crate::ops::{Activation, glu, glu_meta};

/// The gated feed-forward block, `w2(act(w1 x) · w3 x)` with silu or another activation. Shazeer,
/// <https://arxiv.org/abs/2002.05202>.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct FeedForward {
    /// The gate, `embed_dim -> intermediate_dim`.
    pub w1: LoRALinear,
    /// The way down, `intermediate_dim -> embed_dim`.
    pub w2: LoRALinear,
    /// The way up, `embed_dim -> intermediate_dim`.
    pub w3: LoRALinear,
    #[module(skip)]
    activation: Activation,
}

impl FeedForward {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let linear = |module| {
            let (in_dim, out_dim) = config.mlp_dims(module);
            LoRALinear::plain(in_dim, out_dim, config.mlp_bias, device)
        };
        Self {
            w1: linear(MlpModule::W1),
            w2: linear(MlpModule::W2),
            w3: linear(MlpModule::W3),
            activation: config.block.activation,
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    ///
    /// # Panics
    /// If the last dimension of `x` is not `embed_dim`.
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let routes = context.routes.as_ref();
        let gate = self.w1.forward_routed(x.clone(), routes);
        let up = self.w3.forward_routed(x, routes);
        self.w2
            .forward_routed(glu(gate, up, self.activation), routes)
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor) -> MetaTensor {
        let gate = self.w1.meta(x.clone());
        let up = self.w3.meta(x);
        self.w2.meta(glu_meta(gate, up))
    }
}

impl ModuleDisplay for FeedForward {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_show_num_parameters(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("w1", &self.w1)
            .add("w2", &self.w2)
            .add("w3", &self.w3)
            .optional()
    }
}
