//! Finetuning: the recipe's configuration.

pub mod recipe;
