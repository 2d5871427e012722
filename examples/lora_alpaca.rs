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

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/device.rs"]
mod device;
#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/plot.rs"]
mod plot;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use burn_peft::adapter::{ParamCount, initialize_params, validate_state_dict_for_lora};
use burn_peft::checkpoint::{load_hf_as, save_hf, save_peft_with_base};
use burn_peft::data::{
    AlpacaRecord, Batch, Padding, Sample, check_vocab, load_alpaca, pack, split_validation,
    tokenize_records,
};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::ops::set_matmul_precision;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{
    Bytes, EstimateConfig, ExactMatch, MetricsLog, RunDir, StepOutput, Summary, Trainer,
    available_memory_bytes, estimate, peak_memory_bytes, suggestions, validation_loss,
};
use burn_peft::{Error, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
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
    let config = match &args.config {
        Some(path) => RecipeConfig::from_file(path, &args.overrides),
        None => RecipeConfig::from_yaml(embedded::CONFIG, "embedded default", &args.overrides),
    };
    match config.and_then(|config| finetune(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn finetune(config: &RecipeConfig) -> Result<()> {
    let base_dir = config.checkpoint_dir.clone().unwrap_or_else(embedded::dir);
    let llama = config.llama(&base_dir)?;
    let tokenizer = tokenizer(config, &base_dir)?;
    let data = Data::load(config, &llama, &tokenizer)?;
    set_matmul_precision(config.matmul_precision);
    print_memory(&config.estimate_config(&llama, data.longest_row()));
    let mut model = load_model(config, &llama, &base_dir)?;
    println!("{}", ParamCount::of(&model));

    let order = config.data_order(data.rows.len());
    let total_steps = order.steps_per_epoch() * config.epochs;
    let mut trainer = config.trainer(total_steps);
    let (run, mut metrics) = open_run(config, &mut model, &mut trainer)?;
    let quiz = Quiz::before(config, &model, &tokenizer)?;

    let due = |every: Option<usize>, step: usize| every.is_some_and(|n| step.is_multiple_of(n));
    let progress = Progress::new(total_steps, trainer.step);
    let mut speed = Speed::default();
    while trainer.step < total_steps {
        let indices = order.step(trainer.step);
        let micro_batches: Vec<Batch> = indices.iter().map(|i| data.batch(i)).collect();
        let started = Instant::now();
        let (next, output) = trainer.step(model, &micro_batches);
        model = next;
        let step = trainer.step;
        speed.add(output.num_tokens, started.elapsed());
        progress.show(step, output.loss, speed.mean());
        require_finite(step, output.loss)?;

        if due(Some(config.log_every_n_steps), step) {
            metrics.log(&step_metrics(
                config,
                step,
                order.epoch_of(step - 1),
                &output,
                &speed,
            ))?;
        }
        if due(config.run_val_every_n_steps, step) {
            let val_loss = validation_loss(&model, &data.validation);
            metrics.log(&json!({ "step": step, "val_loss": val_loss }))?;
        }
        if due(config.save_every_n_steps, step) || step == total_steps {
            run.save_checkpoint(&model, &config.lora(), &trainer)?;
        }
    }
    progress.finish();

    save(config, &model, &base_dir, &run)?;
    let summary = Summary {
        exact_match: quiz.after(&model, &tokenizer)?,
        ..summarize(&model, &trainer, &data, &speed)
    };
    run.finish(&summary)?;
    println!(
        "loss {:.4} after {} steps",
        summary.final_loss, summary.steps
    );
    println!(
        "adapter, loss curve and summary are in {}",
        run.path().display()
    );
    Ok(())
}

/// The memory that the run will take on the CPU and, if there is not as much, what takes less.
fn print_memory(config: &EstimateConfig) {
    let memory = estimate(config);
    println!("Estimated memory on the CPU:\n{memory}");
    let Some(available) = available_memory_bytes() else {
        return;
    };
    println!("{:<12}{:>9}", "available", Bytes(available));
    if memory.total() > available {
        println!("This will probably not fit.");
        for suggestion in suggestions(config, available) {
            println!("{suggestion}");
        }
    }
    println!();
}

/// The base weights with new adapters beside them.
fn load_model(
    config: &RecipeConfig,
    llama: &LlamaConfig,
    base_dir: &Path,
) -> Result<TransformerDecoder> {
    let lora = config.lora();
    let device = device::from_name(&config.device)?.autodiff();
    let mut model = llama.init_lora(&lora, &device)?;
    let report = load_hf_as(&mut model, base_dir, config.dtype.into())?;
    validate_state_dict_for_lora(&lora, &report)?;
    device.seed(config.seed);
    initialize_params(&model);
    Ok(model)
}

/// Begins a run, or goes on with the one in the output folder.
fn open_run(
    config: &RecipeConfig,
    model: &mut TransformerDecoder,
    trainer: &mut Trainer,
) -> Result<(RunDir, MetricsLog)> {
    if config.resume_from_checkpoint {
        let run = RunDir::resume(config)?;
        run.load_checkpoint(model, trainer)?;
        let metrics = MetricsLog::resume(run.metrics_path(), trainer.step)?;
        return Ok((run, metrics));
    }
    let run = RunDir::create(config)?;
    let metrics = MetricsLog::create(run.metrics_path())?;
    Ok((run, metrics))
}

fn require_finite(step: usize, loss: f64) -> Result<()> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(Error::Diverged { step, loss }),
    }
}

fn step_metrics(
    config: &RecipeConfig,
    step: usize,
    epoch: usize,
    output: &StepOutput,
    speed: &Speed,
) -> serde_json::Value {
    let memory = peak_memory_bytes().filter(|_| config.log_peak_memory_stats);
    json!({
        "step": step,
        "epoch": epoch,
        "loss": output.loss,
        "lr": output.lr,
        "grad_norm": output.grad_norm,
        "tokens_per_second": speed.last,
        "peak_memory_bytes": memory,
    })
}

fn save(
    config: &RecipeConfig,
    model: &TransformerDecoder,
    base_dir: &Path,
    run: &RunDir,
) -> Result<()> {
    let base_name = base_dir.to_string_lossy();
    save_peft_with_base(model, &config.lora(), &base_name, run.adapter_dir())?;
    if !config.save_adapter_weights_only {
        save_hf(&model.clone().merge_lora(), run.path().join("merged"))?;
    }
    draw_loss_curve(run.path());
    Ok(())
}

fn summarize(model: &TransformerDecoder, trainer: &Trainer, data: &Data, speed: &Speed) -> Summary {
    let count = ParamCount::of(model);
    let has_validation = !data.validation.is_empty();
    Summary {
        steps: trainer.step,
        final_loss: trainer.last_loss.expect("a run has at least one step"),
        total_params: count.total,
        trainable_params: count.trainable,
        tokens_per_second: speed.mean(),
        peak_memory_bytes: peak_memory_bytes(),
        val_loss: has_validation.then(|| validation_loss(model, &data.validation)),
        exact_match: None,
    }
}

/// The picture is an extra: a run is not lost for want of it.
fn draw_loss_curve(run: &Path) {
    let drawn = plot::Run::read(run)
        .and_then(|curve| plot::loss_curve(&[curve], plot::SMOOTHING, &run.join("loss_curve.svg")));
    if let Err(error) = drawn {
        eprintln!("warning: no loss curve: {error}");
    }
}

fn tokenizer(config: &RecipeConfig, base_dir: &Path) -> Result<Tokenizer> {
    match &config.tokenizer {
        Some(path) if path.is_file() => Tokenizer::from_file(path),
        Some(dir) => Tokenizer::from_dir(dir),
        None => Tokenizer::from_dir(base_dir),
    }
}

/// What a run trains on and validates with.
struct Data {
    samples: Vec<Sample>,
    /// The samples that share a row: one each, unless they are packed.
    rows: Vec<Vec<usize>>,
    validation: Vec<Batch>,
    pad_id: u32,
}

impl Data {
    fn load(config: &RecipeConfig, llama: &LlamaConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = config.dataset.clone().unwrap_or_else(embedded::train_file);
        let longest = config
            .max_seq_len
            .map_or(llama.max_seq_len, |n| n.min(llama.max_seq_len));
        let read = |path: &Path| {
            let records = load_alpaca(path)?;
            samples(&records, path, config, llama, tokenizer, longest)
        };
        let all = read(&path)?;
        let (samples, validation) = match &config.validation_dataset {
            Some(path) => (all, read(path)?),
            None => split(all, config)?,
        };
        let lengths: Vec<usize> = samples.iter().map(Sample::len).collect();
        let rows = match config.packed {
            true => pack(&lengths, longest),
            false => (0..samples.len()).map(|index| vec![index]).collect(),
        };
        let pad_id = tokenizer.pad_id();
        let validation = validation.chunks(config.batch_size);
        let batch = |samples: &[Sample]| Batch::collate(&Vec::from_iter(samples), pad_id);
        Ok(Self {
            validation: validation.map(batch).collect(),
            samples,
            rows,
            pad_id,
        })
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
        let base = embedded::answers(&base_model, tokenizer, &records)?;
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
        let finetuned = embedded::answers(model, tokenizer, &self.records)?;
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
}

impl Progress {
    fn new(total_steps: usize, done: usize) -> Self {
        let template = "{bar:40} {pos}/{len} steps, {msg}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar = ProgressBar::new(total_steps as u64).with_style(style);
        Self {
            bar: bar.with_position(done as u64),
            total_steps,
        }
    }

    fn show(&self, step: usize, loss: f64, tokens_per_second: f64) {
        let message = format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s");
        let is_tick = step.is_multiple_of(self.total_steps.div_ceil(20));
        if is_tick && !std::io::stderr().is_terminal() {
            println!("step {step} of {}: {message}", self.total_steps);
        }
        self.bar.set_message(message);
        self.bar.set_position(step as u64);
    }

    fn finish(&self) {
        self.bar.finish();
    }
}
