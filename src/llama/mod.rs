//! Llama and its relatives, with and without LoRA: one type, [`TransformerDecoder`]. No file, no
//! optimizer.
//!
//! ```text
//! ids ─► tok_embeddings ─► [ x + attn(sa_norm(x)), x + mlp(mlp_norm(x)) ] × layers ─► norm ─► output
//! ```

mod attention;
mod block;
mod builders;
mod cache;
mod config;
mod context;
mod decoder;
pub(crate) mod families;
mod joint;
mod layer;
mod layer_attention;
mod mask;
mod mlp;
pub(crate) mod names;
mod norm;
mod output;
mod rope;
mod rope_scaling;

pub use attention::CausalSelfAttention;
pub use block::{Block, NormPlacement, QkNorm};
pub use builders::*;
pub use cache::{KvCache, LayerCache};
pub use config::LlamaConfig;
pub(crate) use context::MetaContext;
pub use context::{AttentionContext, Context};
pub use decoder::TransformerDecoder;
pub use layer::TransformerDecoderLayer;
pub use layer_attention::{LayerAttention, Rotary, Span};
pub use mlp::FeedForward;
pub use norm::RMSNorm;
pub use output::Output;
pub use rope::RotaryEmbedding;
pub use rope_scaling::{QueryScaling, Rope, RopeScaling};

pub use crate::ops::AttentionMask;
