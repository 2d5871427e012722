use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::joint::{Part, parts_meta, parts_of};
use super::layer::with_layers;
use super::{Context, LayerCache, LlamaConfig, MetaContext, QkNorm, RMSNorm, RotaryEmbedding};
use crate::lora::{AttnModule, LoRALinear, Routes};
use crate::ops::meta::MetaTensor;
use crate::ops::{Scores, attention_meta, attention_scored, rotary_meta};

/// Causal self-attention with grouped queries: `softmax(q kᵀ / sqrt(head_dim) + mask) v`, in some models with norms of q
/// and k, another scale or a soft cap of the scores.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CausalSelfAttention {
    /// Query projection, `embed_dim -> num_heads · head_dim`; none where there is `qkv_proj`.
    pub q_proj: Option<LoRALinear>,
    /// Key projection, `embed_dim -> num_kv_heads · head_dim`; likewise.
    pub k_proj: Option<LoRALinear>,
    /// Value projection, `embed_dim -> num_kv_heads · head_dim`; likewise.
    pub v_proj: Option<LoRALinear>,
    /// The three in one, one after the other, `embed_dim -> (num_heads + 2 · num_kv_heads) · head_dim`, see
    /// [`Block::joint_projections`](super::Block::joint_projections).
    pub qkv_proj: Option<LoRALinear>,
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
        let linear = |(in_dim, out_dim), bias| LoRALinear::plain(in_dim, out_dim, bias, device);
        let is_joint = config.block.joint_projections;
        let own = |module| (!is_joint).then(|| linear(config.attn_dims(module), config.qkv_bias));
        let joint_dims = (config.embed_dim, config.q_dim() + 2 * config.kv_dim());
        let output_dims = config.attn_dims(AttnModule::OutputProj);
        let norm = |width| match config.block.qk_norm? {
            QkNorm::Head => Some(config.norm(config.head_dim, device)),
            QkNorm::Width => Some(config.norm(width, device)),
        };
        Self {
            q_proj: own(AttnModule::QProj),
            k_proj: own(AttnModule::KProj),
            v_proj: own(AttnModule::VProj),
            qkv_proj: is_joint.then(|| linear(joint_dims, config.qkv_bias)),
            output_proj: linear(output_dims, config.output_proj_bias),
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
    /// If the shapes do not fit, or there is a cache and the context is not the one that the decoder makes for it.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let routes = context.routes.as_ref();
        let told = context.attention(self.kind);
        let [q, k, v] = self.project(x, context);
        let q = told.query_scale.iter().fold(q, scaled);
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v, told.growth.as_ref().expect(NO_GROWTH)),
        };
        let heads = attention_scored(q, k, v, &told.mask, self.scores); // [b, t, h, d]
        let [batch, seq, num_heads, head_dim] = heads.dims();
        let joined = heads.reshape([batch, seq, num_heads * head_dim]);
        self.output_proj.forward_routed(joined, routes)
    }

    /// Queries and keys, normed and rotated, and values: `[batch, seq, heads, head_dim]`.
    fn project(&self, x: Tensor<3>, context: &Context) -> [Tensor<4>; 3] {
        let routes = context.routes.as_ref();
        let rope = context.attention(self.kind).rope.as_ref();
        let parts = parts_of(&self.qkv_proj, self.parts(), x, routes);
        let [q, k, v] = parts.map(|part| self.heads(part));
        let q = rotated(q, &self.q_norm, rope, routes);
        let k = rotated(k, &self.k_norm, rope, routes);
        [q, k, v]
    }

    fn parts(&self) -> [Part<'_>; 3] {
        let [q, kv] = [self.num_heads, self.num_kv_heads].map(|heads| heads * self.head_dim);
        [(&self.q_proj, q), (&self.k_proj, kv), (&self.v_proj, kv)]
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor, context: MetaContext) -> MetaTensor {
        let MetaContext { seq, attention } = context;
        let heads = attention_meta(self.project_meta(x), seq, self.num_heads, attention);
        self.output_proj.meta(heads)
    }

    /// What [`Self::project`] holds in a training.
    fn project_meta(&self, x: MetaTensor) -> [MetaTensor; 3] {
        let [q, k, v] = parts_meta(&self.qkv_proj, self.parts(), x);
        let rotated = |x, norm: &Option<RMSNorm>| match norm {
            Some(norm) => norm.rotated_meta(x),
            None => rotary_meta(x),
        };
        [rotated(q, &self.q_norm), rotated(k, &self.k_norm), v]
    }

    /// What a projection has given, by head: `[batch, seq, heads, head_dim]`.
    fn heads(&self, projected: Tensor<3>) -> Tensor<4> {
        let [batch, seq, width] = projected.dims();
        projected.reshape([batch, seq, width / self.head_dim, self.head_dim])
    }
}

const NO_GROWTH: &str = "a context for a pass with a cache is made from the cache";

/// Queries or keys, normed one head after the other or all of a position together, and rotated: in one pass where both are
/// done and the rows share one norm.
fn rotated(
    x: Tensor<4>,
    norm: &Option<RMSNorm>,
    rope: Option<&RotaryEmbedding>,
    routes: Option<&Routes>,
) -> Tensor<4> {
    match (norm, rope) {
        (Some(norm), Some(rope)) if !norm.is_routed(routes) => norm.forward_rotated(x, rope),
        (Some(norm), rope) => rotated(normed(x, norm, routes), &None, rope, routes),
        (None, Some(rope)) => rope.apply(x),
        (None, None) => x,
    }
}

fn normed(x: Tensor<4>, norm: &RMSNorm, routes: Option<&Routes>) -> Tensor<4> {
    let dims @ [batch, seq, heads, head_dim] = x.dims();
    let groups = x.reshape([batch, seq * heads * head_dim / norm.dim(), norm.dim()]);
    norm.forward_routed(groups, routes).reshape(dims)
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
        let content = with_layers(
            content,
            [
                ("q_proj", &self.q_proj),
                ("k_proj", &self.k_proj),
                ("v_proj", &self.v_proj),
                ("qkv_proj", &self.qkv_proj),
            ],
        );
        let content = content.add("output_proj", &self.output_proj);
        let norms = [("q_norm", &self.q_norm), ("k_norm", &self.k_norm)];
        with_layers(content, norms)
            .add("num_heads", &self.num_heads)
            .add("num_kv_heads", &self.num_kv_heads)
            .add("head_dim", &self.head_dim)
            .optional()
    }
}
