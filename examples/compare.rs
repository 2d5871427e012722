//! Compares this crate with what another framework computed, for those who want to see for
//! themselves.
//!
//! ```text
//! cargo run --release --example compare -- --model DIR [--adapter DIR] [--as-stored] \
//!     --inputs inputs.safetensors --expected expected.safetensors
//! ```
//!
//! All is computed in f32, with `--as-stored` on the base as its files have it: packed where
//! they have it packed.
//!
//! `inputs` holds `input_ids` and perhaps `labels`, `[batch, seq]`, -100 where there is no label;
//! `expected` holds `logits`, `[batch, seq, vocab]`, and perhaps `loss` and `generated_ids`, the greedy tokens that follow
//! each row, `[batch, new]`. Prints one JSON line with `max_abs_logits` and, if the files have what it takes, `abs_loss`
//! and `same_generated_ids`.

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_peft::checkpoint::{
    SafetensorsFile, load_any_base, load_any_base_as, load_peft, read_base_config, read_peft_config,
};
use burn_peft::data::Batch;
use burn_peft::generate::{GenerateOptions, generate_batch};
use burn_peft::llama::TransformerDecoder;
use burn_peft::training::cross_entropy_sum;
use burn_peft::{Error, Result};
use clap::Parser;

/// Compare logits and loss with those of another framework.
#[derive(Parser)]
struct Args {
    /// A Hugging Face folder or a GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// A PEFT folder.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Keep the base in the types of its files.
    #[arg(long)]
    as_stored: bool,
    /// A file with `input_ids` and perhaps `labels`.
    #[arg(long)]
    inputs: PathBuf,
    /// A file with `logits` and perhaps `loss`.
    #[arg(long)]
    expected: PathBuf,
}

fn main() -> ExitCode {
    match compare(&Args::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<serde_json::Value> {
    let model = load(args)?;
    let inputs = SafetensorsFile::open(&args.inputs)?;
    let expected = SafetensorsFile::open(&args.expected)?;
    let (ids, shape) = read_ids(&inputs, "input_ids")?;
    check_vocab(&ids, model.config.vocab_size)?;
    let device = model.norm.weight.lazy_device();
    let rows: Vec<_> = ids.chunks(shape[1]).map(<[_]>::to_vec).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape.clone()), &device);
    let logits = model.forward(ids, None);

    let found = logits.dims().to_vec();
    check_shape(&expected, "logits", &found)?;
    let reference = Tensor::<3>::from_data(expected.read("logits", DType::F32)?, &device);
    let difference = (logits.clone() - reference)
        .abs()
        .max()
        .into_scalar::<f32>();
    let mut line = serde_json::json!({ "max_abs_logits": difference });
    if has(&inputs, "labels") && has(&expected, "loss") {
        let (labels, labels_shape) = read_ids(&inputs, "labels")?;
        if labels_shape != shape {
            return Err(shape_error(&inputs, "labels", &shape, &labels_shape));
        }
        let loss = mean_loss(logits, labels)?;
        line["abs_loss"] = (loss - read_scalar(&expected, "loss")?).abs().into();
    }
    if has(&expected, "generated_ids") {
        let (generated, shape) = read_ids(&expected, "generated_ids")?;
        line["same_generated_ids"] = (greedy(&model, &rows, shape[1])? == generated).into();
    }
    Ok(line)
}

/// The tokens that follow each row, row by row.
fn greedy(model: &TransformerDecoder, rows: &[Vec<i32>], count: usize) -> Result<Vec<i32>> {
    let options = GenerateOptions::greedy(count).with_stop_tokens([]);
    let prompt = |row: &Vec<i32>| row.iter().map(|id| *id as u32).collect::<Vec<_>>();
    let prompts: Vec<_> = rows.iter().map(prompt).collect();
    let generated = generate_batch(model, &prompts, &options)?;
    Ok(generated
        .into_iter()
        .flatten()
        .map(|id| id as i32)
        .collect())
}

fn load(args: &Args) -> Result<TransformerDecoder> {
    let device = Device::default();
    let (dir, adapter) = (&args.model, args.adapter.as_ref());
    let config = read_base_config(dir)?;
    let mut model = match adapter {
        None => config.init(&device),
        Some(adapter) => config.init_lora(&read_peft_config(adapter)?, &device)?,
    };
    match args.as_stored {
        true => load_any_base(&mut model, dir)?,
        false => load_any_base_as(&mut model, dir, DType::F32)?,
    };
    if let Some(adapter) = adapter {
        load_peft(&mut model, adapter)?;
    }
    Ok(model)
}

/// The mean cross entropy over all positions whose next token has a label.
fn mean_loss(logits: Tensor<3>, labels: Vec<i32>) -> Result<f32> {
    let [batch_size, seq_len, vocab_size] = logits.dims();
    let batch = Batch {
        input_ids: labels.clone(),
        labels,
        segments: vec![vec![seq_len]; batch_size],
        batch_size,
        seq_len,
        adapters: None,
    };
    let (rows, targets) = batch.predictions();
    check_vocab(&targets, vocab_size)?;
    let device = logits.device();
    let rows = Tensor::<1, Int>::from_ints(&rows[..], &device);
    let predicting = logits
        .reshape([batch_size * seq_len, vocab_size])
        .select(0, rows);
    let count = targets.len() as f32;
    let targets = Tensor::from_ints(&targets[..], &device);
    Ok(cross_entropy_sum(predicting, targets).into_scalar::<f32>() / count)
}

fn has(file: &SafetensorsFile, key: &str) -> bool {
    file.shapes().contains_key(key)
}

fn read_ids(file: &SafetensorsFile, key: &str) -> Result<(Vec<i32>, Vec<usize>)> {
    let shapes = file.shapes();
    let shape = shapes.get(key).ok_or_else(|| missing(file, key))?;
    if shape.len() != 2 || shape.contains(&0) {
        let message =
            format!("`{key}` must be `[batch, seq]` of at least one token, found {shape:?}");
        return Err(Error::Format {
            path: file.path().to_owned(),
            message,
        });
    }
    let ids = file.read_ints(key)?.into_iter();
    Ok((ids.map(|id| id as i32).collect(), shape.clone()))
}

fn read_scalar(file: &SafetensorsFile, key: &str) -> Result<f32> {
    let data = file.read(key, DType::F32)?;
    match data.as_slice::<f32>() {
        Ok([value]) => Ok(*value),
        _ => Err(shape_error(file, key, &[], data.shape())),
    }
}

fn check_vocab(ids: &[i32], vocab_size: usize) -> Result<()> {
    match ids
        .iter()
        .find(|id| **id < 0 || **id as usize >= vocab_size)
    {
        Some(id) => Err(Error::TokenOutOfRange {
            id: *id as u32,
            vocab_size,
        }),
        None => Ok(()),
    }
}

fn check_shape(file: &SafetensorsFile, key: &str, expected: &[usize]) -> Result<()> {
    let shapes = file.shapes();
    let found = shapes.get(key).ok_or_else(|| missing(file, key))?;
    match found[..] == *expected {
        true => Ok(()),
        false => Err(shape_error(file, key, expected, found)),
    }
}

fn missing(file: &SafetensorsFile, key: &str) -> Error {
    Error::Keys {
        origin: file.path().display().to_string(),
        missing: vec![key.to_owned()],
        unexpected: Vec::new(),
    }
}

fn shape_error(file: &SafetensorsFile, key: &str, expected: &[usize], found: &[usize]) -> Error {
    Error::Shape {
        origin: file.path().display().to_string(),
        key: key.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    }
}
