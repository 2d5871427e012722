use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{
    CausalSelfAttention, Context, FeedForward, LayerCache, LlamaConfig, MetaContext, RMSNorm,
};
use crate::ops::meta::MetaTensor;

/// One layer of the decoder: `h = x + attn(sa_norm(x))`, `y = h + mlp(mlp_norm(h))`.
#[derive(Module, Debug)]
pub struct TransformerDecoderLayer {
    /// The norm before the attention.
    pub sa_norm: RMSNorm,
    /// The attention.
    pub attn: CausalSelfAttention,
    /// The norm before the feed-forward block.
    pub mlp_norm: RMSNorm,
    /// The feed-forward block.
    pub mlp: FeedForward,
}

impl TransformerDecoderLayer {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let norm = || RMSNorm::new(config.embed_dim, config.norm_eps, device);
        Self {
            sa_norm: norm(),
            attn: CausalSelfAttention::new(config, device),
            mlp_norm: norm(),
            mlp: FeedForward::new(config, device),
        }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    /// - `context`, `cache`: see [`CausalSelfAttention::forward`]
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let routes = context.routes.as_ref();
        let normed = self.sa_norm.forward_routed(x.clone(), routes);
        let h = x + self.attn.forward(normed, context, cache);
        let normed = self.mlp_norm.forward_routed(h.clone(), routes);
        h + self.mlp.forward(normed, context)
    }

    /// What [`Self::forward`] holds in a training.
    pub(crate) fn meta(&self, x: MetaTensor, context: MetaContext) -> MetaTensor {
        let normed = self.sa_norm.meta(x.clone());
        let h = x.add(self.attn.meta(normed, context));
        let normed = self.mlp_norm.meta(h.clone());
        h.add(self.mlp.meta(normed))
    }
}
