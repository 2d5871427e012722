//! The embedded default: a tiny Llama with its tokenizer and records, all made in this repository.

use std::path::PathBuf;

use burn_peft::Result;
use burn_peft::data::{AlpacaRecord, load_alpaca};

/// The configuration of a run without `--config`.
pub const CONFIG: &str = include_str!("../configs/tiny.yaml");

/// No answer of the held-out records is longer.
pub const MAX_ANSWER_TOKENS: usize = 24;

/// The folder with the model, the tokenizer and the records.
pub fn dir() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "examples", "assets", "tiny"]
        .iter()
        .collect()
}

/// The records to train on.
pub fn train_file() -> PathBuf {
    dir().join("alpaca_train.json")
}

/// The records that are asked about after training and never trained on.
pub fn held_out() -> Result<Vec<AlpacaRecord>> {
    load_alpaca(dir().join("alpaca_heldout.json"))
}

/// The fraction of answers that are exactly the records' outputs.
pub fn exact_match(answers: &[String], records: &[AlpacaRecord]) -> f64 {
    let pairs = answers.iter().zip(records);
    let exact = pairs.filter(|(answer, record)| **answer == record.output);
    exact.count() as f64 / records.len() as f64
}
