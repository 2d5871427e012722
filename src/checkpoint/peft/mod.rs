//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

mod base;
mod config;
mod conversion;
mod experts;
mod keys;
mod serving;

pub(super) use serving::{Plain, served_layers};
pub use serving::{Serving, save_peft_for};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use indexmap::IndexMap;
use serde_json::{Map, Value};

use self::base::BaseWeights;
use self::experts::{is_parameter, require_representable};
use self::keys::PeftKeys;
use super::composed::stacked;
use super::keys::{OUTPUT, in_words_of, module_to_hf};
use super::tensors::{SafetensorsFile, WritableTensor, write_tensors};
use super::weights::Weights;
use crate::adapter::{
    LoadReport, StateDict, StateReader, adapter_config, adapter_layers, compare_keys, load_tensors,
    state_readers, transposed,
};
use crate::files::{create_dir, read_text, write_text};
use crate::llama::names::{last_part_to_hf, module_names};
use crate::llama::{TransformerDecoder, for_model};
use crate::lora::{
    AdapterSettings, DEFAULT_ADAPTER, DORA, FULL, Init, LORA, LayerConfig, LoRAConfig, MethodRef,
    Naming, Targets,
};
use crate::{Error, Result};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Reads which layers an adapter folder adapts and how. An embedding or output weight that PEFT has saved beside
/// the adapter is among [`modules_to_keep`](LoRAConfig::modules_to_keep) then, with the size of its vocabulary.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] if a file is malformed, [`Error::Adapter`] if it is
/// not LoRA, uses a setting that this crate does not have, or was set up in a way that changes the base model
/// (CorDA, LoftQ, ...).
pub fn read_peft_config(dir: impl AsRef<Path>) -> Result<LoRAConfig> {
    let dir = dir.as_ref();
    let path = dir.join(CONFIG_FILE);
    let text = read_text(&path)?;
    let fields: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| Error::format(&path, error))?;
    let refused = |message| Error::Adapter {
        path: path.clone(),
        message,
    };
    let mut config = config::parse(&fields).map_err(refused)?;
    add_saved_weights(&mut config, dir)?;
    config
        .validate()
        .map_err(|error| refused(in_words_of(error, &SETTINGS)))?;
    Ok(config)
}

/// Names of settings: ours, PEFT's.
const SETTINGS: [(&str, &str); 6] = [
    ("rank", "r"),
    ("alpha", "lora_alpha"),
    ("dropout", "lora_dropout"),
    ("targets", "target_modules"),
    ("exclude", "exclude_modules"),
    ("layers", "layers_to_transform"),
];

/// Weights of embedding and output that stand in the file.
fn add_saved_weights(config: &mut LoRAConfig, dir: &Path) -> Result<()> {
    let path = weights_file(dir)?;
    if path.exists() {
        let shapes = SafetensorsFile::open(path)?.shapes();
        let shapes = shapes
            .iter()
            .map(|(name, shape)| (name.as_str(), &shape[..]));
        base::add_saved_weights(config, shapes);
    }
    Ok(())
}

/// Puts an adapter folder on a model that is there already, loaded or not, and lets it act. Everything but the
/// adapter is frozen.
///
/// ```no_run
/// use burn::tensor::Device;
/// use burn_peft::checkpoint::{attach_peft, load_hf, read_hf_config};
///
/// # fn main() -> burn_peft::Result<()> {
/// let mut model = read_hf_config("Llama-2-7b-hf")?.init(&Device::default());
/// load_hf(&mut model, "Llama-2-7b-hf")?;
/// attach_peft(&mut model, "adapter")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`read_peft_config`] and [`load_peft`]; the model has no adapter of this name more than before then.
pub fn attach_peft(model: &mut TransformerDecoder, dir: impl AsRef<Path>) -> Result<LoadReport> {
    attach_peft_as(model, dir, DEFAULT_ADAPTER)
}

/// [`attach_peft`] under a name of the adapter's own: a model can hold several.
///
/// # Errors
/// See [`attach_peft`].
pub fn attach_peft_as(
    model: &mut TransformerDecoder,
    dir: impl AsRef<Path>,
    name: &str,
) -> Result<LoadReport> {
    let dir = dir.as_ref();
    let config = read_peft_config(dir)?;
    let adapted = model.clone().with_named_adapters(&config, name);
    let mut adapted = adapted.map_err(|error| Error::Adapter {
        path: dir.join(CONFIG_FILE),
        message: in_words_of(error, &SETTINGS),
    })?;
    let report = load_named(&mut adapted, dir, name)?;
    *model = adapted;
    Ok(report)
}

/// Loads an adapter folder into a model that was built for it, in f32.
///
/// PEFT saves the base weight of an adapted embedding or output too, and of one that is trained as a whole or by rows:
/// where the model computes with it, it replaces the model's, as when PEFT loads the folder, in the base's type. The
/// report names it among what was loaded, and [`save_peft`] writes it again. A vocabulary of another size than the base's
/// resizes the base, as PEFT's users do by `resize_token_embeddings`: rows that the folder does not have are the mean of
/// the others.
///
/// # Errors
/// [`Error::Adapter`] if the folder's configuration differs from the model's adapters,
/// [`Error::Keys`] if a tensor is missing or matches nothing, [`Error::Shape`] if the adapter is
/// for another model, [`Error::DType`] if a tensor is not of f32, f16 or bf16, and the errors of
/// [`read_peft_config`] and
/// [`SafetensorsFile::open`]. The model is unchanged then.
pub fn load_peft(model: &mut TransformerDecoder, dir: impl AsRef<Path>) -> Result<LoadReport> {
    let dir = dir.as_ref();
    let config = read_peft_config(dir)?;
    check_config(model, &config, "the folder").map_err(|differs| Error::Adapter {
        path: dir.join(CONFIG_FILE),
        message: format!("{differs}; model and adapter folder must have the same configuration"),
    })?;
    load_named(model, dir, DEFAULT_ADAPTER)
}

fn load_named(model: &mut TransformerDecoder, dir: &Path, name: &str) -> Result<LoadReport> {
    require_known_shift(model, dir, name)?;
    let path = weights_file(dir)?;
    let origin = path.display().to_string();
    let keys = PeftKeys::of(model, name);
    let base = BaseWeights {
        model,
        adapter: name,
    };
    let own = |name: &str| {
        let own = keys.ours(name).or_else(|| base.ours(name));
        own.or_else(|| keys.of_tied_output(name))
    };
    let mut weights = Weights::open([path], own, model.config.tie_embeddings)?;
    keys.compose(&mut weights);
    let mut report =
        compare_keys(model, &origin, weights.shapes()).map_err(|error| weights.locate(error))?;
    report.missing.retain(|key| keys.theirs(key).is_some());
    require_tied_factors(&report.unexpected, &keys, &weights)?;
    report.unexpected.retain(|name| !keys.is_passed_over(name));
    report.renamed(|key| keys.theirs(key)).require_complete()?;
    let is_base = |key: &&String| keys.theirs(key).is_none();
    let changed: Vec<String> = report.loaded.iter().filter(is_base).cloned().collect();
    let shifts: BTreeMap<String, TensorData> = base.shifts_lost(&changed).into_iter().collect();
    let base_dtype = (!changed.is_empty()).then(|| model.tok_embeddings.weight.val().dtype());
    let all: Vec<String> = report.loaded.iter().chain(shifts.keys()).cloned().collect();
    load_tensors(model, &all, |key| {
        if let Some(zeros) = shifts.get(key) {
            return Ok(zeros.clone());
        }
        let base_dtype = base_dtype.filter(|_| keys.theirs(key).is_none());
        weights.read(key, |_| base_dtype.unwrap_or(DType::F32))
    })?;
    model.changed_base.extend(changed);
    Ok(report)
}

fn require_known_shift(model: &TransformerDecoder, dir: &Path, name: &str) -> Result<()> {
    let config = adapter_config(model, name);
    match config.is_some_and(|config| matches!(config.init, Init::PissaRandomized { .. })) {
        false => Ok(()),
        true => Err(Error::Adapter {
            path: dir.join(CONFIG_FILE),
            message: RANDOM_SHIFT.into(),
        }),
    }
}

/// One pair of factors stands in the file under two names, turned over, where it is embedding's and output's.
fn require_tied_factors(names: &[String], keys: &PeftKeys, weights: &Weights) -> Result<()> {
    for name in names {
        let Some(ours) = keys.turned_over(name) else {
            continue;
        };
        let read = |key: &str| weights.read(key, |_| DType::F32);
        if transposed(read(name)?) != read(ours)? {
            let message = format!(
                "`{name}` differs from the embedding's factor, though ensure_weight_tying says that they are one; set \
                 that to false for an adapter of each"
            );
            return Err(weights.refuse(name, message));
        }
    }
    Ok(())
}

/// The file with an adapter's tensors.
fn weights_file(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(WEIGHTS_FILE);
    let pickle = dir.join("adapter_model.bin");
    match !path.exists() && pickle.exists() {
        true => Err(Error::format(
            pickle,
            format!("pickled tensors are not read; save the adapter again as {WEIGHTS_FILE}"),
        )),
        false => Ok(path),
    }
}

/// The settings of the model's adapters, by layer.
type LayerConfigs = IndexMap<String, LayerConfig>;

fn settings_of_model(model: &TransformerDecoder, adapter: &str) -> LayerConfigs {
    let layers = adapter_layers(model, adapter).into_iter();
    layers
        .map(|(path, adapter)| (path, adapter.layer_config()))
        .collect()
}

/// What a configuration would put on the model.
fn settings_by(model: &TransformerDecoder, config: &LoRAConfig) -> Result<LayerConfigs> {
    let config = for_model(config, &model.config)?;
    let plan = crate::adapter::plan(model, &config, module_names)?;
    Ok(plan.into_iter().collect())
}

/// The model's adapters must be where the configuration says, and be what it says. `other` is where the
/// configuration is from, in words.
pub(super) fn check_config(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    other: &str,
) -> Result<(), String> {
    let found = settings_of_model(model, DEFAULT_ADAPTER);
    let expected = settings_by(model, config).map_err(|error| error.to_string())?;
    for (path, settings) in &found {
        match expected.get(path) {
            None => return Err(format!("the model adapts `{path}`, {other} does not")),
            Some(expected) => check_settings(path, settings, expected, other)?,
        }
    }
    match expected.keys().find(|path| !found.contains_key(*path)) {
        Some(path) => Err(format!("{other} adapts `{path}`, the model does not")),
        None => Ok(()),
    }
}

fn check_settings(
    path: &str,
    found: &LayerConfig,
    expected: &LayerConfig,
    other: &str,
) -> Result<(), String> {
    if found.method != expected.method {
        let (found, expected) = (found.method, expected.method);
        return Err(format!(
            "the model uses {found:?} on `{path}`, {other} {expected:?}"
        ));
    }
    if found.method == MethodRef(&FULL) {
        return Ok(());
    }
    let (found, expected) = (&found.settings, &expected.settings);
    if found.rank != expected.rank {
        let (found, expected) = (found.rank, expected.rank);
        return Err(format!(
            "the model has rank {found} on `{path}`, {other} {expected}"
        ));
    }
    if !is_same(found.scale(), expected.scale()) {
        let (found, expected) = (found.scale(), expected.scale());
        return Err(format!(
            "the model scales by {found} on `{path}`, {other} by {expected}"
        ));
    }
    let others = |settings: &AdapterSettings| {
        let (bias, rows) = (settings.trains_bias, settings.token_indices.clone());
        (settings.lora_bias, bias, rows)
    };
    match others(found) == others(expected) {
        true => Ok(()),
        false => Err(format!(
            "the model trains other biases or tokens of `{path}` than {other}"
        )),
    }
}

/// Equal but for the last digits, which a number may lose on its way through a file.
fn is_same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
}

/// Writes the model's adapters as a folder that PEFT loads, with the embedding or output weight that
/// [`load_peft`] took from such a folder.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written; [`Error::Adapter`] if `config` is not the one
/// that the model was built with, a method is none of PEFT's, or a model lies in the folder.
pub fn save_peft(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    dir: impl AsRef<Path>,
) -> Result<()> {
    check_given(model, config, dir.as_ref())?;
    save(
        model,
        DEFAULT_ADAPTER,
        None,
        BaseShift::Converted,
        dir.as_ref(),
    )
}

/// [`save_peft`], with the name or path of the base model for those who load the adapter alone.
///
/// # Errors
/// See [`save_peft`].
pub fn save_peft_with_base(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    base_model: &str,
    dir: impl AsRef<Path>,
) -> Result<()> {
    check_given(model, config, dir.as_ref())?;
    save(
        model,
        DEFAULT_ADAPTER,
        Some(base_model),
        BaseShift::Converted,
        dir.as_ref(),
    )
}

/// The names in PEFT's files of a model's adapter parameters, by state-dict key. Those of all experts of a layer are one
/// tensor there: [`peft_tensors`] makes it.
pub fn peft_names(model: &TransformerDecoder, adapter: &str) -> BTreeMap<String, String> {
    PeftKeys::of(model, adapter).into_theirs()
}

/// Values of a model's adapter parameters, or their gradients, by state-dict key, as the tensors of PEFT's files.
pub fn peft_tensors(model: &TransformerDecoder, adapter: &str, values: StateDict) -> StateDict {
    PeftKeys::of(model, adapter).tensors(values)
}

/// Writes the adapter of a name as a folder that PEFT loads, by the configuration that it was made with.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written; [`Error::Adapter`] if the model has no such adapter, its
/// method is none of PEFT's, or a model lies in the folder.
pub fn save_peft_adapter(
    model: &TransformerDecoder,
    name: &str,
    base_model: Option<&str>,
    dir: impl AsRef<Path>,
) -> Result<()> {
    save(model, name, base_model, BaseShift::Converted, dir.as_ref())
}

/// [`save_peft_adapter`], in which an adapter that begins with a part of its base (PiSSA, OLoRA) is not converted to a
/// plain one of twice the rank: as in PEFT, who loads it takes the part off the base again, by decomposing its weights.
///
/// # Errors
/// See [`save_peft_adapter`]; [`Error::Adapter`] for a randomised PiSSA, of which another decomposition finds
/// another part, and for an output that begins with a part of the embedding's weight, which PEFT would take off both.
pub fn save_peft_unconverted(
    model: &TransformerDecoder,
    name: &str,
    base_model: Option<&str>,
    dir: impl AsRef<Path>,
) -> Result<()> {
    save(model, name, base_model, BaseShift::Repeated, dir.as_ref())
}

/// What becomes of the part of the base that an adapter begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BaseShift {
    /// It is a part of the saved adapter.
    Converted,
    /// Who loads the adapter finds it again.
    Repeated,
}

const SHIFTED_EMBEDDING: &str = "the adapter begins with a part of a weight that is the embedding's too; PEFT would take \
     that part off both, so convert it to plain LoRA (`save_peft_adapter`)";
const SHIFTED_PARAMETER: &str = "the adapter begins with a part of the weights of experts, of which PEFT takes none; \
     convert it to plain LoRA (`save_peft_adapter`)";
const RANDOM_SHIFT: &str = "the adapter begins with a part of its base that random vectors found (`pissa_niter_N`), \
     which nobody finds again; convert it to plain LoRA where it was made";

/// A tensor of a folder.
enum PeftTensor {
    Parameter(StateReader),
    Value(TensorData),
    /// A factor of all experts of a layer, `B` or `A`.
    Stack {
        is_b: bool,
        parts: Vec<Self>,
    },
}

impl PeftTensor {
    fn read(&self) -> TensorData {
        match self {
            Self::Parameter(reader) => reader.read(),
            Self::Value(value) => value.clone(),
            Self::Stack { is_b, parts } => stacked(*is_b, parts.iter().map(Self::read).collect()),
        }
    }
}

impl WritableTensor for PeftTensor {
    fn dtype(&self) -> DType {
        match self {
            Self::Parameter(reader) => reader.dtype(),
            Self::Value(value) => value.dtype(),
            Self::Stack { parts, .. } => parts[0].dtype(),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Parameter(reader) => reader.shape.clone(),
            Self::Value(value) => value.shape().to_vec(),
            Self::Stack { is_b, parts } => {
                let mut shape = parts[0].shape();
                shape[usize::from(*is_b)] *= parts.len();
                shape
            }
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Parameter(reader) => WritableTensor::bytes(reader),
            Self::Value(value) => Cow::Borrowed(value.as_bytes()),
            Self::Stack { .. } => Cow::Owned(self.read().as_bytes().to_vec()),
        }
    }
}

fn check_given(model: &TransformerDecoder, config: &LoRAConfig, dir: &Path) -> Result<()> {
    check_config(model, config, "the LoRAConfig given").map_err(|differs| Error::Adapter {
        path: dir.to_owned(),
        message: format!("{differs}; give the one that the model was built with"),
    })
}

fn save(
    model: &TransformerDecoder,
    name: &str,
    base_model: Option<&str>,
    base_shift: BaseShift,
    dir: &Path,
) -> Result<()> {
    let refused = |message: String| Error::Adapter {
        path: dir.to_owned(),
        message,
    };
    let config = adapter_config(model, name)
        .ok_or_else(|| refused(format!("the model has no adapter `{name}` to save")))?;
    if ![MethodRef(&LORA), MethodRef(&DORA)].contains(&config.method) {
        let message = format!(
            "PEFT has no method `{:?}`; keep the adapter by `Adapter::of`, or merge it",
            config.method
        );
        return Err(refused(message));
    }
    require_representable(model, name).map_err(refused)?;
    let mut config = in_hf_names(model, name, &config)?;
    let is_converted = base_shift == BaseShift::Converted && config.init.shifts_base();
    if is_converted {
        config = conversion::config(&config, &settings_of_model(model, name));
    } else if matches!(config.init, Init::PissaRandomized { .. }) {
        return Err(refused(RANDOM_SHIFT.into()));
    }
    if config.init.shifts_base() && !config.target_parameters.is_empty() {
        return Err(refused(SHIFTED_PARAMETER.into()));
    }
    let text = serde_json::to_string_pretty(&config::to_json(&config, base_model))
        .expect("a JSON value serialises");
    let base = BaseWeights {
        model,
        adapter: name,
    };
    if !is_converted && base.shifts_embedding() {
        return Err(refused(SHIFTED_EMBEDDING.into()));
    }
    let tensors = tensors_of(&base, is_converted);
    require_no_model(dir)?;
    create_dir(dir)?;
    write_tensors(tensors, &dir.join(WEIGHTS_FILE))?;
    write_text(&dir.join(CONFIG_FILE), &text)
}

/// The tensors of an adapter's folder by name.
fn tensors_of(base: &BaseWeights<'_>, is_converted: bool) -> IndexMap<String, PeftTensor> {
    let (model, name) = (base.model, base.adapter);
    let keys = PeftKeys::of(model, name);
    let mut converted = match is_converted {
        true => conversion::factors(model, name),
        false => HashMap::new(),
    };
    let mut named = IndexMap::new();
    for reader in state_readers(model) {
        let beside = || base.theirs(&reader.key);
        let Some(name) = keys.theirs(&reader.key).or_else(beside) else {
            continue;
        };
        // PEFT asks for both names of one weight.
        if let Some((other, value)) = keys.also_of_output(&reader) {
            named.insert(other, PeftTensor::Value(value));
        }
        let shifted = (reader.key == OUTPUT && !is_converted).then(|| base.shifted_output());
        let new = converted.remove(&reader.key).or(shifted.flatten());
        let value = match new {
            Some(value) => PeftTensor::Value(value),
            None => PeftTensor::Parameter(reader),
        };
        insert(&mut named, &keys, name, value);
    }
    named
}

/// Adds a tensor of a folder, or to one that has those of all experts.
fn insert(
    named: &mut IndexMap<String, PeftTensor>,
    keys: &PeftKeys,
    name: String,
    value: PeftTensor,
) {
    let Some(is_b) = keys.stack(&name).map(|stack| stack.is_b) else {
        named.insert(name, value);
        return;
    };
    let parts = Vec::new();
    let stack = named.entry(name);
    if let PeftTensor::Stack { parts, .. } = stack.or_insert(PeftTensor::Stack { is_b, parts }) {
        parts.push(value);
    }
}

/// transformers takes a folder with both for an adapter, and a model that is merged is not saved beside one.
pub(super) fn require_no_model(dir: &Path) -> Result<()> {
    let files = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ];
    match files.map(|file| dir.join(file).exists()) {
        [true, true, _] | [true, _, true] => Err(Error::Adapter {
            path: dir.to_owned(),
            message: "a model lies in this folder; save the adapter in another".into(),
        }),
        _ => Ok(()),
    }
}

/// The same configuration in Hugging Face's words: name by name where that means the same on this model, else with
/// the whole path of every adapted layer.
fn in_hf_names(model: &TransformerDecoder, name: &str, config: &LoRAConfig) -> Result<LoRAConfig> {
    if config.naming == Naming::HuggingFace {
        return Ok(config.clone());
    }
    let found = settings_of_model(model, name);
    let translated = translated(config);
    // None if that would name gate without up.
    let translated = for_model(&translated, &model.config).ok();
    let is_right = |translated: &LoRAConfig| {
        settings_by(model, translated).is_ok_and(|by| is_alike(&found, &by))
    };
    Ok(match translated.filter(|translated| is_right(translated)) {
        Some(translated) => translated.into_owned(),
        None => by_paths(model, config, &found),
    })
}

fn is_alike(found: &LayerConfigs, other: &LayerConfigs) -> bool {
    let alike = |(path, own): (&String, &LayerConfig)| {
        other
            .get(path)
            .is_some_and(|other| check_settings(path, own, other, "").is_ok())
    };
    found.len() == other.len() && found.iter().all(alike)
}

/// The same configuration with Hugging Face's names in the place of ours, name by name.
pub(crate) fn translated(config: &LoRAConfig) -> LoRAConfig {
    let name = |name: &String| match (last_part_to_hf(name), module_to_hf(name)) {
        (_, Some(path)) if name.contains('.') => path,
        (Some(last), _) => last.to_owned(),
        _ => name.clone(),
    };
    let targets = |targets: &Targets| match targets {
        Targets::Names(names) => Targets::names(names.iter().map(name)),
        other => other.clone(),
    };
    let mut new = config.clone();
    new.naming = Naming::HuggingFace;
    new.targets = targets(&config.targets);
    new.exclude = config.exclude.as_ref().map(targets);
    new.modules_to_save = config.modules_to_save.iter().map(name).collect();
    new.modules_to_keep = config.modules_to_keep.iter().map(name).collect();
    let keys = |(key, value): (&String, &usize)| (name(key), *value);
    new.rank_pattern = config.rank_pattern.iter().map(keys).collect();
    let keys = |(key, value): (&String, &f64)| (name(key), *value);
    new.alpha_pattern = config.alpha_pattern.iter().map(keys).collect();
    let rows = config.trainable_token_indices.iter();
    new.trainable_token_indices = rows.map(|(key, ids)| (name(key), ids.clone())).collect();
    new
}

fn by_paths(model: &TransformerDecoder, config: &LoRAConfig, found: &LayerConfigs) -> LoRAConfig {
    let path = |ours: &str| {
        let name = match is_parameter(model, ours) {
            true => module_names(ours).parameter,
            false => module_to_hf(ours),
        };
        name.expect("an adapted layer has a name")
    };
    let of_method = found.iter().filter(|(_, own)| own.method == config.method);
    let own = || of_method.clone().map(|(path, own)| (path, &own.settings));
    let mut new = translated(config);
    let paths = |of_parameters: bool| {
        let paths = own().filter(|(ours, _)| is_parameter(model, ours) == of_parameters);
        let paths: BTreeSet<String> = paths.map(|(ours, _)| path(ours)).collect();
        paths.into_iter().collect()
    };
    new.targets = Targets::Names(paths(false));
    new.target_parameters = paths(true);
    (new.exclude, new.layers) = (None, None);
    let ranks = own().filter(|(_, settings)| settings.rank != config.rank);
    new.rank_pattern = ranks.map(|(ours, s)| (path(ours), s.rank)).collect();
    let alphas = own().filter(|(_, settings)| settings.alpha != config.alpha);
    new.alpha_pattern = alphas.map(|(ours, s)| (path(ours), s.alpha)).collect();
    new
}
