use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::module::embedding;
use burn::tensor::{Device, Distribution, Int, Tensor};

use crate::lora::{lazy_param, one_line};
use crate::ops::{compute_dtype, linear};

/// A table of token vectors.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Embedding {
    /// The vectors, `[vocab_size, dim]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Random vectors from `N(0, 0.02²)`, the initialisation of Llama-like models; lazy.
    pub fn new(vocab_size: usize, dim: usize, device: &Device) -> Self {
        let normal = Distribution::Normal(0.0, 0.02);
        let init = move |shape, device: &Device| Tensor::random(shape, normal, device);
        Self {
            weight: lazy_param([vocab_size, dim], device, init),
        }
    }

    /// Looks up token vectors, in the type that the model computes in, see [`compute_dtype`].
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`
    /// - output: `[batch, seq, dim]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let weight = self.weight.val();
        let dtype = compute_dtype(&weight.device(), weight.dtype());
        embedding(weight, ids).cast(dtype)
    }

    /// The dot product of hidden states with every token vector: the output projection of a model
    /// with tied embeddings.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, dim]`
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the last dimension of `hidden` is not `dim`.
    pub fn project(&self, hidden: Tensor<3>) -> Tensor<3> {
        linear(hidden, self.weight.val())
    }
}

impl ModuleDisplay for Embedding {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [vocab_size, dim] = self.weight.lazy_shape().dims();
        content
            .add("vocab_size", &vocab_size)
            .add("dim", &dim)
            .optional()
    }
}
