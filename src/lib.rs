#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod error;
pub mod adapter;
pub mod lora;

pub use error::{Error, Result};
