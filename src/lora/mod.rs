//! LoRA for one layer: the configuration, the layers, the methods. No file, no Llama.
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
//! `W` gets no gradient and keeps no activation alive; only `A` and `B` (and what else the [`Method`] has) are
//! trained. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*,
//! <https://arxiv.org/abs/2106.09685>.

mod adapter;
mod attention;
mod builtin;
mod combine;
mod config;
mod embedding;
pub mod init;
mod layer_config;
mod layers;
mod linalg;
mod linear;
mod merged;
mod meta;
mod method;
mod module;
mod named;
mod params;
mod plain;
mod python_regex;
mod random;
mod record;
mod routes;
mod shape;
mod slot;
mod target;

pub use adapter::LoRAAdapter;
pub use attention::{AttentionInput, MultiHeadAttention};
pub use combine::{Combination, CombineOptions, Factors, MajoritySign, combine};
pub use config::{LoRAConfig, TrainedBias};
pub use embedding::{LoRAEmbedding, TiedOutput};
pub use init::Init;
pub(crate) use layer_config::LayerConfig;
pub(crate) use layers::{AdaptedLayer, Place, collect_layers, edit_layers, edited, inspected};
pub use linalg::Decomposition;
pub use linear::LoRALinear;
pub(crate) use merged::{merged_bias, merged_norm, merged_weight};
pub use method::{BIAS, DORA, FULL, Kept, LORA, METHODS, Method, MethodRef, TOKEN_ROWS};
pub(crate) use method::{FULL_WEIGHT, LORA_A, LORA_B, LORA_B_BIAS, SHIFT_A, SHIFT_B, TRAINED_BIAS};
pub(crate) use module::adapted_module;
pub(crate) use named::Entry;
pub use params::{AdapterParams, AdapterSettings, FirstValue, ParamSpec};
pub(crate) use params::{KEPT, ParamValue, TRAINED, orthogonal_factor, set};
pub use plain::PlainLinear;
pub(crate) use plain::one_line;
pub(crate) use random::{normal, rng, seed_of, uniform};
pub(crate) use record::record_inputs;
pub use routes::Routes;
pub use shape::{LayerKind, LayerParams, LayerShape};
pub(crate) use slot::key_prefix;
pub use slot::{AdapterSlot, DEFAULT_ADAPTER};
pub use target::{AttnModule, MlpModule, Naming, Targets};
pub(crate) use target::{ModuleNames, ends_with_name};
