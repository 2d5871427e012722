//! Finetunes a Llama with LoRA on Alpaca-like records.
//!
//! Without arguments it finetunes the tiny model that ships in this repository and asks it, before
//! and after, questions that it was not trained on. With a checkpoint and a data set it does the
//! same work for real:
//!
//! ```text
//! cargo run --release --example lora_alpaca
//! cargo run --release --example lora_alpaca -- --config examples/configs/llama2_7b_lora.yaml \
//!     lora_attn_modules=[q_proj,k_proj,v_proj,output_proj] lora_rank=32 lora_alpha=64 \
//!     output_dir=./lora_experiment_1
//! ```
//!
//! With `--features mpi`, `mpirun -n 2` before such a command trains in two processes, on as many
//! machines; `device=cuda:0,cuda:1` trains on two GPUs in one. See `docs/scaling.md`.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/answer.rs"]
mod answer;
#[path = "support/device.rs"]
mod device;
#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/interrupt.rs"]
mod interrupt;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/plot.rs"]
mod plot;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use answer::answer;
use burn_peft::adapter::{
    ParamCount, initialize_adapters, initialize_params, validate_state_dict_for_lora,
};
use burn_peft::checkpoint::{copy_generation_config, load_hf_as, save_hf, save_peft_with_base};
use burn_peft::data::{
    AlpacaRecord, Batch, DataOrder, Padding, Sample, check_vocab, load_alpaca, pack,
    split_validation, tokenize_records,
};
use burn_peft::distributed::{ProcessGroup, broadcast_params, require_same};
use burn_peft::generate::GenerateOptions;
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::ops::{lacks_cublas, set_matmul_precision};
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{
    Bytes, EstimateConfig, ExactMatch, LrSchedule, MetricsLog, RunDir, StepGradients, StepOutput,
    Summary, Trainer, available_memory_bytes, estimate, peak_memory_bytes, suggestions,
    validation_loss_in,
};
use burn_peft::{Error, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use interrupt::State;
use launch::{Member, exit_code, launch};
use serde_json::json;

/// Finetune a Llama with LoRA on Alpaca-like records.
#[derive(Parser)]
struct Args {
    /// The recipe's YAML file; without it, the tiny model of this repository is finetuned.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Changes of single keys, such as `lora_rank=32` or `optimizer.lr=1e-4`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let args = Args::parse();
    match configuration(&args) {
        Ok(config) => launch(&config, &|member| finetune(&config, &member)),
        Err(error) => exit_code(Err(error)),
    }
}

/// What the tiny model is trained with is nothing for another one, which gets the recipe's defaults.
fn configuration(args: &Args) -> Result<RecipeConfig> {
    if let Some(path) = &args.config {
        return RecipeConfig::from_file(path, &args.overrides);
    }
    let tiny = RecipeConfig::from_yaml(embedded::CONFIG, "embedded default", &args.overrides)?;
    match tiny.checkpoint_dir {
        None => Ok(tiny),
        Some(_) => RecipeConfig::default().with_overrides(&args.overrides),
    }
}

fn finetune(config: &RecipeConfig, member: &Member) -> Result<()> {
    let base_dir = config.checkpoint_dir.clone().unwrap_or_else(embedded::dir);
    let llama = config.llama(&base_dir)?;
    let tokenizer = tokenizer(config, &base_dir, &llama)?;
    let data = Data::load(config, &llama, &tokenizer)?;
    require_same_run(member.group, config, &data)?;
    set_matmul_precision(config.matmul_precision);
    let is_first = member.group.rank() == 0;
    if is_first {
        let estimate = config.estimate_config(&llama, data.longest_row(), member.device);
        print_device(&estimate, member);
    }
    let dir = run_dir(config, member.group)?.on_data(&data.samples);
    let llama = ending_as(&tokenizer, llama);
    let mut model = load_model(config, &llama, &base_dir, member)?;
    if is_first && !config.resume_from_checkpoint {
        dir.begin(config)?;
    }
    let order = config.data_order(data.rows.len(), dir.num_processes());
    let mut trainer = config.trainer(order.steps_per_epoch() * config.epochs);
    if config.resume_from_checkpoint {
        dir.load_checkpoint(&mut model, &mut trainer)?;
        require_same(member.group, "last checkpoint", &trainer.step)?;
    }
    let model = broadcast_params(member.group, model)?;
    let mut run = Run::new(config, member, dir, &trainer)?;
    if !is_first {
        return run.train(model, trainer, &data, &order).map(drop);
    }
    println!("{}", ParamCount::of(&model));
    print_notes(&data, &trainer.schedule);
    let quiz = Quiz::before(config, &model, &tokenizer)?;
    let (model, summary) = run.train(model, trainer, &data, &order)?;
    let exact_match = quiz.after(&model, &tokenizer)?;
    run.save(model, &base_dir)?;
    run.finish(&Summary {
        exact_match,
        ..summary
    })
}

/// Members on machines of their own may have other files.
fn require_same_run(group: &dyn ProcessGroup, config: &RecipeConfig, data: &Data) -> Result<()> {
    let settings = config.without_places().to_yaml();
    require_same(group, "configuration", &settings)?;
    require_same(group, "training data", &data.samples)?;
    require_same(group, "validation data", &data.validation)
}

fn print_notes(data: &Data, schedule: &LrSchedule) {
    for note in data.notes.iter().chain(&late_warmup(schedule)) {
        println!("note: {note}");
    }
}

fn late_warmup(schedule: &LrSchedule) -> Option<String> {
    let (warmup, total) = (schedule.warmup_steps, schedule.total_steps);
    (warmup >= total).then(|| {
        format!(
            "the learning rate never reaches optimizer.lr: the run has {total} steps, \
             lr_scheduler.num_warmup_steps is {warmup}"
        )
    })
}

const WITHOUT_CUBLAS: &str = "\
Matrices are not multiplied by cuBLAS, and a step takes several times as long: put the folder with
libcublas.so into LD_LIBRARY_PATH (scripts/install_cublas.sh brings one where there is no CUDA toolkit),
and use a driver of CUDA 12.5 or newer.";

/// What the estimate of a GPU's memory leaves out: what cuBLAS takes, and what lies between the
/// buffers of CubeCL's pools.
const GPU_OVERHEAD: u64 = 2_000_000_000;

/// The memory that the run will take on the device and, if there is not as much, what takes less; and
/// whether the device could be faster.
fn print_device(config: &EstimateConfig, member: &Member) {
    let device = member.device;
    let memory = estimate(config);
    println!("Estimated memory of the training:\n{memory}");
    let is_gpu = device.memory_pool_usage().is_some();
    if let Some(available) = available_memory_bytes(device) {
        // GPUs have memory of their own.
        let sharing = if is_gpu { 1 } else { member.num_local };
        let available = available / sharing as u64;
        println!("{:<12}{:>9}", "available", Bytes(available));
        if sharing > 1 {
            println!("for each of the {sharing} that train on this machine");
        }
        let usable = match is_gpu {
            true => available.saturating_sub(GPU_OVERHEAD),
            false => available,
        };
        if memory.total() > usable {
            println!("This will probably not fit.");
            for suggestion in suggestions(config, usable) {
                println!("{suggestion}");
            }
        }
    }
    println!();
    if lacks_cublas(device) {
        println!("{WITHOUT_CUBLAS}\n");
    }
}

/// The base weights with new adapters beside them.
fn load_model(
    config: &RecipeConfig,
    llama: &LlamaConfig,
    base_dir: &Path,
    member: &Member,
) -> Result<TransformerDecoder> {
    let lora = config.lora();
    let device = member.device.clone().autodiff();
    let mut model = llama.init_lora(&lora, &device)?;
    let report = load_hf_as(&mut model, base_dir, config.dtype.into())?;
    validate_state_dict_for_lora(&lora, &report)?;
    let model = initialize_adapters(model, config.seed);
    initialize_params(&model);
    Ok(model)
}

/// The folder of a run that begins, or of the one to go on with.
fn run_dir(config: &RecipeConfig, group: &dyn ProcessGroup) -> Result<RunDir> {
    match (config.resume_from_checkpoint, group.rank()) {
        (true, 0) => RunDir::resume(config)?.locked(),
        (true, _) => RunDir::resume(config),
        (false, 0) => RunDir::claim(config, group.size()),
        (false, _) => Ok(RunDir::join(config, group.size())),
    }
}

/// A run as one of its members sees it. The first member reports and writes.
struct Run<'a> {
    config: &'a RecipeConfig,
    member: &'a Member<'a>,
    dir: RunDir,
    metrics: Option<MetricsLog>,
    progress: Progress,
    speed: Speed,
}

impl<'a> Run<'a> {
    fn new(
        config: &'a RecipeConfig,
        member: &'a Member,
        dir: RunDir,
        trainer: &Trainer,
    ) -> Result<Self> {
        let (is_first, path) = (member.group.rank() == 0, dir.metrics_path());
        let metrics = match (is_first, config.resume_from_checkpoint) {
            (true, true) => Some(MetricsLog::resume(path, trainer.step)?),
            (true, false) => Some(MetricsLog::create(path)?),
            (false, _) => None,
        };
        Ok(Self {
            config,
            member,
            dir,
            metrics,
            progress: Progress::new(trainer.schedule.total_steps, trainer.step, is_first),
            speed: Speed::default(),
        })
    }

    fn train(
        &mut self,
        mut model: TransformerDecoder,
        mut trainer: Trainer,
        data: &Data,
        order: &DataOrder,
    ) -> Result<(TransformerDecoder, Summary)> {
        let (config, group) = (self.config, self.member.group);
        let total_steps = trainer.schedule.total_steps;
        let due = |every: Option<usize>, step: usize| every.is_some_and(|n| step.is_multiple_of(n));
        let mut val_loss = None;
        while trainer.step < total_steps {
            let started = Instant::now();
            let indices = order.shard(trainer.step, group.rank(), group.size());
            let micro_batches: Vec<Batch> = indices.iter().map(|i| data.batch(i)).collect();
            let gradients = trainer.gradients(group, &model, &micro_batches)?;
            require_finite(&trainer, &gradients)?;
            let output;
            (model, output) = self.update(model, &mut trainer, gradients);
            let step = trainer.step;
            self.speed.add(output.num_tokens, started.elapsed());
            self.progress.show(step, output.loss, self.speed.mean());
            if due(Some(config.log_every_n_steps), step) {
                self.log(&self.step_metrics(step, order.epoch_of(step - 1), &output));
            }
            val_loss = match due(config.run_val_every_n_steps, step) {
                true => self.validate(&model, data, step)?,
                false => None,
            };
            if due(config.save_every_n_steps, step) || step == total_steps {
                self.save_checkpoint(&model, &trainer)?;
            }
        }
        self.progress.finish();
        if val_loss.is_none() {
            val_loss = data.validation_loss(group, &model)?;
        }
        let summary = self.summary(&model, &trainer, val_loss);
        Ok((model, summary))
    }

    fn validate(
        &mut self,
        model: &TransformerDecoder,
        data: &Data,
        step: usize,
    ) -> Result<Option<f64>> {
        let val_loss = data.validation_loss(self.member.group, model)?;
        if let Some(val_loss) = val_loss {
            self.log(&json!({ "step": step, "val_loss": val_loss }));
        }
        Ok(val_loss)
    }

    /// The optimizer's update, after which the step is complete and kept.
    fn update(
        &self,
        model: TransformerDecoder,
        trainer: &mut Trainer,
        gradients: StepGradients,
    ) -> (TransformerDecoder, StepOutput) {
        let mut last_step = self.member.last_step.lock();
        // Or the old values would be in memory beside the new ones.
        *last_step = None;
        let (model, output) = trainer.update(model, gradients);
        *last_step = Some(State {
            run: self.dir.clone(),
            lora: self.config.lora(),
            model: model.clone(),
            trainer: trainer.clone(),
        });
        (model, output)
    }

    /// Only the first member writes.
    fn save_checkpoint(&self, model: &TransformerDecoder, trainer: &Trainer) -> Result<()> {
        let config = self.config;
        if self.member.group.rank() != 0 {
            return Ok(());
        }
        // If the program is told to end, it ends after this.
        let _kept = self.member.last_step.lock();
        self.dir.save_checkpoint(model, &config.lora(), trainer)?;
        if let Some(count) = config.keep_last_n_checkpoints {
            let kept = self.dir.keep_last_checkpoints(count);
            warn("old checkpoints are left", kept);
        }
        Ok(())
    }

    /// A training is not lost for want of its log.
    fn log(&mut self, metrics: &serde_json::Value) {
        let logged = self.metrics.as_mut().map(|log| log.log(metrics));
        if let Some(Err(error)) = logged {
            eprintln!("warning: no more metrics are logged: {error}");
            self.metrics = None;
        }
    }

    fn step_metrics(&self, step: usize, epoch: usize, output: &StepOutput) -> serde_json::Value {
        let is_asked = self.config.log_peak_memory_stats;
        let memory = peak_memory_bytes().filter(|_| is_asked);
        let pools = || self.member.device.memory_pool_usage();
        let device_memory = is_asked.then(pools).flatten();
        json!({
            "step": step,
            "epoch": epoch,
            "loss": output.loss,
            "lr": output.lr,
            "grad_norm": output.grad_norm,
            "tokens_per_second": self.speed.last,
            "peak_memory_bytes": memory,
            "device_memory_bytes": device_memory.map(|usage| usage.bytes_reserved),
        })
    }

    fn summary(
        &self,
        model: &TransformerDecoder,
        trainer: &Trainer,
        val_loss: Option<f64>,
    ) -> Summary {
        let count = ParamCount::of(model);
        Summary {
            steps: trainer.step,
            final_loss: trainer.last_loss.expect("a run has at least one step"),
            total_params: count.total,
            trainable_params: count.trainable,
            tokens_per_second: self.speed.mean(),
            peak_memory_bytes: peak_memory_bytes(),
            val_loss,
            exact_match: None,
        }
    }

    /// The last step is in a checkpoint by now. Each weight makes room for the merged one.
    fn save(&self, model: TransformerDecoder, base_dir: &Path) -> Result<()> {
        *self.member.last_step.lock() = None;
        let base_name = base_dir.to_string_lossy();
        let lora = self.config.lora();
        save_peft_with_base(&model, &lora, &base_name, self.dir.adapter_dir())?;
        if !self.config.save_adapter_weights_only {
            save_hf(&model.merge_lora(), self.dir.merged_dir())?;
            let tokenizer = self.config.tokenizer.as_deref().unwrap_or(base_dir);
            copy_tokenizer(tokenizer, self.dir.merged_dir())?;
            warn(
                "no generation_config.json",
                copy_generation_config(base_dir, self.dir.merged_dir()),
            );
        }
        draw_loss_curve(self.dir.path());
        Ok(())
    }

    fn finish(&self, summary: &Summary) -> Result<()> {
        self.dir.finish(summary)?;
        let Summary {
            final_loss, steps, ..
        } = summary;
        println!("loss {final_loss:.4} after {steps} steps");
        println!(
            "adapter, loss curve and summary are in {}",
            self.dir.path().display()
        );
        Ok(())
    }
}

/// Before the update spoils the adapter.
fn require_finite(trainer: &Trainer, gradients: &StepGradients) -> Result<()> {
    let (loss, grad_norm) = (gradients.loss, gradients.grad_norm);
    match loss.is_finite() && grad_norm.is_finite() {
        true => Ok(()),
        false => Err(Error::Diverged {
            step: trainer.step + 1,
            loss,
            grad_norm,
        }),
    }
}

fn draw_loss_curve(run: &Path) {
    let drawn = plot::Run::read(run)
        .and_then(|curve| plot::loss_curve(&[curve], plot::SMOOTHING, &run.join("loss_curve.svg")));
    warn("no loss curve", drawn);
}

/// A run is not lost for want of extras.
fn warn(what: &str, result: Result<()>) {
    if let Err(error) = result {
        eprintln!("warning: {what}: {error}");
    }
}

/// The model's own end of a text serves where the tokenizer knows none.
fn tokenizer(config: &RecipeConfig, base_dir: &Path, llama: &LlamaConfig) -> Result<Tokenizer> {
    let tokenizer = match &config.tokenizer {
        Some(path) if path.is_file() => Tokenizer::from_file(path),
        Some(dir) => Tokenizer::from_dir(dir),
        None => Tokenizer::from_dir(base_dir),
    }?;
    let known = tokenizer.eos_id();
    let eos = known.or_else(|| llama.eos_token_ids.first().copied());
    Ok(tokenizer.with_special_ids(None, eos))
}

/// The model with the end of a text that it learns among those where it stops.
fn ending_as(tokenizer: &Tokenizer, mut llama: LlamaConfig) -> LlamaConfig {
    let known = &llama.eos_token_ids;
    let new = tokenizer.eos_id().filter(|eos| !known.contains(eos));
    llama.eos_token_ids.extend(new);
    llama
}

/// What a run trains on and validates with.
struct Data {
    samples: Vec<Sample>,
    /// The samples that share a row: one each, unless they are packed.
    rows: Vec<Vec<usize>>,
    validation: Vec<Batch>,
    pad_id: u32,
    /// Where the records do not give what the configuration asks for.
    notes: Vec<String>,
}

impl Data {
    fn load(config: &RecipeConfig, llama: &LlamaConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = config.dataset.clone().unwrap_or_else(embedded::train_file);
        let context = llama.context_len();
        let asked = config.max_seq_len.unwrap_or(context);
        let longest = asked.min(context);
        let mut notes = Vec::from_iter(beyond_context(asked, context));
        notes.extend(other_end(tokenizer, llama));
        let mut read = |path: &Path| {
            let records = load_alpaca(path)?;
            let samples = samples(&records, path, config, llama, tokenizer, longest)?;
            notes.extend(left_out(path, records.len() - samples.len(), longest));
            notes.extend(cut(path, &records, &samples, tokenizer, longest)?);
            Ok::<_, Error>(samples)
        };
        let all = read(&path)?;
        let (samples, validation) = match &config.validation_dataset {
            Some(path) => (all, read(path)?),
            None => split(all, config)?,
        };
        notes.extend(unvalidated(config, samples.len(), validation.len()));
        let lengths: Vec<usize> = samples.iter().map(Sample::len).collect();
        let rows = match config.packed {
            true => pack(&lengths, longest),
            false => (0..samples.len()).map(|index| vec![index]).collect(),
        };
        let pad_id = pad_id(tokenizer, llama);
        let validation = validation.chunks(config.batch_size);
        let batch = |samples: &[Sample]| Batch::collate(&Vec::from_iter(samples), pad_id);
        Ok(Self {
            validation: validation.map(batch).collect(),
            samples,
            rows,
            pad_id,
            notes,
        })
    }

    /// None without validation records.
    fn validation_loss(
        &self,
        group: &dyn ProcessGroup,
        model: &TransformerDecoder,
    ) -> Result<Option<f64>> {
        match &self.validation[..] {
            [] => Ok(None),
            batches => validation_loss_in(group, model, batches).map(Some),
        }
    }

    /// The tokens of the longest row.
    fn longest_row(&self) -> usize {
        let tokens = |row: &Vec<usize>| row.iter().map(|i| self.samples[*i].len()).sum();
        self.rows.iter().map(tokens).max().unwrap_or(0)
    }

    fn batch(&self, rows: &[usize]) -> Batch {
        let samples = |row: &usize| self.rows[*row].iter().map(|i| &self.samples[*i]).collect();
        let rows: Vec<Vec<&Sample>> = rows.iter().map(samples).collect();
        let rows: Vec<&[&Sample]> = rows.iter().map(Vec::as_slice).collect();
        Batch::collate_packed(&rows, self.pad_id, Padding::Longest)
    }
}

fn samples(
    records: &[AlpacaRecord],
    path: &Path,
    config: &RecipeConfig,
    llama: &LlamaConfig,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Sample>> {
    let mut samples = tokenize_records(records, tokenizer, config.train_on_input, Some(longest))?;
    check_vocab(&samples, llama.vocab_size)?;
    // A record whose prompt fills the whole sequence teaches nothing.
    samples.retain(|sample| sample.num_label_tokens() > 0);
    match samples.is_empty() {
        false => Ok(samples),
        true => Err(Error::Config {
            origin: path.display().to_string(),
            key: "max_seq_len".into(),
            line: None,
            message: format!("no record has an answer within max_seq_len = {longest} tokens"),
            nearest: Vec::new(),
        }),
    }
}

fn beyond_context(asked: usize, context: usize) -> Option<String> {
    (asked > context).then(|| {
        format!(
            "records are cut to the model's context of {context} tokens; max_seq_len is {asked}"
        )
    })
}

fn unvalidated(config: &RecipeConfig, all: usize, held_out: usize) -> Option<String> {
    let fraction = config.validation_split;
    (held_out == 0 && fraction > 0.0)
        .then(|| format!("nothing is validated: {fraction} of {all} records is less than one"))
}

fn left_out(path: &Path, count: usize, longest: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "{count} records of {} are left out, which have no answer within {longest} tokens",
            path.display()
        )
    })
}

/// An answer that is cut ends, for the model, where it is cut.
fn cut(
    path: &Path,
    records: &[AlpacaRecord],
    samples: &[Sample],
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Option<String>> {
    if samples.iter().all(|sample| sample.len() < longest) {
        return Ok(None);
    }
    let whole = tokenize_records(records, tokenizer, true, None)?;
    let too_long = whole.iter().filter(|sample| sample.len() > longest).count();
    // Those that are left out are too long too.
    let count = too_long - (records.len() - samples.len());
    Ok((count > 0).then(|| {
        format!(
            "{count} records of {} are longer than {longest} tokens and cut there",
            path.display()
        )
    }))
}

/// Some tokenizers have a token for padding for which the model has no row. Any that it has serves.
fn pad_id(tokenizer: &Tokenizer, llama: &LlamaConfig) -> u32 {
    let known = Some(tokenizer.pad_id()).filter(|id| (*id as usize) < llama.vocab_size);
    known.unwrap_or(0)
}

/// Servers that have the adapter alone stop where the base model's configuration says.
fn other_end(tokenizer: &Tokenizer, llama: &LlamaConfig) -> Option<String> {
    let eos = tokenizer.eos_id()?;
    let known = &llama.eos_token_ids;
    (!known.is_empty() && !known.contains(&eos)).then(|| {
        format!(
            "answers end with token {eos}, the tokenizer's end of a text, but config.json names \
             {known:?}; the merged model stops at both, a server of the adapter alone must be told"
        )
    })
}

fn split(samples: Vec<Sample>, config: &RecipeConfig) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let held_out = (samples.len() as f64 * config.validation_split) as usize;
    let (train, validation) = split_validation(samples.len(), held_out, config.seed)?;
    let pick = |indices: Vec<usize>| indices.into_iter().map(|i| samples[i].clone()).collect();
    Ok((pick(train), pick(validation)))
}

/// The held-out questions of the embedded default, asked before and after training.
struct Quiz {
    records: Vec<AlpacaRecord>,
    base: Vec<String>,
}

impl Quiz {
    fn before(
        config: &RecipeConfig,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let is_embedded = config.checkpoint_dir.is_none() && config.dataset.is_none();
        let records = if is_embedded {
            embedded::held_out()?
        } else {
            Vec::new()
        };
        let base_model = model.clone().without_adapters();
        let base = answers(&base_model, tokenizer, &records)?;
        Ok(Self { records, base })
    }

    /// Prints some answers and returns the fractions of exact ones, before and after.
    fn after(
        &self,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ExactMatch>> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let finetuned = answers(model, tokenizer, &self.records)?;
        println!("\nQuestions that were not trained on:");
        let answers = self.base.iter().zip(&finetuned);
        let shown = self.records.iter().zip(answers);
        for (record, (base, finetuned)) in shown.step_by(self.records.len().div_ceil(6)) {
            println!(
                "  {} {}",
                record.instruction,
                record.input.replace('\n', " ")
            );
            println!("    base:      {:?}", base);
            println!(
                "    finetuned: {:?} (right: {:?})",
                finetuned, record.output
            );
        }
        let base = embedded::exact_match(&self.base, &self.records);
        let finetuned = embedded::exact_match(&finetuned, &self.records);
        let (before, after, count) = (base * 100.0, finetuned * 100.0, self.records.len());
        println!("exactly right of {count}: base {before:.0} %, finetuned {after:.0} %\n");
        Ok(Some(ExactMatch {
            exact_match_base: base,
            exact_match_finetuned: finetuned,
        }))
    }
}

/// A model's own answer to each record, chosen greedily.
fn answers(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    records: &[AlpacaRecord],
) -> Result<Vec<String>> {
    let options = GenerateOptions::greedy(embedded::MAX_ANSWER_TOKENS);
    let records = records.iter();
    records
        .map(|record| answer(model, tokenizer, record, &options))
        .collect()
}

/// Tokens per second of the steps alone.
#[derive(Default)]
struct Speed {
    tokens: usize,
    time: Duration,
    last: f64,
}

impl Speed {
    fn add(&mut self, tokens: usize, time: Duration) {
        self.tokens += tokens;
        self.time += time;
        self.last = tokens as f64 / time.as_secs_f64();
    }

    fn mean(&self) -> f64 {
        match self.tokens {
            0 => 0.0,
            tokens => tokens as f64 / self.time.as_secs_f64(),
        }
    }
}

/// A bar with loss and tokens/s on a terminal; in a log file, a line now and then.
struct Progress {
    bar: ProgressBar,
    total_steps: usize,
    is_shown: bool,
}

impl Progress {
    fn new(total_steps: usize, done: usize, is_shown: bool) -> Self {
        let template = "{bar:40} {pos}/{len} steps, {msg}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar = match is_shown {
            true => ProgressBar::new(total_steps as u64).with_style(style),
            false => ProgressBar::hidden(),
        };
        Self {
            bar: bar.with_position(done as u64),
            total_steps,
            is_shown,
        }
    }

    fn show(&self, step: usize, loss: f64, tokens_per_second: f64) {
        let message = format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s");
        let is_tick = step.is_multiple_of(self.total_steps.div_ceil(20));
        if self.is_shown && is_tick && !std::io::stderr().is_terminal() {
            println!("step {step} of {}: {message}", self.total_steps);
        }
        self.bar.set_message(message);
        self.bar.set_position(step as u64);
    }

    fn finish(&self) {
        self.bar.finish();
    }
}
