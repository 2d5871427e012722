//! The operations of a Llama as whole operations: each with its equation, a plain body of Burn's
//! tensor operations that runs on every backend, and, with the feature `flex`, a fused body for
//! the CPU with an own backward pass.
//!
//! | operation | equation | kept for the backward pass |
//! |---|---|---|
//! | [`linear`] | `x Wᵀ` | x, if W is trained |
//! | [`rms_norm`] | `w · x / sqrt(mean(x²) + eps)` | x |
//! | [`rotary`] | pairs turned by their angles | nothing |
//! | [`attention`] | `softmax(q kᵀ / sqrt(d)) v` | q, k, v, the output, a number per query |
//! | [`swiglu`] | `silu(gate) · up` | gate, up |
//! | [`cross_entropy_sum`] | `-Σ log softmax(logits)[target]` | its gradient, in the logits' place |
//!
//! The plain bodies keep more: autodiff keeps the inputs of every step.

mod attention;
mod cross_entropy;
#[cfg(feature = "flex")]
mod flex;
mod linear;
mod rms_norm;
mod rotary;
mod swiglu;
#[cfg(all(test, feature = "flex"))]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

pub use attention::{AttentionMask, attention};
pub use cross_entropy::cross_entropy_sum;
pub use linear::{compute_dtype, linear};
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use swiglu::swiglu;

static FUSED: AtomicBool = AtomicBool::new(true);

/// Whether fused bodies are used where there are any, in this process; they are unless this says
/// otherwise. For comparing the two.
pub fn set_fused(fused: bool) {
    FUSED.store(fused, Ordering::Relaxed);
}
