use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::{Device, Tensor};

use super::layer_config::LayerConfig;
use super::layers::AdaptedLayer;
use super::merged::merged;
use super::method::TRAINED_BIAS;
use super::module::adapted_module;
use super::plain::add_bias;
use super::record::input_of;
use super::routes::Routes;
use super::shape::{LayerParams, LayerShape};
use super::slot::{AdapterSlot, DEFAULT_ADAPTER};
use super::{LoRAAdapter, LoRAConfig, PlainLinear};
use crate::weight::FrozenWeight;

/// A linear layer with an optional low-rank adapter: `y = W x + b + s·B(A·dropout(x))`.
///
/// The same type serves with and without the adapter, so a base checkpoint loads into a LoRA model
/// and the other way round. State-dict keys are `weight`, `bias`, `lora_a.weight`, `lora_b.weight`
/// and what else the adapter's [`Method`](super::Method) has: `magnitude` for DoRA.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_peft::lora::{LoRAConfig, LoRALinear};
///
/// let device = Device::default();
/// let layer = LoRALinear::new(64, 32, &LoRAConfig::default().with_rank(4), false, &device);
/// let x = Tensor::<3>::random([2, 5, 64], Distribution::Default, &device);
/// assert_eq!(layer.forward(x).dims(), [2, 5, 32]);
/// ```
#[derive(Debug, Clone)]
pub struct LoRALinear {
    /// `W` and `b`, frozen when an adapter is put beside them; they stay so when it is merged or
    /// taken off.
    pub base: PlainLinear,
    /// The adapters.
    pub adapters: AdapterSlot,
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
        PlainLinear::new(in_dim, out_dim, bias, device).into()
    }

    /// Freezes the base and puts a new adapter beside it, whatever modules `config` names: `A` from Kaiming's
    /// uniform distribution, `B` zero, so that the layer's output stays what it is. DoRA's magnitude becomes the
    /// row norm of the base.
    ///
    /// Clones of a layer whose values are still lazy share them: a clone's base is frozen with it.
    ///
    /// # Panics
    /// If [`LoRAConfig::validate_adapter`] fails.
    pub fn with_adapter(self, config: &LoRAConfig) -> Self {
        if let Err(error) = config.validate_adapter() {
            panic!("{error}");
        }
        let mut layer = Self {
            base: self.base.no_grad(),
            adapters: self.adapters,
        };
        let config = LayerConfig::of(config.clone().into());
        let (shape, params) = (AdaptedLayer::shape(&layer), layer.params());
        let device = layer.base.weight.device();
        let adapter = LoRAAdapter::new(shape, config, &params, &device);
        layer.adapters.insert(DEFAULT_ADAPTER, adapter);
        layer
    }

    /// `[out_dim, in_dim]`.
    pub fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }

    /// The adapter that acts, if there is one; the first if there are several.
    pub fn adapter(&self) -> Option<&LoRAAdapter> {
        self.adapters.active().next()
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
        if self.adapters.is_empty() {
            return self.base.forward(x);
        }
        input_of(self.base.weight.id(), &x);
        let active: Vec<_> = self.adapters.active().collect();
        in_three(x, |x| adapted(&self.base, &active, x))
    }

    /// Applies the layer with the adapter that each row of the batch asks for; without routes, as
    /// [`Self::forward`].
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, in_dim]`, `batch` as `routes` has it
    /// - output: `[batch, seq, out_dim]`
    ///
    /// # Panics
    /// If the shapes do not fit, or the batch has another number of rows than `routes`.
    pub fn forward_routed(&self, x: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
        let Some(routes) = routes.filter(|_| !self.adapters.is_empty()) else {
            return self.forward(x);
        };
        routes.apply(x, |name, x| {
            let active: Vec<_> = self.adapters.named(name).collect();
            adapted(&self.base, &active, x)
        })
    }

    /// The layer without its adapters.
    pub fn without_adapter(self) -> Self {
        self.base.into()
    }

    /// Adds the adapters that act to the weight, which then gives the same outputs without them: `W + s·B·A`,
    /// and `(W + s·B·A)·m / ‖W + s·B·A‖` row by row with DoRA. Computed in f32 and cast once.
    pub fn merge(mut self) -> Self {
        AdaptedLayer::merge(&mut self);
        self
    }
}

impl From<PlainLinear> for LoRALinear {
    fn from(base: PlainLinear) -> Self {
        Self {
            base,
            adapters: AdapterSlot::new(),
        }
    }
}

/// Gives a function of three dimensions an input of any number: those before the last two are flattened, and missing
/// ones are of size 1.
fn in_three<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<D> {
    let mut shape = x.dims();
    let seq = if D > 1 { shape[D - 2] } else { 1 };
    let y = f(x.reshape([-1, seq as i32, shape[D - 1] as i32]));
    shape[D - 1] = y.dims()[2];
    y.reshape(shape)
}

/// The output of a layer with some adapters, one after another.
pub(super) fn adapted(base: &PlainLinear, active: &[&LoRAAdapter], x: Tensor<3>) -> Tensor<3> {
    let device = x.device();
    let y = match active {
        [] => base.weight.product(x),
        [adapter] => {
            let method = adapter.method().0;
            method.forward(adapter, base, x, adapter.dropout_mask(&device))
        }
        several => {
            let y = base.weight.product(x.clone());
            several.iter().fold(y, |y, adapter| {
                let method = adapter.method().0;
                let mask = adapter.dropout_mask(&device);
                method.add_update(adapter, base, x.clone(), y, mask)
            })
        }
    };
    let trained = active.iter().find_map(|a| a.vector(TRAINED_BIAS));
    add_bias(y, trained.or_else(|| base.bias.as_ref().map(Param::val)))
}

impl AdaptedLayer for LoRALinear {
    fn shape(&self) -> LayerShape {
        let [out_dim, in_dim] = self.base.shape();
        LayerShape::linear(in_dim, out_dim, self.base.bias.is_some())
    }

    fn params(&self) -> LayerParams {
        LayerParams {
            weight: Some(self.base.weight.clone()),
            bias: self.base.bias.clone(),
            ..LayerParams::default()
        }
    }

    fn slot(&self) -> &AdapterSlot {
        &self.adapters
    }

    fn slot_mut(&mut self) -> &mut AdapterSlot {
        &mut self.adapters
    }

    fn merge(&mut self) {
        let adapters = std::mem::take(&mut self.adapters);
        let active: Vec<_> = adapters.active().collect();
        replace_with::replace_with_or_abort(&mut self.base, |base| merged(base, &active));
    }

    fn freeze_base(&mut self) {
        replace_with::replace_with_or_abort(&mut self.base, Module::no_grad);
    }

    fn weight_mut(&mut self) -> Option<&mut FrozenWeight> {
        Some(&mut self.base.weight)
    }
}

// The base's parameters have no level of their own: a weight is `q_proj.weight`, with and without adapters.
adapted_module!(LoRALinear, params(), inline(base, adapters), skip());

impl ModuleDisplay for LoRALinear {
    /// A layer without adapter prints like the plain layer that it is.
    fn custom_content(&self, content: Content) -> Option<Content> {
        match self.adapter() {
            None => content.add_single(&self.base).optional(),
            Some(adapter) => {
                let [out_dim, in_dim] = self.shape();
                let content = content
                    .set_top_level_type("LoRALinear")
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
