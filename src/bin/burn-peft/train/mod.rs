//! Finetunes a model with LoRA on instructions or conversations, as a recipe says: `docs/recipe.md`.

mod dry_run;
mod interrupt;
mod job;
mod launch;
mod quiz;
mod records;
mod report;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use burn_peft::adapter::ParamCount;
use burn_peft::checkpoint::base_fingerprint;
use burn_peft::distributed::{broadcast_params, require_same};
use burn_peft::training::RunDir;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::{Error, Result};
use interrupt::Kept;
use job::{Base, Job, require_same_adapter};
use launch::{Member, launch};
use report::print_notes;
use run::Run;

use crate::exit::exit_code;

/// Finetune a model with LoRA on instructions or conversations.
#[derive(clap::Args)]
#[command(after_help = "`--help` lists every key.", after_long_help = keys())]
pub struct Args {
    /// The recipe's YAML file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Prints the configuration, what becomes of the records, the memory that the run takes and three records as the
    /// training has them, and ends.
    #[arg(long)]
    dry_run: bool,
    /// Changes of single keys, such as `lora_rank=32` or `optimizer.lr=1e-4`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// The recipe's keys, with their defaults and meanings.
fn keys() -> String {
    let keys = RecipeConfig::keys().iter().map(|key| {
        let (name, default, accepts, doc) = (key.name(), key.default(), key.accepts(), key.doc());
        format!("  {name}={default}\n          {accepts}\n          {doc}\n")
    });
    format!("Keys and their defaults:\n{}", keys.collect::<String>())
}

/// What a program finetunes that is told of no base: a tiny model with records.
pub struct Embedded {
    /// The recipe.
    pub config: &'static str,
    /// The model's folder.
    pub base: &'static str,
    pub records: &'static str,
    /// Records that are asked about and not trained on.
    pub held_out: &'static str,
}

pub fn run(args: &Args) -> ExitCode {
    match configuration(args) {
        Ok(config) => launch(&config, &|member| match args.dry_run {
            true => rehearse(&config, &member),
            false => finetune(&config, &member),
        }),
        Err(error) => exit_code(Err(error)),
    }
}

/// `--lora_rank=4` means `lora_rank=4`: an argument that is none of the program's own is a key.
pub fn without_dashes(argument: OsString) -> OsString {
    const OWN: [&str; 2] = ["config", "preset"];
    let setting = argument.to_str().and_then(|text| text.strip_prefix("--"));
    match setting.and_then(|setting| Some((setting, setting.split_once('=')?.0))) {
        Some((setting, key)) if !OWN.contains(&key) => setting.into(),
        _ => argument,
    }
}

/// What the tiny model is trained with is nothing for another one, which gets the recipe's defaults.
fn configuration(args: &Args) -> Result<RecipeConfig> {
    if let Some(path) = &args.config {
        return RecipeConfig::from_file(path, &args.overrides);
    }
    let is_base = |setting: &&String| setting.starts_with("checkpoint_dir=");
    let base: Vec<String> = args.overrides.iter().filter(is_base).cloned().collect();
    let base = RecipeConfig::default().with_overrides(&base)?;
    let Some(embedded) = crate::EMBEDDED.filter(|_| base.checkpoint_dir.is_none()) else {
        return RecipeConfig::default().with_overrides(&args.overrides);
    };
    let tiny = RecipeConfig::from_yaml(embedded.config, "embedded default", &[])?;
    // What the tiny model's adapters are like by default is no setting that an adapter's own would contradict.
    let mut config = tiny.clone().with_overrides(&args.overrides)?;
    // In a folder of its own it may be run again and again, unless that is not wanted.
    let says = |setting: &String| setting.starts_with("overwrite_output_dir=");
    config.overwrite_output_dir |=
        config.output_dir == tiny.output_dir && !args.overrides.iter().any(says);
    Ok(config)
}

fn finetune(config: &RecipeConfig, member: &Member) -> Result<()> {
    let base = Base::open(config, member)?;
    // Whether the folder is free is told before records are read.
    let dir = RunDir::open(config, member.group.rank(), member.group.size())?;
    if let Some(step) = dir.saved_step() {
        *member.last_step.lock() = Kept::saved(&dir, step);
    }
    let mut job = Job::load(base)?;
    let base = base_fingerprint(&job.base)?;
    require_same(member.group, "base model", &base)?;
    let dir = dir.on_data(job.fingerprint).on_base(base);
    let lora = config.adapter_config_of(&dir)?;
    require_same_adapter(member.group, &lora)?;
    job.print_estimate(&lora)?;
    job.check_adapters(&lora)?;
    let mut model = job.model(&lora, &dir)?;
    job.data.order.num_processes = dir.num_processes();
    let mut trainer = job.trainer();
    if dir.is_resumed() {
        dir.load_checkpoint(&mut model, &mut trainer)?;
        require_same(member.group, "last checkpoint", &trainer.step)?;
    }
    if job.is_first() {
        let (count, steps) = (ParamCount::of(&model), job.data.order.steps_per_epoch());
        // What a run that is overwritten leaves is room.
        if !config.overwrite_output_dir {
            dir.require_space(&count, &trainer, steps)?;
        }
        dir.begin()?;
        dir.require_space(&count, &trainer, steps)?;
    }
    let model = broadcast_params(member.group, model)?;
    Run::new(config, member, dir, &trainer)?.complete(model, trainer, &job)
}

/// What a run would do. Nothing is written, and no weight is read.
fn rehearse(config: &RecipeConfig, member: &Member) -> Result<()> {
    let mut job = Job::load(Base::open(config, member)?)?;
    // As one of the processes beside the first, which touch no file.
    let dir = RunDir::open(config, 1, member.group.size())?;
    if !job.is_first() {
        return Ok(());
    }
    dry_run::print_configuration(config);
    job.data.order.num_processes = dir.num_processes();
    dry_run::print_counts(&job.data, config);
    let lora = config.adapter_config_of(&dir)?;
    let fits = job.print_estimate(&lora);
    print_notes(&job.data.notes, &job.trainer().schedule);
    dry_run::print_examples(&job.data, &job.tokenizer)?;
    fits?;
    job.check_adapters(&lora)?;
    dir.require_free()
}

/// A key that a run cannot do without.
fn unset(key: &str, what_to_do: &str) -> Error {
    Error::Config {
        origin: "configuration".into(),
        key: key.to_owned(),
        line: None,
        message: format!("`{key}` is not set; {what_to_do}"),
        nearest: Vec::new(),
    }
}
