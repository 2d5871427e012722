//! What operations are told beside tensors.

mod activation;
mod adamw;
mod attention;
mod dropout;
mod packed;
mod piece;

pub use activation::Activation;
pub(super) use activation::gelu;
pub(crate) use adamw::AdamWStep;
pub use attention::{AttentionMask, Scores};
pub(super) use attention::{KeyRanges, Sizes};
#[cfg(feature = "cube")]
pub(super) use dropout::MULTIPLIERS;
pub(crate) use dropout::mix;
pub use dropout::{DropoutMask, seed_dropout};
pub(crate) use packed::PackedTensor;
pub(super) use piece::{Piece, Whole};
