//! The operations of a training step as whole operations, each with its equation. `backend` lists what
//! a backend does for them, forward and backward: the bodies of `portable`, in Burn's tensor
//! operations, run on every backend; `flex` has better ones for the CPU (feature `flex`), `cube`
//! kernels for GPUs (the features of their backends). `autodiff` says once, for all backends, what
//! each operation keeps for the backward pass.
//!
//! | operation | equation | kept for the backward pass |
//! |---|---|---|
//! | [`linear`] | `x Wᵀ` | x, if W is trained |
//! | [`dropout`] | `x` or zero, by chance | the seed of the chance |
//! | [`lora_linear`] | `x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ` | x, if A or W is trained, `s·dropout(x) Aᵀ` and the seed |
//! | [`rms_norm`] | `w · x / sqrt(mean(x²) + eps)` | x |
//! | [`rotary`] | pairs turned by their angles | the angles |
//! | [`attention`] | `softmax(q kᵀ / sqrt(d)) v` | q, k, v; on GPUs in half precision the output and the softmaxes' totals too |
//! | [`swiglu`] | `silu(gate) · up` | gate, up |
//! | [`cross_entropy_sum`] | `-Σ log softmax(logits)[target]` | its gradient, fused in the logits' place |

mod adamw;
mod attention;
mod autodiff;
mod backend;
mod backward;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
mod dropout;
#[cfg(feature = "flex")]
mod flex;
mod linear;
mod portable;
mod rms_norm;
mod rotary;
mod squares;
mod swiglu;
#[cfg(all(test, feature = "flex"))]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use adamw::{AdamWStep, adamw};
pub use attention::{AttentionBody, AttentionMask, attention, attention_body};
pub(crate) use backward::{GraphState, backward_from};
use burn::tensor::Device;
pub use cross_entropy::cross_entropy_sum;
pub(crate) use dropout::mix;
pub use dropout::{DropoutMask, dropout, seed_dropout};
pub(crate) use linear::is_fused_cpu;
pub use linear::{compute_dtype, lacks_cublas, linear, lora_linear};
pub(crate) use portable::attention::QUERY_BLOCK;
pub use rms_norm::rms_norm;
pub use rotary::rotary;
use serde::{Deserialize, Serialize};
pub(crate) use squares::SumOfSquares;
pub use swiglu::swiglu;

/// The memory of a CUDA device that nobody has taken, in bytes.
pub(crate) fn free_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    let free = cube::free_memory(device);
    #[cfg(not(feature = "cuda"))]
    let free = None;
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    free
}

static FUSED: AtomicBool = AtomicBool::new(true);

/// Whether fused bodies are used where there are any, in this process; they are unless this says
/// otherwise. For comparing the two.
pub fn set_fused(fused: bool) {
    FUSED.store(fused, Ordering::Relaxed);
}

/// How products are computed where activations are f32: on the CPU those with frozen bf16 weights, on
/// GPUs all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatmulPrecision {
    /// In f32, as if the weights were f32.
    #[default]
    Highest,
    /// With inputs rounded and sums in f32. On the CPU activations are rounded to bf16, as PyTorch
    /// computes a bf16 model, where the processor multiplies bf16 (AVX512-BF16, AMX), otherwise as
    /// `Highest`: faster on AMD's processors and with AMX, slower on Intel's without it, so measure.
    /// On a GPU both inputs are rounded to TF32, if it has it.
    Medium,
}

static MEDIUM: AtomicBool = AtomicBool::new(false);

/// Sets the precision of this process. The name is PyTorch's
/// (`torch.set_float32_matmul_precision`).
pub fn set_matmul_precision(precision: MatmulPrecision) {
    MEDIUM.store(precision == MatmulPrecision::Medium, Ordering::Relaxed);
}

/// The precision of this process.
pub fn matmul_precision() -> MatmulPrecision {
    match MEDIUM.load(Ordering::Relaxed) {
        true => MatmulPrecision::Medium,
        false => MatmulPrecision::Highest,
    }
}
