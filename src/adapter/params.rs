use std::collections::{BTreeSet, HashSet};
use std::fmt;

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use indexmap::IndexMap;

use super::layout::saved_shape;
use super::path::{Path, Role, follow_path};
use super::quantize::packed_ids;

/// What there is to know of a parameter without touching its value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParamInfo {
    /// The id under which gradients and optimizer state are kept.
    pub id: ParamId,
    /// The shape, as in a state dict.
    pub shape: Vec<usize>,
    /// Whether it belongs to the base or to an adapter.
    pub role: Role,
    /// Whether its elements lie in another order than in a state dict.
    pub(crate) is_transposed: bool,
}

impl ParamInfo {
    /// Whether it belongs to an adapter.
    pub fn is_adapter(&self) -> bool {
        self.role != Role::Base
    }

    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Parameters by full name, in the model's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParamSet(IndexMap<String, ParamInfo>);

impl ParamSet {
    /// The names, in the model's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Names and parameters, in the model's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ParamInfo)> {
        self.0.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&ParamInfo> {
        self.0.get(name)
    }

    /// Whether a parameter of this name is in the set.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum of the parameters' elements.
    pub fn num_elements(&self) -> usize {
        self.0.values().map(ParamInfo::num_elements).sum()
    }

    /// Keeps the parameters for which `keep` holds.
    pub fn filter(mut self, mut keep: impl FnMut(&str, &ParamInfo) -> bool) -> Self {
        self.0.retain(|name, info| keep(name, info));
        self
    }
}

/// Every float parameter of a module by name. Allocates nothing.
///
/// # Panics
/// If two have the same name, which only layers with a nameless level of their own can bring about.
pub fn get_params<M: Module>(model: &M) -> ParamSet {
    let mut lister = Lister::default();
    model.visit(&mut lister);
    lister.params
}

/// The parameters that all adapters train, by name: `lora_a.weight`, `lora_b.weight` and what else the method has,
/// of each [`LoRALinear`](crate::lora::LoRALinear) and other layer of this crate, wherever in the module it stands,
/// and those of Burn's own [`LoraAdapter`](burn::module::LoraAdapter)s. What an adapter only keeps (LoRA-FA's `A`)
/// is not among them. Allocates nothing.
pub fn get_adapter_params<M: Module>(model: &M) -> ParamSet {
    get_params(model).filter(|_, info| info.role == Role::Adapter)
}

/// Makes exactly the adapters' parameters trainable, see [`get_adapter_params`] and [`set_trainable_params`].
pub fn train_adapters<M: Module>(model: M) -> M {
    let adapters = get_adapter_params(&model);
    set_trainable_params(model, &adapters)
}

/// Makes exactly the named parameters trainable and freezes all others. An adapter's dropout acts if one
/// of its parameters is trained. Allocates nothing.
///
/// What is no parameter goes on as before: to stop the running statistics of a `BatchNorm` and the
/// dropout of the base too, call [`Module::freeze`] first.
///
/// Burn's parameters share a lazy value between clones: freezing a clone of a model that is not
/// initialised yet would freeze the original too, so this takes the model itself.
///
/// # Panics
/// If `params` names a parameter that the model does not have.
pub fn set_trainable_params<M: Module>(model: M, params: &ParamSet) -> M {
    let known = get_params(&model);
    if let Some(name) = params.names().find(|name| !known.contains(name)) {
        panic!("the model has no parameter `{name}`");
    }
    let adapters = params.iter().filter(|(_, info)| info.is_adapter());
    model.map(&mut Freezer {
        path: Path::default(),
        trainable: params,
        of_adapters: adapters.map(|(name, _)| name).collect(),
    })
}

/// Gives every parameter that is still lazy its value, in the model's order, so that a device's seed
/// determines the values. [`initialize_adapters`](super::initialize_adapters) gives adapters values that
/// depend on no device.
pub fn initialize_params<M: Module>(model: &M) {
    model.visit(&mut FirstUse {
        packed: packed_ids(model),
    });
}

struct FirstUse {
    /// What has its value, and would be decoded.
    packed: HashSet<ParamId>,
}

impl ModuleVisitor for FirstUse {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.packed.contains(&param.id) {
            param.val();
        }
    }
}

#[derive(Default)]
struct Lister {
    path: Path,
    params: ParamSet,
}

impl ModuleVisitor for Lister {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let info = ParamInfo {
            id: param.id,
            shape: saved_shape(param, &self.path),
            role: self.path.role(),
            is_transposed: self.path.is_burns_weight(),
        };
        let key = self.path.key();
        let before = self.params.0.insert(key.clone(), info);
        assert!(
            before.is_none(),
            "two parameters are called `{key}`; is an adapter called like a part of the model?"
        );
    }
}

struct Freezer<'a> {
    path: Path,
    trainable: &'a ParamSet,
    /// The names of those that are adapters'.
    of_adapters: BTreeSet<&'a str>,
}

impl ModuleMapper for Freezer<'_> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(self.trainable.contains(&self.path.key()))
    }

    /// An adapter drops in training, while one of its parameters is trained.
    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        if self.path.role() == Role::Base {
            return flag;
        }
        let key = self.path.key();
        let adapter = key.strip_suffix("training").unwrap_or(&key);
        let next = self.of_adapters.range(adapter..).next();
        flag.with_value(next.is_some_and(|name| name.starts_with(adapter)))
    }
}

/// How many elements the parameters of a model have, and how many of those are trained.
///
/// ```
/// use burn::tensor::Device;
/// use burn_peft::adapter::ParamCount;
/// use burn_peft::llama::lora_llama2_7b;
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
///
/// let device = Device::default().autodiff();
/// let model = lora_llama2_7b(&LoRAConfig::new([QProj, VProj]), &device);
/// assert_eq!(
///     ParamCount::of(&model).to_string(),
///     "6742609920 total params, 4194304 trainable params, \
///      0.06% of all params are trainable."
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamCount {
    /// The elements of all parameters.
    pub total: usize,
    /// The elements of those that are trained.
    pub trainable: usize,
}

impl ParamCount {
    /// Counts a model's parameters. Allocates nothing.
    pub fn of<M: Module>(model: &M) -> Self {
        let mut counter = Counter(Self {
            total: 0,
            trainable: 0,
        });
        model.visit(&mut counter);
        counter.0
    }
}

/// The names of the parameters that are trained. Allocates nothing.
pub(super) fn trained_names<M: Module>(model: &M) -> HashSet<String> {
    let mut lister = TrainedLister::default();
    model.visit(&mut lister);
    lister.names
}

#[derive(Default)]
struct TrainedLister {
    path: Path,
    names: HashSet<String>,
}

impl ModuleVisitor for TrainedLister {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if is_trainable(param) {
            self.names.insert(self.path.key());
        }
    }
}

struct Counter(ParamCount);

impl ModuleVisitor for Counter {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let elements = param.lazy_shape().num_elements();
        self.0.total += elements;
        if is_trainable(param) {
            self.0.trainable += elements;
        }
    }
}

/// Whether a parameter is, or on a device with autodiff would be, trained.
///
/// Burn keeps this setting beside the value and shows it only through a loaded value: a parameter
/// that is still lazy is asked through a one-element stand-in, so that nothing is allocated for it.
pub(crate) fn is_trainable<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    let stand_in = Tensor::zeros([1; D], &param.lazy_device());
    let loaded = param.clone().transform_for_load(stand_in, param.id);
    loaded.train().is_require_grad()
}

impl fmt::Display for ParamCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.trainable as f64 / self.total.max(1) as f64;
        write!(
            f,
            "{} total params, {} trainable params, {percent:.2}% of all params are trainable.",
            self.total, self.trainable
        )
    }
}
