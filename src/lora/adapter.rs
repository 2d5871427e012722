//! The adapter of one layer: its configuration and its parameters, which are what its method's table says.

use std::sync::Arc;

use burn::module::{
    Content, Devices, Flag, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param,
};
use burn::tensor::{Device, Distribution, Tensor};

use super::config::{Init, LoRAConfig};
use super::init::orthogonal;
use super::method::{
    FULL, FirstValue, LayerKind, LayerParams, LayerShape, MethodRef, ParamSpec, TOKEN_ROWS,
    trained_bias,
};
use super::plain::one_line;
use crate::ops::DropoutMask;
use crate::weight::{lazy_param, untracked};

/// The container type below which every parameter is trained for an adapter.
pub(crate) const TRAINED: &str = "Struct:LoRAAdapter";
/// The container type below which every parameter belongs to an adapter, but is not trained.
pub(crate) const KEPT: &str = "Struct:KeptByAdapter";

/// What a configuration means for one layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterSettings {
    /// The configuration that the adapter was made by.
    pub config: Arc<LoRAConfig>,
    /// The method.
    pub method: MethodRef,
    /// The rank r of the update `B·A`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// The probability with which an element of the adapter's input is dropped in training.
    pub dropout: f64,
    /// How `A` and `B` begin.
    pub init: Init,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
    /// Whether a copy of the layer's bias is trained.
    pub trains_bias: bool,
    /// Whether a layer that is adapted as a whole is trained, or only keeps the values that came with the adapter.
    pub trains_layer: bool,
    /// Whether `A` keeps its first value (LoRA-FA).
    pub freeze_a: bool,
    /// Whether the adapter begins with a part of the layer's weight, which the layer loses for it.
    pub begins_with_base: bool,
    /// The rows of an embedding that are trained.
    pub token_indices: Vec<usize>,
    /// The rows of a trained embedding or output, if they are not as many as the base's.
    pub vocab_size: Option<usize>,
}

impl AdapterSettings {
    /// Those of a layer to which nothing in `config` is special.
    pub(crate) fn of(config: Arc<LoRAConfig>) -> Self {
        Self {
            method: config.method,
            rank: config.rank,
            alpha: config.alpha,
            dropout: config.dropout,
            init: config.init,
            lora_bias: config.lora_bias,
            trains_bias: false,
            trains_layer: true,
            begins_with_base: false,
            freeze_a: config.freeze_a,
            token_indices: Vec::new(),
            vocab_size: None,
            config,
        }
    }

    /// The factor s of the update: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha
            / if self.config.use_rslora {
                rank.sqrt()
            } else {
                rank
            }
    }

    /// The table of parameters of an adapter beside `layer`.
    pub fn params(&self, layer: &LayerShape) -> Vec<ParamSpec> {
        let mut params = self.method.0.params(layer, self);
        if self.trains_bias && layer.has_bias {
            params.push(trained_bias(layer, "base_layer.bias"));
        }
        params
    }
}

/// The adapter of one layer.
#[derive(Debug, Clone)]
pub struct LoRAAdapter {
    settings: AdapterSettings,
    layer: LayerShape,
    params: Vec<(ParamSpec, ParamValue)>,
    scale: f64,
    /// Whether the adapter takes part in a training: cleared by [`Module::valid`] and [`Module::freeze`], as
    /// that of [`burn::nn::Dropout`].
    pub training: Param<Flag>,
}

/// A parameter's value.
#[derive(Debug, Clone)]
pub(crate) enum ParamValue {
    Matrix(Param<Tensor<2>>),
    Vector(Param<Tensor<1>>),
}

impl LoRAAdapter {
    /// A new adapter beside a layer with these parameters, lazy: what follows from the layer's values may be
    /// asked for after they are loaded.
    ///
    /// # Panics
    /// If the method does not adapt layers of this kind.
    pub(crate) fn new(
        layer: LayerShape,
        settings: AdapterSettings,
        of_layer: &LayerParams,
        device: &Device,
    ) -> Self {
        let method = settings.method.0;
        assert!(
            method.adapts(layer.kind),
            "`{}` does not adapt a layer of this kind",
            method.name()
        );
        let params = settings.params(&layer).into_iter().map(|spec| {
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

    /// The configuration, as it is for this layer.
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

    /// The table of its parameters.
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

    /// The value of a matrix of the method's table.
    ///
    /// # Panics
    /// If the table has none of this name.
    pub fn matrix(&self, name: &str) -> Tensor<2> {
        let param = self.matrix_param(name);
        param
            .unwrap_or_else(|| panic!("the adapter has no matrix `{name}`"))
            .val()
    }

    /// The value of a vector of the method's table, if it has one of this name.
    pub fn vector(&self, name: &str) -> Option<Tensor<1>> {
        self.vector_param(name).map(Param::val)
    }

    /// Replaces the value of a matrix of the method's table by what `f` makes of it, without a graph.
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

    /// Lets it be of another configuration, which means the same for its layer.
    pub(crate) fn set_config(&mut self, config: Arc<LoRAConfig>) {
        self.settings.config = config;
    }

    /// Gives a matrix of the method's table a value.
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

    /// Replaces a matrix of the method's table.
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

    /// Whether it looks up rows of a table of its own.
    pub(super) fn replaces_rows(&self) -> bool {
        self.settings.method == MethodRef(&FULL)
    }

    /// Whether what it does to an embedding it does to an output of the same weight: with single rows it does, and
    /// with all where that is asked for.
    pub(crate) fn is_of_tied_output(&self) -> bool {
        let AdapterSettings { method, config, .. } = &self.settings;
        *method == MethodRef(&TOKEN_ROWS)
            || *method == MethodRef(&FULL) && config.ensure_weight_tying
    }

    /// Which elements of the adapter's input are dropped, in training with dropout.
    pub(super) fn dropout_mask(&self, device: &Device) -> Option<DropoutMask> {
        let dropout = self.settings.dropout;
        let is_training = self.training.is_enabled() && device.is_autodiff();
        (is_training && dropout > 0.0).then(|| DropoutMask::draw(dropout))
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

/// `A` or `B` of a pair that follows from a seed.
pub(crate) fn orthogonal_factor(
    layer: &LayerShape,
    rank: usize,
    seed: u64,
    index: usize,
    device: &Device,
) -> Tensor<2> {
    let pair = orthogonal(layer.dims, rank, seed, device);
    let pair = pair.expect("a configuration with an odd rank is refused");
    if index == 0 { pair.a } else { pair.b }
}

fn first_param(
    layer: &LayerShape,
    spec: &ParamSpec,
    settings: &AdapterSettings,
    of_layer: &LayerParams,
    device: &Device,
) -> ParamValue {
    match spec.shape[..] {
        [rows, columns] => {
            let shape = [rows, columns];
            ParamValue::Matrix(match spec.first {
                FirstValue::MatrixOfLayer(first) => {
                    let (layer, settings) = (of_layer.clone(), settings.clone());
                    lazy_param(shape, device, move |_, device| {
                        first(&layer, &settings).to_device(device)
                    })
                }
                FirstValue::PairOfLayer(first, index) => {
                    let (layer, settings) = (of_layer.clone(), settings.clone());
                    lazy_param(shape, device, move |_, device| {
                        let [a, b] = first(&layer, &settings);
                        let factor = if index == 0 { a } else { b };
                        factor.to_device(device)
                    })
                }
                FirstValue::Orthogonal(index) => {
                    let (layer, rank) = (*layer, settings.rank);
                    lazy_param(shape, device, move |_, device| {
                        orthogonal_factor(&layer, rank, 0, index, device)
                    })
                }
                first => lazy_param(shape, device, move |shape, device| {
                    first_numbers(first, shape, device)
                }),
            })
        }
        [len] => ParamValue::Vector(match spec.first {
            FirstValue::VectorOfLayer(first) => {
                let (layer, settings) = (of_layer.clone(), settings.clone());
                lazy_param([len], device, move |_, device| {
                    first(&layer, &settings).to_device(device)
                })
            }
            first => lazy_param([len], device, move |shape, device| {
                first_numbers(first, shape, device)
            }),
        }),
        _ => panic!("a parameter of an adapter has one or two dimensions"),
    }
}

fn first_numbers<const D: usize>(
    first: FirstValue,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    match first {
        FirstValue::Zeros => Tensor::zeros(shape, device),
        FirstValue::Uniform(k) => Tensor::random(shape, Distribution::Uniform(-k, k), device),
        FirstValue::Normal(std) => Tensor::random(shape, Distribution::Normal(0.0, std), device),
        _ => {
            panic!("a parameter that follows from its layer has that kind's dimensions")
        }
    }
}

/// Matrices that follow from a layer together, each computed once: a decomposition takes its time.
#[derive(Default)]
struct Pairs(Vec<(usize, [Tensor<2>; 2])>);

impl Pairs {
    fn get(
        &mut self,
        pair: fn(&LayerParams, &AdapterSettings) -> [Tensor<2>; 2],
        layer: &LayerParams,
        settings: &AdapterSettings,
    ) -> [Tensor<2>; 2] {
        let address = pair as usize;
        if let Some((_, found)) = self.0.iter().find(|(other, _)| *other == address) {
            return found.clone();
        }
        let found = pair(layer, settings);
        self.0.push((address, found.clone()));
        found
    }
}

impl ParamValue {
    fn follow_layer(
        &mut self,
        spec: &ParamSpec,
        settings: &AdapterSettings,
        layer: &LayerParams,
        pairs: &mut Pairs,
    ) {
        match (self, spec.first) {
            (Self::Matrix(param), FirstValue::PairOfLayer(pair, index)) => {
                let [a, b] = pairs.get(pair, layer, settings);
                set(param, if index == 0 { a } else { b });
            }
            (Self::Matrix(param), FirstValue::MatrixOfLayer(first)) => {
                set(param, first(layer, settings));
            }
            (Self::Vector(param), FirstValue::VectorOfLayer(first)) => {
                set(param, first(layer, settings));
            }
            _ => {}
        }
    }
}

/// Gives a parameter a value as loading does: it stays what it is, trained or not.
pub(crate) fn set<const D: usize>(param: &mut Param<Tensor<D>>, value: Tensor<D>) {
    let id = param.id;
    *param = param.clone().transform_for_load(value, id);
}

/// Calls a method of [`Module`] on whichever parameter it is.
macro_rules! each_value {
    ($value:expr, $param:ident => $result:expr) => {
        match $value {
            ParamValue::Matrix($param) => ParamValue::Matrix($result),
            ParamValue::Vector($param) => ParamValue::Vector($result),
        }
    };
}

impl LoRAAdapter {
    fn with_params(
        self,
        mut f: impl FnMut(&ParamSpec, ParamValue) -> ParamValue,
        training: impl FnOnce(Param<Flag>) -> Param<Flag>,
    ) -> Self {
        let params = self.params.into_iter();
        Self {
            params: params
                .map(|(spec, value)| {
                    let value = f(&spec, value);
                    (spec, value)
                })
                .collect(),
            training: training(self.training),
            ..self
        }
    }
}

fn container(spec: &ParamSpec) -> &'static str {
    if spec.is_trained { TRAINED } else { KEPT }
}

impl Module for LoRAAdapter {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.params
            .iter()
            .fold(devices, |devices, (_, value)| match value {
                ParamValue::Matrix(param) => param.collect_devices(devices),
                ParamValue::Vector(param) => param.collect_devices(devices),
            })
    }

    fn fork(self, device: &Device) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.fork(device)), |f| f)
    }

    fn to_device(self, device: &Device) -> Self {
        self.with_params(
            |_, value| each_value!(value, p => p.to_device(device)),
            |f| f,
        )
    }

    fn train(self) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.train()), Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().with_params(
            |_, value| each_value!(value, p => p.valid()),
            |flag| flag.valid(),
        )
    }

    fn materialize(self) -> Self {
        self.with_params(|_, value| each_value!(value, p => p.materialize()), |f| f)
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        for (spec, value) in &self.params {
            visitor.enter_module(spec.name, container(spec));
            match value {
                ParamValue::Matrix(param) => param.visit(visitor),
                ParamValue::Vector(param) => param.visit(visitor),
            }
            visitor.exit_module(spec.name, container(spec));
        }
        visitor.enter_module("training", TRAINED);
        self.training.visit(visitor);
        visitor.exit_module("training", TRAINED);
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        let mut params = Vec::with_capacity(self.params.len());
        for (spec, value) in self.params {
            mapper.enter_module(spec.name, container(&spec));
            let value = each_value!(value, p => Module::map(p, mapper));
            mapper.exit_module(spec.name, container(&spec));
            params.push((spec, value));
        }
        mapper.enter_module("training", TRAINED);
        let training = Module::map(self.training, mapper);
        mapper.exit_module("training", TRAINED);
        Self {
            params,
            training,
            ..self
        }
    }
}

impl LoRAAdapter {
    pub(super) fn add_content(&self, content: Content) -> Content {
        let content = self.params.iter().fold(content, |content, (spec, _)| {
            content.add(spec.name, &format!("{:?}", spec.shape))
        });
        let content = match self.layer.kind {
            LayerKind::Norm => content,
            _ => content
                .add("scale", &self.scale)
                .add("dropout", &self.settings.dropout),
        };
        match self.settings.method == MethodRef::default() {
            true => content,
            false => content.add("method", &self.settings.method.0.name().to_owned()),
        }
    }
}

impl ModuleDisplayDefault for LoRAAdapter {
    fn content(&self, content: Content) -> Option<Content> {
        self.add_content(content.set_top_level_type("LoRAAdapter"))
            .optional()
    }
}

impl ModuleDisplay for LoRAAdapter {
    fn custom_settings(&self) -> Option<burn::module::DisplaySettings> {
        one_line().optional()
    }
}
