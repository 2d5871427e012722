#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

pub mod adapter;
pub mod checkpoint;
mod error;
mod files;
pub mod llama;
pub mod lora;

pub use error::{Error, Result};
