use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};

use super::{
    AttentionMask, Embedding, KvCache, LlamaConfig, RMSNorm, RotaryEmbedding,
    TransformerDecoderLayer,
};
use crate::lora::{LoRAAdapter, LoRAConfig, LoRALinear};

/// A Llama-like decoder, with or without adapters.
#[derive(Module, Debug)]
pub struct TransformerDecoder {
    /// The token vectors.
    pub tok_embeddings: Embedding,
    /// The layers.
    pub layers: Vec<TransformerDecoderLayer>,
    /// The norm after the last layer.
    pub norm: RMSNorm,
    /// The projection to the vocabulary; none if it is the embedding's weight.
    pub output: Option<LoRALinear>,
    /// The sizes.
    #[module(skip)]
    pub config: LlamaConfig,
    /// The names of base weights that came with an adapter and must stay with it. Burn's records do not have
    /// them.
    #[module(skip)]
    pub(crate) changed_base: BTreeSet<String>,
}

impl TransformerDecoder {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (vocab, dim) = (config.vocab_size, config.embed_dim);
        let layers = 0..config.num_layers;
        let output = || LoRALinear::plain(dim, vocab, false, device);
        Self {
            tok_embeddings: Embedding::new(vocab, dim, device),
            layers: layers
                .map(|_| TransformerDecoderLayer::new(config, device))
                .collect(),
            norm: RMSNorm::new(dim, config.norm_eps, device),
            output: (!config.tie_embeddings).then(output),
            config: config.clone(),
            changed_base: BTreeSet::new(),
        }
    }

    /// The model with new adapters on the layers that `lora` names.
    pub(super) fn with_adapters(self, lora: &LoRAConfig) -> Self {
        let names = lora.module_names();
        self.map_linears(|name, linear| match names.contains(&name) {
            true => linear.with_adapter(lora),
            false => linear,
        })
    }

    /// The model with every adapter added to its weight: a plain model with the same outputs, see
    /// [`LoRALinear::merge`].
    pub fn merge_lora(self) -> Self {
        self.map_linears(|_, linear| linear.merge())
    }

    /// The model without its adapters: the base model.
    pub fn without_adapters(self) -> Self {
        self.map_linears(|_, linear| linear.without_adapter())
    }

    /// Every adapter with the name of its layer (`layers.0.attn.q_proj`), in the model's order.
    pub fn adapters(&self) -> Vec<(String, &LoRAAdapter)> {
        let layers = self.layers.iter().enumerate();
        let inside = layers.flat_map(|(index, layer)| {
            let TransformerDecoderLayer { attn, mlp, .. } = layer;
            [
                ("attn.q_proj", &attn.q_proj),
                ("attn.k_proj", &attn.k_proj),
                ("attn.v_proj", &attn.v_proj),
                ("attn.output_proj", &attn.output_proj),
                ("mlp.w1", &mlp.w1),
                ("mlp.w2", &mlp.w2),
                ("mlp.w3", &mlp.w3),
            ]
            .map(|(name, linear)| (format!("layers.{index}.{name}"), linear))
        });
        let output = self
            .output
            .iter()
            .map(|linear| ("output".to_owned(), linear));
        let named = inside.chain(output);
        named
            .filter_map(|(name, linear)| Some((name, linear.adapter.as_ref()?)))
            .collect()
    }

    fn map_linears(self, f: impl Fn(&str, LoRALinear) -> LoRALinear) -> Self {
        let layers = self.layers.into_iter();
        Self {
            layers: layers.map(|layer| layer.map_linears(&f)).collect(),
            output: self.output.map(|output| f("output", output)),
            ..self
        }
    }

    /// The logits of the next token at each position. On a device with autodiff an adapter's dropout acts:
    /// [`Module::valid`] is the model without it and without a graph.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`
    /// - `is_token`: `[batch, seq]`, false at padding on the right; none if there is no padding
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If `ids` is empty, `is_token` has another shape or a token follows padding. On a CPU, also if an id
    /// is not below `vocab_size`; a GPU does not tell: see [`check_vocab`](crate::data::check_vocab).
    pub fn forward(&self, ids: Tensor<2, Int>, is_token: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let (rope, mask) = self.positions(0, &ids, is_token);
        let embedded = self.tok_embeddings.forward(ids);
        let apply = |x, layer: &TransformerDecoderLayer| layer.forward(x, &rope, &mask, None);
        let hidden = self.layers.iter().fold(embedded, apply);
        self.project(self.norm.forward(hidden))
    }

    /// The logits of the next token after the last of `ids`, which follow those in the cache.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`, without padding
    /// - output: `[batch, vocab_size]`
    ///
    /// # Panics
    /// If the cache is of a model with fewer layers or of other rows, and as [`Self::forward`].
    pub fn forward_cached(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<2> {
        let [_, seq] = ids.dims();
        let (rope, mask) = self.positions(cache.len(), &ids, None);
        let mut x = self.tok_embeddings.forward(ids);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &rope, &mask, Some(cache.layer(index)));
        }
        cache.advance(seq);
        let last = x.narrow(1, seq - 1, 1);
        self.project(self.norm.forward(last)).squeeze_dim(1)
    }

    /// Projects normed hidden states to the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, embed_dim]`
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the last dimension of `hidden` is not `embed_dim`.
    pub fn project(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.output {
            Some(output) => output.forward(hidden),
            None => self.tok_embeddings.project(hidden),
        }
    }

    /// Rotations and mask of `ids`, the first of which is at position `start`.
    pub(crate) fn positions(
        &self,
        start: usize,
        ids: &Tensor<2, Int>,
        is_token: Option<Tensor<2, Bool>>,
    ) -> (RotaryEmbedding, AttentionMask) {
        let [_, seq] = ids.dims();
        let device = ids.device();
        let rope = RotaryEmbedding::new(&self.config, start, seq, &device);
        let mask = AttentionMask::causal(start, seq);
        let mask = match is_token {
            None => mask,
            Some(is_token) => mask.with_padding(is_token),
        };
        (rope, mask)
    }
}
