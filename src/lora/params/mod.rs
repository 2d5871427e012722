//! What an adapter of one layer consists of: the parameters of a table, with the settings that it follows from. All
//! that a method of adapting sees of an adapter.

mod first;
mod module;
mod spec;

use burn::module::{Flag, Param};
use burn::tensor::{Device, Tensor};

use super::shape::{LayerParams, LayerShape};
use crate::ops::DropoutMask;
use crate::weight::untracked;

pub(crate) use first::orthogonal_factor;
use first::{Pairs, first_param};
pub use spec::{AdapterSettings, FirstValue, ParamSpec};

/// The container type below which every parameter is trained for an adapter.
pub(crate) const TRAINED: &str = "Struct:LoRAAdapter";
/// The container type below which every parameter belongs to an adapter, but is not trained.
pub(crate) const KEPT: &str = "Struct:KeptByAdapter";

/// The parameters of one layer's adapter, by name.
#[derive(Debug, Clone)]
pub struct AdapterParams {
    settings: AdapterSettings,
    layer: LayerShape,
    params: Vec<(ParamSpec, ParamValue)>,
    scale: f64,
    /// Whether the adapter takes part in a training: cleared by [`Module::valid`](burn::module::Module::valid) and
    /// [`Module::freeze`](burn::module::Module::freeze), as that of [`burn::nn::Dropout`].
    pub training: Param<Flag>,
}

/// A parameter's value.
#[derive(Debug, Clone)]
pub(crate) enum ParamValue {
    Matrix(Param<Tensor<2>>),
    Vector(Param<Tensor<1>>),
}

impl AdapterParams {
    /// Those of a table beside a layer with these parameters, lazy: what follows from the layer's values may be asked
    /// for after they are loaded.
    pub(super) fn new(
        layer: LayerShape,
        settings: AdapterSettings,
        table: Vec<ParamSpec>,
        of_layer: &LayerParams,
        device: &Device,
    ) -> Self {
        let params = table.into_iter().map(|spec| {
            let value = first_param(&layer, &spec, &settings, of_layer, device);
            (spec, value)
        });
        Self {
            layer,
            params: params.collect(),
            scale: settings.scale(),
            settings,
            training: Param::from_bool(true),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &AdapterSettings {
        &self.settings
    }

    /// The layer's kind and sizes.
    pub fn layer(&self) -> &LayerShape {
        &self.layer
    }

    /// The rank r.
    pub fn rank(&self) -> usize {
        self.settings.rank
    }

    /// The factor s of the update.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The table.
    pub fn params(&self) -> impl Iterator<Item = &ParamSpec> {
        self.params.iter().map(|(spec, _)| spec)
    }

    /// The parameter of this name, if it is a matrix.
    pub fn matrix_param(&self, name: &str) -> Option<&Param<Tensor<2>>> {
        self.params.iter().find_map(|(spec, value)| match value {
            ParamValue::Matrix(param) if spec.name == name => Some(param),
            _ => None,
        })
    }

    /// The parameter of this name, if it is a vector.
    pub fn vector_param(&self, name: &str) -> Option<&Param<Tensor<1>>> {
        self.params.iter().find_map(|(spec, value)| match value {
            ParamValue::Vector(param) if spec.name == name => Some(param),
            _ => None,
        })
    }

    /// The value of a matrix of the table.
    ///
    /// # Panics
    /// If the table has none of this name.
    pub fn matrix(&self, name: &str) -> Tensor<2> {
        let param = self.matrix_param(name);
        param
            .unwrap_or_else(|| panic!("the adapter has no matrix `{name}`"))
            .val()
    }

    /// The value of a vector of the table, if it has one of this name.
    pub fn vector(&self, name: &str) -> Option<Tensor<1>> {
        self.vector_param(name).map(Param::val)
    }

    /// Replaces the value of a matrix of the table by what `f` makes of it, without a graph.
    ///
    /// # Panics
    /// If the table has none of this name.
    pub fn map_matrix(&mut self, name: &str, f: impl FnOnce(Tensor<2>) -> Tensor<2>) {
        let param = self
            .params
            .iter_mut()
            .find_map(|(spec, value)| match value {
                ParamValue::Matrix(param) if spec.name == name => Some(param),
                _ => None,
            });
        let param = param.unwrap_or_else(|| panic!("the adapter has no matrix `{name}`"));
        let require_grad = param.is_require_grad();
        *param = param
            .clone()
            .map(|value| f(untracked(value)).set_require_grad(require_grad));
    }

    /// Gives a matrix of the table a value.
    pub(crate) fn set_matrix(&mut self, name: &str, new: Tensor<2>) {
        for (spec, value) in &mut self.params {
            if let ParamValue::Matrix(param) = value
                && spec.name == name
            {
                set(param, new.clone());
            }
        }
    }

    pub(super) fn set_scale(&mut self, scale: f64) {
        self.scale = scale;
    }

    /// Replaces a matrix of the table.
    pub(super) fn set_matrix_param(&mut self, name: &str, new: Param<Tensor<2>>) {
        for (spec, value) in &mut self.params {
            if spec.name == name {
                *value = ParamValue::Matrix(new.clone());
            }
        }
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = (&ParamSpec, &mut ParamValue)> {
        self.params.iter_mut().map(|(spec, value)| (&*spec, value))
    }

    /// Which elements of the adapter's input are dropped, in training with dropout.
    pub(super) fn dropout_mask(&self, device: &Device) -> Option<DropoutMask> {
        let dropout = self.settings.dropout;
        let is_training = self.training.is_enabled() && device.is_autodiff();
        (is_training && dropout > 0.0).then(|| DropoutMask::draw(dropout))
    }

    /// The names of the parameters whose values have been neither loaded nor used.
    pub(crate) fn lazy_names(&self) -> Vec<&'static str> {
        let is_lazy = |value: &ParamValue| match value {
            ParamValue::Matrix(param) => !param.is_initialized(),
            ParamValue::Vector(param) => !param.is_initialized(),
        };
        let lazy = self.params.iter().filter(|(_, value)| is_lazy(value));
        lazy.map(|(spec, _)| spec.name).collect()
    }

    /// The parameters anew that follow from the layer's, of those whose names `is_new` has.
    pub(crate) fn follow_layer(&mut self, of_layer: &LayerParams, is_new: impl Fn(&str) -> bool) {
        let mut pairs = Pairs::default();
        for (spec, value) in &mut self.params {
            if is_new(spec.name) {
                value.follow_layer(spec, &self.settings, of_layer, &mut pairs);
            }
        }
    }
}

/// Gives a parameter a value as loading does: it stays what it is, trained or not.
pub(crate) fn set<const D: usize>(param: &mut Param<Tensor<D>>, value: Tensor<D>) {
    let id = param.id;
    *param = param.clone().transform_for_load(value, id);
}
