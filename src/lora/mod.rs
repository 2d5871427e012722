//! LoRA for one linear layer: the configuration, the layer, its variants. No file, no Llama.
//!
//! ```text
//!            before                              after
//!
//!   x ──► Linear W ──► y          x ─┬─► Linear W (frozen) ────────────► + ──► y
//!                                    └─► dropout ─► A ─► B ─► × s ───────┘
//!                                                  [r,in] [out,r]
//!          y = W x + b                     y = W x + b + s·B(A·dropout(x))
//! ```
//!
//! `W` gets no gradient and keeps no activation alive; only `A` and `B` (and DoRA's magnitude) are
//! trained. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*,
//! <https://arxiv.org/abs/2106.09685>.

mod builtin;
mod combine;
mod config;
mod dora;
pub mod init;
mod linalg;
mod linear;
mod plain;
mod random;

pub use combine::{Combination, CombineOptions, Factors, MajoritySign, combine};
pub use config::{AttnModule, LoRAConfig, MlpModule};
pub(crate) use dora::first_magnitude;
pub use linalg::Decomposition;
pub use linear::{LoRAAdapter, LoRALinear};
pub use plain::PlainLinear;
pub(crate) use plain::{lazy_param, one_line};
