use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};

use super::names::{is_in_mixture, module_names};
use super::{
    Context, KvCache, LayerCache, LlamaConfig, Output, RMSNorm, TransformerDecoderLayer, for_model,
};
use crate::adapter::{
    Adapter, RequantizationLoss, merge_adapters, merge_requantized, weight_key,
    with_found_adapters, with_lazy_packed, with_new_adapters, without_adapters,
};
use crate::lora::{
    DEFAULT_ADAPTER, FULL, LayerKind, LoRAConfig, LoRAEmbedding, LoRALinear, MethodRef, Routes,
    TiedOutput,
};
use crate::ops::meta::{MetaOp, MetaTensor};
use crate::quantization::BlockFormat;
use crate::weight::{BaseFormat, Quantization};
use crate::{Error, Result};

/// A decoder, with or without adapters.
#[derive(Module, Debug)]
pub struct TransformerDecoder {
    /// The token vectors.
    pub tok_embeddings: LoRAEmbedding,
    /// The layers.
    pub layers: Vec<TransformerDecoderLayer>,
    /// The norm after the last layer.
    pub norm: RMSNorm,
    /// The projection to the vocabulary.
    pub output: Output,
    /// The sizes.
    #[module(skip)]
    pub config: LlamaConfig,
    /// The names of base weights that came with an adapter and must stay with it. Burn's records do not have
    /// them.
    #[module(skip)]
    pub(crate) changed_base: BTreeSet<String>,
    /// The size of the vocabulary before an adapter asked for another one.
    #[module(skip)]
    pub(crate) resized_from: Option<usize>,
}

impl TransformerDecoder {
    pub(super) fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (vocab, dim) = (config.vocab_size, config.embed_dim);
        let layers = 0..config.num_layers;
        Self {
            tok_embeddings: LoRAEmbedding::new(vocab, dim, device),
            layers: layers
                .map(|index| TransformerDecoderLayer::new(config, index, device))
                .collect(),
            norm: config.norm(dim, device),
            output: match config.tie_embeddings {
                true => Output::Tied(TiedOutput::new(vocab, dim)),
                false => Output::Own(LoRALinear::plain(dim, vocab, false, device)),
            },
            config: config.clone(),
            changed_base: BTreeSet::new(),
            resized_from: None,
        }
    }

    /// The model with new adapters on the layers that `lora` selects, by their paths here or their names in Hugging
    /// Face's files; everything but the adapters is frozen. Nothing is allocated.
    ///
    /// # Errors
    /// As [`adapter::with_adapters`](crate::adapter::with_adapters).
    pub fn with_adapters(self, lora: &LoRAConfig) -> Result<Self> {
        self.with_named_adapters(lora, DEFAULT_ADAPTER)
    }

    /// The same, with a name for the adapters: a model can hold several.
    ///
    /// # Errors
    /// As [`Self::with_adapters`].
    pub fn with_named_adapters(self, lora: &LoRAConfig, name: &str) -> Result<Self> {
        if lora.vocab_size.is_some_and(|size| size == 0) {
            return Err(Error::InvalidArgument {
                name: "vocab_size",
                message: "must be at least 1".into(),
            });
        }
        let lora = for_model(lora, &self.config)?;
        with_new_adapters(self.resized_for(&lora)?, &lora, name, module_names)
    }

    /// The same without a check that `lora` can be used: where a module that it names is missing, nothing is put.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a pattern is no regular expression, or a layer has no such rank or rows.
    pub(crate) fn with_found_adapters(self, lora: &LoRAConfig) -> Result<Self> {
        let lora = for_model(lora, &self.config)?;
        with_found_adapters(self.resized_for(&lora)?, &lora, module_names)
    }

    /// With the vocabulary that adapters ask for, where they do not bring an embedding and an output of their own.
    fn resized_for(mut self, lora: &LoRAConfig) -> Result<Self> {
        let before = self.config.vocab_size;
        let Some(rows) = lora.vocab_size.filter(|rows| *rows != before) else {
            return Ok(self);
        };
        let is_replaced = |path: &str| lora.replaces(&module_names(path));
        let is_tied = matches!(self.output, Output::Tied(_)) && lora.ensure_weight_tying;
        if is_replaced("tok_embeddings") && (is_tied || is_replaced("output")) {
            return Ok(self);
        }
        if !(self.tok_embeddings.adapters.is_empty() && self.output.adapters().is_empty()) {
            let message = format!(
                "another adapter stands on the embedding or output of {before} tokens; attach one that changes \
                 their number to {rows} before it"
            );
            return Err(Error::InvalidArgument {
                name: "vocab_size",
                message,
            });
        }
        self.tok_embeddings.weight = self.tok_embeddings.weight.with_rows(rows);
        self.output = self.output.with_rows(rows);
        self.config.vocab_size = rows;
        self.resized_from = Some(self.resized_from.unwrap_or(before));
        self.mark_resized();
        Ok(self)
    }

    /// Embedding and output of another size than the base's files have stay with the adapter.
    pub(crate) fn mark_resized(&mut self) {
        let own_output = matches!(self.output, Output::Own(_)).then_some("output.weight");
        let keys = ["tok_embeddings.weight"].into_iter().chain(own_output);
        self.changed_base.extend(keys.map(str::to_owned));
    }

    /// Puts an adapter on the model, by the paths of its modules here or their names in Hugging Face's files, see
    /// [`Adapter::attach`].
    ///
    /// # Errors
    /// As [`Adapter::attach`].
    pub fn attach(self, adapter: &Adapter, name: &str) -> Result<Self> {
        let lora = for_model(&adapter.config, &self.config)?;
        let model = self.resized_for(&lora)?;
        match lora {
            Cow::Borrowed(_) => adapter.attach_by(model, name, module_names),
            Cow::Owned(lora) => {
                let adapter = Adapter::new(lora, adapter.tensors.clone());
                adapter.attach_by(model, name, module_names)
            }
        }
    }

    /// The model with the adapters that act added to its weights: a plain model with the same outputs, see
    /// [`LoRALinear::merge`]. Where embedding and output are one weight and one of them has an adapter, the merged
    /// model has two.
    pub fn merge_lora(self) -> Self {
        let config = self.merged_config();
        let mut merged = merge_adapters(self.untied_for_merge());
        merged.config = config;
        merged
    }

    /// [`Self::merge_lora`], with what is merged into packed weights packed again, see [`merge_requantized`]. An output
    /// that gets a weight of its own is dense.
    ///
    /// # Errors
    /// As [`merge_requantized`].
    pub fn merge_lora_requantized(self) -> Result<(Self, RequantizationLoss)> {
        let config = self.merged_config();
        let (mut merged, loss) = merge_requantized(self.untied_for_merge())?;
        merged.config = config;
        Ok((merged, loss))
    }

    /// The sizes of the merged model.
    pub(crate) fn merged_config(&self) -> LlamaConfig {
        let is_tied = matches!(self.output, Output::Tied(_)) && !self.parts_from_output();
        let mut config = self.config.clone();
        config.tie_embeddings = is_tied;
        config.vocab_size = self.vocab_size();
        config
    }

    /// Whether what acts on embedding and output differs.
    fn parts_from_output(&self) -> bool {
        let mut of_embedding = self.tok_embeddings.adapters.active();
        let embedding_differs = of_embedding.any(|adapter| !adapter.is_of_tied_output());
        embedding_differs || self.output.adapters().active().next().is_some()
    }

    /// With an output of its own, merged already, where merging parts it from the embedding.
    fn untied_for_merge(mut self) -> Self {
        if self.parts_from_output() {
            self.output = match self.output {
                Output::Tied(tied) => Output::Own(tied.untied(&self.tok_embeddings).into()),
                own => own,
            };
        }
        self
    }

    /// The model with room for a base that is kept so: lazy weights of zeros in place of those that will be packed.
    /// `stored` are the ones that files have packed, by the keys of these weights, where they stay so.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the blocks of a format do not divide a layer's
    /// input.
    pub(crate) fn with_lazy_base(
        self,
        format: BaseFormat,
        stored: BTreeMap<String, BlockFormat>,
    ) -> Result<Self> {
        with_lazy_packed(self, move |path, kind| {
            let packs = match is_vocabulary(path) {
                true => format.packs_vocabulary,
                false => kind == LayerKind::Linear && !is_router(path),
            };
            let asked = format.quantization.filter(|_| packs);
            let own = stored.get(&weight_key(path)).copied();
            own.or_else(|| asked.map(Quantization::block_format))
        })
    }

    /// The model without its adapters: the base model.
    pub fn without_adapters(self) -> Self {
        without_adapters(self)
    }

    /// The number of token ids: the base's, or that of an embedding that is trained with another size.
    pub fn vocab_size(&self) -> usize {
        let full = MethodRef(&FULL);
        let mut active = self.tok_embeddings.adapters.active();
        let trained = active.find(|adapter| adapter.method() == full);
        let size = trained.and_then(|adapter| adapter.settings().vocab_size);
        size.unwrap_or(self.config.vocab_size)
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
        let [_, seq] = ids.dims();
        let context = Context::causal(&self.config, 0, seq, &ids.device());
        self.forward_in(ids, &context.with_padding(is_token))
    }

    /// The logits of the next token at each position, in a context of your own: with an adapter for each row, say.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`, as the context has them
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// As [`Self::forward`], and if the context's routes are those of another number of rows.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        let embedded = self.embed(ids, context);
        let hidden = self.apply_layers(0..self.layers.len(), embedded, context, None);
        self.head(hidden, context.routes.as_ref())
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
        self.forward_cached_routed(ids, cache, None)
    }

    /// The same with an adapter for each row.
    ///
    /// # Panics
    /// As [`Self::forward_cached`].
    pub fn forward_cached_routed(
        &self,
        ids: Tensor<2, Int>,
        cache: &mut KvCache,
        routes: Option<&Routes>,
    ) -> Tensor<2> {
        let [batch, seq] = ids.dims();
        self.forward_cached_rows(ids, &vec![seq; batch], cache, routes)
    }

    /// The same for rows of different lengths, padded on the left, on the right or on both sides. Padding leaves nothing
    /// in the cache, and no token sees it.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`
    /// - `is_token`: `[batch, seq]`, false at padding
    /// - output: `[batch, vocab_size]`, the logits after each row's last token
    ///
    /// # Panics
    /// As [`Self::forward_cached`], and if a row has no token, or padding between two.
    pub fn forward_cached_padded(
        &self,
        ids: Tensor<2, Int>,
        is_token: Tensor<2, Bool>,
        cache: &mut KvCache,
        routes: Option<&Routes>,
    ) -> Tensor<2> {
        let [_, seq] = ids.dims();
        assert_eq!(ids.dims(), is_token.dims(), "each id is a token or padding");
        let tokens = token_ranges(is_token);
        let lengths: Vec<_> = tokens.iter().map(|range| range.len()).collect();
        let is_left = tokens.iter().any(|range| range.start > 0);
        let ids = match is_left {
            true => {
                let from = |start: usize| (0..seq).map(move |i| ((start + i) % seq) as i32);
                let sources = tokens.iter().flat_map(|range| from(range.start));
                let sources = Vec::from_iter(sources);
                let sources = Tensor::<1, Int>::from_ints(&sources[..], &ids.device());
                let dims = ids.dims();
                ids.gather(1, sources.reshape(dims))
            }
            false => ids,
        };
        self.forward_cached_rows(ids, &lengths, cache, routes)
    }

    /// The same for rows of these lengths, padded on the right.
    pub(crate) fn forward_cached_rows(
        &self,
        ids: Tensor<2, Int>,
        lengths: &[usize],
        cache: &mut KvCache,
        routes: Option<&Routes>,
    ) -> Tensor<2> {
        let [batch, seq] = ids.dims();
        let device = ids.device();
        let context = cache.context(&self.config, lengths, seq, &device);
        let context = context.with_routes(routes.cloned());
        let embedded = self.embed(ids, &context);
        let hidden = self.apply_layers(0..self.layers.len(), embedded, &context, Some(cache));
        cache.advance(lengths);
        let last = match lengths.iter().all(|length| *length == seq) {
            true => hidden.narrow(1, seq - 1, 1),
            false => {
                let [_, _, dim] = hidden.dims();
                let last = lengths.iter().enumerate();
                let last: Vec<_> = last.map(|(row, n)| (row * seq + n - 1) as i32).collect();
                let rows = Tensor::<1, Int>::from_ints(&last[..], &device);
                let flat = hidden.reshape([batch * seq, dim]);
                flat.select(0, rows).reshape([batch, 1, dim])
            }
        };
        self.head(last, routes).squeeze_dim(1)
    }

    /// The token vectors, `[batch, seq, embed_dim]`.
    pub(crate) fn embed(&self, ids: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        let embedded = self
            .tok_embeddings
            .forward_routed(ids, context.routes.as_ref());
        match self.config.embedding_scale {
            Some(scale) => embedded.mul_scalar(scale),
            None => embedded,
        }
    }

    /// The hidden state after some layers, `[batch, seq, embed_dim]` as the one before them.
    pub(crate) fn apply_layers(
        &self,
        indices: Range<usize>,
        x: Tensor<3>,
        context: &Context,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        indices.fold(x, |x, index| {
            let cache: Option<&mut LayerCache> = cache.as_deref_mut().map(|c| c.layer(index));
            context.seed_layer(index);
            self.layers[index].forward(x, context, cache)
        })
    }

    /// The logits of hidden states after the last layer, `[batch, seq, embed_dim]`.
    pub(crate) fn head(&self, hidden: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
        let normed = self.norm.forward_routed(hidden, routes);
        let logits = self.output.forward(normed, &self.tok_embeddings, routes);
        let logits = match self.config.logit_divisor {
            Some(divisor) => logits.div_scalar(divisor),
            None => logits,
        };
        match self.config.logit_cap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }

    /// What [`Self::head`] holds in a training.
    pub(crate) fn head_meta(&self, hidden: MetaTensor) -> MetaTensor {
        let logits = self
            .output
            .meta(self.norm.meta(hidden), &self.tok_embeddings);
        let logits = match self.config.logit_divisor {
            Some(_) => MetaOp::of([logits]).in_place(),
            None => logits,
        };
        match self.config.logit_cap {
            Some(_) => {
                let width = logits.width;
                let capped = MetaOp::of([logits]).keeps_output().output(width);
                MetaOp::of([capped]).output(width)
            }
            None => logits,
        }
    }
}

/// Where the tokens of each row lie.
fn token_ranges(is_token: Tensor<2, Bool>) -> Vec<Range<usize>> {
    let [_, seq] = is_token.dims();
    let is_token: Vec<bool> = is_token.into_data().iter::<bool>().collect();
    let ranges = is_token.chunks(seq).enumerate().map(|(row, is_token)| {
        let start = is_token.iter().position(|is_token| *is_token);
        let start = start.unwrap_or_else(|| panic!("row {row} has no token"));
        let len = is_token[start..].iter().take_while(|is_token| **is_token);
        let end = start + len.count();
        let follows = is_token[end..].contains(&true);
        assert!(!follows, "row {row} has padding between its tokens");
        start..end
    });
    ranges.collect()
}

/// Whether a layer is the router of a mixture of experts: small, and a slight error of it is another expert.
fn is_router(path: &str) -> bool {
    is_in_mixture(path) && path.ends_with(".gate")
}

/// Whether a layer is the embedding or the projection to the vocabulary.
fn is_vocabulary(path: &str) -> bool {
    matches!(path, "tok_embeddings" | "output")
}
