//! Finetunes a model with LoRA on instructions or conversations: `burn-peft train`, which without arguments finetunes the
//! tiny model that ships in this repository and asks it, before and after, questions that it was not trained on. With a
//! checkpoint and a data set it does the same work for real:
//!
//! ```text
//! cargo run --release --example lora_alpaca
//! cargo run --release --example lora_alpaca -- --config examples/configs/llama2_7b_lora.yaml \
//!     lora_attn_modules=[q_proj,k_proj,v_proj,output_proj] lora_rank=32 lora_alpha=64 \
//!     output_dir=./lora_experiment_1
//! ```
//!
//! A `.gguf` file, or a folder that bitsandbytes quantized, is trained on as it is packed:
//! `checkpoint_dir=model.gguf`. See `docs/recipe.md`.
//!
//! With `--features mpi`, `mpirun -n 2` before such a command trains in two processes, on as many
//! machines; `device=cuda:0,cuda:1` trains on two GPUs in one. See `docs/scaling.md`.

#[macro_use]
#[path = "../src/bin/burn-peft/say.rs"]
mod say;

#[path = "../src/bin/burn-peft/allocator.rs"]
mod allocator;
#[path = "../src/bin/burn-peft/device.rs"]
mod device;
#[path = "../src/bin/burn-peft/exit.rs"]
mod exit;
#[path = "../src/bin/burn-peft/memory.rs"]
mod memory;
#[path = "../src/bin/burn-peft/train/mod.rs"]
mod train;

use std::process::ExitCode;

use clap::Parser;

macro_rules! tiny {
    ($file:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny", $file)
    };
}

const EMBEDDED: Option<train::Embedded> = Some(train::Embedded {
    config: include_str!("configs/tiny.yaml"),
    base: tiny!(""),
    records: tiny!("/alpaca_train.json"),
    held_out: tiny!("/alpaca_heldout.json"),
});

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: train::Args,
}

fn main() -> ExitCode {
    let arguments = std::env::args_os().map(train::without_dashes);
    train::run(&Cli::parse_from(arguments).args)
}
