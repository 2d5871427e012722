#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod data;
mod error;
pub mod tokenizer;

pub use error::{Error, Result};
