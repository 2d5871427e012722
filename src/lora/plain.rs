use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Distribution, Tensor};

use crate::weight::{FrozenWeight, random_param};

/// A linear layer whose weight has PyTorch's layout: `y = x Wᵀ + b`.
///
/// The layout is that of the checkpoint files, so a weight is loaded and saved as it is; the
/// transposed view costs nothing. [`burn::nn::Linear`] has `[in_dim, out_dim]` and is brought into this
/// form by `PlainLinear::from`. The name differs because burn-store transposes the weight of every
/// module that is called `Linear` when it reads or writes PyTorch's files.
///
/// # Shapes
/// - `weight`: `[out_dim, in_dim]`
/// - `bias`: `[out_dim]`
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct PlainLinear {
    /// The weight, `[out_dim, in_dim]`.
    pub weight: FrozenWeight,
    /// The bias, `[out_dim]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl PlainLinear {
    /// A layer with weight and bias from `U(-k, k)`, `k = 1 / sqrt(in_dim)`, like
    /// `torch.nn.Linear`: Kaiming's uniform distribution with `a = sqrt(5)`.
    ///
    /// Nothing is allocated before the parameters are first used or loaded.
    pub fn new(in_dim: usize, out_dim: usize, bias: bool, device: &Device) -> Self {
        let k = 1.0 / (in_dim as f64).sqrt();
        let uniform = Distribution::Uniform(-k, k);
        Self {
            weight: random_param([out_dim, in_dim], uniform, device).into(),
            bias: bias.then(|| random_param([out_dim], uniform, device)),
        }
    }

    /// `[out_dim, in_dim]`, without touching the weight.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// Applies the layer; a parameter of another dtype than `x` is brought to `x`'s by a
    /// differentiable cast.
    ///
    /// # Shapes
    /// - `x`: `[..., in_dim]`
    /// - output: `[..., out_dim]`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in_dim`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let y = self.weight.product(x);
        add_bias(y, self.bias.as_ref().map(Param::val))
    }
}

/// Adds a bias, if there is one, in the type of `y`.
pub(super) fn add_bias<const D: usize>(y: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
    match bias {
        None => y,
        Some(bias) => {
            let bias = bias.cast(y.dtype());
            y + bias.unsqueeze()
        }
    }
}

/// How a layer without layers inside prints: on one line, without a count.
pub(crate) fn one_line() -> DisplaySettings {
    DisplaySettings::new()
        .with_new_line_after_attribute(false)
        .with_show_num_parameters(false)
}

impl ModuleDisplay for PlainLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [out_dim, in_dim] = self.shape();
        content
            .set_top_level_type("Linear")
            .add("in_dim", &in_dim)
            .add("out_dim", &out_dim)
            .add("bias", &self.bias.is_some())
            .optional()
    }
}
