use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{AllocationProperty, DType, Device, Int, Tensor, TensorData};
use indexmap::IndexSet;
use replace_with::replace_with_or_abort;

use super::layout::{is_transposed, saved_shape, transposed};
use super::params::get_params;
use super::path::{Path, Role, follow_path};
use super::quantize::{packed_layouts, packed_weights};
use crate::error::nearest;
use crate::lora::{DEFAULT_ADAPTER, edit_layers, key_prefix};
use crate::quantization::{PackedLayout, quantize};
use crate::weight::{PackedWeight, lasting_words, packed_words};
use crate::{Error, Result};

/// Values by full name, on the host. The weight of a linear layer is `[out, in]`, as in PyTorch: that of this crate's
/// layers as it is, that of a [`burn::nn::Linear`], which has `[in, out]`, transposed.
pub type StateDict = BTreeMap<String, TensorData>;

/// What a load did and did not find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Where the values came from.
    pub origin: String,
    /// Keys of the model that were loaded.
    pub loaded: Vec<String>,
    /// Keys of the model that the source did not have.
    pub missing: Vec<String>,
    /// Keys of the source that the model does not have.
    pub unexpected: Vec<String>,
    /// Keys of the model, among those above, of what an adapter keeps and does not train: LoRA-FA's `A`, or what
    /// PiSSA began with.
    pub kept: Vec<String>,
}

impl LoadReport {
    /// Turns missing and unexpected keys into an error.
    ///
    /// # Errors
    /// [`Error::Keys`] with every such key, and for an unexpected one the nearest key of the model:
    /// if possible one that the source did not have.
    pub fn require_complete(&self) -> Result<()> {
        if self.missing.is_empty() && self.unexpected.is_empty() {
            return Ok(());
        }
        let among = |key: &str, keys: &[String]| {
            let keys = keys.iter().map(String::as_str);
            nearest(key, keys, 1).pop()
        };
        let candidate = |key: &str| {
            let missing = among(key, &self.missing);
            missing.or_else(|| among(key, &self.loaded))
        };
        let with_nearest = |key: &String| (key.clone(), candidate(key));
        Err(Error::Keys {
            origin: self.origin.clone(),
            missing: self.missing.clone(),
            unexpected: self.unexpected.iter().map(with_nearest).collect(),
        })
    }

    /// The same report with other names, for errors in the words of the source; a key without
    /// another name keeps its own. A name that several keys have is there once.
    pub(crate) fn renamed(&self, name: impl Fn(&str) -> Option<String>) -> Self {
        let rename = |key: &String| name(key).unwrap_or_else(|| key.clone());
        let all = |keys: &[String]| {
            let names: IndexSet<String> = keys.iter().map(rename).collect();
            names.into_iter().collect()
        };
        Self {
            origin: self.origin.clone(),
            loaded: all(&self.loaded),
            missing: all(&self.missing),
            unexpected: all(&self.unexpected),
            kept: all(&self.kept),
        }
    }
}

/// A parameter that can be read to the host when its turn comes.
pub struct StateReader {
    /// The full name.
    pub key: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// Whether it belongs to the base or to an adapter.
    pub role: Role,
    dtype: Box<dyn Fn() -> DType>,
    read: Box<dyn Fn() -> TensorData>,
    packed: Option<PackedWeight>,
}

impl StateReader {
    /// Whether the parameter belongs to an adapter.
    pub fn is_adapter(&self) -> bool {
        self.role != Role::Base
    }

    /// The type of the elements. Initialises a lazy parameter.
    pub fn dtype(&self) -> DType {
        (self.dtype)()
    }

    /// Reads the value. Initialises a lazy parameter; the numbers of a packed weight are decoded, and not kept.
    pub fn read(&self) -> TensorData {
        (self.read)()
    }

    /// The weight, if it is packed.
    pub(crate) fn packed(&self) -> Option<&PackedWeight> {
        self.packed.as_ref()
    }

    /// The same of what `f` makes of the value, whose type it keeps.
    pub(crate) fn mapped(
        self,
        key: String,
        shape: Vec<usize>,
        f: impl Fn(TensorData) -> TensorData + 'static,
    ) -> Self {
        Self {
            key,
            shape,
            packed: None,
            role: self.role,
            dtype: self.dtype,
            read: Box::new(move || f((self.read)())),
        }
    }

    /// The same of a packed weight: the parameter that visitors see would keep the numbers for as long as there are
    /// readers.
    fn of_packed(self, weight: PackedWeight) -> Self {
        let values = weight.clone();
        Self {
            dtype: Box::new(|| DType::F32),
            read: Box::new(move || to_host(values.val())),
            packed: Some(weight),
            ..self
        }
    }
}

/// Readers for all float parameters, in the model's order. Nothing is copied before a reader is
/// asked, so a model can be written tensor by tensor.
pub fn state_readers<M: Module>(model: &M) -> Vec<StateReader> {
    let mut collector = Collector::default();
    model.visit(&mut collector);
    let mut packed = packed_weights(model);
    let readers = collector.readers.into_iter();
    let readers = readers.map(|reader| match packed.remove(&reader.key) {
        Some(weight) => reader.of_packed(weight),
        None => reader,
    });
    readers.collect()
}

/// A copy of all float parameters of a module on the host.
pub fn state_dict<M: Module>(model: &M) -> StateDict {
    collect(model, |_| true)
}

/// A copy of the adapters' parameters on the host.
pub fn adapter_state_dict<M: Module>(model: &M) -> StateDict {
    collect(model, StateReader::is_adapter)
}

/// Loads values into a module by name, in the dtype that they have.
///
/// With `strict`, every key of the model must be there and no other. Otherwise the report says
/// which were not. DoRA's magnitudes that the dict does not have become the row norms of the
/// weights that it has.
///
/// # Errors
/// [`Error::Keys`] if `strict` and the keys differ; [`Error::Shape`] if a value has another shape
/// than its parameter; [`Error::DType`] if a value is not of floats, [`Error::InvalidArgument`] if
/// it is of floats that the device cannot compute in. The model is unchanged then.
pub fn load_state_dict<M: Module>(
    model: &mut M,
    values: &StateDict,
    strict: bool,
) -> Result<LoadReport> {
    let origin = "state dict";
    let shapes = values.iter().map(|(k, v)| (k.as_str(), &v.shape()[..]));
    let report = compare_keys(model, origin, shapes)?;
    if strict {
        report.require_complete()?;
    }
    let device = model.devices().into_iter().next().unwrap_or_default();
    for key in &report.loaded {
        require_weight(&device, origin, key, values[key].dtype())?;
    }
    load_tensors(model, &report.loaded, |key| Ok(values[key].clone()))?;
    Ok(report)
}

fn require_weight(device: &Device, origin: &str, key: &str, dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return require_dtype(device, dtype);
    }
    Err(Error::DType {
        origin: origin.to_owned(),
        key: key.to_owned(),
        found: format!("{dtype:?}"),
    })
}

/// Checks that a device can compute in a type of float: making such a tensor would panic.
///
/// # Errors
/// [`Error::InvalidArgument`] if it cannot.
pub(crate) fn require_dtype(device: &Device, dtype: DType) -> Result<()> {
    let message = match dtype {
        DType::F32 | DType::F16 | DType::BF16 if device.supports_dtype(dtype) => return Ok(()),
        DType::F32 | DType::F16 | DType::BF16 => {
            format!("this device cannot compute in {dtype:?}; choose f32")
        }
        _ => format!("weights are of f32, f16 or bf16, not {dtype:?}"),
    };
    Err(Error::InvalidArgument {
        name: "dtype",
        message,
    })
}

/// Compares a source's keys and shapes with a model's. Touches no value.
///
/// # Errors
/// [`Error::Shape`] at the first tensor whose shape differs.
pub(crate) fn compare_keys<'a, M: Module>(
    model: &M,
    origin: &str,
    source: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<LoadReport> {
    let params = get_params(model);
    let source: BTreeMap<&str, &[usize]> = source.into_iter().collect();
    let mut report = LoadReport {
        origin: origin.to_owned(),
        ..Default::default()
    };
    for (key, info) in params.iter() {
        if info.role == Role::KeptByAdapter {
            report.kept.push(key.to_owned());
        }
        match source.get(key) {
            None => report.missing.push(key.to_owned()),
            Some(found) if **found == info.shape => report.loaded.push(key.to_owned()),
            Some(found) => {
                return Err(Error::Shape {
                    origin: origin.to_owned(),
                    key: key.to_owned(),
                    expected: info.shape.clone(),
                    found: found.to_vec(),
                });
            }
        }
    }
    let unknown = source.keys().filter(|key| !params.contains(key));
    report.unexpected = unknown.map(|key| key.to_string()).collect();
    Ok(report)
}

/// Gives the named parameters new values, one after the other, each read when its turn comes. An
/// old value is dropped before the new one is made. Numbers for a packed weight are packed as it is; it also takes the
/// words of its layout, in U32.
///
/// A panic in `read` ends the process: the model is in pieces then.
///
/// # Errors
/// The first error of `read`, or [`Error::Shape`] if a value has another shape than its parameter.
/// Parameters from that one on keep their old values.
pub fn load_tensors<M: Module>(
    model: &mut M,
    keys: &[String],
    read: impl FnMut(&str) -> Result<TensorData>,
) -> Result<()> {
    let mut loader = Loader {
        path: Path::default(),
        packed: packed_layouts(model),
        keys: keys.iter().map(String::as_str).collect(),
        read,
        loaded: HashSet::new(),
        error: None,
    };
    // A clone would keep every old value alive until the last new one is there.
    replace_with_or_abort(model, |model| model.map(&mut loader));
    let Loader { loaded, error, .. } = loader;
    let left_out = LeftOut {
        keys: keys.iter().cloned().collect(),
        loaded,
    };
    replace_with_or_abort(model, |model| follow_layers(model, left_out));
    error.map_or(Ok(()), Err)
}

/// Which of an adapter's parameters follow from a layer that was loaded without them.
struct LeftOut {
    /// What was asked for.
    keys: HashSet<String>,
    loaded: HashSet<String>,
}

/// Lets what follows from a layer's own parameters, such as DoRA's magnitude, follow from the loaded ones.
fn follow_layers<M: Module>(model: M, left_out: LeftOut) -> M {
    let LeftOut { keys, loaded } = left_out;
    edit_layers(model, move |place, layer| {
        let prefix = key_prefix(place.base_path, DEFAULT_ADAPTER);
        let own = ["weight", "bias"].map(|name| format!("{prefix}{name}"));
        if !own.iter().any(|key| loaded.contains(key)) {
            return;
        }
        for (prefix, adapter) in layer.slot_mut().keyed_mut(place.path) {
            let is_new = |name: &str| !keys.contains(&format!("{prefix}{name}"));
            adapter.follow_layer(&place.params, is_new);
        }
    })
}

fn collect<M: Module>(model: &M, keep: impl Fn(&StateReader) -> bool) -> StateDict {
    let readers = state_readers(model).into_iter().filter(keep);
    readers.map(|r| (r.key.clone(), r.read())).collect()
}

/// A copy on the host. Burn's GPU backends put the copying off until the numbers are looked at: they
/// would then find those that an update has meanwhile written in their place, and keep the device's
/// memory until the data are dropped.
pub(crate) fn to_host<const D: usize>(tensor: Tensor<D>) -> TensorData {
    let data = tensor.into_data();
    match data.bytes().property() {
        AllocationProperty::Device => data.clone(),
        _ => data,
    }
}

/// A tensor that stays, such as a weight: on a GPU it should not lie between what comes and goes in each
/// step.
pub(crate) fn lasting_tensor<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    let dtype = data.dtype();
    let new = |data| Tensor::from_data(data, (device, dtype));
    device.memory_persistent_allocations(data, new)
}

#[derive(Default)]
struct Collector {
    path: Path,
    readers: Vec<StateReader>,
}

impl ModuleVisitor for Collector {
    follow_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (for_dtype, for_value) = (param.clone(), param.clone());
        let is_transposed = is_transposed(param, &self.path);
        self.readers.push(StateReader {
            key: self.path.key(),
            shape: saved_shape(param, &self.path),
            role: self.path.role(),
            dtype: Box::new(move || for_dtype.val().dtype()),
            read: Box::new(move || {
                let data = to_host(for_value.transform_for_save().val());
                match is_transposed {
                    true => transposed(data),
                    false => data,
                }
            }),
            packed: None,
        });
    }
}

fn of_shape(data: TensorData, expected: &[usize], key: &str) -> Result<TensorData> {
    match data.shape()[..] == *expected {
        true => Ok(data),
        false => Err(Error::Shape {
            origin: "the values to load".to_owned(),
            key: key.to_owned(),
            expected: expected.to_vec(),
            found: data.shape().to_vec(),
        }),
    }
}

struct Loader<'a, F> {
    path: Path,
    packed: HashMap<String, PackedLayout>,
    keys: HashSet<&'a str>,
    read: F,
    loaded: HashSet<String>,
    error: Option<Error>,
}

impl<F: FnMut(&str) -> Result<TensorData>> Loader<'_, F> {
    fn load<const D: usize>(&mut self, key: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = saved_shape(&param, &self.path);
        let data = (self.read)(&key).and_then(|data| of_shape(data, &shape, &key));
        match data {
            Ok(data) => {
                self.loaded.insert(key);
                let data = match is_transposed(&param, &self.path) {
                    true => transposed(data),
                    false => data,
                };
                let value = lasting_tensor(data, &param.lazy_device());
                let id = param.id;
                param.transform_for_load(value, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }

    /// The words of a packed weight.
    fn read_words(&mut self, key: &str, layout: PackedLayout) -> Result<TensorData> {
        let data = (self.read)(key)?;
        let count = layout.num_bytes() / size_of::<u32>();
        if data.dtype() == DType::U32 {
            return of_shape(data, &[count], key);
        }
        let data = of_shape(data, &layout.shape(), key)?.convert::<f32>();
        let values = data.as_slice::<f32>().expect("values of f32");
        let bytes = quantize(values, layout).map_err(|error| Error::InvalidArgument {
            name: "values",
            message: format!("`{key}`: {error}"),
        })?;
        Ok(packed_words(&bytes))
    }
}

impl<F: FnMut(&str) -> Result<TensorData>> ModuleMapper for Loader<'_, F> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let key = self.path.key();
        match self.error.is_none() && self.keys.contains(key.as_str()) {
            true => self.load(key, param),
            false => param,
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let key = self.path.key();
        let layout = self.packed.get(&key).copied();
        let Some(layout) = layout.filter(|_| self.error.is_none() && self.keys.contains(&*key))
        else {
            return param;
        };
        match self.read_words(&key, layout) {
            Ok(words) => {
                self.loaded.insert(key);
                let (value, id) = (lasting_words(words, &param.lazy_device()), param.id);
                param.transform_for_load(value, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
