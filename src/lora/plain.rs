use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor};

use crate::ops::linear;

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
    pub weight: Param<Tensor<2>>,
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
            weight: random_param([out_dim, in_dim], uniform, device),
            bias: bias.then(|| random_param([out_dim], uniform, device)),
        }
    }

    /// `[out_dim, in_dim]`, without touching the weight.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.lazy_shape().dims()
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
        self.add_bias(self.product(x))
    }

    /// `x Wᵀ`, without the bias.
    pub(super) fn product<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val())
    }

    fn add_bias<const D: usize>(&self, y: Tensor<D>) -> Tensor<D> {
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

/// The value without a graph. Burn's `detach` alone would leave a trained leaf trained.
pub(super) fn untracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.set_require_grad(false)
}

/// How a layer without layers inside prints: on one line, without a count.
pub(crate) fn one_line() -> DisplaySettings {
    DisplaySettings::new()
        .with_new_line_after_attribute(false)
        .with_show_num_parameters(false)
}

/// A parameter to train whose first value `init` makes when it is first used, in memory of its own.
pub(crate) fn lazy_param<const D: usize>(
    shape: [usize; D],
    device: &Device,
    init: impl Fn([usize; D], &Device) -> Tensor<D> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad| {
        let new = |shape| init(shape, device);
        let value = device.memory_persistent_allocations(shape, new);
        value.set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

fn random_param<const D: usize>(
    shape: [usize; D],
    distribution: Distribution,
    device: &Device,
) -> Param<Tensor<D>> {
    lazy_param(shape, device, move |shape, device| {
        Tensor::random(shape, distribution, device)
    })
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
