//! Greedy generation: prompts one by one, or several in one forward pass. Prints a JSON line with the new tokens,
//! tokens/s (of prompts, of decoding, and of new tokens in all the time), and the peak of memory;
//! `vs_peft/generate.py` compares it with transformers' and llama.cpp's.
//!
//! ```text
//! cargo bench --bench generation -- --model DIR|FILE.gguf --prompts ids.json \
//!     [--batch-size 16] [--new-tokens 64] [--dtype bf16 [--bf16-products]]
//! ```

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use burn_peft::checkpoint::{load_any_base, load_any_base_as, read_base_config};
use burn_peft::generate::{GenerateOptions, Generation};
use burn_peft::llama::TransformerDecoder;
use burn_peft::ops::{MatmulPrecision, set_matmul_precision};
use burn_peft::training::peak_memory_bytes;
use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Args {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long)]
    model: PathBuf,
    /// A JSON list of prompts, each a list of token ids.
    #[arg(long)]
    prompts: PathBuf,
    /// Prompts of a forward pass.
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// New tokens after each prompt, whatever they are: none ends an answer.
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// The type of the weights that are not packed: as stored unless set.
    #[arg(long)]
    dtype: Option<WeightType>,
    /// Round activations to bf16 in products with bf16 or packed weights.
    #[arg(long)]
    bf16_products: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightType {
    F32,
    Bf16,
}

/// Of the first answer, which is not timed.
const WARMUP_TOKENS: usize = 4;

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;

fn load(args: &Args) -> burn_peft::Result<TransformerDecoder> {
    let mut model = read_base_config(&args.model)?.init(&Device::default());
    match args.dtype {
        None => load_any_base(&mut model, &args.model)?,
        Some(WeightType::F32) => load_any_base_as(&mut model, &args.model, DType::F32)?,
        Some(WeightType::Bf16) => load_any_base_as(&mut model, &args.model, DType::BF16)?,
    };
    Ok(model)
}

/// How long the prompts took, up to the first new token of each, and the other tokens.
#[derive(Default)]
struct Times {
    prompts: Duration,
    decoding: Duration,
}

/// Continues the prompts together, and adds what it took.
fn answer(
    model: &TransformerDecoder,
    prompts: &[Vec<u32>],
    new_tokens: usize,
    times: &mut Times,
) -> burn_peft::Result<Vec<Vec<u32>>> {
    let options = GenerateOptions::greedy(new_tokens).with_stop_tokens([]);
    let started = Instant::now();
    let mut generation = Generation::new(model, prompts, &options)?;
    generation.next().transpose()?;
    let first = Instant::now();
    generation.try_for_each(|tokens| tokens.map(drop))?;
    times.prompts += first - started;
    times.decoding += first.elapsed();
    let answers = generation.into_answers().into_iter();
    Ok(answers.map(|answer| answer.tokens).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if args.bf16_products {
        set_matmul_precision(MatmulPrecision::Medium);
    }
    let prompts: Vec<Vec<u32>> = serde_json::from_slice(&fs::read(&args.prompts)?)?;
    let start_bytes = peak_memory_bytes();
    let model = load(&args)?;
    allocator::keep_freed_memory();
    let groups = || prompts.chunks(args.batch_size.max(1));
    for group in groups().take(1) {
        answer(&model, group, WARMUP_TOKENS, &mut Times::default())?;
    }
    let (mut tokens, mut times) = (Vec::new(), Times::default());
    for group in groups() {
        tokens.extend(answer(&model, group, args.new_tokens, &mut times)?);
    }
    let new_tokens: usize = tokens.iter().map(Vec::len).sum();
    let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
    let per_s = |count: usize, time: Duration| count as f64 / time.as_secs_f64();
    let line = serde_json::json!({
        "tokens": tokens,
        "tokens_per_s": per_s(new_tokens, times.prompts + times.decoding),
        "prompt_tokens_per_s": per_s(prompt_tokens, times.prompts),
        "decoding_tokens_per_s": per_s(new_tokens - tokens.len(), times.decoding),
        "start_bytes": start_bytes,
        "peak_bytes": peak_memory_bytes(),
    });
    println!("{line}");
    Ok(())
}
