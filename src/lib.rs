#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod adapter;
pub mod checkpoint;
pub mod data;
mod error;
mod files;
pub mod generate;
pub mod llama;
pub mod lora;
pub mod tokenizer;
pub mod training;

pub use error::{Error, Result};
