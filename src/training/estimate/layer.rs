//! What the layers keep for the backward pass, in numbers per token.

use std::sync::Arc;

use burn::tensor::DType;

use super::{EstimateConfig, F32, bytes};
use crate::llama::LlamaConfig;
use crate::llama::names::module_names;
use crate::lora::{AttnModule, Kept, LayerShape, LoRAConfig, MlpModule};
use crate::ops::AttentionBody;

/// What is trained of a layer.
#[derive(Debug, Clone, Copy)]
enum Trained {
    Nothing,
    Weight,
    Adapter(Adapter),
}

/// An adapter, as far as memory goes.
#[derive(Debug, Clone, Copy)]
struct Adapter {
    kept: Kept,
    /// The numbers of its parameters, of those that are trained, and of the largest of these.
    total: usize,
    trained: usize,
    largest: usize,
    has_dropout: bool,
}

/// Where a model's adapters are.
#[derive(Debug, Clone)]
pub struct Adapters(Option<Arc<LoRAConfig>>);

impl Adapters {
    pub fn new(config: &EstimateConfig) -> Self {
        Self(config.lora.clone().map(Arc::new))
    }

    /// What is trained of the layer at a path of the module tree.
    ///
    /// # Panics
    /// If a pattern of the configuration is no regular expression.
    fn at(&self, path: &str, layer: &LayerShape) -> Trained {
        let Some(config) = &self.0 else {
            return Trained::Weight;
        };
        let settings = match config.settings_of(&module_names(path), layer) {
            Ok(settings) => settings,
            Err(error) => panic!("{error}"),
        };
        let Some(settings) = settings else {
            return Trained::Nothing;
        };
        let params = settings.params(layer);
        let sizes = || {
            params
                .iter()
                .map(|spec| (spec.is_trained, spec.num_elements()))
        };
        let trained = || {
            sizes()
                .filter(|(is_trained, _)| *is_trained)
                .map(|(_, size)| size)
        };
        Trained::Adapter(Adapter {
            kept: settings.method.0.kept(layer, &settings),
            total: sizes().map(|(_, size)| size).sum(),
            trained: trained().sum(),
            largest: trained().max().unwrap_or(0),
            has_dropout: settings.dropout > 0.0,
        })
    }
}

/// The embedding or a norm.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    trained: Trained,
    weights: usize,
}

impl Table {
    fn new(adapters: &Adapters, path: &str, layer: LayerShape) -> Self {
        let [rows, columns] = layer.dims;
        Self {
            trained: adapters.at(path, &layer),
            weights: rows * columns,
        }
    }

    pub fn embedding(config: &EstimateConfig, adapters: &Adapters) -> Self {
        let model = &config.model;
        let layer = LayerShape::embedding(model.vocab_size, model.embed_dim);
        Self::new(adapters, "tok_embeddings", layer)
    }

    pub fn norm(config: &EstimateConfig, adapters: &Adapters, path: &str) -> Self {
        Self::new(adapters, path, LayerShape::norm(config.model.embed_dim))
    }

    /// The numbers of its weight.
    pub fn num_weights(&self) -> usize {
        self.weights
    }

    /// Whether there is a gradient of what is looked up.
    pub fn is_trained(&self) -> bool {
        !matches!(self.trained, Trained::Nothing)
    }

    /// What it keeps per token.
    pub fn saved(&self) -> usize {
        match self.trained {
            Trained::Adapter(adapter) => adapter.kept.per_token,
            _ => 0,
        }
    }

    /// The numbers that are trained.
    pub fn num_trained(&self) -> usize {
        self.trained.num_trained(self.weights)
    }

    /// The numbers of its adapter.
    pub fn num_adapter(&self) -> usize {
        self.trained.num_adapter()
    }

    /// The numbers of the largest trained parameter.
    pub fn largest_trained(&self) -> usize {
        self.trained.largest(self.weights)
    }
}

impl Trained {
    fn num_trained(&self, of_layer: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Weight => of_layer,
            Self::Adapter(adapter) => adapter.trained,
        }
    }

    fn num_adapter(&self) -> usize {
        match self {
            Self::Adapter(adapter) => adapter.total,
            _ => 0,
        }
    }

    fn largest(&self, of_layer: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Weight => of_layer,
            Self::Adapter(adapter) => adapter.largest,
        }
    }
}

/// A linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    in_dim: usize,
    out_dim: usize,
    has_bias: bool,
    trained: Trained,
}

impl Linear {
    /// The projection to the vocabulary.
    pub fn output(config: &EstimateConfig, adapters: &Adapters) -> Self {
        let LlamaConfig {
            embed_dim,
            vocab_size,
            ..
        } = config.model;
        Self::new(adapters, "output", (embed_dim, vocab_size), false)
    }

    fn attn(
        config: &EstimateConfig,
        adapters: &Adapters,
        index: usize,
        module: AttnModule,
    ) -> Self {
        let model = &config.model;
        let has_bias = match module {
            AttnModule::OutputProj => model.output_proj_bias,
            _ => model.qkv_bias,
        };
        let path = format!("layers.{index}.attn.{module}");
        Self::new(adapters, &path, model.attn_dims(module), has_bias)
    }

    fn mlp(config: &EstimateConfig, adapters: &Adapters, index: usize, module: MlpModule) -> Self {
        let path = format!("layers.{index}.mlp.{}", module.name());
        Self::new(adapters, &path, config.model.mlp_dims(module), false)
    }

    fn new(
        adapters: &Adapters,
        path: &str,
        (in_dim, out_dim): (usize, usize),
        has_bias: bool,
    ) -> Self {
        let layer = LayerShape::linear(in_dim, out_dim, has_bias);
        Self {
            in_dim,
            out_dim,
            has_bias,
            trained: adapters.at(path, &layer),
        }
    }

    pub fn is_trained(&self) -> bool {
        !matches!(self.trained, Trained::Nothing)
    }

    /// The numbers of weight and bias.
    fn num_weights(&self) -> usize {
        self.in_dim * self.out_dim + if self.has_bias { self.out_dim } else { 0 }
    }

    /// The numbers that are trained.
    pub fn num_trained(&self) -> usize {
        self.trained.num_trained(self.num_weights())
    }

    /// The numbers of its adapter.
    pub fn num_adapter(&self) -> usize {
        self.trained.num_adapter()
    }

    /// The numbers of the largest trained parameter.
    pub fn largest_trained(&self) -> usize {
        self.trained.largest(self.in_dim * self.out_dim)
    }

    /// Whether the layer keeps its input for the backward pass. It may share it with others.
    fn keeps_input(&self) -> bool {
        self.is_trained()
    }

    /// What it alone keeps: `A x`, and with DoRA the outputs that the magnitude scales.
    fn saved(&self) -> usize {
        match &self.trained {
            Trained::Adapter(adapter) => adapter.kept.per_token,
            _ => 0,
        }
    }

    /// The bytes of the weight with its update that DoRA takes the norm of: beside it exists its
    /// square, or `B·A` and a copy of a weight in half precision.
    pub fn combined_bytes(&self, dtype: DType) -> u64 {
        let copies = match &self.trained {
            Trained::Adapter(adapter) if adapter.kept.weight_copies > 0 => {
                adapter.kept.weight_copies + usize::from(dtype != DType::F32)
            }
            _ => 0,
        };
        copies as u64 * bytes(self.in_dim * self.out_dim)
    }

    /// How many tensors of the output's size exist at a time until the loss has its gradient.
    pub fn outputs_at_once(&self) -> usize {
        match &self.trained {
            Trained::Adapter(adapter) => adapter.kept.outputs_at_once,
            _ => 1,
        }
    }
}

/// A layer of the decoder.
#[derive(Debug)]
pub struct Layer {
    /// In the order of the forward pass: q, k, v, output, gate (w1), up (w3), down (w2).
    linears: [Linear; 7],
    norms: [Table; 2],
    embed_dim: usize,
    input_is_tracked: bool,
    /// The heads of an attention that keeps its output and the softmaxes' totals, else zero.
    flash_heads: usize,
    dtype: DType,
    /// The bytes of a number in activations.
    number_size: usize,
}

impl Layer {
    /// The layer of an index, whose input has a gradient or not.
    pub fn new(
        config: &EstimateConfig,
        adapters: &Adapters,
        index: usize,
        input_is_tracked: bool,
    ) -> Self {
        let [q, k, v, o] =
            AttnModule::ALL.map(|module| Linear::attn(config, adapters, index, module));
        let [w1, w2, w3] =
            MlpModule::ALL.map(|module| Linear::mlp(config, adapters, index, module));
        let norm = |name| Table::norm(config, adapters, &format!("layers.{index}.{name}"));
        Self {
            linears: [q, k, v, o, w1, w3, w2],
            norms: ["sa_norm", "mlp_norm"].map(norm),
            embed_dim: config.model.embed_dim,
            input_is_tracked,
            flash_heads: match config.attention {
                AttentionBody::Flash => config.model.num_heads,
                AttentionBody::Cache | AttentionBody::Blocks => 0,
            },
            dtype: config.dtype,
            number_size: config.compute_dtype.size(),
        }
    }

    /// Whether there is a gradient of the layer's output.
    pub fn output_is_tracked(&self) -> bool {
        self.is_tracked_after(self.linears.len())
    }

    /// Whether there is a gradient of what comes after so many linear layers.
    fn is_tracked_after(&self, count: usize) -> bool {
        let norms = if count > 4 { 2 } else { 1 };
        self.input_is_tracked
            || self.norms[..norms].iter().any(Table::is_trained)
            || self.linears[..count].iter().any(Linear::is_trained)
    }

    /// The numbers of weights, biases and norms.
    pub fn num_weights(&self) -> usize {
        self.linears.iter().map(Linear::num_weights).sum::<usize>() + 2 * self.embed_dim
    }

    /// The numbers that are trained.
    pub fn num_trained(&self) -> usize {
        let linears = self.linears.iter().map(Linear::num_trained);
        linears
            .chain(self.norms.iter().map(Table::num_trained))
            .sum()
    }

    /// The numbers of its adapters.
    pub fn num_adapter(&self) -> usize {
        let linears = self.linears.iter().map(Linear::num_adapter);
        linears
            .chain(self.norms.iter().map(Table::num_adapter))
            .sum()
    }

    /// The numbers of the trained parameters of the way down, which the backward pass comes to first.
    pub fn num_trained_down(&self) -> usize {
        self.linears[6].num_trained()
    }

    /// The numbers of the largest trained parameter.
    pub fn largest_trained(&self) -> usize {
        let largest = self.linears.iter().map(Linear::largest_trained).max();
        largest.unwrap_or(0)
    }

    /// What the forward pass keeps per token.
    pub fn saved(&self) -> usize {
        self.forward().saved
    }

    /// The bytes at the largest moment of the forward pass of so many tokens.
    pub fn forward_peak(&self, tokens: usize) -> u64 {
        let moments = self.forward().moments.into_iter();
        let size = self.number_size * tokens;
        let bytes = moments.map(|(numbers, combined)| (size * numbers) as u64 + combined);
        bytes.max().unwrap_or(0)
    }

    /// Whether there is a backward pass of the attention itself.
    pub fn has_attention_backward(&self) -> bool {
        self.is_tracked_after(3)
    }

    /// What the forward pass keeps per token up to the attention's output.
    pub fn attention_saved(&self) -> usize {
        self.forward().attention_saved
    }

    /// What exists per token at the largest moment of the backward pass: when it reaches the
    /// feed-forward block, the widest part of a Llama, whose other gradients take the places of gate
    /// and up; or, if nothing is needed there, at its beginning. The gradient of the layer's output
    /// has the output's place.
    pub fn backward_peak(&self) -> usize {
        if !self.output_is_tracked() {
            return 0;
        }
        let [.., down] = &self.linears;
        let widest = match down.trained {
            // Its gradient takes the place of the input that it kept.
            Trained::Weight => 0,
            // With dropout the adapter's part of it exists for itself, before and after.
            Trained::Adapter(adapter) => 2 * usize::from(adapter.has_dropout) * down.in_dim,
            Trained::Nothing => down.in_dim,
        };
        self.saved() + widest.max(self.embed_dim)
    }

    fn forward(&self) -> Tape {
        let [attn @ .., output, gate, up, down] = &self.linears;
        let [heads_tracked, hidden_tracked, product_tracked] =
            [3, 4, 6].map(|count| self.is_tracked_after(count));
        let mut tape = Tape::new(self.dtype);
        tape.keep(attn.iter().any(Linear::keeps_input), self.embed_dim); // normed
        for linear in attn {
            tape.linear(linear);
            tape.keep(heads_tracked, linear.out_dim);
        }
        let is_flash = heads_tracked && self.flash_heads > 0;
        tape.keep(is_flash || output.keeps_input(), output.in_dim);
        tape.keep(is_flash, self.flash_heads * F32 / self.number_size); // softmax totals
        tape.attention_saved = tape.saved;
        tape.linear(output);
        tape.keep(hidden_tracked, self.embed_dim);
        tape.keep(gate.keeps_input() || up.keeps_input(), self.embed_dim); // normed
        for linear in [gate, up] {
            tape.linear(linear);
            tape.keep(product_tracked, linear.out_dim);
        }
        tape.keep(down.keeps_input(), down.in_dim);
        tape.linear(down);
        tape.keep(self.output_is_tracked(), self.embed_dim);
        tape.exists_too(usize::from(!down.is_trained()) * down.in_dim);
        tape
    }
}

/// A forward pass, as far as memory goes.
struct Tape {
    /// What is kept so far, per token.
    saved: usize,
    /// What is kept up to the attention's output.
    attention_saved: usize,
    /// What exists per token at some moments, and the bytes of a combined weight.
    moments: Vec<(usize, u64)>,
    dtype: DType,
}

impl Tape {
    fn new(dtype: DType) -> Self {
        Self {
            saved: 0,
            attention_saved: 0,
            moments: Vec::new(),
            dtype,
        }
    }

    fn keep(&mut self, is_kept: bool, numbers: usize) {
        self.saved += usize::from(is_kept) * numbers;
    }

    fn linear(&mut self, linear: &Linear) {
        self.moments
            .push((self.saved, linear.combined_bytes(self.dtype)));
        self.saved += linear.saved();
    }

    /// Something that is not kept exists for a moment.
    fn exists_too(&mut self, numbers: usize) {
        self.moments.push((self.saved + numbers, 0));
    }
}
