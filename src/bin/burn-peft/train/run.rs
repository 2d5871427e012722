//! The training of a run, with all that is told and saved before, meanwhile and after.

use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn_peft::adapter::ParamCount;
use burn_peft::checkpoint::{
    MergedCheckpoint, base_model_name, copy_generation_config, save_merged_hf, save_peft_with_base,
};
use burn_peft::data::SftData;
use burn_peft::llama::TransformerDecoder;
use burn_peft::report::{Answer, Curves, Report, SMOOTHING, draw_curves, draw_loss};
use burn_peft::tokenizer::copy_tokenizer;
use burn_peft::training::recipe::{BestCheckpoint, RecipeConfig};
use burn_peft::training::{
    MetricLogger, Metrics, RunDir, SavePlan, StepGradients, StepOutput, Summary, Trainer,
    peak_memory_bytes, validation_loss_in,
};
use burn_peft::{Error, Result};

use super::interrupt::{Kept, State};
use super::job::{Job, adapter_of};
use super::launch::Member;
use super::quiz::Quiz;
use super::report::{Progress, Speed, print_notes, print_progress};
use crate::exit::complain;
use crate::say::tell;

/// A run as one of its members sees it. The first member reports and writes.
pub(super) struct Run<'a> {
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
    pub(super) fn new(
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
    pub(super) fn complete(
        mut self,
        model: TransformerDecoder,
        trainer: Trainer,
        job: &Job,
    ) -> Result<()> {
        if !job.is_first() {
            return self.train(model, trainer, job).map(drop);
        }
        let count = ParamCount::of(&model);
        tell(&count.to_string());
        print_notes(&job.data.notes, &trainer.schedule);
        let steps = job.data.order.steps_per_epoch();
        print_progress(&self.dir, &trainer, steps, self.is_over(&trainer));
        let quiz = Quiz::before(self.config, &model, &job.tokenizer, &job.data);
        let quiz = or_warn("no question is asked", quiz);
        let (model, summary) = self.train(model, trainer, job)?;
        let answers = quiz.map(|quiz| quiz.after(&model, &job.tokenizer));
        let answers = answers.and_then(|answers| or_warn("no question is answered", answers));
        let (exact_match, answers) = answers.unwrap_or_default();
        self.save(model, &job.base)?;
        self.save_template(&job.data)?;
        let summary = Summary {
            exact_match,
            ..summary
        };
        let drawn = self.draw(&summary, &job.data, &answers);
        warn("no curves and no report", drawn);
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
        self.take_best(&mut model, &trainer);
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
        if let Kept::Unsaved(kept) = &mut *self.member.last_step.lock() {
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
        *last_step = Kept::Nothing;
        let (model, output) = trainer.update(model, gradients);
        *last_step = self.kept(&model, trainer);
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
        *last_step = self.kept(&model, trainer);
        self.complete_step(trainer.step, &output, time);
        Ok(model)
    }

    fn kept(&self, model: &TransformerDecoder, trainer: &Trainer) -> Kept {
        Kept::Unsaved(Box::new(State {
            run: self.dir.clone(),
            lora: adapter_of(model),
            model: model.clone(),
            trainer: trainer.clone(),
        }))
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
    fn take_best(&self, model: &mut TransformerDecoder, trainer: &Trainer) {
        let best = match self.config.best_checkpoint {
            BestCheckpoint::Use => trainer.validations.best,
            _ => None,
        };
        let is_first = self.member.group.rank() == 0;
        let Some(best) = best.filter(|best| is_first && best.step != trainer.step) else {
            return;
        };
        // A run that went on from another's has none of the other's.
        let taken = self.dir.load_best(model, best);
        if or_warn("the adapter is that of the last step", taken).is_some() {
            let (step, loss) = (best.step, best.loss);
            say!("the adapter is that of step {step}, validation loss {loss:.4}");
        }
    }

    /// Only the first member writes.
    fn save_checkpoint(&self, model: &TransformerDecoder, trainer: &Trainer) -> Result<()> {
        let config = self.config;
        if self.member.group.rank() != 0 {
            return Ok(());
        }
        // If the program is told to end, it ends after this.
        let mut last_step = self.member.last_step.lock();
        self.dir
            .save_checkpoint(model, &adapter_of(model), trainer)?;
        *last_step = Kept::saved(&self.dir, trainer.step);
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
                complain(format_args!(
                    "warning: no more metrics are logged there: {error}"
                ));
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

    fn save(&self, model: TransformerDecoder, base: &Path) -> Result<()> {
        let of_base = || base_model_name(base);
        let base_name = self.config.base_model_name.clone().unwrap_or_else(of_base);
        let lora = adapter_of(&model);
        save_peft_with_base(&model, &lora, &base_name, self.dir.adapter_dir())?;
        say!("the adapter is in {}", self.dir.adapter_dir().display());
        match self.config.save_adapter_weights_only {
            true => Ok(()),
            false => self.save_merged(&model.valid(), base),
        }
    }

    /// The merged model, which is never held: into the base's files as they are, where they were packed for the training
    /// alone; else into the numbers that were trained on. What LoftQ begins with makes up for the error of these.
    fn save_merged(&self, model: &TransformerDecoder, base: &Path) -> Result<()> {
        let dir = self.dir.merged_dir();
        say!("the merged model goes to {}", dir.display());
        match self.config.merges_into_files(base) {
            true => MergedCheckpoint::new(model, base)?.save_hf(&dir)?,
            false => save_merged_hf(model, &dir)?,
        }
        copy_tokenizer(self.config.tokenizer.as_deref().unwrap_or(base), &dir)?;
        warn(
            "no generation_config.json",
            copy_generation_config(base, &dir),
        );
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
    fn draw(&self, summary: &Summary, data: &SftData, answers: &[Answer]) -> Result<()> {
        let dir = self.dir.path();
        let curves = [Curves::read(dir)?];
        draw_loss(&curves, SMOOTHING, dir.join("loss_curve.svg"))?;
        draw_curves(&curves, SMOOTHING, dir.join("curves.svg"))?;
        let report = Report {
            config: self.config,
            summary,
            curves: &curves,
            records: &data.counts,
            notes: &data.notes,
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
    or_warn(what, result);
}

fn or_warn<T>(what: &str, result: Result<T>) -> Option<T> {
    result
        .inspect_err(|error| complain(format_args!("warning: {what}: {error}")))
        .ok()
}
