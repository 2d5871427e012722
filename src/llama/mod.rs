//! Llama and its relatives, with and without LoRA: one type, [`TransformerDecoder`]. No file, no
//! optimizer, no name from another framework.
//!
//! ```text
//! ids ─► tok_embeddings ─► [ x + attn(sa_norm(x)), x + mlp(mlp_norm(x)) ] × layers ─► norm ─► output
//! ```

mod attention;
mod builders;
mod cache;
mod config;
mod decoder;
mod embedding;
mod layer;
mod mask;
mod mlp;
mod norm;
mod rope;

pub use attention::CausalSelfAttention;
pub use builders::{
    llama2_7b, llama2_13b, llama2_70b, lora_llama2_7b, lora_llama2_13b, lora_llama2_70b,
};
pub use cache::{KvCache, LayerCache};
pub use config::{LlamaConfig, ModelType, RopeScaling};
pub use decoder::TransformerDecoder;
pub use embedding::Embedding;
pub use layer::TransformerDecoderLayer;
pub use mlp::FeedForward;
pub use norm::RMSNorm;
pub use rope::RotaryEmbedding;

pub use crate::ops::AttentionMask;
