//! The table of the recipe's keys: name, accepted values, meaning.

use std::fmt;

use serde_json::Value;

use super::RecipeConfig;
use crate::error::nearest;
use crate::lora::Init;

/// A key of the recipe: a row of the table in `docs/recipe.md`.
#[derive(Debug)]
pub struct RecipeKey {
    name: &'static str,
    kind: Kind,
    doc: &'static str,
    optional: bool,
    binds_resume: bool,
}

/// The values that a key accepts.
#[derive(Debug)]
enum Kind {
    Flag,
    /// A whole number that is at least this, and at most [`MOST`].
    Count(u64),
    /// A whole number, which nothing is counted by.
    Seed,
    /// A number above 0.
    Positive,
    /// A number from 0 up.
    NonNegative,
    /// A number from this up.
    AtLeast(f64),
    /// A number from 0 up to but not including 1.
    Fraction,
    /// Two such numbers.
    FractionPair,
    /// A text of this meaning.
    Text(&'static str),
    /// A path, or several with commas between them; in words.
    Path(&'static str),
    /// See [`Resume`](super::Resume).
    ResumeFrom,
    Word(&'static [&'static str]),
    Words(&'static [&'static str]),
    /// A word for how A and B begin, see [`Init::WORDS`].
    Beginning,
    /// Names of modules, a regular expression, or a word for all.
    Modules,
    /// Names of modules.
    Names,
    /// Whole numbers.
    Indices,
    /// Names with numbers of this kind.
    Ranks,
    Alphas,
    /// Names with lists of whole numbers.
    Rows,
}
use Kind::*;

const PATH: Kind = Path("a path");
const TREATMENT: Kind = Word(&["keep", "drop", "error"]);

/// Those of [`Init::WORDS`] without a number.
const BEGINNINGS: [&str; 7] = [
    "kaiming",
    "gaussian",
    "orthogonal",
    "pissa",
    "olora",
    "eva",
    "loftq",
];

/// Other names in use for the same word, with ours.
const ALIASES: [(&str, &str); 6] = [
    ("o_proj", "output_proj"),
    ("fp32", "f32"),
    ("float32", "f32"),
    ("bfloat16", "bf16"),
    ("fp16", "f16"),
    ("float16", "f16"),
];

/// In the order of [`RecipeConfig`]'s fields.
pub(super) const KEYS: &[RecipeKey] = &[
    key(
        "model",
        Word(&["auto", "llama2_7b", "llama2_13b", "llama2_70b"]),
        "What the checkpoint must be; `auto` takes any family that is read.",
    ),
    key(
        "lora_attn_modules",
        Words(&["q_proj", "k_proj", "v_proj", "output_proj"]),
        "Linear layers of the attention with an adapter; `o_proj` also means `output_proj`. `[]` is none, \
         for adapters elsewhere.",
    ),
    key(
        "apply_lora_to_mlp",
        Flag,
        "Adapters on the three linear layers of each feed-forward too.",
    ),
    key(
        "apply_lora_to_output",
        Flag,
        "An adapter on the output projection (the vocabulary's) too.",
    ),
    key(
        "target_modules",
        Modules,
        "Modules with an adapter, by names, paths or a pattern, here or in Hugging Face's files; takes the place of \
         the three keys above.",
    )
    .optional(),
    key(
        "exclude_modules",
        Modules,
        "Modules among them without one.",
    )
    .optional(),
    key(
        "layers_to_transform",
        Indices,
        "Layers whose modules have one; `null` is all.",
    )
    .optional(),
    key(
        "modules_to_save",
        Names,
        "Modules trained as a whole, by the end of their names: embed_tokens, lm_head, norm.",
    ),
    key(
        "trainable_token_indices",
        Rows,
        "Rows of embeddings to train, such as `{embed_tokens: [3, 7]}`.",
    ),
    key("lora_rank", Count(1), "Rank r of the adapters."),
    key(
        "lora_alpha",
        Positive,
        "Numerator of the scale `alpha / r` of the adapters.",
    ),
    key(
        "rank_pattern",
        Ranks,
        "Other ranks for some modules, such as `{v_proj: 4}`: the first key that matches the end of a path.",
    ),
    key(
        "alpha_pattern",
        Alphas,
        "Other alphas for some modules, likewise.",
    ),
    key(
        "lora_dropout",
        Fraction,
        "Probability of dropping an element of an adapter's input in training.",
    ),
    key("use_dora", Flag, "Train DoRA's magnitudes beside A and B."),
    key(
        "use_rslora",
        Flag,
        "Scale by `alpha / sqrt(r)` instead (rsLoRA).",
    ),
    key(
        "init_lora_weights",
        Beginning,
        "How A and B begin, see docs/methods/first-values.md; `true` is kaiming, as in PEFT.",
    ),
    key(
        "eva_rho",
        AtLeast(1.0),
        "How many times its rank an adapter that begins with eva may get; 1 leaves ranks alone.",
    ),
    key("lora_bias", Flag, "A bias of B, scaled as the update."),
    key(
        "bias",
        Word(&["none", "lora_only", "all"]),
        "Which biases of linear layers are trained: none, those beside an adapter, or all.",
    ),
    key("freeze_a", Flag, "Keep A as it begins (LoRA-FA)."),
    key(
        "tokenizer",
        PATH,
        "A `tokenizer.json`, a `tokenizer.model` or a `.gguf` file, or a folder with one of the first two; \
         `null` is the checkpoint's own.",
    )
    .optional(),
    key(
        "checkpoint_dir",
        PATH,
        "Folder of the base model in Hugging Face's format, one that bitsandbytes quantized too, or as Meta releases it \
         (`params.json`), or a `.gguf` file; `null` is the embedded model, which the example has alone.",
    )
    .optional()
    .free(),
    key(
        "base_model_name",
        Text("a name"),
        "What adapters name as their base, such as its name on the Hub; `null` is this name for a model in the Hub's \
         cache, and else the absolute path of `checkpoint_dir`.",
    )
    .optional()
    .free(),
    key(
        "adapter_checkpoint",
        PATH,
        "An adapter to begin with, of PEFT, mlx-lm, torchtune or `save_adapter`; `null` is a new one.",
    )
    .optional()
    .free(),
    key(
        "dataset",
        PATH,
        "Records to train on, see docs/data.md: JSON, JSONL, CSV or Parquet, compressed or not, several files or folders \
         with commas between them and weights behind an `@`; `null` is the embedded set, for the embedded model only.",
    )
    .optional()
    .free(),
    key(
        "validation_dataset",
        PATH,
        "Records for the validation loss, likewise, without weights.",
    )
    .optional()
    .free(),
    key(
        "validation_split",
        Fraction,
        "Fraction of `dataset` held out for validation instead.",
    ),
    key(
        "dataset_format",
        Word(&["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"]),
        "Form of the records; `auto` is what the keys of a file's first record say.",
    ),
    key(
        "chat_template",
        Path("a path, or chatml"),
        "Template that makes a conversation a text, in Jinja's language; set, it is for Alpaca's records too. `null` is \
         the tokenizer's own, or ChatML if it has none, and Alpaca's prompt for Alpaca's records.",
    )
    .optional(),
    key(
        "train_on",
        Word(&["assistant", "last", "all"]),
        "What the loss counts: all answers, the last one, or every token; `null` is all answers of a conversation, and \
         of other records what `train_on_input` says.",
    )
    .optional(),
    key(
        "train_on_input",
        Flag,
        "Count the prompt's tokens in the loss, not only the answer's, of records that are no conversations.",
    ),
    key(
        "max_seq_len",
        Count(2),
        "Length in tokens to which a record is cut, at most the model's context, which `null` means.",
    )
    .optional(),
    key(
        "too_long",
        Word(&["cut", "drop", "error"]),
        "What becomes of a longer record: it is cut, left out, or ends the run before it starts.",
    ),
    key(
        "prompt_only",
        TREATMENT,
        "What becomes of a record whose prompt fills `max_seq_len`, so that nothing of its answer is left: it is used, \
         left out, or ends the run before it starts.",
    ),
    key(
        "without_labels",
        TREATMENT,
        "What becomes of a record of which the loss counts nothing for another reason, likewise.",
    ),
    key(
        "empty_answers",
        TREATMENT,
        "What becomes of a record whose answer says nothing, likewise.",
    ),
    key(
        "empty_instructions",
        TREATMENT,
        "What becomes of a record that asks nothing, likewise.",
    ),
    key(
        "packed",
        Flag,
        "Several records in one sequence of `max_seq_len` tokens, which must be set; none sees another.",
    ),
    key(
        "shuffle",
        Flag,
        "An order of its own for the records of each epoch.",
    ),
    key(
        "group_by_length",
        Flag,
        "Batches of records of about the same length, for less padding: those of 50 steps are sorted by length and dealt \
         out.",
    ),
    key(
        "seed",
        Seed,
        "Seed of the adapters' first values, the dropout and the order.",
    ),
    key(
        "neftune_noise_alpha",
        NonNegative,
        "Noise on the embeddings in training, uniform up to `neftune_noise_alpha / sqrt(tokens · hidden_size)` of either sign \
         (NEFTune; 5 is usual); `null` is none.",
    )
    .optional(),
    key("batch_size", Count(1), "Records in a batch."),
    key("epochs", Count(1), "Passes over the records."),
    key(
        "max_steps_per_epoch",
        Count(1),
        "Optimizer steps after which an epoch ends early.",
    )
    .optional(),
    key(
        "gradient_accumulation_steps",
        Count(1),
        "Batches whose gradients make one optimizer step.",
    ),
    key(
        "clip_grad_norm",
        Positive,
        "Norm to which the gradients of all adapters together are clipped.",
    )
    .optional(),
    key(
        "skip_nonfinite_steps",
        Count(0),
        "How many steps of the run are left out, without an update, because their loss or gradients are no numbers; one \
         more ends the run.",
    )
    .free(),
    key(
        "optimizer.lr",
        NonNegative,
        "AdamW's highest learning rate.",
    ),
    key(
        "optimizer.weight_decay",
        NonNegative,
        "AdamW's decoupled weight decay.",
    ),
    key(
        "optimizer.betas",
        FractionPair,
        "AdamW's decay rates of the gradient's mean and of its square's.",
    ),
    // Without an epsilon, the first step divides 0 by 0: B is zero, so A's gradient is.
    key(
        "optimizer.eps",
        Positive,
        "What AdamW adds to the denominator.",
    ),
    key(
        "optimizer.loraplus_lr_ratio",
        Positive,
        "B's learning rate divided by that of all other parameters (LoRA+); 1 is plain AdamW.",
    ),
    key(
        "lr_scheduler.kind",
        Word(&["cosine", "linear", "constant"]),
        "Learning rate after the warmup: half a cosine to 0, a line to 0, or unchanged.",
    ),
    key(
        "lr_scheduler.num_warmup_steps",
        Count(0),
        "Optimizer steps in which the learning rate rises from 0.",
    ),
    key(
        "dtype",
        Word(&["f32", "bf16", "f16"]),
        "Type of the base model's weights that are not packed; `fp32`, `bfloat16` and the like are accepted too. f16 is \
         for GPUs without bf16; the recipe scales the loss for it.",
    ),
    key(
        "quantize_base",
        Word(&["nf4", "int8"]),
        "Keeps the weights of the base's linear layers in four bits (NF4 with double quantization, as QLoRA) or eight, \
         quantized as they are loaded; `null` keeps them in `dtype`. Weights that the checkpoint has packed (`.gguf`, \
         bitsandbytes) stay as they are, with any value.",
    )
    .optional(),
    key(
        "quantize_vocabulary",
        Flag,
        "Quantize the embedding and the projection to the vocabulary by `quantize_base` too: less memory, by up to a gigabyte \
         where the vocabulary is large, at some cost in quality.",
    ),
    key(
        "matmul_precision",
        Word(&["auto", "highest", "medium"]),
        "`auto` is `medium` on a CPU with a bf16 or quantized base, if that is faster there: on AMD's processors with \
         AVX512-BF16 and on Intel's with AMX; otherwise `highest`. \
         `medium` rounds activations. On NVIDIA's GPUs the inputs of f32 products, to TF32; on the CPU what is kept for the \
         backward pass, to bf16, which takes up to 35 % off a training's memory, and, where the processor multiplies bf16 \
         (AVX512-BF16, AMX), the inputs of products with a bf16 or quantized base. `highest` rounds nothing.",
    )
    .free(),
    key(
        "device",
        Text("a device such as auto, flex, cuda or cuda:1, or several: cuda:0,cuda:1"),
        "Where to run; `auto` is what `BURN_DEVICE` names, or else a GPU if there is one, or else the CPU.",
    )
    .free(),
    key(
        "enable_activation_checkpointing",
        Flag,
        "Recompute activations in the backward pass, layer by layer, for less memory.",
    )
    .free(),
    key("output_dir", PATH, "The run's folder.").free(),
    key(
        "overwrite_output_dir",
        Flag,
        "A new run deletes the checkpoints, the adapter and the merged model of another run in `output_dir`.",
    )
    .free(),
    key(
        "save_every_n_steps",
        Count(1),
        "Steps between checkpoints; `null` saves at the end only.",
    )
    .optional()
    .free(),
    key(
        "save_every_epoch",
        Flag,
        "Save a checkpoint at the end of each epoch too.",
    )
    .free(),
    key(
        "keep_last_n_checkpoints",
        Count(1),
        "How many of the run's checkpoints are kept, the last ones, and beside them that of the best validation; \
         `null` keeps all.",
    )
    .optional()
    .free(),
    key(
        "save_adapter_weights_only",
        Flag,
        "Save the adapter alone at the end, not the merged model too.",
    )
    .free(),
    key(
        "resume_from_checkpoint",
        ResumeFrom,
        "Go on from the last checkpoint in `output_dir` (`true`), or do so if there is one and begin if there is none \
         (`auto`), or from a checkpoint of this run or another one, by the path of its folder.",
    )
    .free(),
    key(
        "metric_logger",
        Words(&["jsonl", "csv", "tensorboard"]),
        "Where metrics go in the run's folder: `metrics.jsonl`, which is always written, `metrics.csv`, an event file for \
         TensorBoard.",
    )
    .free(),
    key(
        "log_every_n_steps",
        Count(1),
        "Steps between two lines of metrics.",
    )
    .free(),
    key(
        "log_peak_memory_stats",
        Flag,
        "Write the peak memory into the metrics.",
    )
    .free(),
    key(
        "report_samples",
        Count(0),
        "How many records the model continues before and after the training, by 64 tokens at most, for `report.html`.",
    )
    .free(),
    key(
        "run_val_every_n_steps",
        Count(1),
        "Steps between two validations; `null` validates at the end only.",
    )
    .optional()
    .free(),
    key(
        "best_checkpoint",
        Word(&["none", "save", "use"]),
        "With `save`, a validation that is the best so far saves a checkpoint; with `use`, the final adapter and the \
         merged model are made of it too.",
    )
    .free(),
    key(
        "early_stopping_patience",
        Count(1),
        "After how many validations without a better one the training ends; `null` is never.",
    )
    .optional()
    .free(),
];

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> RecipeKey {
    RecipeKey {
        name,
        kind,
        doc,
        optional: false,
        binds_resume: true,
    }
}

impl RecipeKey {
    /// `null` is accepted too.
    const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// A resumed run may have another value.
    const fn free(mut self) -> Self {
        self.binds_resume = false;
        self
    }

    /// The key, dotted where it is nested: `optimizer.lr`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the key means, in a sentence.
    pub fn doc(&self) -> &'static str {
        self.doc
    }

    /// The value it has when nobody sets it, as YAML on one line.
    pub fn default(&self) -> String {
        show(self.of(&RecipeConfig::default().tree()))
    }

    /// The values it accepts, in words: "a whole number, at least 1, or null".
    pub fn accepts(&self) -> String {
        let or_null = if self.optional { ", or null" } else { "" };
        format!("{}{or_null}", self.kind)
    }

    /// The words that it accepts, for a key whose value is a word or a list of words.
    pub fn choices(&self) -> &'static [&'static str] {
        match self.kind {
            Word(choices) | Words(choices) => choices,
            Beginning => &BEGINNINGS,
            _ => &[],
        }
    }

    /// Whether its value is a map, whose entries are no keys.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.kind, Ranks | Alphas | Rows)
    }

    /// Whether a run that is resumed must have the same value, see [`RecipeConfig::difference`].
    pub fn binds_resume(&self) -> bool {
        self.binds_resume
    }

    pub(super) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The value in the form that [`RecipeConfig`] deserializes, or `None` if it is not accepted.
    pub(super) fn accept(&self, value: &Value) -> Option<Value> {
        match value {
            Value::Null if self.optional => Some(Value::Null),
            value => self.kind.accept(value),
        }
    }

    /// This key's value in a configuration's tree.
    pub(super) fn of<'a>(&self, tree: &'a Value) -> &'a Value {
        self.name.split('.').fold(tree, |node, name| &node[name])
    }

    pub(super) fn of_mut<'a>(&self, tree: &'a mut Value) -> &'a mut Value {
        let path = self.name.split('.');
        path.fold(tree, |node, name| &mut node[name])
    }

    /// For each word in `value` that is not accepted, the choice that looks most like it.
    pub(super) fn nearest_choices(&self, value: &Value) -> Vec<String> {
        let words = value.as_array().map_or(std::slice::from_ref(value), |v| v);
        let unknown = words
            .iter()
            .filter_map(Value::as_str)
            .filter(|word| !self.choices().contains(word));
        let mut found: Vec<String> = unknown
            .flat_map(|word| nearest(word, self.choices().iter().copied(), 1))
            .collect();
        found.dedup();
        found
    }
}

/// The valid keys that look most like `name`: those with the same last part (`lr` for
/// `optimizer.lr`), otherwise the one with the most similar spelling.
pub(super) fn nearest_keys(name: &str) -> Vec<String> {
    let leaf = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let same_leaf: Vec<String> = KEYS
        .iter()
        .filter(|key| leaf(key.name) == leaf(name))
        .map(|key| key.name.to_owned())
        .collect();
    if same_leaf.is_empty() {
        nearest(name, KEYS.iter().map(|key| key.name), 1)
    } else {
        same_leaf
    }
}

/// The keys below `section`, without its name; none if it is not a section.
pub(super) fn keys_below(section: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter_map(|key| key.name.strip_prefix(section)?.strip_prefix('.'))
        .collect()
}

/// A value as YAML on one line, without quotes.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(show).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) => {
            let entries = entries.iter();
            let entries: Vec<_> = entries.map(|(k, v)| format!("{k}: {}", show(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

impl Kind {
    fn accept(&self, value: &Value) -> Option<Value> {
        let accepted = match self {
            Flag => value.is_boolean(),
            Count(min) => is_count(value, *min),
            Seed => value.is_u64(),
            Positive => is_number(value, |x| x > 0.0),
            NonNegative => is_number(value, |x| x >= 0.0),
            AtLeast(min) => is_number(value, |x| f64::from(x) >= *min),
            Fraction => is_fraction(value),
            FractionPair => value
                .as_array()
                .is_some_and(|pair| pair.len() == 2 && pair.iter().all(is_fraction)),
            Text(_) => is_text(value),
            Path(_) => return paths(value),
            ResumeFrom if value.is_boolean() => true,
            ResumeFrom => return paths(value),
            Word(choices) => return word(choices, value).map(Value::from),
            Words(choices) => return words(choices, value),
            Beginning => return beginning(value).map(|init| init.to_string().into()),
            Modules => {
                let is_pattern = value.as_str().is_some_and(|text| !text.trim().is_empty());
                is_pattern || is_list(value, Value::is_string)
            }
            Names => is_list(value, Value::is_string),
            Indices => is_list(value, Value::is_u64),
            Ranks => is_map(value, |rank| is_count(rank, 1)),
            Alphas => is_map(value, |alpha| Positive.accept(alpha).is_some()),
            Rows => is_map(value, |rows| is_list(rows, Value::is_u64)),
        };
        accepted.then(|| value.clone())
    }
}

/// The largest count. What follows from several of them is still a number: the steps of so many epochs, say.
const MOST: u64 = 1_000_000_000;

fn is_count(value: &Value, min: u64) -> bool {
    value.as_u64().is_some_and(|n| (min..=MOST).contains(&n))
}

/// A number that is one in f32 too, in which it serves.
fn is_number(value: &Value, accepts: impl Fn(f32) -> bool) -> bool {
    let value = value.as_f64().map(|x| x as f32);
    value.is_some_and(|x| x.is_finite() && accepts(x))
}

/// PEFT's `false` leaves a weight of random numbers in `B` too, for its own tests.
fn beginning(value: &Value) -> Option<Init> {
    match value {
        Value::Bool(true) => Some(Init::Kaiming),
        value => value.as_str()?.parse().ok(),
    }
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

/// Paths with the home folder in the place of `~`, which shells put there only at the beginning of a word.
fn paths(value: &Value) -> Option<Value> {
    let text = value.as_str().filter(|_| is_text(value))?;
    let paths: Vec<String> = text.split(',').map(with_home).collect();
    Some(paths.join(",").into())
}

fn with_home(path: &str) -> String {
    let below_home = path
        .trim_start()
        .strip_prefix('~')
        .filter(|rest| rest.is_empty() || rest.starts_with(std::path::is_separator));
    match (below_home, std::env::home_dir()) {
        (Some(rest), Some(home)) => format!("{}{rest}", home.display()),
        _ => path.to_owned(),
    }
}

fn is_list(value: &Value, accepts: impl Fn(&Value) -> bool) -> bool {
    value
        .as_array()
        .is_some_and(|items| items.iter().all(accepts))
}

fn is_map(value: &Value, accepts: impl Fn(&Value) -> bool) -> bool {
    value
        .as_object()
        .is_some_and(|entries| entries.values().all(accepts))
}

fn is_fraction(value: &Value) -> bool {
    value.as_f64().is_some_and(|x| (0.0..1.0).contains(&x))
}

fn word<'a>(choices: &[&'a str], value: &Value) -> Option<&'a str> {
    let written = value.as_str()?;
    let alias = ALIASES.iter().find(|(alias, _)| *alias == written);
    let wanted = alias.map_or(written, |(_, ours)| ours);
    choices.iter().copied().find(|choice| *choice == wanted)
}

/// The words in the order of the choices and each only once, so that lists of the same meaning are
/// equal.
fn words(choices: &[&str], value: &Value) -> Option<Value> {
    let written = value.as_array().map_or(std::slice::from_ref(value), |v| v);
    let known: Option<Vec<&str>> = written.iter().map(|w| word(choices, w)).collect();
    let known = known?;
    let ordered = choices.iter().filter(|choice| known.contains(choice));
    Some(ordered.map(|choice| Value::from(*choice)).collect())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flag => write!(f, "true or false"),
            Count(min) => write!(f, "a whole number from {min} to 10⁹"),
            Seed => write!(f, "a whole number, at least 0"),
            Positive => write!(f, "a number above 0"),
            NonNegative => write!(f, "a number, at least 0"),
            AtLeast(min) => write!(f, "a number, at least {min}"),
            Fraction => write!(f, "a number from 0 to below 1"),
            FractionPair => write!(f, "two numbers from 0 to below 1"),
            Text(meaning) | Path(meaning) => write!(f, "{meaning}"),
            ResumeFrom => write!(f, "true, false, auto or a path"),
            Word(choices) => write!(f, "{}", or(choices)),
            Words(choices) => write!(f, "a list of {}", choices.join(", ")),
            Beginning => write!(f, "{}", or(&Init::WORDS)),
            Modules => write!(f, "a list of names, a regular expression or all-linear"),
            Names => write!(f, "a list of names"),
            Indices => write!(f, "a list of whole numbers"),
            Ranks => write!(f, "names with whole numbers from 1 to 10⁹"),
            Alphas => write!(f, "names with numbers above 0"),
            Rows => write!(f, "names with lists of whole numbers"),
        }
    }
}

/// "a, b or c".
fn or(choices: &[&str]) -> String {
    match choices {
        [one] => (*one).to_owned(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
        [] => String::new(),
    }
}
