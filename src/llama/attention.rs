use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::{Context, LayerCache, LlamaConfig, MetaContext};
use crate::lora::{AttnModule, LoRALinear};
use crate::ops::meta::MetaTensor;
use crate::ops::{attention, attention_meta, rotary_meta};

/// Causal self-attention with grouped queries: `softmax(q kᵀ / sqrt(head_dim) + mask) v`.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CausalSelfAttention {
    /// Query projection, `embed_dim -> num_heads · head_dim`.
    pub q_proj: LoRALinear,
    /// Key projection, `embed_dim -> num_kv_heads · head_dim`.
    pub k_proj: LoRALinear,
    /// Value projection, `embed_dim -> num_kv_heads · head_dim`.
    pub v_proj: LoRALinear,
    /// Projection of all heads' outputs, `num_heads · head_dim -> embed_dim`.
    pub output_proj: LoRALinear,
    #[module(skip)]
    num_heads: usize,
    #[module(skip)]
    num_kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
}

impl CausalSelfAttention {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let linear = |module, bias| {
            let (in_dim, out_dim) = config.attn_dims(module);
            LoRALinear::plain(in_dim, out_dim, bias, device)
        };
        Self {
            q_proj: linear(AttnModule::QProj, config.qkv_bias),
            k_proj: linear(AttnModule::KProj, config.qkv_bias),
            v_proj: linear(AttnModule::VProj, config.qkv_bias),
            output_proj: linear(AttnModule::OutputProj, config.output_proj_bias),
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Applies the attention.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    /// - `context`: the rotations of the positions of `x`, the mask over `seq` queries and all keys, those in the
    ///   cache included, and the adapter of each row
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let (rope, routes) = (&context.rope, context.routes.as_ref());
        let heads = |proj: &LoRALinear, x| self.split_heads(proj.forward_routed(x, routes));
        let q = rope.apply(heads(&self.q_proj, x.clone()));
        let k = rope.apply(heads(&self.k_proj, x.clone()));
        let v = heads(&self.v_proj, x);
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v),
        };
        let heads = attention(q, k, v, &context.mask); // [b, t, h, d]
        let [batch, seq, num_heads, head_dim] = heads.dims();
        let joined = heads.reshape([batch, seq, num_heads * head_dim]);
        self.output_proj.forward_routed(joined, routes)
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor, context: MetaContext) -> MetaTensor {
        let q = rotary_meta(self.q_proj.meta(x.clone()));
        let k = rotary_meta(self.k_proj.meta(x.clone()));
        let v = self.v_proj.meta(x);
        let MetaContext { seq, attention } = context;
        let heads = attention_meta([q, k, v], seq, self.num_heads, attention);
        self.output_proj.meta(heads)
    }

    /// `[batch, seq, heads · head_dim] -> [batch, seq, heads, head_dim]`.
    fn split_heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, seq, width] = x.dims();
        x.reshape([batch, seq, width / self.head_dim, self.head_dim])
    }
}

impl ModuleDisplay for CausalSelfAttention {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_show_num_parameters(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("q_proj", &self.q_proj)
            .add("k_proj", &self.k_proj)
            .add("v_proj", &self.v_proj)
            .add("output_proj", &self.output_proj)
            .add("num_heads", &self.num_heads)
            .add("num_kv_heads", &self.num_kv_heads)
            .add("head_dim", &self.head_dim)
            .optional()
    }
}
