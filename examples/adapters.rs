//! Adapters on the command line: asked, trained some steps, begun, merged into their base, written for llama.cpp.
//!
//! ```text
//! cargo run --release --example adapters -- merge --model DIR --adapter DIR --out DIR
//! cargo run --release --example adapters -- merge --model DIR --adapter DIR --gguf Q8_0 --out model.gguf
//! cargo run --release --example adapters -- merge --model base.gguf --adapter DIR --requantize --out model.gguf
//! cargo run --release --example adapters -- gguf --model DIR|FILE.gguf --adapter DIR --out adapter.gguf
//! ```
//!
//! The other verbs are for comparisons with another framework (`tests/python/check_adapters.py`): their inputs and
//! outputs are safetensors files.

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "../src/bin/burn-peft/merge.rs"]
mod merge;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_peft::adapter::{
    StateDict, combine_adapters, get_params, initialize_adapters, initialize_eva, initialize_params,
};
use burn_peft::checkpoint::{
    SafetensorsFile, attach_peft, attach_peft_as, initialize_loftq_from, load_any_base_as,
    load_peft, peft_tensors, read_base_config, read_peft_config, save_gguf_adapter, save_hf,
    save_peft_adapter, save_peft_unconverted, save_state_dict,
};
use burn_peft::data::Batch;
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{
    Combination, CombineOptions, DEFAULT_ADAPTER, Decomposition, Init, LoRAConfig,
};
use burn_peft::training::{
    AdamWConfig, GradientOptions, LrSchedule, ScheduleKind, Trainer, accumulate_gradients,
};
use burn_peft::weight::{BaseFormat, Quantization};
use burn_peft::{Error, Result};
use clap::{Args, Parser, Subcommand};

/// Work with adapters of a base model.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Merge(merge::Args),
    /// Writes an adapter as a GGUF file, for `--lora` of llama.cpp.
    Gguf(Files),
    /// Writes the logits of `input_ids`, `[batch, seq]`.
    Logits(Logits),
    /// Writes the mean loss of `labels` and its gradients, under PEFT's names.
    Gradients(Gradients),
    /// Trains an adapter for some steps of AdamW and saves it.
    Train(Train),
    /// Begins an adapter by LoftQ on a base that is packed as it is loaded: writes `adapter`, and `merged` with that.
    Loftq(Loftq),
    /// Combines adapters into one.
    Combine(Combine),
    /// Begins an adapter by a configuration of PEFT's, trains it for some steps and saves it.
    Init(Begin),
}

#[derive(Args)]
struct Logits {
    #[command(flatten)]
    files: Files,
    /// A file with `input_ids`.
    #[arg(long)]
    inputs: PathBuf,
}

#[derive(Args)]
struct Gradients {
    #[command(flatten)]
    files: Files,
    /// A file with `input_ids` and `labels`.
    #[arg(long)]
    inputs: PathBuf,
}

#[derive(Args)]
struct Train {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    training: Training,
    /// Pack the base's linear layers as they are loaded: nf4 or int8.
    #[arg(long, value_parser = quantization)]
    quantize: Option<Quantization>,
}

#[derive(Args)]
struct Loftq {
    #[command(flatten)]
    files: Files,
    /// An `adapter_config.json`.
    #[arg(long)]
    config: PathBuf,
    /// How the base is packed: nf4 or int8.
    #[arg(long, value_parser = quantization)]
    quantize: Quantization,
    /// How often the base is quantized and the rest decomposed.
    #[arg(long)]
    iterations: usize,
    /// How often random vectors are multiplied by the rest, in place of its exact decomposition.
    #[arg(long)]
    random: Option<usize>,
}

#[derive(Args)]
struct Combine {
    /// The base model, a Hugging Face folder or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// The adapters, PEFT folders.
    #[arg(long, value_delimiter = ',')]
    adapters: Vec<PathBuf>,
    /// A weight for each.
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// How: cat, linear, svd, ties, dare_linear, dare_ties, magnitude_prune, or one with _svd.
    #[arg(long)]
    combination: Combination,
    /// The share of the numbers that ties, dare and magnitude_prune keep.
    #[arg(long)]
    density: Option<f64>,
    /// The PEFT folder to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Begin {
    #[command(flatten)]
    files: Files,
    /// An `adapter_config.json`.
    #[arg(long)]
    config: PathBuf,
    /// The seed of the first values.
    #[arg(long)]
    seed: u64,
    /// Whether an adapter that shifts its base is saved as a plain one of twice the rank.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    convert: bool,
    /// How many times its rank an adapter may get with EVA's first values, which come from `input_ids`.
    #[arg(long, default_value_t = 2.0)]
    rho: f64,
    #[command(flatten)]
    training: Training,
}

#[derive(Args)]
struct Files {
    /// The base model, a Hugging Face folder or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// The adapter, a PEFT folder.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct Training {
    /// A file with `input_ids` and `labels` for all steps, or `train_input_ids` and `train_labels` with those of
    /// each.
    #[arg(long)]
    inputs: PathBuf,
    /// The number of steps.
    #[arg(long)]
    steps: usize,
    /// Where the losses go, as a JSON list.
    #[arg(long)]
    losses: Option<PathBuf>,
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Merge(args) => merge::run(args),
        Verb::Gguf(files) => gguf(files),
        Verb::Logits(args) => logits(args),
        Verb::Gradients(args) => gradients(args),
        Verb::Train(args) => train_again(args),
        Verb::Loftq(args) => loftq(args),
        Verb::Combine(args) => combine(args),
        Verb::Init(args) => begin(args),
    }
}

fn gguf(files: &Files) -> Result<()> {
    let model = adapted(files, &Device::default())?;
    save_gguf_adapter(&model, DEFAULT_ADAPTER, &files.out)
}

/// The folder that is written is as the one that was read.
fn train_again(args: &Train) -> Result<()> {
    let model = without_dropout(&args.files, base_format(args.quantize))?;
    train(model, &args.files, &args.training, false)
}

/// The configuration that a path names by its file.
fn config_beside(path: &Path) -> Result<LoRAConfig> {
    read_peft_config(path.parent().unwrap_or(Path::new(".")))
}

fn begin(args: &Begin) -> Result<()> {
    let lora = config_beside(&args.config)?;
    let model = base(&args.files.model, &device())?.with_adapters(&lora)?;
    let mut model = initialize_adapters(model, args.seed);
    if lora.init == Init::Eva {
        model = begin_with_inputs(model, args.rho, &args.training.inputs)?;
    }
    train(model, &args.files, &args.training, args.convert)
}

fn begin_with_inputs(
    model: TransformerDecoder,
    rho: f64,
    inputs: &Path,
) -> Result<TransformerDecoder> {
    let file = SafetensorsFile::open(inputs)?;
    let ids = ids_of(&file, &model, &Device::default())?;
    initialize_eva(model, rho, |model| {
        model.forward(ids, None);
    })
}

fn device() -> Device {
    Device::default().autodiff()
}

fn base(dir: &Path, device: &Device) -> Result<TransformerDecoder> {
    base_as(dir, device, DType::F32.into())
}

fn base_as(dir: &Path, device: &Device, format: BaseFormat) -> Result<TransformerDecoder> {
    let mut model = read_base_config(dir)?.init(device);
    load_any_base_as(&mut model, dir, format)?;
    Ok(model)
}

fn base_format(quantization: Option<Quantization>) -> BaseFormat {
    BaseFormat::new(DType::F32).with_quantization(quantization)
}

/// A word of the recipe's.
fn quantization(word: &str) -> std::result::Result<Quantization, String> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn loftq(args: &Loftq) -> Result<()> {
    let Loftq {
        files, quantize, ..
    } = args;
    let lora = config_beside(&args.config)?.with_init(Init::Loftq);
    let model = base_as(&files.model, &Device::default(), (*quantize).into())?;
    let model = initialize_adapters(model.with_adapters(&lora)?, 0);
    let decomposition = decomposition(args.random);
    let model = initialize_loftq_from(model, &files.model, args.iterations, decomposition)?;
    let base = files.model.to_string_lossy();
    let adapter = files.out.join("adapter");
    save_peft_adapter(&model, DEFAULT_ADAPTER, Some(&base), adapter)?;
    save_hf(&model.merge_lora(), files.out.join("merged"))
}

fn decomposition(random: Option<usize>) -> Decomposition {
    match random {
        None => Decomposition::Exact,
        Some(iterations) => Decomposition::Randomized {
            iterations,
            seed: 0,
        },
    }
}

fn adapted(files: &Files, device: &Device) -> Result<TransformerDecoder> {
    let mut model = base(&files.model, device)?;
    if let Some(adapter) = &files.adapter {
        attach_peft(&mut model, adapter)?;
    }
    Ok(model)
}

fn combine(args: &Combine) -> Result<()> {
    let Combine {
        model: dir,
        adapters,
        weights,
        ..
    } = args;
    if adapters.len() != weights.len() {
        return Err(Error::InvalidArgument {
            name: "weights",
            message: format!("{} weights for {} adapters", weights.len(), adapters.len()),
        });
    }
    let mut model = base(dir, &Device::default())?;
    let names = 1..=adapters.len();
    let names: Vec<String> = names.map(|n| format!("adapter{n}")).collect();
    for (name, adapter) in names.iter().zip(adapters) {
        attach_peft_as(&mut model, adapter, name)?;
    }
    let named = names.iter().map(String::as_str);
    let named: Vec<(&str, f64)> = named.zip(weights.iter().copied()).collect();
    let mut options = CombineOptions::default();
    options.density = args.density;
    let model = combine_adapters(model, &named, args.combination, &options, DEFAULT_ADAPTER)?;
    let base = dir.to_string_lossy();
    save_peft_adapter(&model, DEFAULT_ADAPTER, Some(&base), &args.out)
}

fn logits(Logits { files, inputs }: &Logits) -> Result<()> {
    let device = Device::default();
    let model = adapted(files, &device)?;
    let file = SafetensorsFile::open(inputs)?;
    let ids = ids_of(&file, &model, &device)?;
    let logits = model.forward(ids, None).into_data();
    save_state_dict(&StateDict::from([("logits".into(), logits)]), &files.out)
}

fn gradients(Gradients { files, inputs }: &Gradients) -> Result<()> {
    let model = without_dropout(files, DType::F32.into())?;
    initialize_params(&model);
    let file = SafetensorsFile::open(inputs)?;
    let batch = batch(&file, ["input_ids", "labels"], None, model.vocab_size())?;
    let (loss, grads) = accumulate_gradients(&model, &[batch], GradientOptions::default());
    let mut reader = GradientReader {
        grads: &grads,
        ids: Vec::new(),
    };
    model.visit(&mut reader);
    let params = get_params(&model);
    let gradients: HashMap<ParamId, TensorData> = reader.ids.into_iter().collect();
    let found = params.iter().filter_map(|(key, info)| {
        let gradient = gradients.get(&info.id)?;
        Some((key.to_owned(), gradient.clone()))
    });
    let mut values = peft_tensors(&model, DEFAULT_ADAPTER, found.collect());
    values.insert("loss".into(), TensorData::new(vec![loss as f32], [1]));
    save_state_dict(&values, &files.out)
}

struct GradientReader<'a> {
    grads: &'a GradientsParams,
    ids: Vec<(ParamId, TensorData)>,
}

impl ModuleVisitor for GradientReader<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.ids.push((param.id, grad.into_data()));
        }
    }
}

/// Trains a model's adapter and saves it, as the plain one that it is with its base or as it is.
fn train(
    model: TransformerDecoder,
    files: &Files,
    training: &Training,
    convert: bool,
) -> Result<()> {
    initialize_params(&model);
    let (model, losses) = take_steps(model, training)?;
    if let Some(path) = &training.losses {
        write_losses(&losses, path)?;
    }
    let base = files.model.to_string_lossy();
    match convert {
        true => save_peft_adapter(&model, DEFAULT_ADAPTER, Some(&base), &files.out),
        false => save_peft_unconverted(&model, DEFAULT_ADAPTER, Some(&base), &files.out),
    }
}

/// The model after its steps, and the loss of each.
fn take_steps(
    mut model: TransformerDecoder,
    training: &Training,
) -> Result<(TransformerDecoder, Vec<f64>)> {
    let file = SafetensorsFile::open(&training.inputs)?;
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-3,
        warmup_steps: 0,
        total_steps: training.steps,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let mut losses = Vec::new();
    for step in 0..training.steps {
        let batch = batch_of_step(&file, step, model.vocab_size())?;
        let output;
        (model, output) = trainer.step(model, &[batch]);
        losses.push(output.loss);
    }
    Ok((model, losses))
}

fn batch_of_step(file: &SafetensorsFile, step: usize, vocab_size: usize) -> Result<Batch> {
    let (keys, step) = match file.shapes().contains_key("train_input_ids") {
        true => (["train_input_ids", "train_labels"], Some(step)),
        false => (["input_ids", "labels"], None),
    };
    batch(file, keys, step, vocab_size)
}

fn write_losses(losses: &[f64], path: &Path) -> Result<()> {
    let text = serde_json::to_string(losses).expect("numbers serialise");
    std::fs::write(path, text).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// An adapter to train by steps that another framework repeats, whose dropout would differ.
fn without_dropout(files: &Files, format: BaseFormat) -> Result<TransformerDecoder> {
    let model = base_as(&files.model, &device(), format)?;
    let Some(adapter) = &files.adapter else {
        return Ok(model);
    };
    let lora = read_peft_config(adapter)?.with_dropout(0.0);
    let mut model = model.with_adapters(&lora)?;
    load_peft(&mut model, adapter)?;
    Ok(model)
}

/// All rows of a file, or those of a step.
fn batch(
    file: &SafetensorsFile,
    [ids, labels]: [&str; 2],
    step: Option<usize>,
    vocab_size: usize,
) -> Result<Batch> {
    let (input_ids, shape) = read_tokens(file, ids, vocab_size)?;
    let (label_ids, label_shape) = read_ids(file, labels)?;
    let is_label = |id: &i32| *id == IGNORED || is_token(*id, vocab_size);
    if label_shape != shape || !label_ids.iter().all(is_label) {
        let message = format!("`{labels}` must have a token id or {IGNORED} for each of `{ids}`");
        return Err(bad_inputs(message));
    }
    let [batch_size, seq_len] = [shape[shape.len() - 2], shape[shape.len() - 1]];
    let size = batch_size * seq_len;
    let rows = step.map_or(0..size, |step| step * size..(step + 1) * size);
    if rows.end > input_ids.len() {
        return Err(bad_inputs(format!(
            "`{ids}` has too few batches for these steps"
        )));
    }
    Ok(Batch {
        input_ids: input_ids[rows.clone()].to_vec(),
        labels: label_ids[rows].to_vec(),
        segments: vec![vec![seq_len]; batch_size],
        batch_size,
        seq_len,
        adapters: None,
    })
}

/// What stands for no label.
const IGNORED: i32 = -100;

fn bad_inputs(message: String) -> Error {
    Error::InvalidArgument {
        name: "inputs",
        message,
    }
}

fn is_token(id: i32, vocab_size: usize) -> bool {
    usize::try_from(id).is_ok_and(|id| id < vocab_size)
}

/// Ids of tokens, of at least two dimensions.
fn read_tokens(
    file: &SafetensorsFile,
    key: &str,
    vocab_size: usize,
) -> Result<(Vec<i32>, Vec<usize>)> {
    let (ids, shape) = read_ids(file, key)?;
    if shape.len() < 2 || ids.is_empty() {
        return Err(bad_inputs(format!(
            "`{key}` is of {shape:?}, not [batch, seq] with tokens"
        )));
    }
    match ids.iter().find(|id| !is_token(**id, vocab_size)) {
        None => Ok((ids, shape)),
        Some(id) => Err(bad_inputs(format!(
            "`{key}` has the id {id}, beyond a vocabulary of {vocab_size} tokens"
        ))),
    }
}

fn ids_of(
    file: &SafetensorsFile,
    model: &TransformerDecoder,
    device: &Device,
) -> Result<Tensor<2, Int>> {
    let (ids, shape) = read_tokens(file, "input_ids", model.vocab_size())?;
    match shape.len() {
        2 => Ok(Tensor::from_data(TensorData::new(ids, shape), device)),
        _ => Err(bad_inputs("`input_ids` must be [batch, seq]".into())),
    }
}

/// An id beyond 32 bits is none of a token.
fn read_ids(file: &SafetensorsFile, key: &str) -> Result<(Vec<i32>, Vec<usize>)> {
    let ids = file.read_ints(key)?.into_iter();
    let shape = file.shapes()[key].clone();
    Ok((
        ids.map(|id| i32::try_from(id).unwrap_or(-1)).collect(),
        shape,
    ))
}
