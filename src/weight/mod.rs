//! The weight of a layer, however it is stored: what multiplies, is looked up in and merged into. The layers above do
//! not ask which kind it is.

mod packed;
mod param;
mod quantization;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, ParamId,
};
use burn::tensor::module::embedding;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};

use crate::ops::meta::{Ledger, MetaParam};
use crate::ops::{
    DropoutMask, compute_dtype, linear, lora_linear, packed_linear, packed_lora_linear, packed_rows,
};
pub use packed::PackedWeight;
pub(crate) use packed::{lasting_words, packed_words};
pub(crate) use param::{is_trained, lazy_param, random_param, replace, untracked};
pub use quantization::{BaseFormat, Quantization};

/// A weight of `[rows, columns]`, which adapters leave as it is.
///
/// It is a module without a level of its own: the weight of a layer `q_proj` has the path `q_proj.weight`. Visitors see
/// a packed weight as a frozen parameter of f32, whose numbers are decoded when it is asked for them, or for whether it
/// requires a gradient; mappers see its words.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FrozenWeight {
    /// Numbers of a float type. Only such a weight can also be trained, where there is no adapter.
    Dense(Param<Tensor<2>>),
    /// Numbers packed in blocks of few bits.
    Packed(PackedWeight),
}

impl FrozenWeight {
    /// `[rows, columns]`, without touching the values.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(param) => param.lazy_shape().dims(),
            Self::Packed(packed) => packed.layout().shape(),
        }
    }

    /// The device, without touching the values.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(param) => param.lazy_device(),
            Self::Packed(packed) => packed.words.lazy_device(),
        }
    }

    /// The number by which Burn knows the parameter.
    pub fn id(&self) -> ParamId {
        match self {
            Self::Dense(param) => param.id,
            Self::Packed(packed) => packed.words.id,
        }
    }

    /// Whether the values have been loaded or used.
    pub fn is_initialized(&self) -> bool {
        match self {
            Self::Dense(param) => param.is_initialized(),
            Self::Packed(packed) => packed.words.is_initialized(),
        }
    }

    /// The type of activations beside this weight, see [`compute_dtype`].
    pub fn compute_dtype(&self) -> DType {
        match self {
            Self::Dense(param) => compute_dtype(&param.lazy_device(), param.val().dtype()),
            Self::Packed(_) => packed_compute_dtype(&self.device()),
        }
    }

    /// The values as a dense tensor, `[rows, columns]`: of a dense weight the tensor itself, which may be tracked.
    pub fn val(&self) -> Tensor<2> {
        match self {
            Self::Dense(param) => param.val(),
            Self::Packed(packed) => packed.val(),
        }
    }

    /// The values in f32, outside of a graph.
    pub fn to_f32(&self) -> Tensor<2> {
        untracked(self.val()).cast(DType::F32)
    }

    /// `x Wᵀ`.
    ///
    /// # Shapes
    /// - `x`: `[..., columns]`
    /// - output: `[..., rows]`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `columns`.
    pub fn product<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(param) => linear(x, param.val()),
            Self::Packed(packed) => packed_linear(x, packed.tensor()),
        }
    }

    /// `x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ` with `factors` A and B, see [`lora_linear`].
    ///
    /// # Shapes
    /// - `x`: `[..., columns]`
    /// - `factors`: `[rank, columns]` and `[rows, rank]`
    /// - output: `[..., rows]`
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn lora_product<const D: usize>(
        &self,
        x: Tensor<D>,
        factors: [Tensor<2>; 2],
        scale: f64,
        mask: Option<DropoutMask>,
    ) -> Tensor<D> {
        match self {
            Self::Dense(param) => lora_linear(x, param.val(), factors, scale, mask),
            Self::Packed(packed) => packed_lora_linear(x, packed.tensor(), factors, scale, mask),
        }
    }

    /// The Euclidean norm of each row of `W + B·A`, or of `W` alone, `[rows]`, f32 and outside of a graph. No dense copy of
    /// a packed weight is formed.
    ///
    /// # Shapes
    /// - `factors`: A and B, `[rank, columns]` and `[rows, rank]`, f32
    pub(crate) fn row_norms(&self, factors: Option<[Tensor<2>; 2]>) -> Tensor<1> {
        match self {
            Self::Dense(_) => norms(self.sum_with(factors), 1),
            Self::Packed(packed) => packed.row_norms(factors),
        }
    }

    /// The same of each column, `[columns]`.
    pub(crate) fn column_norms(&self, factors: Option<[Tensor<2>; 2]>) -> Tensor<1> {
        match self {
            Self::Dense(_) => norms(self.sum_with(factors), 0),
            Self::Packed(packed) => packed.column_norms(factors),
        }
    }

    /// `W + B·A`, dense.
    fn sum_with(&self, factors: Option<[Tensor<2>; 2]>) -> Tensor<2> {
        match factors {
            None => self.to_f32(),
            Some([a, b]) => self.to_f32() + linear(b, a.transpose()),
        }
    }

    /// The rows of some indices, in the type of [`Self::compute_dtype`].
    ///
    /// # Shapes
    /// - `indices`: `[batch, seq]`
    /// - output: `[batch, seq, columns]`
    pub fn rows(&self, indices: Tensor<2, Int>) -> Tensor<3> {
        let dtype = self.compute_dtype();
        match self {
            Self::Dense(param) => embedding(param.val(), indices).cast(dtype),
            Self::Packed(packed) => {
                let [batch, seq] = indices.dims();
                let [_, columns] = self.shape();
                let rows = packed_rows(packed.tensor(), indices.flatten(0, 1));
                rows.reshape([batch, seq, columns]).cast(dtype)
            }
        }
    }

    /// The same weight with what `f` makes of its values, which it gets in f32 and outside of a graph. The result is
    /// brought to the weight's own type once, and trained if the weight is; of a packed weight it is dense, in f32.
    pub fn map(self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(replace(param, |value| f(value.cast(DType::F32)))),
            Self::Packed(packed) => Self::Dense(packed.into_dense(f)),
        }
    }

    /// The same weight with so many rows: the last are left out, or the mean of all is appended.
    pub(crate) fn with_rows(self, rows: usize) -> Self {
        let [_, columns] = self.shape();
        match self {
            Self::Dense(param) if !param.is_initialized() => {
                let normal = Distribution::Normal(0.0, 0.02);
                random_param([rows, columns], normal, &param.lazy_device()).into()
            }
            loaded => loaded.map(|weight| with_rows(weight, rows)),
        }
    }

    /// What a training holds of it.
    pub(crate) fn meta(&self, ledger: &Ledger) -> MetaParam {
        match self {
            Self::Dense(param) => ledger.base_param(param),
            Self::Packed(packed) => ledger.packed_param(self.id(), packed.layout().shape()),
        }
    }

    /// The weight as a dense parameter, that of a packed one in f32.
    pub fn into_dense(self) -> Param<Tensor<2>> {
        match self {
            Self::Dense(param) => param,
            Self::Packed(packed) => packed.into_dense(|values| values),
        }
    }

    /// The same values as a parameter of its own.
    pub(crate) fn with_new_id(self) -> Self {
        match self {
            Self::Dense(param) => {
                let (_, value, mapper) = param.consume();
                Self::Dense(Param::from_mapped_value(ParamId::new(), value, mapper))
            }
            Self::Packed(packed) => Self::Packed(packed.with_new_id()),
        }
    }
}

/// The Euclidean norms along a dimension.
fn norms(matrix: Tensor<2>, dim: usize) -> Tensor<1> {
    matrix.square().sum_dim(dim).sqrt().squeeze_dim(dim)
}

/// The type of activations beside packed weights: that of bf16 weights, where the device computes in it.
pub(crate) fn packed_compute_dtype(device: &Device) -> DType {
    match device.supports_dtype(DType::BF16) {
        true => compute_dtype(device, DType::BF16),
        false => DType::F32,
    }
}

/// The matrix with so many rows: the last are left out, or the mean of all is appended.
pub(crate) fn with_rows(weight: Tensor<2>, rows: usize) -> Tensor<2> {
    let [before, columns] = weight.dims();
    if rows <= before {
        return weight.narrow(0, 0, rows);
    }
    let mean = weight.clone().mean_dim(0).expand([rows - before, columns]);
    Tensor::cat(vec![weight, mean], 0)
}

impl From<Param<Tensor<2>>> for FrozenWeight {
    fn from(param: Param<Tensor<2>>) -> Self {
        Self::Dense(param)
    }
}

impl Module for FrozenWeight {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Dense(param) => param.collect_devices(devices),
            Self::Packed(packed) => packed.words.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.fork(device)),
            Self::Packed(packed) => Self::Packed(packed.map_words(|words| words.fork(device))),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(Module::to_device(param, device)),
            Self::Packed(packed) => {
                Self::Packed(packed.map_words(|words| Module::to_device(words, device)))
            }
        }
    }

    fn train(self) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(Module::train(param)),
            Self::Packed(packed) => Self::Packed(packed.map_words(Module::train)),
        }
    }

    fn valid(&self) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(Module::valid(param)),
            Self::Packed(packed) => Self::Packed(packed.clone().map_words(|words| words.valid())),
        }
    }

    fn materialize(self) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(param.materialize()),
            Self::Packed(packed) => Self::Packed(packed.map_words(Module::materialize)),
        }
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        match self {
            Self::Dense(param) => Module::visit(param, visitor),
            Self::Packed(packed) => Module::visit(&packed.as_dense(), visitor),
        }
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        match self {
            Self::Dense(param) => Self::Dense(Module::map(param, mapper)),
            Self::Packed(packed) => {
                Self::Packed(packed.map_words(|words| Module::map(words, mapper)))
            }
        }
    }
}

impl ModuleDisplayDefault for FrozenWeight {
    fn content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(param) => param.content(content),
            Self::Packed(packed) => packed.as_dense().content(content),
        }
    }
}

impl ModuleDisplay for FrozenWeight {}
