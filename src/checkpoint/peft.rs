//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde_json::{Map, Value, json};

use super::keys;
use super::tensors::{SafetensorsFile, write_tensors};
use super::weights::Weights;
use crate::adapter::{LoadReport, compare_keys, get_adapter_params, load_tensors, state_readers};
use crate::files::{create_dir, read_text, write_text};
use crate::llama::TransformerDecoder;
use crate::lora::{AttnModule, LoRAAdapter, LoRAConfig, MlpModule};
use crate::{Error, Result};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const ALL_LINEAR: &str = "all-linear";

/// Settings of PEFT that are read here, or that say nothing about what a trained adapter computes. Any
/// other must be absent, null, false or empty.
const KNOWN: [&str; 26] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

/// Settings of PEFT 0.21 that are not read here and change what an adapter computes.
const CHANGE_OUTPUTS: [&str; 14] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// Reads which layers an adapter folder adapts and how, to build a model for it by
/// [`LlamaConfig::init_lora`](crate::llama::LlamaConfig::init_lora). Where the configuration has a pattern
/// for the layers' names, or excludes some, they are those that have tensors.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] if a file is malformed, [`Error::Adapter`] if it is
/// not LoRA on a Llama-like model, uses a setting that this crate does not have, or was set up in a
/// way that changes the base model (PiSSA, OLoRA, ...).
pub fn read_peft_config(dir: impl AsRef<Path>) -> Result<LoRAConfig> {
    let path = dir.as_ref().join(CONFIG_FILE);
    let text = read_text(&path)?;
    let mut fields: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| Error::format(&path, error))?;
    let refused = |message| Error::Adapter {
        path: path.clone(),
        message,
    };
    let excludes = fields.get("exclude_modules").is_some_and(is_set);
    let targets = fields.get_mut("target_modules");
    if let Some(targets) = targets.filter(|targets| excludes || is_pattern(targets)) {
        let adapted = adapted_modules(dir.as_ref())?;
        if adapted.is_empty() {
            let message = format!("`target_modules` is {targets}, and no layer has tensors");
            return Err(refused(message));
        }
        *targets = json!(adapted);
    }
    parse_config(&fields).map_err(refused)
}

fn parse_config(fields: &Map<String, Value>) -> Result<LoRAConfig, String> {
    if fields.get("peft_type") != Some(&json!("LORA")) {
        let found = show(fields.get("peft_type"));
        return Err(format!("`peft_type` is {found}, expected \"LORA\""));
    }
    check_known(fields)?;
    if let Some(bias) = fields.get("bias").filter(|bias| *bias != "none") {
        return Err(format!(
            "`bias` is {bias}, expected \"none\": trained biases are not supported"
        ));
    }
    check_init(fields.get("init_lora_weights"))?;
    let flag = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(format!("`{key}` is {other}, not true or false")),
    };
    let number = |key: &str, default: Option<f64>| {
        let found = fields.get(key).filter(|value| !value.is_null());
        let number = found.map_or(default, Value::as_f64);
        number.ok_or_else(|| format!("`{key}` is {}, not a number", show(found)))
    };
    let rank = fields.get("r");
    let whole = rank.and_then(Value::as_u64);
    let whole = whole.ok_or_else(|| format!("`r` is {}, not a whole number", show(rank)))?;
    let mut config = LoRAConfig::new([])
        .with_rank(whole as usize)
        .with_alpha(number("lora_alpha", None)?)
        .with_dropout(number("lora_dropout", Some(0.0))?)
        .with_dora(flag("use_dora")?)
        .with_rslora(flag("use_rslora")?);
    add_targets(&mut config, fields.get("target_modules"))?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

fn check_known(fields: &Map<String, Value>) -> Result<(), String> {
    let mut set = fields.iter().filter(|(_, value)| is_set(value));
    let Some((key, _)) = set.find(|(key, _)| !KNOWN.contains(&key.as_str())) else {
        return Ok(());
    };
    let or_delete = match CHANGE_OUTPUTS.contains(&key.as_str()) {
        true => "",
        false => ", or delete the key if it does not change what the adapter computes",
    };
    Err(format!(
        "`{key}` is set, which is not supported; train the adapter without it, \
         or merge it with PEFT and load the merged model{or_delete}"
    ))
}

fn show(value: Option<&Value>) -> String {
    value.map_or("missing".to_owned(), Value::to_string)
}

/// The ways of setting up an adapter that leave the base weights alone. The others (PiSSA, OLoRA,
/// ...) change them, so that the adapter does not fit the base model that it names.
fn check_init(init: Option<&Value>) -> Result<(), String> {
    const HARMLESS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];
    match init {
        Some(Value::String(init)) if !HARMLESS.contains(&&*init.to_lowercase()) => Err(format!(
            "`init_lora_weights` is \"{init}\", which may shift the base weights; \
             convert the adapter to plain LoRA with PEFT first"
        )),
        _ => Ok(()),
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// PEFT takes any other text for a regular expression.
fn is_pattern(targets: &Value) -> bool {
    targets.as_str().is_some_and(|text| text != ALL_LINEAR)
}

/// The paths of the layers that have tensors in an adapter folder.
fn adapted_modules(dir: &Path) -> Result<BTreeSet<String>> {
    let file = SafetensorsFile::open(weights_file(dir)?)?;
    let names = file.shapes().into_keys();
    Ok(names
        .filter_map(|name| keys::adapted_by(&name).map(str::to_owned))
        .collect())
}

fn add_targets(config: &mut LoRAConfig, targets: Option<&Value>) -> Result<(), String> {
    if targets == Some(&json!(ALL_LINEAR)) {
        config.attn_modules = AttnModule::ALL.to_vec();
        config.mlp_modules = MlpModule::ALL.to_vec();
        return Ok(());
    }
    let expected = || {
        let names = adaptable().join(", ");
        format!("expected \"{ALL_LINEAR}\", a pattern, or a list with names among {names}")
    };
    let wrong = || format!("`target_modules` is {}, {}", show(targets), expected());
    let mut names = Vec::new();
    for target in targets.and_then(Value::as_array).ok_or_else(wrong)? {
        // A whole path, `model.layers.0.mlp.up_proj`, names one layer. Whether each has its own, the
        // tensors tell.
        let name = target.as_str().and_then(|path| path.rsplit('.').next());
        let name = name.ok_or_else(wrong)?;
        // PEFT takes names that no layer has, as in a list for several kinds of models.
        let known = keys::module_name_from_hf(name);
        if known.is_some() && !adaptable().contains(&name) {
            return Err(format!(
                "`target_modules` names `{name}`, which cannot have an adapter here; {}",
                expected()
            ));
        }
        names.extend(known);
    }
    if names.is_empty() {
        return Err(wrong());
    }
    let (attn, mlp) = (AttnModule::ALL.into_iter(), MlpModule::ALL.into_iter());
    config.attn_modules = attn.filter(|m| names.contains(&m.name())).collect();
    config.mlp_modules = mlp.filter(|m| names.contains(&m.name())).collect();
    config.apply_to_output = names.contains(&"output");
    Ok(())
}

/// Hugging Face's names of the layers that can have an adapter.
fn adaptable() -> Vec<&'static str> {
    let attn = AttnModule::ALL.into_iter().map(AttnModule::name);
    let mlp = MlpModule::ALL.into_iter().map(MlpModule::name);
    let ours = attn.chain(mlp).chain(["output"]);
    ours.filter_map(keys::module_name_to_hf).collect()
}

/// Loads an adapter folder into a model that was built for it, in f32.
///
/// PEFT saves the embedding or output weight too where it was adapted or asked to: it then replaces the
/// base's, as when PEFT loads the folder, in the base's type. The report names it among what was loaded, and
/// [`save_peft`] writes it again.
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
    let path = weights_file(dir)?;
    let origin = path.display().to_string();
    let weights = Weights::open([path], keys::from_peft, model.config.tie_embeddings)?;
    let mut report =
        compare_keys(model, &origin, weights.shapes()).map_err(|error| weights.locate(error))?;
    let adapter = get_adapter_params(model);
    report.missing.retain(|key| adapter.contains(key));
    report.renamed(keys::to_peft).require_complete()?;
    let has_base = report.loaded.iter().any(|key| !adapter.contains(key));
    let base_dtype = has_base.then(|| model.tok_embeddings.weight.val().dtype());
    load_tensors(model, &report.loaded, |key| {
        let base_dtype = base_dtype.filter(|_| !adapter.contains(key));
        weights.read(key, |_| base_dtype.unwrap_or(DType::F32))
    })?;
    let base = report.loaded.iter().filter(|key| !adapter.contains(key));
    model.changed_base.extend(base.cloned());
    Ok(report)
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

/// The model's adapters must be where the configuration says, and scale alike. `other` is where the
/// configuration is from, in words.
fn check_config(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    other: &str,
) -> Result<(), String> {
    let adapted = model.adapters();
    let expected = config.module_names();
    for (name, adapter) in &adapted {
        let module = name.rsplit('.').next().unwrap_or(name);
        if !expected.contains(&module) {
            return Err(format!("the model adapts `{module}`, {other} does not"));
        }
        check_adapter(adapter, config, other)?;
    }
    let is_adapted = |module: &&str| adapted.iter().any(|(name, _)| name.ends_with(module));
    match expected.iter().find(|module| !is_adapted(module)) {
        Some(module) => Err(format!("{other} adapts `{module}`, the model does not")),
        None => Ok(()),
    }
}

fn check_adapter(adapter: &LoRAAdapter, config: &LoRAConfig, other: &str) -> Result<(), String> {
    let (scale, expected) = (adapter.scale, config.scale());
    if !is_same(scale, expected) {
        return Err(format!(
            "the model scales by {scale}, {other} by {expected}"
        ));
    }
    let (rank, expected) = (adapter.rank(), config.rank);
    if rank != expected {
        return Err(format!("the model has rank {rank}, {other} {expected}"));
    }
    match (adapter.magnitude.is_some(), config.use_dora) {
        (true, false) => Err(format!("the model uses DoRA, {other} does not")),
        (false, true) => Err(format!("{other} uses DoRA, the model does not")),
        _ => Ok(()),
    }
}

/// Equal but for the last digits, which a number may lose on its way through a file.
fn is_same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
}

/// Writes the model's adapters as a folder that PEFT loads, and vLLM too unless they are DoRA, with the
/// embedding or output weight that [`load_peft`] took from such a folder.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written; [`Error::Adapter`] if `config` is not the one
/// that the model was built with.
pub fn save_peft(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    dir: impl AsRef<Path>,
) -> Result<()> {
    save(model, config, None, dir.as_ref())
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
    save(model, config, Some(base_model), dir.as_ref())
}

fn save(
    model: &TransformerDecoder,
    config: &LoRAConfig,
    base_model: Option<&str>,
    dir: &Path,
) -> Result<()> {
    check_config(model, config, "the LoRAConfig given").map_err(|differs| Error::Adapter {
        path: dir.to_owned(),
        message: format!("{differs}; give the one that the model was built with"),
    })?;
    create_dir(dir)?;
    let mut readers = state_readers(model);
    readers.retain(|r| r.is_adapter || model.changed_base.contains(&r.key));
    let named = readers
        .into_iter()
        .map(|reader| (peft_name(&reader.key, config), reader));
    write_tensors(named, &dir.join(WEIGHTS_FILE))?;
    let text = serde_json::to_string_pretty(&config_json(config, base_model))
        .expect("a JSON value serialises");
    write_text(&dir.join(CONFIG_FILE), &text)
}

fn peft_name(key: &str, config: &LoRAConfig) -> String {
    let adapted = config.apply_to_output;
    let name = keys::to_peft(key).or_else(|| keys::base_to_peft(key, adapted));
    name.unwrap_or_else(|| panic!("`{key}` has no name in a PEFT folder"))
}

fn config_json(config: &LoRAConfig, base_model: Option<&str>) -> Value {
    let names = config.module_names();
    let targets: Vec<_> = names
        .into_iter()
        .filter_map(keys::module_name_to_hf)
        .collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": whole(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_to_transform": null,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null,
    })
}

/// PEFT writes a whole alpha without a decimal point, and some readers take only that.
fn whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha < f64::from(u32::MAX) {
        json!(alpha as u32)
    } else {
        json!(alpha)
    }
}
