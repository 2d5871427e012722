//! Whole LoRA training steps: on a case that `vs_peft/case.py` made, a model, an adapter, and the
//! same tokens that PEFT gets; or on a model of Llama 2's sizes with random weights, made on the
//! device. Prints a JSON line with the losses, tokens, tokens/s (median step) and memory;
//! `vs_peft/run.sh` compares it with PEFT's.
//!
//! ```text
//! cargo bench --bench train_step -- --case DIR [--seq-len 256] [--dtype bf16] [--quantize nf4] [--recompute]
//! cargo bench --bench train_step -- --case DIR --alpaca --steps 12
//! BURN_DEVICE=cuda cargo bench --features cuda --bench train_step -- \
//!     --sizes llama2_7b --dtype bf16 --seq-len 2048 [--all-modules --rank 32]
//! ```

use std::path::PathBuf;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_peft::Result;
use burn_peft::adapter::{Adapter, initialize_params, train_adapters};
use burn_peft::checkpoint::{
    SafetensorsFile, load_hf_as, load_peft, read_hf_config, read_peft_config,
};
use burn_peft::data::{Batch, Padding, Sample};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::ops::{MatmulPrecision, set_fused, set_matmul_precision};
use burn_peft::training::{
    Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer, peak_memory_bytes,
};
use burn_peft::weight::{BaseFormat, Quantization};
use clap::{Parser, ValueEnum};
use statistics::median;

#[derive(Parser)]
struct Args {
    /// The folder with `model`, `adapter`, `tokens.safetensors` and `alpaca.safetensors`.
    #[arg(long, required_unless_present = "sizes")]
    case: Option<PathBuf>,
    /// The folder of the adapter in a case.
    #[arg(long, default_value = "adapter")]
    adapter: String,
    /// In place of a case, a model of these sizes with random weights and random tokens.
    #[arg(long, conflicts_with = "case")]
    sizes: Option<Sizes>,
    /// The rank of the adapters of such a model.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Adapters on all seven linear layers of such a model, not on `q_proj` and `v_proj` alone.
    #[arg(long)]
    all_modules: bool,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 2)]
    batch_size: usize,
    /// Copies of a case's adapter that the rows of a batch take in turn; one is no routing.
    #[arg(long, default_value_t = 1)]
    adapters: usize,
    /// The type of the base weights: f32 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Keep the weights of linear layers in fewer bits: nf4 or int8.
    #[arg(long, value_parser = quantization)]
    quantize: Option<Quantization>,
    /// Round activations to bf16 in products with a bf16 base, as PyTorch does.
    #[arg(long)]
    bf16_products: bool,
    /// Steps, the first two of which are not timed.
    #[arg(long, default_value_t = 7)]
    steps: usize,
    /// Take the portable bodies of all operations.
    #[arg(long)]
    portable: bool,
    /// Compute activations again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Train on Alpaca records, eight a step in one row, in place of random tokens.
    #[arg(long)]
    alpaca: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn quantization(word: &str) -> std::result::Result<Quantization, serde_json::Error> {
    serde_json::from_value(word.into())
}

/// The sizes of a published model, or of one for trying out.
#[derive(Clone, Copy, ValueEnum)]
enum Sizes {
    #[value(name = "llama2_7b")]
    Llama2_7b,
    #[value(name = "tiny")]
    Tiny,
}

impl Sizes {
    fn config(self) -> LlamaConfig {
        match self {
            Self::Llama2_7b => LlamaConfig::llama2_7b(),
            Self::Tiny => LlamaConfig::llama2_7b()
                .with_num_layers(2)
                .with_num_heads(4)
                .with_num_kv_heads(4)
                .with_head_dim(16)
                .with_embed_dim(64)
                .with_intermediate_dim(172),
        }
    }
}

/// Alpaca's records of a step.
const ALPACA_BATCH_SIZE: usize = 8;
/// No batch of this program is padded.
const PAD_ID: u32 = 0;
const WARMUP_STEPS: usize = 2;

#[path = "../examples/support/allocator.rs"]
mod allocator;
#[path = "support/statistics.rs"]
mod statistics;

fn load(args: &Args) -> Result<TransformerDecoder> {
    let device = Device::default().autodiff();
    let dtype = match args.dtype.as_str() {
        "bf16" => DType::BF16,
        _ => DType::F32,
    };
    let Some(case) = &args.case else {
        return random_model(args, dtype, &device);
    };
    let (base, adapter) = (case.join("model"), case.join(&args.adapter));
    let lora = read_peft_config(&adapter)?;
    let mut model = read_hf_config(&base)?.init_lora(&lora, &device)?;
    let format = BaseFormat::new(dtype).with_quantization(args.quantize);
    load_hf_as(&mut model, &base, format)?;
    load_peft(&mut model, &adapter)?;
    match args.adapters {
        1 => Ok(model),
        count => with_copies(model, count),
    }
}

/// The model with its adapter so many times, by the names of [`adapter_name`].
fn with_copies(model: TransformerDecoder, count: usize) -> Result<TransformerDecoder> {
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER)?;
    let base = model.without_adapters();
    let model = (0..count).try_fold(base, |model, index| {
        model.attach(&adapter, &adapter_name(index))
    })?;
    Ok(train_adapters(model))
}

fn adapter_name(index: usize) -> String {
    format!("copy_{index}")
}

fn sizes(args: &Args) -> LlamaConfig {
    args.sizes
        .expect("there is a case or there are sizes")
        .config()
}

fn random_model(args: &Args, dtype: DType, device: &Device) -> Result<TransformerDecoder> {
    let lora = match args.all_modules {
        true => LoRAConfig::new(AttnModule::ALL).with_mlp(true),
        false => LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]),
    };
    let lora = lora.with_rank(args.rank).with_alpha(2.0 * args.rank as f64);
    let model = sizes(args).init_lora(&lora, device)?;
    let model = model.map(&mut RandomFrozen(dtype));
    initialize_params(&model);
    Ok(model)
}

/// Draws the frozen weights, each in the type that it is to have: a model that fits is made even if it
/// would not fit in f32. Norms are ones.
struct RandomFrozen(DType);

impl ModuleMapper for RandomFrozen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.is_require_grad() {
            return param;
        }
        let (device, shape) = (param.lazy_device(), param.lazy_shape());
        let weight = device.memory_persistent_allocations(shape, |shape| match D {
            1 => Tensor::ones(shape, (&device, self.0)),
            _ => Tensor::random(shape, Distribution::Uniform(-0.03, 0.03), (&device, self.0)),
        });
        let id = param.id;
        param.transform_for_load(weight, id)
    }
}

/// The samples of all steps, from a case or random.
fn full_samples(args: &Args) -> Result<Vec<Sample>> {
    if args.case.is_some() {
        return random_samples(args);
    }
    let vocab_size = sizes(args).vocab_size as u64;
    // Knuth's linear congruential generator, whose high bits are random enough for tokens.
    let next = |state: &u64| Some(state.wrapping_mul(6364136223846793005).wrapping_add(1));
    let tokens = std::iter::successors(Some(1), next).map(|state: u64| (state >> 33) % vocab_size);
    let count = args.steps * args.batch_size * args.seq_len;
    let tokens: Vec<i64> = tokens.take(count).map(|id| id as i64).collect();
    let samples = tokens.chunks(args.seq_len);
    Ok(samples.map(|tokens| sample(tokens, tokens)).collect())
}

fn open(args: &Args, name: &str) -> Result<SafetensorsFile> {
    SafetensorsFile::open(args.case.clone().unwrap_or_default().join(name))
}

/// Samples cut from one long sequence of tokens.
fn random_samples(args: &Args) -> Result<Vec<Sample>> {
    let file = open(args, "tokens.safetensors")?;
    let tokens = file.read_ints("tokens")?;
    let samples = tokens.chunks_exact(args.seq_len);
    Ok(samples.map(|tokens| sample(tokens, tokens)).collect())
}

fn alpaca_samples(args: &Args) -> Result<Vec<Sample>> {
    let file = open(args, "alpaca.safetensors")?;
    let (tokens, labels) = (file.read_ints("tokens")?, file.read_ints("labels")?);
    let lengths = file.read_ints("lengths")?;
    let ranges = lengths.iter().scan(0, |start, length| {
        let range = *start..*start + *length as usize;
        *start = range.end;
        Some(range)
    });
    let samples = ranges.map(|range| sample(&tokens[range.clone()], &labels[range]));
    Ok(samples.collect())
}

fn sample(tokens: &[i64], labels: &[i64]) -> Sample {
    Sample {
        is_cut: false,
        tokens: tokens.iter().map(|id| *id as u32).collect(),
        labels: labels.iter().map(|label| *label as i32).collect(),
    }
}

/// The batches of the steps: samples of one length as rows, Alpaca's packed into one row.
fn batches(args: &Args) -> Result<Vec<Batch>> {
    let (samples, batch_size) = match args.alpaca {
        true => (alpaca_samples(args)?, ALPACA_BATCH_SIZE),
        false => (full_samples(args)?, args.batch_size),
    };
    let batch = |samples: &[Sample]| {
        let samples: Vec<&Sample> = samples.iter().collect();
        match args.alpaca {
            true => Batch::collate_packed(&[&samples], PAD_ID, Padding::Longest),
            false if args.adapters == 1 => Batch::collate(&samples, PAD_ID),
            false => {
                let names = (0..samples.len()).map(|row| Some(adapter_name(row % args.adapters)));
                Batch::collate(&samples, PAD_ID).with_adapters(names)
            }
        }
    };
    let steps = samples.chunks_exact(batch_size);
    Ok(steps.take(args.steps).map(batch).collect())
}

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let args = Args::parse();
    if args.bf16_products {
        set_matmul_precision(MatmulPrecision::Medium);
    }
    set_fused(!args.portable);
    let started_bytes = peak_memory_bytes();
    let mut model = load(&args)?;
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-4,
        warmup_steps: 0,
        total_steps: args.steps,
    };
    let activations = match args.recompute {
        true => Activations::Recompute { layers: 1 },
        false => Activations::Keep,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule).with_activations(activations);
    let (mut losses, mut tokens_per_s, mut tokens) = (Vec::new(), Vec::new(), 0);
    for batch in batches(&args)? {
        let started = Instant::now();
        let (next, output) = trainer.step(model, &[batch]);
        let seconds = started.elapsed().as_secs_f64();
        model = next;
        losses.push(output.loss);
        tokens_per_s.push(output.num_tokens as f64 / seconds);
        tokens += output.num_tokens;
    }
    let line = serde_json::json!({
        "losses": losses,
        "tokens": tokens,
        "tokens_per_s": median(tokens_per_s.split_off(WARMUP_STEPS)),
        "peak_bytes": peak_memory_bytes(),
        "start_bytes": started_bytes,
    });
    println!("{line}");
    Ok(())
}
