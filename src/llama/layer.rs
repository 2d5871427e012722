use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{
    AttentionMask, CausalSelfAttention, FeedForward, LayerCache, LlamaConfig, RMSNorm,
    RotaryEmbedding,
};
use crate::lora::LoRALinear;

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

    pub(super) fn map_linears(self, f: impl Fn(&str, LoRALinear) -> LoRALinear) -> Self {
        Self {
            attn: self.attn.map_linears(&f),
            mlp: self.mlp.map_linears(&f),
            ..self
        }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    /// - `rope`, `mask`, `cache`: see [`CausalSelfAttention::forward`]
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rope: &RotaryEmbedding,
        mask: &AttentionMask,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let attn = self
            .attn
            .forward(self.sa_norm.forward(x.clone()), rope, mask, cache);
        let h = x + attn;
        h.clone() + self.mlp.forward(self.mlp_norm.forward(h))
    }
}
