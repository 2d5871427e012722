// The links in the README name files; these definitions, which come first, make modules of them.
#![doc = include_str!("guide/links.md")]
#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod adapter;
pub mod checkpoint;
pub mod data;
pub mod distributed;
mod error;
pub mod evaluate;
mod files;
pub mod generate;
mod gguf;
// Only where it is read or run, so that a change of a page builds nothing else anew.
#[cfg(any(doc, doctest))]
pub mod guide;
mod instructions;
pub mod llama;
pub mod lora;
pub mod ops;
pub mod quantization;
#[cfg(feature = "plot")]
pub mod report;
mod settings;
pub mod tokenizer;
pub mod training;
pub mod weight;

pub use error::{Error, Result};
