//! Merges an adapter into its base.

use std::io::{Write, stdout};
use std::path::PathBuf;

use burn_peft::Result;
use burn_peft::checkpoint::{GgufFormat, MergeOptions, merge_files};

/// Merge an adapter into its base model's weights: into a folder in the types of the base, or a GGUF file with the base's
/// tokenizer.
///
/// The base is the dense one also where the adapter was trained on it in fewer bits. Without an adapter the base itself is
/// written in another form.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder, one of Meta's, or a GGUF file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// The adapter: a folder of PEFT's or mlx-lm's, or a file of this crate's.
    #[arg(long, value_name = "DIR|FILE")]
    adapter: Option<PathBuf>,
    /// What to write.
    #[arg(long)]
    out: PathBuf,
    /// How a GGUF file is stored: F32, F16, BF16, Q8_0, Q4_0. A folder is written without it, or an F16 file if the name ends
    /// in .gguf.
    #[arg(long)]
    gguf: Option<GgufFormat>,
    /// Merge into the weights of a packed base (a GGUF file, a folder of bitsandbytes), packed again, for a GGUF file.
    #[arg(long)]
    requantize: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let options = MergeOptions::default()
        .with_gguf(args.gguf)
        .with_requantize(args.requantize);
    let loss = merge_files(&args.model, args.adapter.as_deref(), &args.out, &options)?;
    if let Some(loss) = loss {
        let _ = writeln!(stdout(), "{loss}");
    }
    Ok(())
}
