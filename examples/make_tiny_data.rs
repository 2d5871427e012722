//! Writes the text and the records of the embedded default: what the tiny base model is pre-trained
//! on, what it is finetuned on, what it is asked afterwards, and its tokenizer.
//!
//! `cargo run --release --example make_tiny_data [FOLDER]`, by default `examples/assets/tiny`. The
//! same source always gives the same files.

mod support {
    pub mod tiny_files;
    pub mod tiny_world;
}

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or(default.to_owned()));
    support::tiny_files::write(&folder)?;
    println!("wrote corpus.txt, alpaca_train.json, alpaca_heldout.json and tokenizer.json to");
    println!("{}", folder.display());
    Ok(())
}
