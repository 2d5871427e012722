//! Whole LoRA training steps on a case that `vs_peft/case.py` made: a model, an adapter, and the
//! same tokens that PEFT gets. Prints a JSON line with the losses, tokens, tokens/s (median step)
//! and memory; `vs_peft/run.sh` compares it with PEFT's.
//!
//! ```text
//! cargo bench --bench train_step -- --case DIR [--seq-len 256] [--dtype bf16] [--recompute]
//! cargo bench --bench train_step -- --case DIR --alpaca --steps 12
//! ```

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_peft::Result;
use burn_peft::checkpoint::{
    SafetensorsFile, load_hf_as, load_peft, read_hf_config, read_peft_config,
};
use burn_peft::data::{Batch, Padding, Sample};
use burn_peft::llama::TransformerDecoder;
use burn_peft::ops::{MatmulPrecision, set_matmul_precision};
use burn_peft::training::{
    Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer, peak_memory_bytes,
};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The folder with `model`, `adapter`, `tokens.safetensors` and `alpaca.safetensors`.
    #[arg(long)]
    case: PathBuf,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// The type of the base weights: f32 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Round activations to bf16 in products with a bf16 base, as PyTorch does.
    #[arg(long)]
    bf16_products: bool,
    /// Steps, the first two of which are not timed.
    #[arg(long, default_value_t = 7)]
    steps: usize,
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

const BATCH_SIZE: usize = 2;
const ALPACA_BATCH_SIZE: usize = 8;
/// No batch of this program is padded.
const PAD_ID: u32 = 0;
const WARMUP_STEPS: usize = 2;

#[path = "../examples/support/allocator.rs"]
mod allocator;

fn load(args: &Args) -> Result<TransformerDecoder> {
    let device = Device::default().autodiff();
    let (base, adapter) = (args.case.join("model"), args.case.join("adapter"));
    let lora = read_peft_config(&adapter)?;
    let mut model = read_hf_config(&base)?.init_lora(&lora, &device)?;
    let dtype = match args.dtype.as_str() {
        "bf16" => DType::BF16,
        _ => DType::F32,
    };
    load_hf_as(&mut model, &base, dtype)?;
    load_peft(&mut model, &adapter)?;
    Ok(model)
}

/// Samples cut from one long sequence of tokens.
fn random_samples(args: &Args) -> Result<Vec<Sample>> {
    let file = SafetensorsFile::open(args.case.join("tokens.safetensors"))?;
    let tokens = file.read_ints("tokens")?;
    let samples = tokens.chunks_exact(args.seq_len);
    Ok(samples.map(|tokens| sample(tokens, tokens)).collect())
}

fn alpaca_samples(args: &Args) -> Result<Vec<Sample>> {
    let file = SafetensorsFile::open(args.case.join("alpaca.safetensors"))?;
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
        tokens: tokens.iter().map(|id| *id as u32).collect(),
        labels: labels.iter().map(|label| *label as i32).collect(),
    }
}

/// The batches of the steps: samples of one length as rows, Alpaca's packed into one row.
fn batches(args: &Args) -> Result<Vec<Batch>> {
    let (samples, batch_size) = match args.alpaca {
        true => (alpaca_samples(args)?, ALPACA_BATCH_SIZE),
        false => (random_samples(args)?, BATCH_SIZE),
    };
    let batch = |samples: &[Sample]| {
        let samples: Vec<&Sample> = samples.iter().collect();
        match args.alpaca {
            true => Batch::collate_packed(&[&samples], PAD_ID, Padding::Longest),
            false => Batch::collate(&samples, PAD_ID),
        }
    };
    let steps = samples.chunks_exact(batch_size);
    Ok(steps.take(args.steps).map(batch).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    (values[last / 2] + values[last.div_ceil(2)]) / 2.0
}

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let args = Args::parse();
    if args.bf16_products {
        set_matmul_precision(MatmulPrecision::Medium);
    }
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
