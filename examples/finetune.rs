//! A whole finetuning in one file, to copy and change: a base and a file of records in, an adapter out. It validates, and
//! goes on from its last checkpoint if it is called again. Without arguments it finetunes the tiny model of this repository.
//!
//! ```text
//! cargo run --release --example finetune -- [BASE RECORDS [OUTPUT [QUESTION]]]
//! ```

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::adapter::ParamCount;
use burn_peft::checkpoint::{
    LoadOptions, base_fingerprint, base_model_name, load_model, load_tokenizer, save_peft_with_base,
};
use burn_peft::data::{AlpacaRecord, RecordEncoder, SftData, SftOptions, fingerprint};
use burn_peft::generate::{GenerateOptions, answer};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{
    AdamWConfig, LrSchedule, Metrics, Resume, RunDir, RunOptions, SavePlan, ScheduleKind, Trainer,
    validation_loss,
};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
const EPOCHS: usize = 4;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut or = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (base, records) = (or(TINY), or(&format!("{TINY}/alpaca_train.json")));
    let (output, question) = (or("finetune_output"), or("What is a tyre made of?"));

    // The base is frozen, in the type of its files: with_format(DType::BF16) or (Quantization::Nf4) is another.
    let lora = LoRAConfig::new(AttnModule::ALL)
        .with_mlp(true)
        .with_alpha(16.0);
    let load = LoadOptions::new(&Device::default().autodiff());
    let mut model = load_model(&base, &lora, &load)?;
    let tokenizer = load_tokenizer(&base, &model.config)?;
    println!("{}", ParamCount::of(&model));

    let sizes = SftOptions::new(model.config.context_len(), model.config.vocab_size);
    let options = sizes.with_batch_size(8).with_validation_split(0.05);
    let data = SftData::load(records, RecordEncoder::new(&tokenizer), &options)?;
    data.notes.iter().for_each(|note| println!("note: {note}"));

    let steps_per_epoch = data.order.steps_per_epoch();
    let total_steps = steps_per_epoch * EPOCHS;
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: 2e-3, // for a tiny model: a large one takes a tenth of it
        warmup_steps: total_steps / 20,
        total_steps,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule).with_max_grad_norm(Some(1.0));

    // Keeps this run's folder from others, and knows whether there is a checkpoint of the same base, records and adapter.
    let options = RunOptions::new(output, &lora)
        .with_resume(Resume::Auto)
        .with_epochs(EPOCHS)
        .with_saves(SavePlan::default().with_every_epoch(true));
    let run = RunDir::open(options, 0, 1)?
        .on_data(fingerprint(&data.samples)?)
        .on_base(base_fingerprint(&base)?);
    if run.is_resumed() {
        run.load_checkpoint(&mut model, &mut trainer)?;
    }
    run.begin()?;
    let mut loggers = run.metric_loggers(trainer.step)?;

    let question = AlpacaRecord::new(question);
    let ask = |model: &TransformerDecoder| {
        answer(model, &tokenizer, &question, &GenerateOptions::greedy(64))
    };
    println!("before: {}", ask(&model)?);
    while trainer.step < total_steps {
        let output;
        (model, output) = trainer.step(model, &data.step(trainer.step)?);
        let step = trainer.step;
        let mut metrics = Metrics::new(step).with("loss", output.loss);
        if step.is_multiple_of(steps_per_epoch) {
            let val_loss = validation_loss(&model, &data.validation)?;
            trainer.validations.add(step, val_loss);
            metrics = metrics.with("val_loss", val_loss);
            let loss = output.loss;
            println!("step {step} of {total_steps}: loss {loss:.4}, validation {val_loss:.4}");
        }
        loggers.iter_mut().try_for_each(|to| to.log(&metrics))?;
        if run.options().saves.is_due(&trainer, steps_per_epoch) {
            run.save_checkpoint(&model, &lora, &trainer)?;
        }
    }
    println!("after: {}", ask(&model)?);
    let adapter = run.adapter_dir();
    save_peft_with_base(&model, &lora, &base_model_name(&base), &adapter)?;
    if let Some(template) = &data.template {
        template.save(&adapter)?; // ChatML, for conversations of a base that has none
    }
    println!("the adapter is in {}", adapter.display());
    Ok(())
}
