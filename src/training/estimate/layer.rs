//! What the layers keep for the backward pass, in numbers per token.

use burn::tensor::DType;

use super::{EstimateConfig, F32, bytes};
use crate::llama::LlamaConfig;
use crate::lora::{AttnModule, LoRAConfig, MlpModule};
use crate::ops::AttentionBody;

/// What is trained of a linear layer.
#[derive(Debug, Clone, Copy)]
enum Trained {
    Nothing,
    Weight,
    Adapter {
        rank: usize,
        has_dropout: bool,
        has_magnitude: bool,
    },
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
    pub fn output(config: &EstimateConfig) -> Self {
        let LlamaConfig {
            embed_dim,
            vocab_size,
            ..
        } = config.model;
        Self::new(&config.lora, (embed_dim, vocab_size), false, |lora| {
            lora.apply_to_output
        })
    }

    fn attn(config: &EstimateConfig, module: AttnModule) -> Self {
        let model = &config.model;
        let has_bias = match module {
            AttnModule::OutputProj => model.output_proj_bias,
            _ => model.qkv_bias,
        };
        let is_adapted = |lora: &LoRAConfig| lora.adapts_attn(module);
        Self::new(&config.lora, model.attn_dims(module), has_bias, is_adapted)
    }

    fn mlp(config: &EstimateConfig, module: MlpModule) -> Self {
        let is_adapted = |lora: &LoRAConfig| lora.adapts_mlp(module);
        Self::new(
            &config.lora,
            config.model.mlp_dims(module),
            false,
            is_adapted,
        )
    }

    fn new(
        lora: &Option<LoRAConfig>,
        (in_dim, out_dim): (usize, usize),
        has_bias: bool,
        is_adapted: impl Fn(&LoRAConfig) -> bool,
    ) -> Self {
        let trained = match lora {
            None => Trained::Weight,
            Some(lora) if is_adapted(lora) => Trained::Adapter {
                rank: lora.rank,
                has_dropout: lora.dropout > 0.0,
                has_magnitude: lora.use_dora,
            },
            Some(_) => Trained::Nothing,
        };
        Self {
            in_dim,
            out_dim,
            has_bias,
            trained,
        }
    }

    fn is_trained(&self) -> bool {
        !matches!(self.trained, Trained::Nothing)
    }

    /// The numbers of weight and bias.
    fn num_weights(&self) -> usize {
        self.in_dim * self.out_dim + if self.has_bias { self.out_dim } else { 0 }
    }

    /// The numbers that are trained.
    pub fn num_trained(&self) -> usize {
        match self.trained {
            Trained::Nothing => 0,
            Trained::Weight => self.num_weights(),
            Trained::Adapter {
                rank,
                has_magnitude,
                ..
            } => {
                let magnitude = if has_magnitude { self.out_dim } else { 0 };
                rank * (self.in_dim + self.out_dim) + magnitude
            }
        }
    }

    /// The numbers of the largest trained parameter.
    pub fn largest_trained(&self) -> usize {
        match self.trained {
            Trained::Nothing => 0,
            Trained::Weight => self.in_dim * self.out_dim,
            Trained::Adapter { rank, .. } => rank * self.in_dim.max(self.out_dim),
        }
    }

    /// Whether the layer keeps its input for the backward pass. It may share it with others.
    fn keeps_input(&self) -> bool {
        match self.trained {
            Trained::Nothing => false,
            Trained::Weight | Trained::Adapter { .. } => true,
        }
    }

    /// What it alone keeps: `A x`, and with DoRA the outputs that the magnitude scales.
    fn saved(&self) -> usize {
        let Trained::Adapter {
            rank,
            has_dropout,
            has_magnitude,
        } = self.trained
        else {
            return 0;
        };
        let scaled = self.out_dim * (1 + usize::from(has_dropout));
        let scaled = if has_magnitude { scaled } else { 0 };
        rank + scaled
    }

    /// The bytes of the weight with its update that DoRA takes the norm of: beside it exists its
    /// square, or `B·A` and a copy of a weight in half precision.
    pub fn combined_bytes(&self, dtype: DType) -> u64 {
        let copies = if dtype == DType::F32 { 2 } else { 3 };
        match self.trained {
            Trained::Adapter {
                has_magnitude: true,
                ..
            } => copies * bytes(self.in_dim * self.out_dim),
            _ => 0,
        }
    }

    /// How many tensors of the output's size exist at a time until the loss has its gradient.
    pub fn outputs_at_once(&self) -> usize {
        match self.trained {
            Trained::Nothing
            | Trained::Weight
            | Trained::Adapter {
                has_magnitude: false,
                ..
            } => 1,
            Trained::Adapter {
                has_dropout: false, ..
            } => 3,
            Trained::Adapter { .. } => 4,
        }
    }
}

/// A layer of the decoder.
#[derive(Debug)]
pub struct Layer {
    /// In the order of the forward pass: q, k, v, output, gate (w1), up (w3), down (w2).
    linears: [Linear; 7],
    embed_dim: usize,
    input_is_tracked: bool,
    trains_norms: bool,
    /// The heads of an attention that keeps its output and the softmaxes' totals, else zero.
    flash_heads: usize,
    dtype: DType,
    /// The bytes of a number in activations.
    number_size: usize,
}

impl Layer {
    pub fn new(config: &EstimateConfig, input_is_tracked: bool) -> Self {
        let [q, k, v, o] = AttnModule::ALL.map(|module| Linear::attn(config, module));
        let [w1, w2, w3] = MlpModule::ALL.map(|module| Linear::mlp(config, module));
        Self {
            linears: [q, k, v, o, w1, w3, w2],
            embed_dim: config.model.embed_dim,
            input_is_tracked,
            trains_norms: config.lora.is_none(),
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
        self.input_is_tracked || self.linears[..count].iter().any(Linear::is_trained)
    }

    /// The numbers of weights, biases and norms.
    pub fn num_weights(&self) -> usize {
        self.linears.iter().map(Linear::num_weights).sum::<usize>() + 2 * self.embed_dim
    }

    /// The numbers that are trained.
    pub fn num_trained(&self) -> usize {
        let norms = if self.trains_norms {
            2 * self.embed_dim
        } else {
            0
        };
        self.linears.iter().map(Linear::num_trained).sum::<usize>() + norms
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
            Trained::Adapter { has_dropout, .. } => 2 * usize::from(has_dropout) * down.in_dim,
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
