//! Whole LoRA training steps: on a case that `vs_peft/case.py` made, a model, an adapter, and the
//! same tokens that PEFT gets; or on a model of Llama 2's sizes with random weights, made on the
//! device. Prints a JSON line with the losses, tokens, tokens/s (median step), the peak of memory (of
//! loading, of the steps, of both) and the estimate of the steps'; `vs_peft/run.sh` compares it with PEFT's.
//!
//! ```text
//! cargo bench --bench train_step -- --case DIR [--seq-len 256] [--dtype bf16] [--quantize nf4] [--recompute]
//! cargo bench --bench train_step -- --case DIR --base model.gguf
//! cargo bench --bench train_step -- --case DIR --alpaca --steps 12
//! cargo bench --bench train_step -- --sizes llama2_7b --dtype bf16 --quantize nf4 --bf16-products \
//!     --batch-size 1 --seq-len 512 --recompute --steps 3
//! BURN_DEVICE=cuda cargo bench --features cuda --bench train_step -- \
//!     --sizes llama2_7b --dtype bf16 --seq-len 2048 [--all-modules --rank 32]
//! ```

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_peft::Result;
use burn_peft::adapter::{Adapter, train_adapters};
use burn_peft::checkpoint::{
    load_any_base, load_any_base_as, load_peft, read_base_config, read_peft_config,
};
use burn_peft::data::{Batch, Padding, Sample};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::ops::{MatmulPrecision, set_fused, set_matmul_precision};
use burn_peft::training::{
    Activations, AdamWConfig, EstimateConfig, LrSchedule, ScheduleKind, Trainer, estimate,
    peak_memory_bytes, validation_loss,
};
use burn_peft::weight::{BaseFormat, Quantization};
use clap::{Parser, ValueEnum};
use memory::{peak_since_reset, reset_peak};
use random_model::{Sizes, random_model};
use samples::{alpaca_samples, case_samples, random_samples};
use statistics::median;

#[derive(Parser)]
struct Args {
    /// The folder with `model`, `adapter`, `tokens.safetensors` and `alpaca.safetensors`.
    #[arg(long, required_unless_present = "sizes")]
    case: Option<PathBuf>,
    /// The base in a case, or anywhere: a folder or a .gguf file.
    #[arg(long, default_value = "model")]
    base: PathBuf,
    /// The folder of the adapter in a case.
    #[arg(long, default_value = "adapter")]
    adapter: String,
    /// In place of a case, a model of these sizes with random weights and random tokens.
    #[arg(long, conflicts_with = "case")]
    sizes: Option<Sizes>,
    /// Only so many of its layers: what one more takes is the difference of two runs.
    #[arg(long, requires = "sizes")]
    layers: Option<usize>,
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
    /// The type of the base weights: as stored unless set, f32 with `--sizes`.
    #[arg(long)]
    dtype: Option<WeightType>,
    /// Keep the weights of linear layers in fewer bits: nf4 or int8.
    #[arg(long, value_parser = quantization)]
    quantize: Option<Quantization>,
    /// Round activations to bf16 in products with a bf16 base, as PyTorch does.
    #[arg(long)]
    bf16_products: bool,
    /// AdamW's learning rate.
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
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
    #[arg(long, requires = "case")]
    alpaca: bool,
    /// A row for each Alpaca record, which is cut and padded to `--seq-len`; `--batch-size` of them a step.
    #[arg(long, requires = "alpaca")]
    padded: bool,
    /// After the steps, the mean loss of so many Alpaca records, the last ones.
    #[arg(long, default_value_t = 0, requires = "padded")]
    held_out: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn quantization(word: &str) -> std::result::Result<Quantization, serde_json::Error> {
    serde_json::from_value(word.into())
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightType {
    F32,
    Bf16,
}

impl Args {
    fn device(&self) -> Device {
        Device::default().autodiff()
    }

    fn dtype(&self) -> DType {
        match self.dtype {
            Some(WeightType::Bf16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// None for a base as it is stored.
    fn format(&self) -> Option<BaseFormat> {
        let is_set = self.dtype.is_some() || self.quantize.is_some();
        is_set.then(|| BaseFormat::new(self.dtype()).with_quantization(self.quantize))
    }

    fn activations(&self) -> Activations {
        match self.recompute {
            true => Activations::Recompute { layers: 1 },
            false => Activations::Keep,
        }
    }

    /// The adapters of a model with random weights.
    fn lora(&self) -> LoRAConfig {
        let lora = match self.all_modules {
            true => LoRAConfig::new(AttnModule::ALL).with_mlp(true),
            false => LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]),
        };
        lora.with_rank(self.rank).with_alpha(2.0 * self.rank as f64)
    }
}

/// Alpaca's records of a step, where they share a row.
const PACKED_RECORDS: usize = 8;
const PAD_ID: u32 = 0;
const WARMUP_STEPS: usize = 2;

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/random_model.rs"]
mod random_model;
#[path = "support/samples.rs"]
mod samples;
#[path = "support/statistics.rs"]
mod statistics;

/// The model, and the configuration of its adapter.
fn load(args: &Args) -> Result<(TransformerDecoder, LoRAConfig)> {
    let device = args.device();
    let Some(case) = &args.case else {
        let sizes = args.sizes.expect("there is a case or there are sizes");
        let config = sizes.config();
        let layers = args.layers.unwrap_or(config.num_layers);
        let format = args.format().unwrap_or(DType::F32.into());
        let model = random_model(
            config.with_num_layers(layers),
            &args.lora(),
            format,
            &device,
        )?;
        return Ok((model, args.lora()));
    };
    let (base, adapter) = (case.join(&args.base), case.join(&args.adapter));
    let lora = read_peft_config(&adapter)?;
    let mut model = read_base_config(&base)?.init_lora(&lora, &device)?;
    match args.format() {
        None => load_any_base(&mut model, &base)?,
        Some(format) => load_any_base_as(&mut model, &base, format)?,
    };
    load_peft(&mut model, &adapter)?;
    let model = match args.adapters {
        1 => model,
        count => with_copies(model, count)?,
    };
    Ok((model, lora))
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

/// What the training is told to take, of one adapter and a base whose format the estimate knows.
fn estimated_bytes(args: &Args, model: &TransformerDecoder, lora: LoRAConfig) -> Option<u64> {
    let is_known = args.adapters == 1 && args.base.extension().is_none();
    let (sizes, batch_size) = (model.config.clone(), args.batch_size);
    let config = EstimateConfig::new(sizes, Some(lora), batch_size, args.seq_len)
        .with_dtype(args.dtype())
        .with_quantization(args.quantize)
        .with_activations(args.activations())
        .on_device(&args.device());
    let is_of_rows = !args.alpaca || args.padded;
    (is_known && is_of_rows).then(|| estimate(&config).total())
}

/// The batches of the steps, and those that are held out.
fn batches(args: &Args, vocab_size: usize) -> Result<(Vec<Batch>, Vec<Batch>)> {
    let samples = match &args.case {
        None => random_samples(args.steps * args.batch_size, args.seq_len, vocab_size),
        Some(case) if args.alpaca => alpaca_samples(case, args.padded.then_some(args.seq_len))?,
        Some(case) => case_samples(case, args.seq_len)?,
    };
    let batch_size = match args.alpaca && !args.padded {
        true => PACKED_RECORDS,
        false => args.batch_size,
    };
    let (train, held_out) = samples.split_at(samples.len() - args.held_out.min(samples.len()));
    let batch = |samples: &[Sample]| collate(args, samples);
    let steps = train.chunks_exact(batch_size).take(args.steps);
    Ok((
        steps.map(batch).collect(),
        held_out.chunks(batch_size).map(batch).collect(),
    ))
}

/// Samples as rows, or Alpaca's packed into one.
fn collate(args: &Args, samples: &[Sample]) -> Batch {
    let samples: Vec<&Sample> = samples.iter().collect();
    if args.alpaca && !args.padded {
        return Batch::collate_packed(&[&samples], PAD_ID, Padding::Longest);
    }
    let batch = Batch::collate_to(&samples, PAD_ID, Padding::Fixed(args.seq_len));
    match args.adapters {
        1 => batch,
        count => {
            let names = (0..samples.len()).map(|row| Some(adapter_name(row % count)));
            batch.with_adapters(names)
        }
    }
}

fn trainer(args: &Args) -> Trainer {
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: args.lr,
        warmup_steps: 0,
        total_steps: args.steps,
    };
    Trainer::new(AdamWConfig::default(), schedule).with_activations(args.activations())
}

/// Those of the steps after the first; of few steps that of the last one.
fn timed(mut speeds: Vec<f64>) -> Vec<f64> {
    speeds.split_off(WARMUP_STEPS.min(speeds.len().saturating_sub(1)))
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.bf16_products {
        set_matmul_precision(MatmulPrecision::Medium);
    }
    set_fused(!args.portable);
    let started_bytes = peak_memory_bytes();
    let (mut model, lora) = load(&args)?;
    let loaded_bytes = peak_memory_bytes();
    allocator::keep_freed_memory();
    reset_peak();
    let estimated_bytes = estimated_bytes(&args, &model, lora);
    let (batches, held_out) = batches(&args, model.config.vocab_size)?;
    let mut trainer = trainer(&args);
    let (mut losses, mut speeds, mut tokens) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        let started = Instant::now();
        let (next, output) = trainer.step(model, &[batch]);
        let seconds = started.elapsed().as_secs_f64();
        model = next;
        losses.push(output.loss);
        speeds.push(output.num_tokens as f64 / seconds);
        tokens += output.num_tokens;
    }
    let steps_bytes = peak_since_reset();
    let held_out_loss =
        (!held_out.is_empty()).then(|| validation_loss(&model, &held_out).expect("records"));
    let line = serde_json::json!({
        "losses": losses,
        "held_out_loss": held_out_loss,
        "tokens": tokens,
        "tokens_per_s": median(timed(speeds)),
        "start_bytes": started_bytes,
        "loaded_bytes": loaded_bytes,
        "steps_bytes": steps_bytes,
        "peak_bytes": loaded_bytes.max(steps_bytes),
        "estimated_bytes": estimated_bytes,
    });
    println!("{line}");
    Ok(())
}
