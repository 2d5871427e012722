//! What a training would take, before there is anything to train on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn_peft::checkpoint::{check_base, read_base_packing};
use burn_peft::llama::{LlamaConfig, PRESETS};
use burn_peft::ops::set_matmul_precision;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::{Error, Result};

use crate::device;
use crate::memory::print_memory;

/// Tell how much memory a training takes, and what takes less if there is not as much.
///
/// The base is the recipe's checkpoint_dir, of which no weight is read, or a published model that need not be there. Rows are
/// as long as max_seq_len allows.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe's YAML file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A published model by name, such as llama3_1_8b or qwen3_8b, in place of checkpoint_dir.
    #[arg(long)]
    preset: Option<String>,
    /// Changes of single keys, such as `lora_rank=32` or `quantize_base=nf4`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let config = match &args.config {
        Some(path) => RecipeConfig::from_file(path, &args.overrides)?,
        None => RecipeConfig::default().with_overrides(&args.overrides)?,
    };
    let device = device::from_name(&config.device, 0)?;
    let (llama, packed) = match (&args.preset, &config.checkpoint_dir) {
        (Some(name), _) => (preset(name)?, BTreeMap::new()),
        (None, Some(base)) => {
            let llama = config.llama(base)?;
            check_base(base, &llama, &device)?;
            (llama, read_base_packing(base)?)
        }
        (None, None) => {
            return Err(Error::InvalidArgument {
                name: "plan",
                message: "name a model by checkpoint_dir=DIR, or a published one by --preset"
                    .into(),
            });
        }
    };
    let context = llama.context_len();
    let longest = config.max_seq_len.unwrap_or(context).min(context);
    let lora = config.adapter_config()?;
    set_matmul_precision(config.matmul_precision_for(&packed, &device));
    let estimate = config.estimate_config(&llama, packed, &lora, longest, &device)?;
    say!("{} rows of {longest} tokens at a time\n", config.batch_size);
    print_memory(&estimate, &device, 1);
    Ok(())
}

fn preset(name: &str) -> Result<LlamaConfig> {
    let found = PRESETS.iter().find(|(preset, _)| *preset == name);
    let config = found.map(|(_, config)| config());
    config.ok_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        Error::InvalidArgument {
            name: "preset",
            message: format!("there is no `{name}`; there are {}", names.join(", ")),
        }
    })
}
