//! Records of a file as samples, by the recipe's way: read as a stream, encoded, and put into a store; with `--steps`
//! also checked, and taken from it as batches of a shuffled epoch. Prints a JSON line with the time, the memory above that
//! before, and the first samples; `vs_peft/tokenize_datasets.py` compares it with `datasets.map` in Python.
//!
//! ```text
//! cargo bench --bench tokenize -- --records records.jsonl --tokenizer DIR [--max-seq-len 512] [--steps 100] [--shown 100]
//! ```

use std::path::PathBuf;
use std::time::Instant;

use burn_peft::Result;
use burn_peft::data::{
    Batch, DataOrder, Dataset, Format, RecordCounts, RecordEncoder, SampleStore, Split, Subset,
    Treatment, check_vocab, fingerprint,
};
use burn_peft::tokenizer::Tokenizer;
use clap::Parser;
use memory::{peak_since_reset, reset_peak};
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// Records in any format that the recipe reads.
    #[arg(long)]
    records: PathBuf,
    /// The folder of a tokenizer.
    #[arg(long)]
    tokenizer: PathBuf,
    /// The tokens to which a record is cut.
    #[arg(long, default_value_t = 512)]
    max_seq_len: usize,
    /// Read all samples again, and take batches of so many steps, here and there in an epoch.
    #[arg(long, default_value_t = 0)]
    steps: usize,
    /// Print so many of the samples.
    #[arg(long, default_value_t = 0)]
    shown: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const BATCH_SIZE: usize = 8;
const PAD_ID: u32 = 0;

#[allow(
    dead_code,
    reason = "the allocator of the recipe; no model is loaded here"
)]
#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "support/memory.rs"]
mod memory;

/// Every record is a sample, as in the other program.
fn encoder<'a>(args: &Args, tokenizer: &'a Tokenizer) -> RecordEncoder<'a> {
    RecordEncoder::new(tokenizer)
        .with_max_seq_len(Some(args.max_seq_len))
        .with_prompt_only(Treatment::Keep)
        .with_without_labels(Treatment::Keep)
        .with_empty_instructions(Treatment::Keep)
}

fn encode(args: &Args, tokenizer: &Tokenizer) -> Result<(SampleStore, RecordCounts)> {
    let mut store = SampleStore::new(std::env::temp_dir());
    let encoder = encoder(args, tokenizer);
    let counts = encoder.encode_files(&args.records, Split::Train, Format::Auto, &mut store)?;
    Ok((store, counts))
}

/// What a run does with its samples, but for the training. `steps` are spread over an epoch.
fn take_steps(samples: SampleStore, vocab_size: usize, steps: usize) -> Result<()> {
    check_vocab(&samples, vocab_size)?;
    let indices = (0..samples.len()).collect();
    let samples = Subset::new(samples, indices);
    fingerprint(&samples)?;
    let order = DataOrder::new(samples.len(), BATCH_SIZE);
    for step in (0..steps).map(|index| index * order.steps_per_epoch() / steps) {
        for rows in order.step(step) {
            Batch::of_dataset(&samples, &rows, PAD_ID)?;
        }
    }
    Ok(())
}

fn shown(samples: &SampleStore, count: usize) -> Result<Vec<Value>> {
    let samples = (0..count.min(samples.len())).map(|index| samples.sample(index));
    samples
        .map(|sample| sample.map(|sample| json!([sample.tokens, sample.labels])))
        .collect()
}

fn main() -> Result<()> {
    let args = Args::parse();
    let tokenizer = Tokenizer::from_dir(&args.tokenizer)?;
    reset_peak();
    let start_bytes = peak_since_reset();
    let started = Instant::now();
    let (samples, counts) = encode(&args, &tokenizer)?;
    let seconds = started.elapsed().as_secs_f64();
    let lengths = (0..samples.len()).map(|index| samples.sample_len(index));
    let tokens = lengths.sum::<Result<usize>>()?;
    let shown = shown(&samples, args.shown)?;
    let encoding_bytes = peak_since_reset();
    if args.steps > 0 {
        take_steps(samples, tokenizer.vocab_size(), args.steps)?;
    }
    let line = json!({
        "records": counts.read,
        "tokens": tokens,
        "seconds": seconds,
        "start_bytes": start_bytes,
        "encoding_bytes": encoding_bytes,
        "peak_bytes": peak_since_reset(),
        "samples": shown,
    });
    println!("{line}");
    Ok(())
}
