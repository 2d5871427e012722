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
pub mod llama;
pub mod lora;
pub mod ops;
pub mod quantization;
mod settings;
pub mod tokenizer;
pub mod training;
pub mod weight;

pub use error::{Error, Result};

/// Runs the code in `docs/` as tests, like that in the README.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../docs/tutorial.md")]
    struct Tutorial;
    #[doc = include_str!("../docs/recipe.md")]
    struct Recipe;
    #[doc = include_str!("../docs/file-formats.md")]
    struct FileFormats;
    #[doc = include_str!("../docs/design.md")]
    struct Design;
    #[doc = include_str!("../docs/data.md")]
    struct Data;
    #[doc = include_str!("../docs/scaling.md")]
    struct Scaling;
    #[doc = include_str!("../docs/own-models.md")]
    struct OwnModels;
    #[doc = include_str!("../docs/targets.md")]
    struct Targets;
    #[doc = include_str!("../docs/several-adapters.md")]
    struct SeveralAdapters;
    #[doc = include_str!("../docs/generation.md")]
    struct Generation;
    #[doc = include_str!("../docs/methods/lora.md")]
    struct Lora;
    #[doc = include_str!("../docs/methods/optimizers.md")]
    struct Optimizers;
    #[doc = include_str!("../docs/methods/whole-modules.md")]
    struct WholeModules;
}
