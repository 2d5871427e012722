use burn::module::{Content, DisplaySettings, Flag, Module, ModuleDisplay, Param};
use burn::tensor::{DType, Device, Tensor};

use super::plain::untracked;
use super::{LoRAConfig, PlainLinear, dora};
use crate::ops::{DropoutMask, linear, lora_linear};

/// A linear layer with an optional low-rank adapter: `y = W x + b + s·B(A·dropout(x))`.
///
/// The same type serves with and without the adapter, so a base checkpoint loads into a LoRA model
/// and the other way round. State-dict keys are `weight`, `bias`, `lora_a.weight`, `lora_b.weight`
/// and, for DoRA, `magnitude`.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_peft::lora::{LoRAConfig, LoRALinear};
///
/// let device = Device::default();
/// let layer = LoRALinear::new(64, 32, &LoRAConfig::new([]).with_rank(4), false, &device);
/// let x = Tensor::<3>::random([2, 5, 64], Distribution::Default, &device);
/// assert_eq!(layer.forward(x).dims(), [2, 5, 32]);
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct LoRALinear {
    /// `W` and `b`, frozen when an adapter is put beside them; they stay so when it is merged or
    /// taken off.
    pub base: PlainLinear,
    /// `A`, `B` and what belongs to them.
    pub adapter: Option<LoRAAdapter>,
}

/// The trainable part of a [`LoRALinear`].
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct LoRAAdapter {
    /// `A`, `[rank, in_dim]`, without a bias.
    pub lora_a: PlainLinear,
    /// `B`, `[out_dim, rank]`, without a bias.
    pub lora_b: PlainLinear,
    /// DoRA's magnitude m, `[out_dim]`.
    pub magnitude: Option<Param<Tensor<1>>>,
    /// The factor s of the update.
    #[module(skip)]
    pub scale: f64,
    /// The probability of dropping an element of the adapter's input, in training only. Which ones
    /// follows from [`seed_dropout`](crate::ops::seed_dropout).
    #[module(skip)]
    pub dropout: f64,
    /// Whether the adapter takes part in a training: cleared by [`Module::valid`] and
    /// [`Module::freeze`], as that of [`burn::nn::Dropout`].
    pub training: Param<Flag>,
}

impl LoRALinear {
    /// A layer with a random frozen base and a new adapter.
    ///
    /// # Panics
    /// If [`LoRAConfig::validate_adapter`] fails.
    pub fn new(
        in_dim: usize,
        out_dim: usize,
        config: &LoRAConfig,
        bias: bool,
        device: &Device,
    ) -> Self {
        Self::plain(in_dim, out_dim, bias, device).with_adapter(config)
    }

    /// A layer with a random base and no adapter.
    pub fn plain(in_dim: usize, out_dim: usize, bias: bool, device: &Device) -> Self {
        Self {
            base: PlainLinear::new(in_dim, out_dim, bias, device),
            adapter: None,
        }
    }

    /// Freezes the base and puts a new adapter beside it: `A` from Kaiming's uniform distribution,
    /// `B` zero, so that the layer's output stays what it is. DoRA's magnitude becomes the row norm
    /// of the base.
    ///
    /// Clones of a layer whose values are still lazy share them: a clone's base is frozen with it.
    ///
    /// # Panics
    /// If [`LoRAConfig::validate_adapter`] fails.
    pub fn with_adapter(self, config: &LoRAConfig) -> Self {
        let base = self.base.no_grad();
        let adapter = LoRAAdapter::new(&base, config);
        Self {
            base,
            adapter: Some(adapter),
        }
    }

    /// `[out_dim, in_dim]`.
    pub fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// - `x`: `[..., in_dim]`
    /// - output: `[..., out_dim]`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in_dim`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match &self.adapter {
            None => self.base.forward(x),
            Some(adapter) => adapter.forward(&self.base, x),
        }
    }

    /// The layer without its adapter.
    pub fn without_adapter(self) -> Self {
        Self {
            base: self.base,
            adapter: None,
        }
    }

    /// Adds the adapter to the weight, which then gives the same outputs without it:
    /// `W + s·B·A`, and `(W + s·B·A)·m / ‖W + s·B·A‖` row by row with DoRA. Computed in f32 and
    /// cast once.
    pub fn merge(self) -> Self {
        let Self { base, adapter } = self;
        let base = match adapter {
            None => base,
            Some(adapter) => PlainLinear {
                weight: map_value(base.weight, |w| adapter.merged_weight(w)),
                bias: base.bias,
            },
        };
        Self {
            base,
            adapter: None,
        }
    }
}

impl LoRAAdapter {
    /// A new adapter for `base`, see [`LoRALinear::with_adapter`].
    ///
    /// # Panics
    /// If [`LoRAConfig::validate_adapter`] fails.
    pub fn new(base: &PlainLinear, config: &LoRAConfig) -> Self {
        if let Err(error) = config.validate_adapter() {
            panic!("{error}");
        }
        let [out_dim, in_dim] = base.shape();
        let device = base.weight.lazy_device();
        Self {
            lora_a: PlainLinear::new(in_dim, config.rank, false, &device),
            lora_b: PlainLinear::zeros(config.rank, out_dim, &device),
            magnitude: config.use_dora.then(|| dora::magnitude_param(base)),
            scale: config.scale(),
            dropout: config.dropout,
            training: Param::from_bool(true),
        }
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        let [rank, _] = self.lora_a.shape();
        rank
    }

    fn forward<const D: usize>(&self, base: &PlainLinear, x: Tensor<D>) -> Tensor<D> {
        let is_training = self.training.is_enabled() && x.device().is_autodiff();
        let is_dropped = is_training && self.dropout > 0.0;
        let mask = is_dropped.then(|| DropoutMask::draw(self.dropout));
        let weight = base.weight.val();
        let update = [self.lora_a.weight.val(), self.lora_b.weight.val()];
        let y = lora_linear(x.clone(), weight.clone(), update, self.scale, mask);
        base.add_bias(match &self.magnitude {
            None => y,
            Some(magnitude) => {
                let norm = dora::row_norm(self.combined_weight(weight.clone()));
                dora::rescale(y, magnitude.val().cast(DType::F32) / norm, x, weight, mask)
            }
        })
    }

    /// `W + s·B·A` in f32, without a graph.
    fn combined_weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let f32 = |tensor: Tensor<2>| untracked(tensor).cast(DType::F32);
        let a = f32(self.lora_a.weight.val());
        let b = f32(self.lora_b.weight.val());
        f32(weight) + linear(b, a.transpose()) * self.scale
    }

    fn merged_weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let dtype = weight.dtype();
        let combined = self.combined_weight(weight);
        let merged = match &self.magnitude {
            None => combined,
            Some(m) => dora::rescale_rows(combined, untracked(m.val()).cast(DType::F32)),
        };
        merged.cast(dtype)
    }
}

/// Replaces a parameter's value by an untracked one and keeps its id and whether it is trained.
fn map_value(param: Param<Tensor<2>>, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Param<Tensor<2>> {
    let (id, value, mapper) = param.consume();
    let require_grad = value.is_require_grad();
    Param::from_mapped_value(id, f(value).set_require_grad(require_grad), mapper)
}

impl ModuleDisplay for LoRALinear {
    /// A layer without adapter prints like the plain layer that it is.
    fn custom_content(&self, content: Content) -> Option<Content> {
        match &self.adapter {
            None => content.add_single(&self.base).optional(),
            Some(adapter) => {
                let [out_dim, in_dim] = self.shape();
                let content = content
                    .add("in_dim", &in_dim)
                    .add("out_dim", &out_dim)
                    .add("bias", &self.base.bias.is_some());
                adapter.add_content(content).optional()
            }
        }
    }

    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new()
            .with_show_num_parameters(false)
            .optional()
    }
}

impl LoRAAdapter {
    fn add_content(&self, content: Content) -> Content {
        let content = content
            .add("lora_a", &self.lora_a)
            .add("lora_b", &self.lora_b)
            .add("scale", &self.scale)
            .add("dropout", &self.dropout);
        match &self.magnitude {
            None => content,
            Some(m) => content.add("magnitude", &format!("{:?}", m.lazy_shape().to_vec())),
        }
    }
}

impl ModuleDisplay for LoRAAdapter {
    fn custom_content(&self, content: Content) -> Option<Content> {
        self.add_content(content).optional()
    }
}
