use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::{DType, Device, Tensor};

use super::RotaryEmbedding;
use crate::lora::{
    AdaptedLayer, AdapterSlot, FULL_WEIGHT, LayerParams, LayerShape, Routes, adapted_module,
    merged_norm, one_line,
};
use crate::ops::meta::{MetaParam, MetaTensor};
use crate::ops::{normed_rotary_meta, rms_norm, rms_norm_meta};
use crate::weight::lazy_param;

/// Root-mean-square normalisation, `y = w · x / sqrt(mean(x²) + eps)`, computed in f32, in some models with `1 + w` in
/// place of w. Zhang and Sennrich, <https://arxiv.org/abs/1910.07467>.
#[derive(Debug, Clone)]
pub struct RMSNorm {
    /// The weight w, `[dim]`.
    pub weight: Param<Tensor<1>>,
    /// The epsilon.
    pub eps: f64,
    /// Whether `1 + w` stands in place of w.
    pub unit_offset: bool,
    /// Copies of the weight that are trained.
    pub adapters: AdapterSlot,
}

impl RMSNorm {
    /// A norm over vectors of width `dim` with weight 1, lazy.
    pub fn new(dim: usize, eps: f64, device: &Device) -> Self {
        let ones = |shape, device: &Device| Tensor::ones(shape, device);
        Self {
            weight: lazy_param([dim], device, ones),
            eps,
            unit_offset: false,
            adapters: AdapterSlot::new(),
        }
    }

    /// A norm that multiplies by `1 + w`, with weight 0, lazy.
    pub fn with_unit_offset(dim: usize, eps: f64, device: &Device) -> Self {
        let zeros = |shape, device: &Device| Tensor::zeros(shape, device);
        Self {
            weight: lazy_param([dim], device, zeros),
            unit_offset: true,
            ..Self::new(dim, eps, device)
        }
    }

    /// The width of what is normalised.
    pub(super) fn dim(&self) -> usize {
        let [dim] = self.weight.lazy_shape().dims();
        dim
    }

    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, dim]`, output the same
    ///
    /// # Panics
    /// If the last dimension of `x` is not `dim`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        rms_norm(x, self.active_weight(), self.eps)
    }

    /// Normalises heads, or all heads of a position together, and rotates them.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, heads, head_dim]`, where `dim` is `head_dim` or `heads * head_dim`; output the same
    pub(super) fn forward_rotated(&self, x: Tensor<4>, rope: &RotaryEmbedding) -> Tensor<4> {
        rope.apply_normed(x, self.active_weight(), self.eps)
    }

    /// Whether rows of a batch may ask for other weights.
    pub(super) fn is_routed(&self, routes: Option<&Routes>) -> bool {
        routes.is_some() && !self.adapters.is_empty()
    }

    /// What the active adapter has in place of the weight, or the weight, with the offset.
    fn active_weight(&self) -> Tensor<1> {
        let trained = self.adapters.active().last();
        self.factor(trained.and_then(|adapter| adapter.vector(FULL_WEIGHT)))
    }

    /// Normalises with the weight that each row of the batch asks for.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, dim]`, `batch` as `routes` has it; output the same
    ///
    /// # Panics
    /// If the shapes do not fit, or the batch has another number of rows than `routes`.
    pub fn forward_routed(&self, x: Tensor<3>, routes: Option<&Routes>) -> Tensor<3> {
        let Some(routes) = routes.filter(|_| !self.adapters.is_empty()) else {
            return self.forward(x);
        };
        routes.apply(x, |name, x| {
            let mut adapters = self.adapters.named(name);
            let weight = self.factor(adapters.find_map(|a| a.vector(FULL_WEIGHT)));
            rms_norm(x, weight, self.eps)
        })
    }

    /// What [`Self::forward`] holds in a training.
    pub(super) fn meta(&self, x: MetaTensor) -> MetaTensor {
        let weight = self.meta_weight(&x);
        rms_norm_meta(x, weight)
    }

    /// What [`Self::forward_rotated`] holds in a training.
    pub(super) fn rotated_meta(&self, x: MetaTensor) -> MetaTensor {
        let weight = self.meta_weight(&x);
        normed_rotary_meta(x, weight)
    }

    fn meta_weight(&self, x: &MetaTensor) -> MetaParam {
        let of_adapter = self.adapters.active().last();
        let of_adapter = of_adapter.and_then(|adapter| {
            let weight = adapter.vector_param(FULL_WEIGHT)?;
            Some(MetaParam::of_adapter(
                weight,
                adapter.settings().trains_layer,
            ))
        });
        of_adapter.unwrap_or_else(|| x.ledger().base_param(&self.weight))
    }

    /// By what normalised numbers are multiplied.
    fn factor(&self, trained: Option<Tensor<1>>) -> Tensor<1> {
        let weight = trained.unwrap_or_else(|| self.weight.val());
        match self.unit_offset {
            true => weight.cast(DType::F32).add_scalar(1.0),
            false => weight,
        }
    }
}

impl AdaptedLayer for RMSNorm {
    fn shape(&self) -> LayerShape {
        LayerShape::norm(self.dim())
    }

    fn params(&self) -> LayerParams {
        LayerParams::of_norm(self.weight.clone())
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
        replace_with::replace_with_or_abort(&mut self.weight, |weight| {
            merged_norm(weight, &active)
        });
    }

    fn freeze_base(&mut self) {
        replace_with::replace_with_or_abort(&mut self.weight, Module::no_grad);
    }
}

adapted_module!(
    RMSNorm,
    params(weight),
    inline(adapters),
    skip(eps, unit_offset)
);

impl ModuleDisplay for RMSNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .set_top_level_type("RMSNorm")
            .add("dim", &self.dim())
            .add("eps", &self.eps)
            .optional()
    }
}
