use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::segments::segment_starts;
use super::{LayerCache, LlamaConfig, RotaryEmbedding};
use crate::lora::{AttnModule, LoRAConfig, LoRALinear};

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

/// Which keys a query must not see: `[batch or 1, 1, seq, keys]`, added to the scores; 0 where
/// visible, the least number where not. (Adding keeps nothing for the backward pass.)
#[derive(Debug, Clone)]
pub struct AttentionMask(Tensor<4>);

impl AttentionMask {
    /// Each of `seq_len` queries, the first at position `start`, sees the keys up to its own
    /// position.
    pub fn causal(start: usize, seq_len: usize, device: &Device) -> Self {
        let shape = [seq_len, start + seq_len];
        // tril_mask is true above the diagonal, that is for keys in the future.
        let mask = Tensor::<2, Bool>::tril_mask(shape, start as i64, device);
        Self::hiding(mask.reshape([1, 1, seq_len, start + seq_len]))
    }

    fn hiding(hidden: Tensor<4, Bool>) -> Self {
        let visible = Tensor::zeros(hidden.shape(), (&hidden.device(), DType::F32));
        Self(visible.mask_fill(hidden, f32::MIN))
    }

    /// Each query sees the keys of its own sample up to its own position, in rows in which several
    /// samples follow each other (a block-causal mask). `segments` are the samples' lengths, row by
    /// row; padding sees padding only.
    ///
    /// # Panics
    /// If the samples of a row are longer than `seq_len` together.
    pub fn within_segments(segments: &[Vec<usize>], seq_len: usize, device: &Device) -> Self {
        let batch = segments.len();
        let starts = segment_starts(segments, seq_len).into_iter().enumerate();
        let hidden = starts.flat_map(|(index, start)| {
            let query = index % seq_len;
            (0..seq_len).map(move |key| key < start || key > query)
        });
        let data = TensorData::new(hidden.collect::<Vec<bool>>(), [batch, 1, seq_len, seq_len]);
        Self::hiding(Tensor::from_data(data, device))
    }

    /// Hides padding from every query as well.
    ///
    /// # Shapes
    /// - `is_token`: `[batch, keys]`, false at padding
    pub fn with_padding(self, is_token: Tensor<2, Bool>) -> Self {
        let [batch, keys] = is_token.dims();
        let [_, _, seq, _] = self.0.dims();
        let shape = [batch, 1, seq, keys];
        let padding = is_token.bool_not().reshape([batch, 1, 1, keys]);
        Self(
            self.0
                .expand(shape)
                .mask_fill(padding.expand(shape), f32::MIN),
        )
    }
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

    /// The same attention with new adapters on the modules that `lora` names.
    pub(super) fn with_adapters(self, lora: &LoRAConfig) -> Self {
        let adapt = |layer: LoRALinear, module| match lora.adapts_attn(module) {
            true => layer.with_adapter(lora),
            false => layer,
        };
        Self {
            q_proj: adapt(self.q_proj, AttnModule::QProj),
            k_proj: adapt(self.k_proj, AttnModule::KProj),
            v_proj: adapt(self.v_proj, AttnModule::VProj),
            output_proj: adapt(self.output_proj, AttnModule::OutputProj),
            ..self
        }
    }

    /// The same attention with each projection replaced by `f` of it.
    pub(super) fn map_linears(self, f: impl Fn(LoRALinear) -> LoRALinear) -> Self {
        Self {
            q_proj: f(self.q_proj),
            k_proj: f(self.k_proj),
            v_proj: f(self.v_proj),
            output_proj: f(self.output_proj),
            ..self
        }
    }

    /// Applies the attention.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, embed_dim]`, output the same
    /// - `rope`: the rotations of the positions of `x`
    /// - `mask`: over `seq` queries and all keys, those in the cache included
    pub fn forward(
        &self,
        x: Tensor<3>,
        rope: &RotaryEmbedding,
        mask: &AttentionMask,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let q = rope.apply(self.split_heads(self.q_proj.forward(x.clone()), self.num_heads));
        let k = rope.apply(self.split_heads(self.k_proj.forward(x.clone()), self.num_kv_heads));
        let v = self.split_heads(self.v_proj.forward(x), self.num_kv_heads);
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v),
        };
        let heads = self.attend(q, k, v, mask); // [b, h, t, d]
        let [batch, num_heads, seq, head_dim] = heads.dims();
        let joined = heads
            .swap_dims(1, 2)
            .reshape([batch, seq, num_heads * head_dim]);
        self.output_proj.forward(joined)
    }

    /// `[batch, seq, heads · head_dim] -> [batch, heads, seq, head_dim]`.
    fn split_heads(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        x.reshape([batch, seq, heads, self.head_dim])
            .swap_dims(1, 2)
    }

    /// The queries of the heads that share a key head are stacked into one matrix, so that keys and
    /// values are never repeated. Softmax in f32.
    fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &AttentionMask) -> Tensor<4> {
        let [batch, heads, seq, head_dim] = q.dims();
        let [_, kv_heads, keys, _] = k.dims();
        let group = heads / kv_heads;
        // Scaling the queries instead of the scores touches fewer numbers.
        let q = (q / (head_dim as f64).sqrt()).reshape([batch, kv_heads, group * seq, head_dim]);
        let scores = q.matmul(k.swap_dims(2, 3)); // [b, kv, g·t, s]
        let dtype = scores.dtype();
        let scores = scores.reshape([batch, heads, seq, keys]).cast(DType::F32);
        let weights = softmax(scores + mask.0.clone(), 3).cast(dtype);
        weights
            .reshape([batch, kv_heads, group * seq, keys])
            .matmul(v)
            .reshape([batch, heads, seq, head_dim])
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
