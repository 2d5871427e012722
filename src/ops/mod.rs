//! The operations of a training step as whole operations, each with its equation. `backend` lists what
//! a backend does for them, forward and backward: the bodies of `portable`, in Burn's tensor
//! operations, run on every backend; `flex` has better ones for the CPU (feature `flex`), `cube`
//! kernels for GPUs (the features of their backends). `autodiff` says once, for all backends, what
//! each operation keeps for the backward pass. `types` are what operations are told beside
//! tensors; `meta` runs them on tensors without numbers, for the estimate of memory.
//!
//! | operation | equation | kept for the backward pass |
//! |---|---|---|
//! | [`linear`] | `x Wᵀ` | x, if W is trained |
//! | [`dropout`] | `x` or zero, by chance | the seed of the chance |
//! | [`lora_linear`] | `x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ` | x, if A or W is trained, `s·dropout(x) Aᵀ` and the seed |
//! | [`rms_norm`] | `w · x / sqrt(mean(x²) + eps)` | x |
//! | [`rotary`] | pairs turned by their angles | the angles |
//! | [`normed_rotary`] | the rotation of the norm | x, the angles |
//! | [`attention`] | `softmax(q kᵀ / sqrt(d)) v` | q, k, v; on GPUs in half precision the output and the softmaxes' totals too |
//! | [`attention_scored`] | `softmax(cap · tanh(scale · q kᵀ / cap)) v` | the same; with a cap q, k and v alone |
//! | [`glu`] | `activation(gate) · up` | gate, up |
//! | [`split`] | pieces, one after the other | nothing |
//! | [`cross_entropy_sum`] | `-Σ log softmax(logits)[target]` | its gradient, fused in the logits' place |
//!
//! With [`MatmulPrecision::Medium`] on the CPU, what only a backward pass reads (the inputs of norms, attention and gated
//! linear units) is kept in bf16, see [`kept_dtype`].
//!
//! The same stands beside each operation as a function on tensors without numbers (`meta`), which
//! [`estimate`](crate::training::estimate) runs a step on.

mod adamw;
mod attention;
mod autodiff;
mod backend;
mod backward;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
mod device;
mod dispatch;
mod dropout;
#[cfg(feature = "flex")]
mod flex;
mod glu;
mod kept;
mod linear;
pub(crate) mod meta;
mod portable;
mod rms_norm;
mod rotary;
mod split;
mod squares;
#[cfg(all(test, feature = "flex"))]
mod tests;
mod types;

pub(crate) use adamw::adamw;
pub(crate) use attention::attention_meta;
pub use attention::{AttentionBody, attention, attention_body, attention_scored};
pub(crate) use backward::{GraphState, backward_from};
pub(crate) use cross_entropy::cross_entropy_meta;
pub use cross_entropy::cross_entropy_sum;
#[cfg(any(feature = "flex", feature = "cube"))]
use device::is_fused;
#[cfg(feature = "flex")]
use device::is_medium;
pub use device::{
    MatmulPrecision, compute_dtype, kept_dtype, lacks_cublas, matmul_precision, set_fused,
    set_matmul_precision,
};
pub(crate) use device::{decoded_at_once, free_memory, in_pool, is_fused_cpu, prepare_memory};
pub use dropout::dropout;
pub use glu::glu;
pub(crate) use glu::glu_meta;
pub use kept::Kept;
pub use linear::{linear, lora_linear};
pub(crate) use linear::{
    linear_meta, lora_linear_kept, packed_linear, packed_lora_linear, packed_row_squares,
    packed_rows, unpacked,
};
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::rms_norm_meta;
pub use rotary::{normed_rotary, rotary};
pub(crate) use rotary::{normed_rotary_meta, rotary_meta};
pub use split::split;
pub(crate) use split::{columns_meta, rows_meta};
pub(crate) use squares::SumOfSquares;
pub use types::{Activation, AttentionMask, DropoutMask, Scores, seed_dropout};
pub(crate) use types::{AdamWStep, PackedTensor, mix};
