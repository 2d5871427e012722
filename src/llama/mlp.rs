use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::joint::{Part, parts_meta, parts_of};
use super::layer::with_layers;
use super::{Context, LlamaConfig};
use crate::lora::{LoRALinear, MlpModule, Routes};
use crate::ops::meta::MetaTensor;
use crate::ops::{Activation, glu, glu_meta};

/// The gated feed-forward block, `w2(act(w1 x) · w3 x)` with silu or another activation. Shazeer,
/// <https://arxiv.org/abs/2002.05202>.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct FeedForward {
    /// The gate, `embed_dim -> intermediate_dim`; none where there is `gate_up_proj`.
    pub w1: Option<LoRALinear>,
    /// The way down, `intermediate_dim -> embed_dim`.
    pub w2: LoRALinear,
    /// The way up, `embed_dim -> intermediate_dim`; likewise.
    pub w3: Option<LoRALinear>,
    /// Gate and up in one, one after the other, `embed_dim -> 2 · intermediate_dim`, see
    /// [`Block::joint_projections`](super::Block::joint_projections).
    pub gate_up_proj: Option<LoRALinear>,
    #[module(skip)]
    intermediate_dim: usize,
    #[module(skip)]
    activation: Activation,
}

impl FeedForward {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let linear =
            |(in_dim, out_dim)| LoRALinear::plain(in_dim, out_dim, config.mlp_bias, device);
        let is_joint = config.block.joint_projections;
        let own = |module| (!is_joint).then(|| linear(config.mlp_dims(module)));
        let joint_dims = (config.embed_dim, 2 * config.intermediate_dim);
        Self {
            w1: own(MlpModule::W1),
            w2: linear(config.mlp_dims(MlpModule::W2)),
            w3: own(MlpModule::W3),
            gate_up_proj: is_joint.then(|| linear(joint_dims)),
            intermediate_dim: config.intermediate_dim,
            activation: config.block.activation,
        }
    }

    /// One with gate and up in one, without biases.
    pub(super) fn joint(
        dim: usize,
        intermediate_dim: usize,
        activation: Activation,
        device: &Device,
    ) -> Self {
        let linear = |in_dim, out_dim| LoRALinear::plain(in_dim, out_dim, false, device);
        Self {
            w1: None,
            w2: linear(intermediate_dim, dim),
            w3: None,
            gate_up_proj: Some(linear(dim, 2 * intermediate_dim)),
            intermediate_dim,
            activation,
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
        self.apply(x, context.routes.as_ref())
    }

    /// The same for rows of these routes.
    pub(super) fn apply(&self, x: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
        let [gate, up] = parts_of(&self.gate_up_proj, self.parts(), x, routes);
        self.w2
            .forward_routed(glu(gate, up, self.activation), routes)
    }

    fn parts(&self) -> [Part<'_>; 2] {
        let dim = self.intermediate_dim;
        [(&self.w1, dim), (&self.w3, dim)]
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor) -> MetaTensor {
        let [gate, up] = parts_meta(&self.gate_up_proj, self.parts(), x);
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
        let content = with_layers(content, [("w1", &self.w1)]).add("w2", &self.w2);
        let rest = [("w3", &self.w3), ("gate_up_proj", &self.gate_up_proj)];
        with_layers(content, rest).optional()
    }
}
