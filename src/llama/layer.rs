use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::{
    CausalSelfAttention, Context, FeedForward, LayerCache, LlamaConfig, MetaContext,
    MixtureOfExperts, NormPlacement, RMSNorm,
};
use crate::lora::Routes;
use crate::ops::meta::{MetaOp, MetaTensor};

/// One layer of the decoder: `h = x + attn(norm(x))`, `y = h + mlp(norm(h))`; in some models with norms after attention
/// and feed-forward block too, or only there, see [`NormPlacement`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct TransformerDecoderLayer {
    /// The norm before the attention.
    pub sa_norm: Option<RMSNorm>,
    /// The attention.
    pub attn: CausalSelfAttention,
    /// The norm after the attention.
    pub post_sa_norm: Option<RMSNorm>,
    /// The norm before the feed-forward block, in layers whose norms all stand before.
    pub mlp_norm: Option<RMSNorm>,
    /// The norm before the feed-forward block, in layers that have norms on both sides of it.
    pub pre_mlp_norm: Option<RMSNorm>,
    /// The feed-forward block, in layers without experts.
    pub mlp: Option<FeedForward>,
    /// The experts in its place, in layers that have some.
    pub moe: Option<MixtureOfExperts>,
    /// The norm after the feed-forward block.
    pub post_mlp_norm: Option<RMSNorm>,
    #[module(skip)]
    residual_scale: Option<f64>,
}

impl TransformerDecoderLayer {
    pub(super) fn new(config: &LlamaConfig, index: usize, device: &Device) -> Self {
        let norms = config.block.norms;
        let norm = |exists: bool| exists.then(|| config.norm(config.embed_dim, device));
        let experts = config.experts_of(index);
        Self {
            sa_norm: norm(norms.is_before()),
            attn: CausalSelfAttention::new(config, index, device),
            post_sa_norm: norm(norms.is_after()),
            mlp_norm: norm(norms == NormPlacement::Before),
            pre_mlp_norm: norm(norms == NormPlacement::Both),
            mlp: experts.is_none().then(|| FeedForward::new(config, device)),
            moe: experts.map(|experts| MixtureOfExperts::new(config, experts, device)),
            post_mlp_norm: norm(norms.is_after()),
            residual_scale: config.block.residual_scale,
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
        let normed = normed(&self.sa_norm, x.clone(), routes);
        let out = self.attn.forward(normed, context, cache);
        let h = self.add(x, &self.post_sa_norm, out, routes);
        let out = self.feed_forward(self.mlp_input(h.clone(), routes), context);
        self.add(h, &self.post_mlp_norm, out, routes)
    }

    fn feed_forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        match (&self.mlp, &self.moe) {
            (Some(mlp), _) => mlp.forward(x, context),
            (None, Some(moe)) => moe.forward(x, context),
            (None, None) => panic!("{NEITHER}"),
        }
    }

    fn mlp_input(&self, h: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
        normed(self.norm_before_mlp(), h, routes)
    }

    fn norm_before_mlp(&self) -> &Option<RMSNorm> {
        match &self.pre_mlp_norm {
            Some(_) => &self.pre_mlp_norm,
            None => &self.mlp_norm,
        }
    }

    /// The hidden state with what attention or feed-forward block give.
    fn add(
        &self,
        x: Tensor<3>,
        norm: &Option<RMSNorm>,
        out: Tensor<3>,
        routes: Option<&Routes>,
    ) -> Tensor<3> {
        let out = normed(norm, out, routes);
        match self.residual_scale {
            Some(scale) => x + out.mul_scalar(scale),
            None => x + out,
        }
    }

    /// What [`Self::forward`] holds in a training.
    pub(crate) fn meta(&self, x: MetaTensor, context: MetaContext) -> MetaTensor {
        let out = self
            .attn
            .meta(normed_meta(&self.sa_norm, x.clone()), context);
        let h = self.add_meta(x, &self.post_sa_norm, out);
        let out = self.feed_forward_meta(normed_meta(self.norm_before_mlp(), h.clone()));
        self.add_meta(h, &self.post_mlp_norm, out)
    }

    fn feed_forward_meta(&self, x: MetaTensor) -> MetaTensor {
        match (&self.mlp, &self.moe) {
            (Some(mlp), _) => mlp.meta(x),
            (None, Some(moe)) => moe.meta(x),
            (None, None) => panic!("{NEITHER}"),
        }
    }

    fn add_meta(&self, x: MetaTensor, norm: &Option<RMSNorm>, out: MetaTensor) -> MetaTensor {
        let out = normed_meta(norm, out);
        match self.residual_scale {
            Some(_) => x.add(MetaOp::of([out]).in_place()),
            None => x.add(out),
        }
    }
}

const NEITHER: &str = "a layer has a feed-forward block or experts";

fn normed(norm: &Option<RMSNorm>, x: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward_routed(x, routes),
        None => x,
    }
}

/// With the layers that there are.
pub(super) fn with_layers<M: ModuleDisplay, const N: usize>(
    content: Content,
    layers: [(&str, &Option<M>); N],
) -> Content {
    let layers = layers.into_iter();
    let layers = layers.filter_map(|(name, layer)| Some((name, layer.as_ref()?)));
    layers.fold(content, |content, (name, layer)| content.add(name, layer))
}

fn normed_meta(norm: &Option<RMSNorm>, x: MetaTensor) -> MetaTensor {
    match norm {
        Some(norm) => norm.meta(x),
        None => x,
    }
}

impl ModuleDisplay for TransformerDecoderLayer {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        None
    }

    /// The norms that there are.
    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = with_layers(content, [("sa_norm", &self.sa_norm)]).add("attn", &self.attn);
        let norms = [
            ("post_sa_norm", &self.post_sa_norm),
            ("mlp_norm", &self.mlp_norm),
            ("pre_mlp_norm", &self.pre_mlp_norm),
        ];
        let content = with_layers(content, norms);
        let content = with_layers(content, [("mlp", &self.mlp)]);
        let content = with_layers(content, [("moe", &self.moe)]);
        with_layers(content, [("post_mlp_norm", &self.post_mlp_norm)]).optional()
    }
}
