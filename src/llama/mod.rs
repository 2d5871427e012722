//! Llama and its relatives, with and without LoRA: one type, [`TransformerDecoder`]. No file, no
//! optimizer.
//!
//! ```text
//! ids ─► tok_embeddings ─► [ x + attn(sa_norm(x)), x + mlp(mlp_norm(x)) ] × layers ─► norm ─► output
//! ```

mod attention;
mod builders;
mod cache;
mod config;
mod context;
mod decoder;
mod layer;
mod mask;
mod mlp;
pub(crate) mod names;
mod norm;
mod output;
mod rope;

pub use attention::CausalSelfAttention;
pub use builders::{
    llama2_7b, llama2_13b, llama2_70b, lora_llama2_7b, lora_llama2_13b, lora_llama2_70b,
};
pub use cache::{KvCache, LayerCache};
pub use config::{LlamaConfig, ModelType, RopeScaling};
pub use context::Context;
pub(crate) use context::MetaContext;
pub use decoder::TransformerDecoder;
pub use layer::TransformerDecoderLayer;
pub use mlp::FeedForward;
pub use norm::RMSNorm;
pub use output::Output;
pub use rope::RotaryEmbedding;

pub use crate::ops::AttentionMask;
