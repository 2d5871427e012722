use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::layer::normed_meta;
use super::{Context, LayerCache, LlamaConfig, MetaContext, QkNorm, RMSNorm};
use crate::lora::{AttnModule, LoRALinear, Routes};
use crate::ops::meta::MetaTensor;
use crate::ops::{Scores, attention_meta, attention_scored, rotary_meta};

/// Causal self-attention with grouped queries: `softmax(q kᵀ / sqrt(head_dim) + mask) v`, in some models with norms of q
/// and k, another scale or a soft cap of the scores.
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
    /// The norm of the queries.
    pub q_norm: Option<RMSNorm>,
    /// The norm of the keys.
    pub k_norm: Option<RMSNorm>,
    #[module(skip)]
    num_heads: usize,
    #[module(skip)]
    num_kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    scores: Scores,
    /// The index of what this layer is told in a context.
    #[module(skip)]
    kind: usize,
}

impl CausalSelfAttention {
    pub(super) fn new(config: &LlamaConfig, index: usize, device: &Device) -> Self {
        let linear = |module, bias| {
            let (in_dim, out_dim) = config.attn_dims(module);
            LoRALinear::plain(in_dim, out_dim, bias, device)
        };
        let norm = |width| match config.block.qk_norm? {
            QkNorm::Head => Some(config.norm(config.head_dim, device)),
            QkNorm::Width => Some(config.norm(width, device)),
        };
        Self {
            q_proj: linear(AttnModule::QProj, config.qkv_bias),
            k_proj: linear(AttnModule::KProj, config.qkv_bias),
            v_proj: linear(AttnModule::VProj, config.qkv_bias),
            output_proj: linear(AttnModule::OutputProj, config.output_proj_bias),
            q_norm: norm(config.q_dim()),
            k_norm: norm(config.kv_dim()),
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scores: config.block.scores(config.head_dim),
            kind: config.attention_kind(index),
        }
    }

    /// Applies the attention.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    /// - `context`: the rotations of the positions of `x`, the mask over `seq` queries and all keys, those that the
    ///   cache keeps included, and the adapter of each row
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
        let told = context.attention(self.kind);
        let rotated = |x| told.rope.iter().fold(x, |x, rope| rope.apply(x));
        let q = rotated(self.heads(&self.q_proj, &self.q_norm, x.clone(), routes));
        let k = rotated(self.heads(&self.k_proj, &self.k_norm, x.clone(), routes));
        let v = self.heads(&self.v_proj, &None, x, routes);
        let q = told.query_scale.iter().fold(q, scaled);
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v, told.span),
        };
        let heads = attention_scored(q, k, v, &told.mask, self.scores); // [b, t, h, d]
        let [batch, seq, num_heads, head_dim] = heads.dims();
        let joined = heads.reshape([batch, seq, num_heads * head_dim]);
        self.output_proj.forward_routed(joined, routes)
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor, context: MetaContext) -> MetaTensor {
        let q = rotary_meta(normed_meta(&self.q_norm, self.q_proj.meta(x.clone())));
        let k = rotary_meta(normed_meta(&self.k_norm, self.k_proj.meta(x.clone())));
        let v = self.v_proj.meta(x);
        let MetaContext { seq, attention } = context;
        let heads = attention_meta([q, k, v], seq, self.num_heads, attention);
        self.output_proj.meta(heads)
    }

    /// The heads that a projection gives, normed: `[batch, seq, heads, head_dim]`.
    fn heads(
        &self,
        proj: &LoRALinear,
        norm: &Option<RMSNorm>,
        x: Tensor<3>,
        routes: Option<&Routes>,
    ) -> Tensor<4> {
        let projected = proj.forward_routed(x, routes);
        let [batch, seq, width] = projected.dims();
        let normed = match norm {
            None => projected,
            // Of one head after the other, or of all together.
            Some(norm) => {
                let groups = projected.reshape([batch, seq * width / norm.dim(), norm.dim()]);
                norm.forward_routed(groups, routes)
            }
        };
        normed.reshape([batch, seq, width / self.head_dim, self.head_dim])
    }
}

/// Queries times factors by position, in the queries' type.
fn scaled(q: Tensor<4>, factors: &Tensor<4>) -> Tensor<4> {
    let dtype = q.dtype();
    q * factors.clone().cast(dtype)
}

impl ModuleDisplay for CausalSelfAttention {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_show_num_parameters(false)
            .optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = content
            .add("q_proj", &self.q_proj)
            .add("k_proj", &self.k_proj)
            .add("v_proj", &self.v_proj)
            .add("output_proj", &self.output_proj);
        let norms = [("q_norm", &self.q_norm), ("k_norm", &self.k_norm)];
        let norms = norms
            .into_iter()
            .filter_map(|(name, norm)| Some((name, norm.as_ref()?)));
        norms
            .fold(content, |content, (name, norm)| content.add(name, norm))
            .add("num_heads", &self.num_heads)
            .add("num_kv_heads", &self.num_kv_heads)
            .add("head_dim", &self.head_dim)
            .optional()
    }
}
