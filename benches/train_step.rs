//! Whole LoRA training steps of a Llama with 168 M parameters (hidden 1024, 8 layers, ffn 2816,
//! vocabulary 32000), rank 8 on q and v, batch 2, random tokens. Prints a JSON line with tokens/s
//! (median step) and the peak of the process's memory.
//!
//! ```text
//! cargo bench --bench train_step -- [--seq-len 256] [--steps 6] [--recompute]
//! ```

use std::time::Instant;

use burn::tensor::Device;
use burn_peft::adapter::initialize_params;
use burn_peft::data::Batch;
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{
    Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer, peak_memory_bytes,
};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq_len: usize,
    /// Steps, the first of which is not counted.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Compute activations again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const BATCH_SIZE: usize = 2;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn config() -> LlamaConfig {
    LlamaConfig {
        num_layers: 8,
        num_heads: 16,
        num_kv_heads: 16,
        head_dim: 64,
        embed_dim: 1024,
        intermediate_dim: 2816,
        ..LlamaConfig::llama2_7b()
    }
}

fn batch(seq_len: usize, step: usize) -> Batch {
    let tokens = 0..BATCH_SIZE * seq_len;
    let input_ids: Vec<i32> = tokens
        .map(|i| ((i * 7919 + step * 104_729) % 32_000) as i32)
        .collect();
    Batch {
        labels: input_ids.clone(),
        input_ids,
        segments: vec![vec![seq_len]; BATCH_SIZE],
        batch_size: BATCH_SIZE,
        seq_len,
    }
}

fn main() {
    let args = Args::parse();
    let device = Device::default().autodiff();
    let lora = LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]);
    let mut model = config()
        .init_lora(&lora, &device)
        .expect("the configuration is valid");
    initialize_params(&model);
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-4,
        warmup_steps: 0,
        total_steps: args.steps,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    if args.recompute {
        trainer = trainer.with_activations(Activations::Recompute { layers: 1 });
    }
    let mut seconds = Vec::new();
    for step in 0..args.steps {
        let batch = batch(args.seq_len, step);
        let started = Instant::now();
        let (next, output) = trainer.step(model, &[batch]);
        model = next;
        seconds.push(started.elapsed().as_secs_f64());
        eprintln!(
            "step {step}: loss {:.4}, {:.3} s",
            output.loss, seconds[step]
        );
    }
    let mut counted = seconds.split_off(1);
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    let line = serde_json::json!({
        "tokens_per_second": (BATCH_SIZE * args.seq_len) as f64 / median,
        "peak_memory_bytes": peak_memory_bytes(),
    });
    println!("{line}");
}
