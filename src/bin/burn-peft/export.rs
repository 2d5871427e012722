//! Writes an adapter for another program.

use std::path::PathBuf;

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::checkpoint::{
    AdapterFormat, LoadOptions, base_model_name, export_adapter, load_model,
};

/// Write an adapter in the form of another program.
#[derive(clap::Args)]
pub struct Args {
    /// The base model of the adapter: a Hugging Face folder, one of Meta's, or a GGUF file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// The adapter: a folder of PEFT's or mlx-lm's, or a file of this crate's.
    #[arg(long, value_name = "DIR|FILE")]
    adapter: PathBuf,
    /// For which program: peft, vllm, llama.cpp (a GGUF file), torchtune, mlx, or burn-peft (one file, of any model).
    #[arg(long)]
    to: AdapterFormat,
    /// What to write: a folder for peft, vllm and mlx, else a file.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let options = LoadOptions::new(&Device::flex());
    let model = load_model(&args.model, &args.adapter, &options)?;
    export_adapter(
        &model,
        args.to,
        Some(&base_model_name(&args.model)),
        &args.out,
    )
}
