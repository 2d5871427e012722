use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Tensor};

use crate::lora::{lazy_param, one_line};
use crate::ops::rms_norm;

/// Root-mean-square normalisation, `y = w · x / sqrt(mean(x²) + eps)`, computed in f32.
/// Zhang and Sennrich, <https://arxiv.org/abs/1910.07467>.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct RMSNorm {
    /// The weight w, `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// The epsilon.
    #[module(skip)]
    pub eps: f64,
}

impl RMSNorm {
    /// A norm over vectors of width `dim` with weight 1, lazy.
    pub fn new(dim: usize, eps: f64, device: &Device) -> Self {
        let ones = |shape, device: &Device| Tensor::ones(shape, device);
        Self {
            weight: lazy_param([dim], device, ones),
            eps,
        }
    }

    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, dim]`, output the same
    ///
    /// # Panics
    /// If the last dimension of `x` is not `dim`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        rms_norm(x, self.weight.val(), self.eps)
    }
}

impl ModuleDisplay for RMSNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [dim] = self.weight.lazy_shape().dims();
        content.add("dim", &dim).add("eps", &self.eps).optional()
    }
}
