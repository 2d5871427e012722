#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod error;
pub mod training;

pub use error::{Error, Result};
