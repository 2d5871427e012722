//! Whole LoRA training steps on a case that `vs_peft/case.py` made: a model, an adapter, and the
//! same tokens that PEFT gets. Prints a JSON line with the losses, tokens/s (median step) and
//! memory; `vs_peft/run.sh` compares it with PEFT's.
//!
//! ```text
//! cargo bench --bench train_step -- --case DIR [--seq-len 256] [--dtype bf16] [--recompute]
//! ```

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Device};
use burn_peft::Result;
use burn_peft::checkpoint::{
    SafetensorsFile, load_hf_as, load_peft, read_hf_config, read_peft_config,
};
use burn_peft::data::Batch;
use burn_peft::llama::TransformerDecoder;
use burn_peft::training::{
    Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer, peak_memory_bytes,
};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The folder with `model`, `adapter` and `tokens.safetensors`.
    #[arg(long)]
    case: PathBuf,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// The type of the base weights: f32 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Steps, the first two of which are not timed.
    #[arg(long, default_value_t = 7)]
    steps: usize,
    /// Compute activations again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const BATCH_SIZE: usize = 2;
const WARMUP_STEPS: usize = 2;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// The batches of the steps, cut from one long sequence of tokens.
fn batches(args: &Args) -> Result<Vec<Batch>> {
    let tokens = SafetensorsFile::open(args.case.join("tokens.safetensors"))?;
    let tokens = tokens.read_ints("tokens")?;
    let step = |tokens: &[i64]| {
        let input_ids: Vec<i32> = tokens.iter().map(|id| *id as i32).collect();
        Batch {
            labels: input_ids.clone(),
            input_ids,
            segments: vec![vec![args.seq_len]; BATCH_SIZE],
            batch_size: BATCH_SIZE,
            seq_len: args.seq_len,
        }
    };
    let steps = tokens.chunks_exact(BATCH_SIZE * args.seq_len);
    Ok(steps.take(args.steps).map(step).collect())
}

fn main() -> Result<()> {
    let args = Args::parse();
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
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for batch in batches(&args)? {
        let started = Instant::now();
        let (next, output) = trainer.step(model, &[batch]);
        model = next;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(output.loss);
    }
    let mut timed = seconds.split_off(WARMUP_STEPS);
    timed.sort_by(f64::total_cmp);
    let tokens = (BATCH_SIZE * args.seq_len) as f64;
    let line = serde_json::json!({
        "losses": losses,
        "tokens_per_s": tokens / timed[timed.len() / 2],
        "peak_bytes": peak_memory_bytes(),
        "start_bytes": started_bytes,
    });
    println!("{line}");
    Ok(())
}
