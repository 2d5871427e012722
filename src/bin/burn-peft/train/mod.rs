//! Finetunes a model with LoRA on instructions or conversations, as a recipe says: `docs/recipe.md`.

mod dry_run;
mod interrupt;
mod launch;
mod quiz;
mod records;
mod report;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn_peft::adapter::{ParamCount, adapter_config, initialize_eva, initialize_params};
use burn_peft::checkpoint::{
    base_fingerprint, base_model_name, check_base, copy_generation_config, initialize_loftq_from,
    load_any_adapter, load_tokenizer, read_base_packing, save_hf, save_peft_with_base,
};
use burn_peft::data::{Batch, SftData, fingerprint};
use burn_peft::distributed::{ProcessGroup, broadcast_params, require_same};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{DEFAULT_ADAPTER, Decomposition, Init, LoRAConfig};
use burn_peft::ops::set_matmul_precision;
use burn_peft::quantization::BlockFormat;
use burn_peft::report::{Answer, Curves, Report, SMOOTHING, draw_curves, draw_loss};
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use burn_peft::training::recipe::{BestCheckpoint, RecipeConfig};
use burn_peft::training::{
    MetricLogger, Metrics, RunDir, SavePlan, StepGradients, StepOutput, Summary, Trainer,
    nonfinite_records, peak_memory_bytes, validation_loss_in,
};
use burn_peft::{Error, Result};
use interrupt::State;
use launch::{Member, launch};
use quiz::Quiz;
use records::{name_of, pass_first};
use report::{Progress, Speed, print_device, print_notes, print_progress, print_work};

use crate::allocator;
use crate::exit::exit_code;
use crate::say::tell;

/// How LoftQ decomposes the error of a weight: to a thousandth of what is left as the exact decomposition does.
const LOFTQ: Decomposition = Decomposition::Randomized {
    iterations: 8,
    seed: 0,
};

/// Finetune a model with LoRA on instructions or conversations.
#[derive(clap::Args)]
#[command(after_help = "docs/recipe.md explains every key.")]
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

/// `--lora_rank=4` means `lora_rank=4`.
pub fn without_dashes(argument: OsString) -> OsString {
    let setting = argument.to_str().and_then(|text| text.strip_prefix("--"));
    match setting {
        Some(setting) if setting.contains('=') && !setting.starts_with("config=") => setting.into(),
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
    // In a folder of its own it may be run again and again.
    config.overwrite_output_dir |= config.output_dir == tiny.output_dir;
    Ok(config)
}

/// The base of a run.
fn base(config: &RecipeConfig) -> Result<PathBuf> {
    let of_program = crate::EMBEDDED.map(|embedded| embedded.base.into());
    let base = config.checkpoint_dir.clone().or(of_program);
    base.ok_or_else(|| {
        unset(
            "checkpoint_dir",
            "name the folder of a base model, or its GGUF file",
        )
    })
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

fn finetune(config: &RecipeConfig, member: &Member) -> Result<()> {
    let mut job = Job::load(config, member)?;
    let base = base_fingerprint(&job.base)?;
    require_same(member.group, "base model", &base)?;
    let dir = RunDir::open(config, member.group.rank(), member.group.size())?
        .on_data(job.fingerprint)
        .on_base(base);
    let lora = config.adapter_config_of(&dir)?;
    require_same_adapter(member.group, &lora)?;
    job.print_estimate(&lora)?;
    let mut model = job.model(&lora, &dir)?;
    job.data.order.num_processes = dir.num_processes();
    let mut trainer = job.trainer();
    if dir.is_resumed() {
        dir.load_checkpoint(&mut model, &mut trainer)?;
        require_same(member.group, "last checkpoint", &trainer.step)?;
    }
    if job.is_first() {
        dir.begin()?;
    }
    let model = broadcast_params(member.group, model)?;
    Run::new(config, member, dir, &trainer)?.complete(model, trainer, &job)
}

/// What a run would do. Nothing is written, and no weight is read.
fn rehearse(config: &RecipeConfig, member: &Member) -> Result<()> {
    let mut job = Job::load(config, member)?;
    // As one of the processes beside the first, which touch no file.
    let dir = RunDir::open(config, 1, member.group.size())?;
    if !job.is_first() {
        return Ok(());
    }
    dry_run::print_configuration(config);
    job.data.order.num_processes = dir.num_processes();
    dry_run::print_counts(&job.data, config);
    let fits = job.print_estimate(&config.adapter_config_of(&dir)?);
    print_notes(&job.data.notes, &job.trainer().schedule);
    dry_run::print_examples(&job.data, &job.tokenizer)?;
    fits
}

/// What a member works with, as the configuration names it.
struct Job<'a> {
    config: &'a RecipeConfig,
    member: &'a Member<'a>,
    base: PathBuf,
    llama: LlamaConfig,
    tokenizer: Tokenizer,
    data: SftData,
    /// What the base's files have packed.
    packed: BTreeMap<String, BlockFormat>,
    /// Of the samples that are trained on.
    fingerprint: u64,
}

impl<'a> Job<'a> {
    fn load(config: &'a RecipeConfig, member: &'a Member) -> Result<Self> {
        let base = base(config)?;
        let llama = config.llama(&base)?;
        check_base(&base, &llama, member.device)?;
        let tokenizer = load_tokenizer(config.tokenizer.as_deref().unwrap_or(&base), &llama)?;
        let (source, data) = records::load(config, &llama, &tokenizer)?;
        let fingerprint = fingerprint(&data.samples)?;
        require_same_run(member.group, config, &data, fingerprint)?;
        let packed = read_base_packing(&base)?;
        set_matmul_precision(config.matmul_precision_for(&packed, member.device));
        let job = Self {
            config,
            member,
            base,
            llama,
            tokenizer,
            data,
            packed,
            fingerprint,
        };
        if job.is_first() {
            print_work(&job.base, &source, &job.data);
        }
        Ok(job)
    }

    fn is_first(&self) -> bool {
        self.member.group.rank() == 0
    }

    /// That of a run that begins.
    fn trainer(&self) -> Trainer {
        let steps_per_epoch = self.data.order.steps_per_epoch();
        self.config.trainer(steps_per_epoch * self.config.epochs)
    }

    /// The records of a step that make its loss no number, by the end of their texts.
    fn name_broken(&self, model: &TransformerDecoder, batches: &[Batch]) -> Result<Vec<String>> {
        let records = nonfinite_records(model, batches);
        records
            .iter()
            .map(|record| name_of(record, &self.tokenizer))
            .collect()
    }

    /// What the training will need, if the member is the one that reports.
    fn print_estimate(&self, lora: &LoRAConfig) -> Result<()> {
        if self.is_first() {
            let (packed, longest) = (self.packed.clone(), self.data.longest_row()?);
            let device = self.member.device;
            let (config, llama) = (self.config, &self.llama);
            let estimate = config.estimate_config(llama, packed, lora, longest, device)?;
            print_device(&estimate, self.member)?;
        }
        Ok(())
    }

    /// The model that the training begins with. It stops at the end of a text that it learns, too.
    fn model(&self, lora: &LoRAConfig, dir: &RunDir) -> Result<TransformerDecoder> {
        let device = self.member.device.clone().autodiff();
        let mut model = self.config.load_model(&self.base, lora, &device)?;
        let known = &mut model.config.eos_token_ids;
        if let Some(end) = self.tokenizer.eos_id().filter(|end| !known.contains(end)) {
            known.push(end);
        }
        allocator::keep_freed_memory();
        match dir.is_resumed() {
            true => Ok(model),
            false => self.begin(model),
        }
    }

    /// What a new run begins with beyond what a seed gives: an adapter's tensors, directions of its data, or the error of
    /// the base's quantization.
    fn begin(&self, mut model: TransformerDecoder) -> Result<TransformerDecoder> {
        let config = self.config;
        if let Some(path) = &config.adapter_checkpoint {
            load_any_adapter(&mut model, path)?;
            return Ok(model);
        }
        match config.init_lora_weights {
            Init::Eva => self.begin_by_data(model),
            // With more iterations the adapter would be for another base than `quantize_base` gives.
            Init::Loftq => initialize_loftq_from(model, &self.base, 1, LOFTQ),
            _ => Ok(model),
        }
    }

    fn begin_by_data(&self, model: TransformerDecoder) -> Result<TransformerDecoder> {
        let mut passed = Ok(());
        let model = initialize_eva(model, self.config.eva_rho, |model| {
            passed = pass_first(&self.data, model, self.member.device);
        })?;
        passed?;
        initialize_params(&model);
        require_same_adapter(self.member.group, &adapter_of(&model))?;
        Ok(model)
    }
}

/// Members on machines of their own may have other files.
fn require_same_run(
    group: &dyn ProcessGroup,
    config: &RecipeConfig,
    data: &SftData,
    fingerprint: u64,
) -> Result<()> {
    let settings = config.without_places().to_yaml();
    require_same(group, "configuration", &settings)?;
    require_same(group, "training data", &fingerprint)?;
    require_same(group, "validation data", &data.validation)
}

fn require_same_adapter(group: &dyn ProcessGroup, lora: &LoRAConfig) -> Result<()> {
    let lora = serde_json::to_string(lora).expect("a configuration is plain data");
    require_same(group, "adapter's configuration", &lora)
}

/// The configuration of the run's adapter.
fn adapter_of(model: &TransformerDecoder) -> LoRAConfig {
    let config = adapter_config(model, DEFAULT_ADAPTER);
    (*config.expect("the run has an adapter")).clone()
}

/// A run as one of its members sees it. The first member reports and writes.
struct Run<'a> {
    config: &'a RecipeConfig,
    member: &'a Member<'a>,
    dir: RunDir,
    metrics: Vec<Box<dyn MetricLogger>>,
    /// What is known of the last step, until it is logged.
    unlogged: Option<Metrics>,
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
        let is_first = member.group.rank() == 0;
        let metrics = match is_first {
            true => dir.metric_loggers(trainer.step)?,
            false => Vec::new(),
        };
        Ok(Self {
            config,
            member,
            dir,
            metrics,
            unlogged: None,
            progress: Progress::new(trainer.schedule.total_steps, trainer.step, is_first),
            speed: Speed::default(),
        })
    }

    /// The training; if the member is the one that reports and writes, with all that is told and saved before and after.
    fn complete(mut self, model: TransformerDecoder, trainer: Trainer, job: &Job) -> Result<()> {
        if !job.is_first() {
            return self.train(model, trainer, job).map(drop);
        }
        let count = ParamCount::of(&model);
        tell(&count.to_string());
        print_notes(&job.data.notes, &trainer.schedule);
        let steps = job.data.order.steps_per_epoch();
        print_progress(&self.dir, &trainer, steps, self.is_over(&trainer));
        self.dir.require_space(&count, &trainer, steps)?;
        let quiz = Quiz::before(self.config, &model, &job.tokenizer, &job.data)?;
        let (model, summary) = self.train(model, trainer, job)?;
        let (exact_match, answers) = quiz.after(&model, &job.tokenizer)?;
        self.save(model, &job.base)?;
        self.save_template(&job.data)?;
        let summary = Summary {
            exact_match,
            ..summary
        };
        warn("no curves and no report", self.draw(&summary, &answers));
        self.finish(&summary)
    }

    fn train(
        &mut self,
        mut model: TransformerDecoder,
        mut trainer: Trainer,
        job: &Job,
    ) -> Result<(TransformerDecoder, Summary)> {
        let (group, data) = (self.member.group, &job.data);
        // The one that a run which goes on was ended in.
        if self.validate(&model, &mut trainer, data)? {
            self.save_checkpoint(&model, &trainer)?;
        }
        self.progress.begin();
        while !self.is_over(&trainer) {
            let started = Instant::now();
            let epoch = data.order.epoch_of(trainer.step);
            let micro_batches = data.shard(trainer.step, group.rank(), group.size())?;
            let gradients = trainer.gradients(group, &model, &micro_batches)?;
            let time = (started, epoch);
            model = match trainer.require_finite(&gradients) {
                Ok(()) => self.update(model, &mut trainer, gradients, time),
                Err(error) => {
                    let error = error.with_records(job.name_broken(&model, &micro_batches)?);
                    self.skip(model, &mut trainer, gradients, time, error)?
                }
            };
            let is_best = self.validate(&model, &mut trainer, data)?;
            if is_best || self.saves(&trainer, data) {
                self.save_checkpoint(&model, &trainer)?;
            }
        }
        self.log_last_step();
        self.progress.finish();
        self.take_best(&mut model, &trainer)?;
        let summary = self.summary(&model, &trainer);
        Ok((model, summary))
    }

    fn is_over(&self, trainer: &Trainer) -> bool {
        let patience = self.config.early_stopping_patience;
        trainer.step >= trainer.schedule.total_steps || trainer.validations.have_ended(patience)
    }

    /// Whether a checkpoint is due.
    fn saves(&self, trainer: &Trainer, data: &SftData) -> bool {
        let plan: SavePlan = self.dir.options().saves;
        plan.is_due(trainer, data.order.steps_per_epoch()) || self.is_over(trainer)
    }

    /// Validates if that is due and has not been done. Whether what came out is to be saved as the best so far.
    fn validate(
        &mut self,
        model: &TransformerDecoder,
        trainer: &mut Trainer,
        data: &SftData,
    ) -> Result<bool> {
        let (config, step) = (self.config, trainer.step);
        let is_last = step >= trainer.schedule.total_steps;
        let is_due = step > 0 && (is_last || is_due(config.run_val_every_n_steps, step));
        if !is_due || trainer.validations.has(step) || data.validation.is_empty() {
            return Ok(false);
        }
        let val_loss = validation_loss_in(self.member.group, model, &data.validation)?;
        self.log(&Metrics::new(step).with("val_loss", val_loss));
        self.progress
            .say(&format!("step {step}: validation loss {val_loss:.4}"));
        let is_best = trainer.validations.add(step, val_loss);
        if let Some(kept) = self.member.last_step.lock().as_mut() {
            kept.trainer.validations = trainer.validations;
        }
        if trainer
            .validations
            .have_ended(config.early_stopping_patience)
        {
            let best = trainer.validations.best.map_or(0, |best| best.step);
            self.progress.say(&format!(
                "step {step}: no better validation since step {best}, the training ends"
            ));
        }
        Ok(is_best && config.best_checkpoint != BestCheckpoint::None)
    }

    /// The optimizer's update, after which the step is complete and kept. It is logged before the program can be
    /// ended, or a run that goes on would lack it.
    fn update(
        &mut self,
        model: TransformerDecoder,
        trainer: &mut Trainer,
        gradients: StepGradients,
        time: (Instant, usize),
    ) -> TransformerDecoder {
        let member = self.member;
        let mut last_step = member.last_step.lock();
        // Or the old values would be in memory beside the new ones.
        *last_step = None;
        let (model, output) = trainer.update(model, gradients);
        *last_step = Some(self.state(&model, trainer));
        self.complete_step(trainer.step, &output, time);
        model
    }

    /// A step whose loss or gradients are no numbers is left out, if there were not too many.
    fn skip(
        &mut self,
        model: TransformerDecoder,
        trainer: &mut Trainer,
        gradients: StepGradients,
        time: (Instant, usize),
        error: Error,
    ) -> Result<TransformerDecoder> {
        if trainer.skipped_steps >= self.config.skip_nonfinite_steps {
            return Err(error);
        }
        if let Error::Diverged {
            step,
            loss,
            grad_norm,
            records,
            ..
        } = &error
        {
            let records = records.join(", ");
            self.progress.say(&format!(
                "step {step} is left out: its loss is {loss}, its gradients' norm {grad_norm}; {records}"
            ));
        }
        let member = self.member;
        let mut last_step = member.last_step.lock();
        let output = trainer.skip(gradients);
        *last_step = Some(self.state(&model, trainer));
        self.complete_step(trainer.step, &output, time);
        Ok(model)
    }

    fn state(&self, model: &TransformerDecoder, trainer: &Trainer) -> State {
        State {
            run: self.dir.clone(),
            lora: adapter_of(model),
            model: model.clone(),
            trainer: trainer.clone(),
        }
    }

    fn complete_step(
        &mut self,
        step: usize,
        output: &StepOutput,
        (started, epoch): (Instant, usize),
    ) {
        self.speed.add(output.num_tokens, started.elapsed());
        self.progress.show(step, output.loss, self.speed.mean());
        self.unlogged = Some(self.step_metrics(step, epoch, output));
        if is_due(Some(self.config.log_every_n_steps), step) {
            self.log_last_step();
        }
    }

    /// The last step is logged at the end, whichever it is.
    fn log_last_step(&mut self) {
        if let Some(metrics) = self.unlogged.take() {
            self.log(&metrics);
        }
    }

    /// The adapter of the best validation in the place of the last one, if that is asked for.
    fn take_best(&self, model: &mut TransformerDecoder, trainer: &Trainer) -> Result<()> {
        let best = match self.config.best_checkpoint {
            BestCheckpoint::Use => trainer.validations.best,
            _ => None,
        };
        let is_first = self.member.group.rank() == 0;
        match best.filter(|best| is_first && best.step != trainer.step) {
            Some(best) => {
                say!(
                    "the adapter is that of step {}, validation loss {:.4}",
                    best.step,
                    best.loss
                );
                self.dir.load_best(model, best)
            }
            None => Ok(()),
        }
    }

    /// Only the first member writes.
    fn save_checkpoint(&self, model: &TransformerDecoder, trainer: &Trainer) -> Result<()> {
        let config = self.config;
        if self.member.group.rank() != 0 {
            return Ok(());
        }
        // If the program is told to end, it ends after this.
        let _kept = self.member.last_step.lock();
        self.dir
            .save_checkpoint(model, &adapter_of(model), trainer)?;
        if let Some(count) = config.keep_last_n_checkpoints {
            let kept = self.dir.keep_last_checkpoints(count);
            warn("old checkpoints are left", kept);
        }
        Ok(())
    }

    /// A training is not lost for want of its log.
    fn log(&mut self, metrics: &Metrics) {
        self.metrics.retain_mut(|logger| {
            let logged = logger.log(metrics);
            if let Err(error) = &logged {
                eprintln!("warning: no more metrics are logged there: {error}");
            }
            logged.is_ok()
        });
    }

    fn step_metrics(&self, step: usize, epoch: usize, output: &StepOutput) -> Metrics {
        let is_asked = self.config.log_peak_memory_stats;
        let memory = peak_memory_bytes().filter(|_| is_asked);
        let pools = || self.member.device.memory_pool_usage();
        let device_memory = is_asked.then(pools).flatten();
        Metrics::new(step)
            .with("epoch", epoch)
            .with("loss", output.loss)
            .with("lr", output.lr)
            .with("grad_norm", output.grad_norm)
            .with("tokens_per_second", self.speed.last)
            .with("peak_memory_bytes", memory)
            .with(
                "device_memory_bytes",
                device_memory.map(|usage| usage.bytes_reserved),
            )
    }

    fn summary(&self, model: &TransformerDecoder, trainer: &Trainer) -> Summary {
        let count = ParamCount::of(model);
        Summary {
            steps: trainer.step,
            skipped_steps: trainer.skipped_steps,
            final_loss: trainer.last_loss.unwrap_or(f64::NAN),
            total_params: count.total,
            trainable_params: count.trainable,
            tokens_per_second: self.speed.mean(),
            peak_memory_bytes: peak_memory_bytes(),
            val_loss: trainer.validations.last.map(|last| last.loss),
            best_validation: trainer.validations.best,
            exact_match: None,
        }
    }

    /// The last step is in a checkpoint by now. Each weight makes room for the merged one.
    fn save(&self, model: TransformerDecoder, base: &Path) -> Result<()> {
        *self.member.last_step.lock() = None;
        let of_base = || base_model_name(base);
        let base_name = self.config.base_model_name.clone().unwrap_or_else(of_base);
        let lora = adapter_of(&model);
        save_peft_with_base(&model, &lora, &base_name, self.dir.adapter_dir())?;
        say!("the adapter is in {}", self.dir.adapter_dir().display());
        if !self.config.save_adapter_weights_only {
            say!(
                "the merged model goes to {}",
                self.dir.merged_dir().display()
            );
            save_hf(&model.merge_lora(), self.dir.merged_dir())?;
            let tokenizer = self.config.tokenizer.as_deref().unwrap_or(base);
            copy_tokenizer(tokenizer, self.dir.merged_dir())?;
            warn(
                "no generation_config.json",
                copy_generation_config(base, self.dir.merged_dir()),
            );
        }
        Ok(())
    }

    /// A template that the tokenizer does not bring goes where the model is looked for.
    fn save_template(&self, data: &SftData) -> Result<()> {
        let Some(template) = &data.template else {
            return Ok(());
        };
        template.save(self.dir.adapter_dir())?;
        match self.config.save_adapter_weights_only {
            true => Ok(()),
            false => template.save(self.dir.merged_dir()),
        }
    }

    /// Pictures of what the run has told, and the page about it.
    fn draw(&self, summary: &Summary, answers: &[Answer]) -> Result<()> {
        let dir = self.dir.path();
        let curves = [Curves::read(dir)?];
        draw_loss(&curves, SMOOTHING, dir.join("loss_curve.svg"))?;
        draw_curves(&curves, SMOOTHING, dir.join("curves.svg"))?;
        let report = Report {
            config: self.config,
            summary,
            curves: &curves,
            answers,
        };
        report.save(dir.join("report.html"))
    }

    fn finish(&self, summary: &Summary) -> Result<()> {
        self.dir.finish(summary)?;
        let Summary {
            final_loss, steps, ..
        } = summary;
        say!("loss {final_loss:.4} after step {steps}");
        if let Some(val_loss) = summary.val_loss {
            say!("validation loss {val_loss:.4}");
        }
        if let Some(best) = summary.best_validation {
            say!(
                "the best validation was after step {}, loss {:.4}",
                best.step,
                best.loss
            );
        }
        say!(
            "curves, report.html and summary are in {}",
            self.dir.path().display()
        );
        Ok(())
    }
}

/// Whether something that comes every so many steps comes after this one.
fn is_due(every: Option<usize>, step: usize) -> bool {
    every.is_some_and(|every| step.is_multiple_of(every))
}

/// A run is not lost for want of extras.
fn warn(what: &str, result: Result<()>) {
    if let Err(error) = result {
        eprintln!("warning: {what}: {error}");
    }
}
