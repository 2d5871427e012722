//! The recipe's configuration: typed, read from YAML, changed with `key=value`.
//!
//! ```
//! use burn_peft::training::recipe::RecipeConfig;
//!
//! let text = "lora_rank: 32\noptimizer:\n  lr: 2e-4\n";
//! let config = RecipeConfig::from_yaml(text, "my.yaml", &["lora_alpha=64".into()])?;
//! assert_eq!((config.lora_rank, config.lora_alpha), (32, 64.0));
//! assert_eq!(config.optimizer.lr, 2e-4);
//! assert_eq!(config.batch_size, 2); // what is not written keeps its default
//!
//! let error = RecipeConfig::from_yaml("lora_rnk: 32", "my.yaml", &[]).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "my.yaml (line 1): unknown key `lora_rnk`; did you mean `lora_rank`?"
//! );
//! # Ok::<(), burn_peft::Error>(())
//! ```

mod adapter;
mod keys;
mod run;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::{MetricFormat, Resume};
pub use keys::RecipeKey;

use super::{Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use crate::checkpoint::{LoadOptions, check_merge, hf_config_key, load_model, read_base_config};
use crate::data::{Format, RecordEncoder, SftOptions, TooLong, TrainOn, Treatment};
use crate::files::read_text;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::lora::{AttnModule, Init, LoRAConfig, Targets, TrainedBias};
use crate::ops::MatmulPrecision;
use crate::quantization::BlockFormat;
use crate::tokenizer::Tokenizer;
use crate::weight::{BaseFormat, Quantization};
use crate::{Error, Result};
use yaml::Setting;

/// Everything that a run of the Alpaca recipe can be told, with one field a key of the YAML file.
///
/// The defaults are the LoRA tutorial's first experiment: rank 8 on `q_proj` and `v_proj`, AdamW
/// with lr 3e-4, batches of 2, one epoch. `docs/recipe.md` holds the table of all keys, and
/// [`RecipeConfig::keys`] the same table for programs.
///
/// Values are checked by the constructors below, which know where each value was written; a
/// configuration that is deserialized or filled in by hand is not checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RecipeConfig {
    /// The size of the model.
    pub model: ModelSize,
    /// The attention's linear layers that get an adapter.
    pub lora_attn_modules: Vec<AttnModule>,
    /// Whether the three linear layers of each feed-forward get an adapter.
    pub apply_lora_to_mlp: bool,
    /// Whether the output projection (the vocabulary's) gets an adapter.
    pub apply_lora_to_output: bool,
    /// The modules with an adapter, in place of the three fields above.
    pub target_modules: Option<Modules>,
    /// Modules among them without one.
    pub exclude_modules: Option<Modules>,
    /// The layers whose modules have one; `None` means all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Modules that are trained as a whole.
    pub modules_to_save: Vec<String>,
    /// Rows of embeddings that are trained.
    pub trainable_token_indices: IndexMap<String, Vec<usize>>,
    /// The rank r of the adapters.
    pub lora_rank: usize,
    /// The numerator of the adapters' scale, `alpha / r`.
    pub lora_alpha: f64,
    /// Other ranks for modules whose path a key matches.
    pub rank_pattern: IndexMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: IndexMap<String, f64>,
    /// The probability with which an element of an adapter's input is dropped in training.
    pub lora_dropout: f64,
    /// Whether the adapters train DoRA's magnitude too (<https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
    /// Whether the scale is `alpha / sqrt(r)` (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// How `A` and `B` begin.
    pub init_lora_weights: Init,
    /// How many times its rank an adapter may get that begins with [`Init::Eva`].
    pub eva_rho: f64,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
    /// Which biases of linear layers are trained.
    pub bias: TrainedBias,
    /// Whether `A` keeps its first value (LoRA-FA).
    pub freeze_a: bool,

    /// A `tokenizer.json`, a `tokenizer.model` or a GGUF file, or a folder with one of the first two; `None` means the
    /// checkpoint's own.
    pub tokenizer: Option<PathBuf>,
    /// The folder of the base model, or its GGUF file; `None` means the embedded default model.
    pub checkpoint_dir: Option<PathBuf>,
    /// What adapters name as their base; `None` means what [`base_model_name`](crate::checkpoint::base_model_name) makes of
    /// `checkpoint_dir`.
    pub base_model_name: Option<String>,
    /// An adapter to begin with, see [`read_adapter_config`](crate::checkpoint::read_adapter_config); `None` means a
    /// new one.
    pub adapter_checkpoint: Option<PathBuf>,

    /// The records to train on; `None` means the embedded ones, for the embedded model only.
    pub dataset: Option<PathBuf>,
    /// The records to compute the validation loss on.
    pub validation_dataset: Option<PathBuf>,
    /// The fraction of `dataset` that is held out for validation instead.
    pub validation_split: f64,
    /// The form of the records; [`Format::Auto`] is what their keys say.
    pub dataset_format: Format,
    /// The file of the template by which conversations become texts, or `chatml`; `None` means the tokenizer's own, or
    /// ChatML if it has none. See [`ChatTemplate::choose`](crate::tokenizer::ChatTemplate::choose).
    pub chat_template: Option<String>,
    /// What the loss counts; `None` means the assistant's part of conversations, and of other records what
    /// `train_on_input` says.
    pub train_on: Option<TrainOn>,
    /// Whether the loss counts the prompt's tokens beside the answer's, of records that are no conversations.
    pub train_on_input: bool,
    /// The length in tokens to which a record is cut; `None` means the model's context.
    pub max_seq_len: Option<usize>,
    /// What becomes of longer records.
    pub too_long: TooLong,
    /// What becomes of those of which only the prompt has room.
    pub prompt_only: Treatment,
    /// What becomes of other records of which the loss counts nothing.
    pub without_labels: Treatment,
    /// What becomes of records whose answer says nothing.
    pub empty_answers: Treatment,
    /// What becomes of records that ask nothing.
    pub empty_instructions: Treatment,
    /// Whether several records share a sequence, without seeing each other.
    pub packed: bool,
    /// Whether each epoch goes through the records in an order of its own.
    pub shuffle: bool,
    /// Whether batches hold records of about the same length.
    pub group_by_length: bool,
    /// The seed of the adapters' first values, the dropout and the order of the records.
    pub seed: u64,
    /// How strong the noise on the embeddings is in training (NEFTune); `None` is no noise.
    pub neftune_noise_alpha: Option<f64>,

    /// The number of records in a batch.
    pub batch_size: usize,
    /// The number of passes over the records.
    pub epochs: usize,
    /// The number of optimizer steps after which an epoch ends early.
    pub max_steps_per_epoch: Option<usize>,
    /// The number of batches whose gradients make one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// The norm to which the gradients of all adapters together are clipped.
    pub clip_grad_norm: Option<f64>,
    /// How many steps may be left out because their loss or gradients are no numbers, before one ends the run.
    pub skip_nonfinite_steps: usize,
    /// AdamW's hyperparameters.
    pub optimizer: OptimizerConfig,
    /// The learning rate's course over the run.
    pub lr_scheduler: SchedulerConfig,

    /// The type of number that the base model's weights are kept in, but for those that are packed.
    pub dtype: Precision,
    /// In how many bits the weights of linear layers are kept instead, if in fewer. Those that the checkpoint has packed
    /// stay as they are.
    pub quantize_base: Option<Quantization>,
    /// Whether the embedding and the projection to the vocabulary are quantized, too.
    pub quantize_vocabulary: bool,
    /// Whether products of f32 may round their inputs.
    pub matmul_precision: MatmulSetting,
    /// The device: `auto` (that of `BURN_DEVICE`, or else a GPU, or else the CPU), `flex`, `cuda` or
    /// `cuda:N`; or several of these to train on together, separated by commas.
    pub device: String,
    /// Whether activations are recomputed in the backward pass, layer by layer.
    pub enable_activation_checkpointing: bool,

    /// The run's folder.
    pub output_dir: PathBuf,
    /// Whether a new run deletes what another has left in `output_dir`.
    pub overwrite_output_dir: bool,
    /// The number of steps between checkpoints; `None` means only one, at the end.
    pub save_every_n_steps: Option<usize>,
    /// Whether a checkpoint is saved at the end of each epoch too.
    pub save_every_epoch: bool,
    /// How many of the run's checkpoints are kept, the last ones; `None` keeps all.
    pub keep_last_n_checkpoints: Option<usize>,
    /// Whether only the adapter is saved at the end, not the merged model too.
    pub save_adapter_weights_only: bool,
    /// Whether to go on, and from which checkpoint.
    pub resume_from_checkpoint: Resume,
    /// The forms of the metrics.
    pub metric_logger: Vec<MetricFormat>,
    /// The number of steps between two lines of metrics.
    pub log_every_n_steps: usize,
    /// Whether the metrics hold the peak memory.
    pub log_peak_memory_stats: bool,
    /// How many records the model goes on with before and after the training, for the report.
    pub report_samples: usize,
    /// The number of steps between two validations; `None` means only one, at the end.
    pub run_val_every_n_steps: Option<usize>,
    /// What becomes of the adapter of the best validation.
    pub best_checkpoint: BestCheckpoint,
    /// How many validations may follow the best one before the training ends; `None` means any number.
    pub early_stopping_patience: Option<usize>,
}

impl Default for RecipeConfig {
    fn default() -> Self {
        Self {
            model: ModelSize::Auto,
            lora_attn_modules: vec![AttnModule::QProj, AttnModule::VProj],
            apply_lora_to_mlp: false,
            apply_lora_to_output: false,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: None,
            modules_to_save: Vec::new(),
            trainable_token_indices: IndexMap::new(),
            lora_rank: 8,
            lora_alpha: 16.0,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            lora_dropout: 0.0,
            use_dora: false,
            use_rslora: false,
            init_lora_weights: Init::Kaiming,
            eva_rho: 2.0,
            lora_bias: false,
            bias: TrainedBias::None,
            freeze_a: false,
            tokenizer: None,
            checkpoint_dir: None,
            base_model_name: None,
            adapter_checkpoint: None,
            dataset: None,
            validation_dataset: None,
            validation_split: 0.0,
            dataset_format: Format::Auto,
            chat_template: None,
            train_on: None,
            train_on_input: true,
            max_seq_len: None,
            too_long: TooLong::Cut,
            prompt_only: Treatment::Drop,
            without_labels: Treatment::Drop,
            empty_answers: Treatment::Keep,
            empty_instructions: Treatment::Drop,
            packed: false,
            shuffle: true,
            group_by_length: false,
            seed: 0,
            neftune_noise_alpha: None,
            batch_size: 2,
            epochs: 1,
            max_steps_per_epoch: None,
            gradient_accumulation_steps: 1,
            clip_grad_norm: None,
            skip_nonfinite_steps: 0,
            optimizer: OptimizerConfig::default(),
            lr_scheduler: SchedulerConfig::default(),
            dtype: Precision::F32,
            quantize_base: None,
            quantize_vocabulary: false,
            matmul_precision: MatmulSetting::Auto,
            device: "auto".into(),
            enable_activation_checkpointing: false,
            output_dir: "./lora_finetune_output".into(),
            overwrite_output_dir: false,
            save_every_n_steps: None,
            save_every_epoch: false,
            keep_last_n_checkpoints: None,
            save_adapter_weights_only: false,
            resume_from_checkpoint: Resume::No,
            metric_logger: vec![MetricFormat::Jsonl],
            log_every_n_steps: 1,
            log_peak_memory_stats: true,
            report_samples: 3,
            run_val_every_n_steps: None,
            best_checkpoint: BestCheckpoint::None,
            early_stopping_patience: None,
        }
    }
}

/// The parts that a run is made of.
impl RecipeConfig {
    /// How the base is kept in memory: what its files have packed stays so.
    pub fn base_format(&self) -> BaseFormat {
        BaseFormat::new(self.dtype.into())
            .with_quantization(self.quantize_base)
            .with_packed_vocabulary(self.quantize_vocabulary)
            .with_kept_packing(true)
    }

    /// The precision of products that the recipe asks for, for [`set_matmul_precision`](crate::ops::set_matmul_precision),
    /// with a base whose files have some weights `packed` ([`read_base_packing`](crate::checkpoint::read_base_packing)).
    pub fn matmul_precision_for(
        &self,
        packed: &BTreeMap<String, BlockFormat>,
        device: &Device,
    ) -> MatmulPrecision {
        let is_packed = self.quantize_base.is_some() || !packed.is_empty();
        let is_narrow = is_packed || self.dtype == Precision::Bf16;
        match self.matmul_precision {
            MatmulSetting::Auto => MatmulPrecision::for_base(device, is_narrow),
            MatmulSetting::Highest => MatmulPrecision::Highest,
            MatmulSetting::Medium => MatmulPrecision::Medium,
        }
    }

    /// The configuration of the model: that of the checkpoint `base`, a folder or a GGUF file, which must be what
    /// `model` names unless that is `auto`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not, and those of [`read_base_config`].
    pub fn llama(&self, base: &Path) -> Result<LlamaConfig> {
        let found = read_base_config(base)?;
        let named = match self.model {
            ModelSize::Auto => return Ok(found),
            ModelSize::Llama2_7b => LlamaConfig::llama2_7b(),
            ModelSize::Llama2_13b => LlamaConfig::llama2_13b(),
            ModelSize::Llama2_70b => LlamaConfig::llama2_70b(),
        };
        match differences(&named, &found) {
            none if none.is_empty() => Ok(found),
            differences => Err(Error::Config {
                origin: base.display().to_string(),
                key: "model".into(),
                line: None,
                message: format!(
                    "the checkpoint is not what `model` names ({}); model=auto takes what its \
                     own configuration says",
                    differences.join(", ")
                ),
                nearest: Vec::new(),
            }),
        }
    }

    /// New adapters; those that a run has are told by [`RecipeConfig::adapter_config`].
    pub fn lora(&self) -> LoRAConfig {
        let mut lora = LoRAConfig::new(self.lora_attn_modules.iter().copied())
            .with_mlp(self.apply_lora_to_mlp)
            .with_output(self.apply_lora_to_output)
            .with_rank(self.lora_rank)
            .with_alpha(self.lora_alpha)
            .with_rank_pattern(self.rank_pattern.clone())
            .with_alpha_pattern(self.alpha_pattern.clone())
            .with_dropout(self.lora_dropout)
            .with_dora(self.use_dora)
            .with_rslora(self.use_rslora)
            .with_init(self.init_lora_weights)
            .with_lora_bias(self.lora_bias)
            .with_bias(self.bias)
            .with_frozen_a(self.freeze_a)
            .with_modules_to_save(&self.modules_to_save);
        lora.trainable_token_indices = self.trainable_token_indices.clone();
        lora.layers = self.layers_to_transform.clone();
        lora.exclude = self.exclude_modules.as_ref().map(Modules::targets);
        match &self.target_modules {
            None => lora,
            Some(modules) => lora.with_targets(modules.targets()),
        }
    }

    /// The base with this adapter, which is new: [`load_model`], whose errors about the adapter are in the words of the
    /// recipe's keys here.
    ///
    /// # Errors
    /// As [`load_model`].
    pub fn load_model(
        &self,
        base: &Path,
        lora: &LoRAConfig,
        device: &Device,
    ) -> Result<TransformerDecoder> {
        let options = LoadOptions::new(device)
            .with_format(self.base_format())
            .with_seed(self.seed);
        load_model(base, lora, &options).map_err(by_key)
    }

    /// Checks that the adapters fit a model of these sizes and, unless only they are saved, that the merged model has a
    /// place for all that they learn. No weight is read.
    ///
    /// # Errors
    /// Those of [`LlamaConfig::init_lora`], in the recipe's words, and of [`check_merge`].
    pub fn check_adapters(&self, llama: &LlamaConfig, lora: &LoRAConfig) -> Result<()> {
        let model = llama.init_lora(lora, &Device::default()).map_err(by_key)?;
        match self.save_adapter_weights_only {
            true => Ok(()),
            false => check_merge(&model),
        }
    }

    /// Makes samples of records as the configuration says, of at most `longest` tokens; conversations still need a
    /// [template](RecordEncoder::template).
    pub fn record_encoder<'a>(
        &self,
        tokenizer: &'a Tokenizer,
        longest: usize,
    ) -> RecordEncoder<'a> {
        RecordEncoder::new(tokenizer)
            .with_as_conversations(self.chat_template.is_some())
            .with_train_on(self.train_on.unwrap_or(TrainOn::Assistant))
            .with_train_on_input(
                self.train_on
                    .map_or(self.train_on_input, |on| on == TrainOn::All),
            )
            .with_max_seq_len(Some(longest))
            .with_too_long(self.too_long)
            .with_prompt_only(self.prompt_only)
            .with_without_labels(self.without_labels)
            .with_empty_answers(self.empty_answers)
            .with_empty_instructions(self.empty_instructions)
    }

    /// Which records the run takes for what, and how many at a time, with a model of these sizes.
    pub fn sft_options(&self, llama: &LlamaConfig) -> SftOptions {
        SftOptions::new(llama.context_len(), llama.vocab_size)
            .with_format(self.dataset_format)
            .with_validation(self.validation_dataset.clone())
            .with_validation_split(self.validation_split)
            .with_batch_size(self.batch_size)
            .with_accumulation_steps(self.gradient_accumulation_steps)
            .with_max_steps_per_epoch(self.max_steps_per_epoch)
            .with_shuffle(self.shuffle)
            .with_seed(self.seed)
            .with_packed(self.packed)
            .with_group_by_length(self.group_by_length)
            .with_folder(self.output_dir.clone())
    }

    /// Optimizer, schedule and clipping for a run of `total_steps` steps.
    pub fn trainer(&self, total_steps: usize) -> Trainer {
        let [beta1, beta2] = self.optimizer.betas;
        let adamw = AdamWConfig {
            betas: (beta1, beta2),
            eps: self.optimizer.eps,
            weight_decay: self.optimizer.weight_decay,
        };
        let schedule = LrSchedule {
            kind: self.lr_scheduler.kind,
            lr: self.optimizer.lr,
            warmup_steps: self.lr_scheduler.num_warmup_steps,
            total_steps,
        };
        let activations = match self.enable_activation_checkpointing {
            true => Activations::Recompute { layers: 1 },
            false => Activations::Keep,
        };
        let trainer = Trainer::new(adamw, schedule)
            .with_max_grad_norm(self.clip_grad_norm)
            .with_activations(activations)
            .with_neftune_noise_alpha(self.neftune_noise_alpha)
            .with_seed(self.seed);
        match self.optimizer.loraplus_lr_ratio {
            1.0 => trainer,
            ratio => trainer.with_lr_factor("lora_b.weight", ratio),
        }
    }
}

/// A key and what is wrong with it beside others.
type Broken = (&'static str, String);

/// An error about a setting of a [`LoRAConfig`] as one about its key.
fn by_key(error: Error) -> Error {
    match error {
        Error::InvalidArgument { name, message } => Error::InvalidArgument {
            name: key_of(name),
            message,
        },
        other => other,
    }
}

/// The key of a setting of a [`LoRAConfig`].
fn key_of(setting: &'static str) -> &'static str {
    match setting {
        "targets" => "target_modules",
        "exclude" => "exclude_modules",
        "layers" => "layers_to_transform",
        "rank" => "lora_rank",
        "alpha" => "lora_alpha",
        same => same,
    }
}

/// What the checkpoint has otherwise than the named model, in words.
fn differences(named: &LlamaConfig, found: &LlamaConfig) -> Vec<String> {
    let tree = |config| serde_json::to_value(config).expect("a configuration is plain data");
    let (named, found) = (tree(named), tree(found));
    let keys = named.as_object().into_iter().flat_map(|map| map.keys());
    // What fills up batches or ends a text makes no other model.
    let keys = keys.filter(|key| !["pad_token_id", "eos_token_ids"].contains(&key.as_str()));
    keys.filter(|key| named[*key] != found[*key])
        .map(|key| {
            let [found, named] = [&found[key], &named[key]].map(keys::show);
            format!("{} is {found}, not {named}", hf_config_key(key))
        })
        .collect()
}

/// Whether two values are paths of one file or folder.
fn is_same_file(a: &Value, b: &Value) -> bool {
    let path = |value: &Value| Path::new(value.as_str()?).canonicalize().ok();
    path(a).is_some_and(|a| path(b) == Some(a))
}

/// Modules as a recipe names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// A regular expression for whole paths, or `all-linear`.
    Pattern(String),
    /// Names, or paths.
    Names(Vec<String>),
}

impl Modules {
    fn targets(&self) -> Targets {
        match self {
            Self::Pattern(word) if word == "all-linear" => Targets::AllLinear,
            Self::Pattern(pattern) => Targets::pattern(pattern),
            Self::Names(names) => Targets::names(names),
        }
    }
}

/// AdamW's hyperparameters, with PyTorch's meaning (<https://arxiv.org/abs/1711.05101>).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// The highest learning rate of the run.
    pub lr: f64,
    /// The decoupled weight decay.
    pub weight_decay: f64,
    /// The decay rates of the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// What is added to the denominator.
    pub eps: f64,
    /// How many times the learning rate of the rest that of `B` is (LoRA+).
    pub loraplus_lr_ratio: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 3e-4,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            eps: 1e-8,
            loraplus_lr_ratio: 1.0,
        }
    }
}

/// The learning rate's course: linear warmup, then what `kind` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// The course after the warmup.
    pub kind: ScheduleKind,
    /// The number of optimizer steps in which the learning rate rises from 0.
    pub num_warmup_steps: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            num_warmup_steps: 100,
        }
    }
}

/// The size of the model that a recipe finetunes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelSize {
    /// Whatever the checkpoint's `config.json` says.
    Auto,
    /// Llama 2 with 7 billion parameters.
    #[serde(rename = "llama2_7b")]
    Llama2_7b,
    /// Llama 2 with 13 billion parameters.
    #[serde(rename = "llama2_13b")]
    Llama2_13b,
    /// Llama 2 with 70 billion parameters.
    #[serde(rename = "llama2_70b")]
    Llama2_70b,
}

/// The type of number of the base model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// 32 bits.
    #[serde(alias = "fp32")]
    F32,
    /// 16 bits, 8 of them exponent.
    Bf16,
    /// 16 bits, 5 of them exponent.
    #[serde(alias = "fp16")]
    F16,
}

/// How a recipe chooses the precision of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MatmulSetting {
    /// [`MatmulPrecision::for_base`] says.
    #[default]
    Auto,
    /// [`MatmulPrecision::Highest`].
    Highest,
    /// [`MatmulPrecision::Medium`].
    Medium,
}

impl From<Precision> for burn::tensor::DType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::BF16,
            Precision::F16 => Self::F16,
        }
    }
}

/// What becomes of the adapter of the best validation, the one with the lowest loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BestCheckpoint {
    /// Nothing; but if it is in a checkpoint, that one is kept.
    None,
    /// It is saved in a checkpoint.
    Save,
    /// It is saved in a checkpoint, and the final adapter and the merged model are made of it.
    Use,
}

impl RecipeConfig {
    /// The table of all keys, in the order of the file.
    pub fn keys() -> &'static [RecipeKey] {
        keys::KEYS
    }

    /// Reads the YAML file at `path`, then applies `overrides` as [`RecipeConfig::with_overrides`]
    /// does.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, otherwise as [`RecipeConfig::from_yaml`].
    pub fn from_file(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text(path)?;
        Self::from_yaml(&text, &path.display().to_string(), overrides)
    }

    /// Reads the configuration that a run has written, whatever has become of the files that it names since.
    fn of_run(path: &Path) -> Result<Self> {
        let settings = yaml::parse_file(&read_text(path)?, &path.display().to_string())?;
        settings.iter().try_fold(Self::default(), Self::set)
    }

    /// Parses YAML `text`, then applies `overrides` as [`RecipeConfig::with_overrides`] does. A
    /// key that is not in the text keeps its default; where `adapter_checkpoint` is set, those that describe an adapter
    /// get the values of that one. `origin` names the text in errors.
    ///
    /// # Errors
    /// [`Error::Format`] with line and column if the text is not YAML, [`Error::Config`] with key
    /// and line if a key is unknown, written twice, has a value that cannot be used, or describes another adapter than
    /// that of `adapter_checkpoint`, and those of reading that one's configuration.
    pub fn from_yaml(text: &str, origin: &str, overrides: &[String]) -> Result<Self> {
        let mut settings = yaml::parse_file(text, origin)?;
        settings.extend(yaml::parse_overrides(overrides)?);
        Self::default().apply(&settings)
    }

    /// Applies overrides of the form `key=value`, the later ones over the earlier ones. The key is
    /// dotted where it is nested (`optimizer.lr=1e-3`); the value is YAML on one line
    /// (`lora_attn_modules=[q_proj, v_proj]`); `key=null` unsets a key that may be unset.
    ///
    /// # Errors
    /// [`Error::Config`], with `command line` as its origin, if an override has another form, an
    /// unknown key, or a value that cannot be used.
    ///
    /// # Panics
    /// If a path of `self` is not UTF-8.
    pub fn with_overrides(self, overrides: &[String]) -> Result<Self> {
        self.apply(&yaml::parse_overrides(overrides)?)
    }

    /// The whole configuration as YAML, every key spelled out. [`RecipeConfig::from_yaml`] reads
    /// the same configuration back.
    ///
    /// # Panics
    /// If a path is not UTF-8.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.tree()).expect("a tree of plain values is YAML")
    }

    /// The keys in which `other`, the configuration of a run that wants to go on from a checkpoint
    /// of `self`, differs in a way that would make it another run. Each entry names the key, the
    /// old and the new value. What only says where to run, what to log and what to save may differ, and so may the
    /// first adapter and the places of the base and of the records; `epochs` may grow. Two paths of one file are equal.
    ///
    /// # Panics
    /// If a path is not UTF-8.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let (old, new) = (self.tree(), other.tree());
        keys::KEYS
            .iter()
            .filter(|key| key.binds_resume())
            .map(|key| (key.name(), key.of(&old), key.of(&new)))
            .filter(|(_, old, new)| old != new && !is_same_file(old, new))
            .filter(|(name, old, new)| *name != "epochs" || new.as_u64() < old.as_u64())
            .map(|(name, old, new)| {
                format!("`{name}` was {}, now {}", keys::show(old), keys::show(new))
            })
            .collect()
    }

    /// The place of the base, if `other` has another: a difference too, where the content of neither is known.
    fn other_base(&self, other: &Self) -> Option<String> {
        let key = RecipeKey::find("checkpoint_dir").expect("it is in the table");
        let (old, new) = (self.tree(), other.tree());
        let (old, new) = (key.of(&old), key.of(&new));
        let is_other = old != new && !is_same_file(old, new);
        is_other.then(|| {
            format!(
                "`{}` was {}, now {}",
                key.name(),
                keys::show(old),
                keys::show(new)
            )
        })
    }

    /// The same without the places of files and without the device: what processes on machines of
    /// their own must agree on.
    pub fn without_places(&self) -> Self {
        let default = Self::default();
        Self {
            tokenizer: None,
            checkpoint_dir: None,
            base_model_name: None,
            adapter_checkpoint: None,
            dataset: None,
            validation_dataset: None,
            chat_template: None,
            resume_from_checkpoint: default.resume_from_checkpoint,
            output_dir: default.output_dir,
            device: default.device,
            ..self.clone()
        }
    }

    fn apply(mut self, settings: &[Setting]) -> Result<Self> {
        for setting in settings {
            self = self.set(setting)?;
        }
        self = self.with_keys_of_adapter(settings)?;
        self.check(settings)?;
        Ok(self)
    }

    /// Goes through the generic tree of values, so that the table of keys and serde do all the
    /// work and no key needs code of its own.
    fn set(self, setting: &Setting) -> Result<Self> {
        let key = RecipeKey::find(&setting.key).ok_or_else(|| setting.unknown_key())?;
        let value = key
            .accept(&setting.value)
            .ok_or_else(|| setting.bad_value(key))?;
        let mut tree = self.tree();
        *key.of_mut(&mut tree) = value;
        serde_json::from_value(tree).map_err(|_| setting.bad_value(key))
    }

    /// The rules about two keys at once; the first that is broken is told.
    fn check(&self, settings: &[Setting]) -> Result<()> {
        const RULES: [fn(&RecipeConfig) -> Option<Broken>; 9] = [
            RecipeConfig::validates_twice,
            RecipeConfig::has_no_adapter,
            RecipeConfig::has_invalid_adapter,
            RecipeConfig::makes_up_for_nothing,
            RecipeConfig::quantizes_vocabulary_alone,
            RecipeConfig::packs_without_length,
            RecipeConfig::groups_what_is_packed,
            RecipeConfig::validates_on_nothing,
            RecipeConfig::waits_for_no_validation,
        ];
        match RULES.iter().find_map(|rule| rule(self)) {
            None => Ok(()),
            Some((key, message)) => Err(yaml::conflict(settings, key, &message)),
        }
    }

    fn holds_out(&self) -> bool {
        self.validation_split > 0.0
    }

    fn validates_twice(&self) -> Option<Broken> {
        let message =
            "`validation_split` and `validation_dataset` exclude each other, keep one of them";
        let is_broken = self.holds_out() && self.validation_dataset.is_some();
        is_broken.then(|| ("validation_split", message.into()))
    }

    fn has_no_adapter(&self) -> Option<Broken> {
        let message = "no layer has an adapter, name some in `lora_attn_modules`, \
                       or set `apply_lora_to_mlp` or `apply_lora_to_output` too";
        let is_broken = self.lora().is_empty();
        is_broken.then(|| ("lora_attn_modules", message.into()))
    }

    fn has_invalid_adapter(&self) -> Option<Broken> {
        match self.lora().validate_adapter() {
            Err(Error::InvalidArgument { name, message }) => {
                let key = key_of(name);
                Some((key, format!("`{key}`: {message}")))
            }
            _ => None,
        }
    }

    fn makes_up_for_nothing(&self) -> Option<Broken> {
        let message = "`init_lora_weights` is loftq, which makes up for the error of packing dense weights; set \
                       `quantize_base` to nf4 or int8 too, and `checkpoint_dir` to the original folder if yours is packed";
        let begins = self.init_lora_weights == Init::Loftq && self.adapter_checkpoint.is_none();
        let is_broken = begins && self.quantize_base.is_none();
        is_broken.then(|| ("init_lora_weights", message.into()))
    }

    fn quantizes_vocabulary_alone(&self) -> Option<Broken> {
        let message = "`quantize_vocabulary` goes with the linear layers, set `quantize_base` to nf4 or int8 too";
        let is_broken = self.quantize_vocabulary && self.quantize_base.is_none();
        is_broken.then(|| ("quantize_vocabulary", message.into()))
    }

    fn packs_without_length(&self) -> Option<Broken> {
        let message =
            "`packed` needs the length of the rows that records share, set `max_seq_len` too";
        let is_broken = self.packed && self.max_seq_len.is_none();
        is_broken.then(|| ("packed", message.into()))
    }

    fn groups_what_is_packed(&self) -> Option<Broken> {
        let message = "`group_by_length` and `packed` exclude each other: rows that are packed are all about as long";
        let is_broken = self.packed && self.group_by_length;
        is_broken.then(|| ("group_by_length", message.into()))
    }

    fn validates_on_nothing(&self) -> Option<Broken> {
        let message = "`run_val_every_n_steps` needs records to validate on, \
                       set `validation_dataset` or `validation_split` too";
        let has_records = self.holds_out() || self.validation_dataset.is_some();
        let is_broken = self.run_val_every_n_steps.is_some() && !has_records;
        is_broken.then(|| ("run_val_every_n_steps", message.into()))
    }

    fn waits_for_no_validation(&self) -> Option<Broken> {
        let key = match (self.early_stopping_patience, self.best_checkpoint) {
            (Some(_), _) => "early_stopping_patience",
            (None, BestCheckpoint::None) => return None,
            (None, _) => "best_checkpoint",
        };
        let message = format!("`{key}` goes by validations, set `run_val_every_n_steps` too");
        let is_broken = self.run_val_every_n_steps.is_none();
        is_broken.then_some((key, message))
    }

    fn tree(&self) -> Value {
        serde_json::to_value(self).expect("the paths of a recipe are UTF-8")
    }
}
