use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Bool, Device, Tensor};

use super::segments::segment_starts;
use super::{LayerCache, LlamaConfig, RotaryEmbedding};
use crate::lora::{AttnModule, LoRAConfig, LoRALinear};
use crate::ops::{AttentionMask, attention};

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

impl AttentionMask {
    /// Each of `seq_len` queries, the first at position `start`, sees the keys up to its own
    /// position.
    pub fn causal(start: usize, seq_len: usize) -> Self {
        let visible = (0..seq_len).map(|query| 0..start + query + 1);
        Self::new(seq_len, start + seq_len, visible.collect())
    }

    /// Each query sees the keys of its own sample up to its own position, in rows in which several
    /// samples follow each other (a block-causal mask). `segments` are the samples' lengths, row by
    /// row; padding sees padding only.
    ///
    /// # Panics
    /// If the samples of a row are longer than `seq_len` together.
    pub fn within_segments(segments: &[Vec<usize>], seq_len: usize) -> Self {
        let starts = segment_starts(segments, seq_len).into_iter().enumerate();
        let visible = starts.map(|(index, start)| start..index % seq_len + 1);
        Self::new(seq_len, seq_len, visible.collect())
    }

    /// Hides padding on the right from every query as well.
    ///
    /// # Shapes
    /// - `is_token`: `[batch, keys]`, false at padding
    ///
    /// # Panics
    /// If a token follows padding, or the numbers of keys differ.
    pub fn with_padding(self, is_token: Tensor<2, Bool>) -> Self {
        let [_, keys] = is_token.dims();
        let ranges = self.ranges();
        assert_eq!(keys, ranges.keys(), "the mask has another number of keys");
        let is_token: Vec<bool> = is_token.into_data().iter::<bool>().collect();
        let rows = is_token
            .chunks(keys)
            .enumerate()
            .flat_map(|(row, is_token)| {
                let tokens = is_token.iter().take_while(|is_token| **is_token).count();
                let follows = is_token[tokens..].contains(&true);
                assert!(
                    !follows,
                    "padding must be on the right: row {row} has it elsewhere"
                );
                let visible = ranges.visible(row, 0..ranges.seq()).iter();
                visible.map(move |range| range.start.min(tokens)..range.end.min(tokens))
            });
        Self::new(ranges.seq(), keys, rows.collect())
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
        let q = rope.apply(self.split_heads(self.q_proj.forward(x.clone())));
        let k = rope.apply(self.split_heads(self.k_proj.forward(x.clone())));
        let v = self.split_heads(self.v_proj.forward(x));
        let (k, v) = match cache {
            None => (k, v),
            Some(cache) => cache.append(k, v),
        };
        let heads = attention(q, k, v, mask); // [b, t, h, d]
        let [batch, seq, num_heads, head_dim] = heads.dims();
        let joined = heads.reshape([batch, seq, num_heads * head_dim]);
        self.output_proj.forward(joined)
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
