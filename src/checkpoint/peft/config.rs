//! PEFT's `adapter_config.json` and [`LoRAConfig`].

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::lora::{DORA, Init, LORA, LoRAConfig, MethodRef, Naming, Targets, TrainedBias};

const ALL_LINEAR: &str = "all-linear";

/// Settings of PEFT that are read here, or that say nothing about what a trained adapter computes. Any
/// other must be absent, null, false or empty.
const KNOWN: [&str; 37] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // On a linear layer PEFT corrects it.
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    // Only an optimizer reads it.
    "loraplus_lr_ratio",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    "loraplus_weight_decay",
    "loraplus_lr_embedding",
];

/// Settings of PEFT 0.21 that are not read here and change what an adapter computes.
const CHANGE_OUTPUTS: [&str; 7] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
];

/// Reads the fields of an `adapter_config.json`.
///
/// # Errors
/// What is wrong with them, in words.
pub(super) fn parse(fields: &Map<String, Value>) -> Result<LoRAConfig, String> {
    if fields.get("peft_type") != Some(&json!("LORA")) {
        let found = show(fields.get("peft_type"));
        return Err(format!("`peft_type` is {found}, expected \"LORA\""));
    }
    check_known(fields)?;
    let fields = Fields(fields);
    check_task(fields.set("task_type"))?;
    let method = match fields.flag("use_dora")? {
        true => MethodRef(&DORA),
        false => MethodRef(&LORA),
    };
    let mut config = LoRAConfig::default()
        .with_targets(targets(fields.set("target_modules"))?)
        .with_method(method)
        .with_rank(fields.whole("r")?)
        .with_alpha(fields.number("lora_alpha", None)?)
        .with_dropout(fields.number("lora_dropout", Some(0.0))?)
        .with_rslora(fields.flag("use_rslora")?)
        .with_lora_bias(fields.flag("lora_bias")?)
        .with_bias(bias(fields.set("bias"))?)
        .with_init(init(fields.set("init_lora_weights"))?)
        .with_modules_to_save(fields.names("modules_to_save")?)
        .with_rank_pattern(fields.pattern("rank_pattern", whole)?)
        .with_alpha_pattern(fields.pattern("alpha_pattern", Value::as_f64)?);
    config.naming = Naming::HuggingFace;
    config.target_parameters = fields.names("target_parameters")?;
    config.ensure_weight_tying = fields.flag("ensure_weight_tying")?;
    let exclude = fields.set("exclude_modules");
    config.exclude = exclude.map(|value| targets(Some(value))).transpose()?;
    config.layers_pattern = fields.names("layers_pattern")?;
    config.layers = layers(fields.set("layers_to_transform"))?;
    config.trainable_token_indices = token_indices(fields.set("trainable_token_indices"))?;
    Ok(config)
}

/// The fields of a file, asked for by what they should hold.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value of a key that says something.
    fn set(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        match self.set(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(format!("`{key}` is {other}, not true or false")),
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64, String> {
        let found = self.set(key);
        let number = found.map_or(default, Value::as_f64);
        number.ok_or_else(|| format!("`{key}` is {}, not a number", show(found)))
    }

    fn whole(&self, key: &str) -> Result<usize, String> {
        let found = self.set(key);
        let number = found.and_then(whole);
        number.ok_or_else(|| format!("`{key}` is {}, not a whole number", show(found)))
    }

    /// A name or a list of names.
    fn names(&self, key: &str) -> Result<Vec<String>, String> {
        let found = self.set(key);
        let wrong = || format!("`{key}` is {}, not a list of names", show(found));
        match found {
            None => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(value) => strings(value).ok_or_else(wrong),
        }
    }

    /// Patterns with their values, in the file's order.
    fn pattern<T>(
        &self,
        key: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>, String> {
        let found = self.set(key);
        let wrong = || format!("`{key}` is {}, not names with numbers", show(found));
        let Some(value) = found else {
            return Ok(Vec::new());
        };
        let entries = value.as_object().ok_or_else(wrong)?.iter();
        entries
            .map(|(name, value)| Ok((name.clone(), read(value).ok_or_else(wrong)?)))
            .collect()
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().map(|number| number as usize)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items.map(|item| item.as_str().map(str::to_owned)).collect()
}

fn targets(value: Option<&Value>) -> Result<Targets, String> {
    match value {
        None => Ok(Targets::Names(Vec::new())),
        Some(Value::String(text)) if text.to_lowercase() == ALL_LINEAR => Ok(Targets::AllLinear),
        Some(Value::String(pattern)) => Ok(Targets::pattern(pattern)),
        Some(list) => strings(list).map(Targets::Names).ok_or_else(|| {
            format!("`target_modules` is {list}, expected \"{ALL_LINEAR}\", a pattern, or a list of names")
        }),
    }
}

fn bias(value: Option<&Value>) -> Result<TrainedBias, String> {
    match value.map(|value| value.as_str()) {
        None | Some(Some("none")) => Ok(TrainedBias::None),
        Some(Some("lora_only")) => Ok(TrainedBias::LoraOnly),
        Some(Some("all")) => Ok(TrainedBias::All),
        Some(_) => Err(format!(
            "`bias` is {}, expected \"none\", \"lora_only\" or \"all\"",
            show(value)
        )),
    }
}

/// How an adapter was set up. CorDA, LoftQ and others change the base weights in ways that are not known here, so
/// that the adapter does not fit the base model that it names.
fn init(value: Option<&Value>) -> Result<Init, String> {
    let Some(Value::String(init)) = value else {
        return Ok(Init::Kaiming);
    };
    let refused = || {
        format!(
            "`init_lora_weights` is \"{init}\", which may shift the base weights; \
             convert the adapter to plain LoRA with PEFT first"
        )
    };
    match init.to_lowercase().as_str() {
        // It leaves the base alone; what it began with, the tensors are.
        "mica" => Ok(Init::Kaiming),
        "loftq" => Err(refused()),
        word => word.parse().map_err(|_| refused()),
    }
}

/// Whoever loads an adapter that has begun by LoftQ is not to begin it again, which PEFT would do with the base too.
/// So it is of parameters that are no modules' weights, which PEFT begins in few ways.
fn init_to_json(config: &LoRAConfig) -> Value {
    match config.init {
        Init::Kaiming | Init::Loftq => json!(true),
        Init::Gaussian => json!(Init::Gaussian),
        _ if !config.target_parameters.is_empty() => json!(true),
        other => json!(other),
    }
}

fn layers(value: Option<&Value>) -> Result<Option<Vec<usize>>, String> {
    let Some(value) = value else { return Ok(None) };
    let one = whole(value).map(|index| vec![index]);
    let several = || value.as_array()?.iter().map(whole).collect();
    let wrong = || format!("`layers_to_transform` is {value}, not indices of layers");
    one.or_else(several).map(Some).ok_or_else(wrong)
}

/// Rows of embeddings by name; a plain list is of the input embedding.
fn token_indices(value: Option<&Value>) -> Result<IndexMap<String, Vec<usize>>, String> {
    let Some(value) = value else {
        return Ok(IndexMap::new());
    };
    let wrong = || format!("`trainable_token_indices` is {value}, not indices of tokens");
    let indices = |list: &Value| -> Option<Vec<usize>> {
        let items = list.as_array()?.iter();
        items.map(whole).collect()
    };
    if let Some(indices) = indices(value) {
        return Ok(IndexMap::from([("embed_tokens".to_owned(), indices)]));
    }
    let entries = value.as_object().ok_or_else(wrong)?.iter();
    entries
        .map(|(name, list)| Ok((name.clone(), indices(list).ok_or_else(wrong)?)))
        .collect()
}

fn check_known(fields: &Map<String, Value>) -> Result<(), String> {
    let mut set = fields.iter().filter(|(_, value)| says_something(value));
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

/// The tasks of models that have another head than a language model's.
const OTHER_HEADS: [&str; 3] = ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];

fn check_task(task: Option<&Value>) -> Result<(), String> {
    let is_other = |task: &&Value| OTHER_HEADS.iter().any(|other| **task == *other);
    match task.filter(is_other) {
        None => Ok(()),
        Some(task) => Err(format!(
            "`task_type` is {task}: the adapter is of a classifier, whose head is not a language model's; only adapters of \
             language models (CAUSAL_LM) are read"
        )),
    }
}

fn show(value: Option<&Value>) -> String {
    value.map_or("missing".to_owned(), Value::to_string)
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// The fields of the `adapter_config.json` of a configuration that speaks of Hugging Face's names.
pub(super) fn to_json(config: &LoRAConfig, base_model: Option<&str>) -> Value {
    let alphas = config.alpha_pattern.iter();
    let alphas = alphas.map(|(name, alpha)| (name.clone(), as_whole(*alpha)));
    let parameters = Some(&config.target_parameters).filter(|names| !names.is_empty());
    // PEFT has none of parameters, and a trained adapter computes without it.
    let dropout = parameters.map_or(config.dropout, |_| 0.0);
    let mut fields = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": as_whole(config.alpha),
        "lora_dropout": dropout,
        "target_modules": targets_to_json(&config.targets),
        "exclude_modules": config.exclude.as_ref().map(targets_to_json),
        "use_dora": config.uses_dora(),
        "use_rslora": config.use_rslora,
        "lora_bias": config.lora_bias,
        "bias": bias_to_json(config.bias),
        "ensure_weight_tying": config.ensure_weight_tying,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": init_to_json(config),
        "layers_to_transform": config.layers,
        "layers_pattern": Some(&config.layers_pattern).filter(|names| !names.is_empty()),
        "modules_to_save": Some(&config.modules_to_save).filter(|names| !names.is_empty()),
        "trainable_token_indices":
            Some(&config.trainable_token_indices).filter(|rows| !rows.is_empty()),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": alphas.collect::<Map<_, _>>(),
        "revision": null,
    });
    if let Some(names) = parameters {
        fields["target_parameters"] = json!(names);
    }
    fields
}

fn bias_to_json(bias: TrainedBias) -> &'static str {
    match bias {
        TrainedBias::None => "none",
        TrainedBias::LoraOnly => "lora_only",
        TrainedBias::All => "all",
    }
}

fn targets_to_json(targets: &Targets) -> Value {
    match targets {
        Targets::Names(names) => json!(names),
        Targets::Pattern(pattern) => json!(pattern),
        Targets::AllLinear => json!(ALL_LINEAR),
    }
}

/// PEFT writes a whole alpha without a decimal point, and some readers take only that.
fn as_whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha < f64::from(u32::MAX) {
        json!(alpha as u32)
    } else {
        json!(alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: Value) -> Result<LoRAConfig, String> {
        let base =
            json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"] });
        let mut all = base.as_object().unwrap().clone();
        all.extend(fields.as_object().unwrap().clone());
        parse(&all)
    }

    #[test]
    fn every_setting_reads_back() {
        let mut config = LoRAConfig::new(["q_proj", "v_proj"])
            .with_rank(4)
            .with_alpha(2.5)
            .with_exclude(Targets::pattern(".*0.*"))
            .with_layers([1, 3])
            .with_rank_pattern([("v_proj", 2), ("q_proj", 3)])
            .with_alpha_pattern([("q_proj", 1.5), ("k", 2.0)])
            .with_dora(true)
            .with_rslora(true)
            .with_bias(TrainedBias::All)
            .with_modules_to_save(["lm_head"])
            .with_target_parameters(["experts.down_proj"])
            .with_trainable_tokens("embed_tokens", [3, 1]);
        config.naming = Naming::HuggingFace;
        config.layers_pattern = vec!["layers".into()];
        let json = to_json(&config, Some("base"));
        assert_eq!(parse(json.as_object().unwrap()).unwrap(), config);
        let text = json.to_string();
        let again: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let again = parse(&again).unwrap();
        assert!(again.rank_pattern.keys().eq(["v_proj", "q_proj"]));
    }

    #[test]
    fn other_forms_of_a_setting_mean_the_same() {
        let one = read(json!({ "layers_to_transform": 2, "layers_pattern": "h" })).unwrap();
        assert_eq!(one.layers, Some(vec![2]));
        assert_eq!(one.layers_pattern, ["h"]);
        let rows = read(json!({ "trainable_token_indices": [5] })).unwrap();
        assert_eq!(rows.trainable_token_indices["embed_tokens"], [5]);
        let all = read(json!({ "target_modules": "All-Linear" })).unwrap();
        assert_eq!(all.targets, Targets::AllLinear);
        assert!(read(json!({ "fan_in_fan_out": true })).is_ok());
        assert!(read(json!({ "loraplus_lr_ratio": 16 })).is_ok());
    }

    #[test]
    fn what_would_compute_something_else_is_refused() {
        for (fields, word) in [
            (json!({ "use_qalora": true }), "use_qalora"),
            (json!({ "init_lora_weights": "corda" }), "corda"),
            (json!({ "bias": "some" }), "lora_only"),
            (json!({ "rank_pattern": { "q_proj": "4" } }), "rank_pattern"),
            (json!({ "target_modules": 4 }), "all-linear"),
            (json!({ "new_setting": 1 }), "delete the key"),
            (json!({ "task_type": "SEQ_CLS" }), "of a classifier"),
        ] {
            let message = read(fields).unwrap_err();
            assert!(message.contains(word), "{message}");
        }
    }
}
