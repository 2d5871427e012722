//! What a backend does for the operations of a Llama.

#![cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "NdArray serves until Burn drops it")
)]
#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "tch",
        feature = "cuda",
        feature = "rocm",
        feature = "wgpu"
    )),
    allow(unused_variables, reason = "no backend, no call")
)]

use burn::backend::Backend;
#[cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu"))]
use burn::backend::Cube;
#[cfg(feature = "tch")]
use burn::backend::LibTorch;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::backend_extension;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::AttentionMask;
use super::portable::{attention, cross_entropy, linear, rms_norm, rotary, swiglu};

/// The operations, whose equations are in `super`, and their backward passes. The bodies here are the
/// portable ones; a backend overrides those for which it has a better one. None of them knows of a
/// graph: `autodiff` gives every backend its backward passes.
#[backend_extension(
    Cube: cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu")),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Autodiff,
    Fusion: cfg(feature = "fusion")
)]
pub trait LlamaOps: Backend {
    /// `x Wᵀ`.
    #[fusion(default)]
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward::<Self>(x, weight)
    }

    /// `grad W`.
    #[fusion(default)]
    fn linear_x_grad(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::x_grad::<Self>(grad, weight)
    }

    /// `gradᵀ x`, in the weight's type.
    #[fusion(default)]
    fn linear_weight_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::weight_grad::<Self>(grad, x, weight)
    }

    /// `silu(gate) · up`.
    #[fusion(default)]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward::<Self>(gate, up)
    }

    /// The gradients of gate and up.
    #[fusion(default)]
    fn swiglu_backward(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        swiglu::backward::<Self>(grad, gate, up)
    }

    /// The norm; `weight` is f32.
    #[fusion(default)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::forward::<Self>(x, weight, eps)
    }

    /// The gradient of x.
    #[fusion(default)]
    fn rms_norm_x_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        rms_norm::x_grad::<Self>(grad, x, weight, eps)
    }

    /// The gradient of the weight.
    #[fusion(default)]
    fn rms_norm_weight_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        rms_norm::weight_grad::<Self>(grad, x, weight, eps)
    }

    /// The rotation; that by the opposite angles is its backward pass.
    #[fusion(default)]
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rotary::forward::<Self>(x, cos, sin)
    }

    /// The attention. `visible` is what the mask says as a tensor, see [`AttentionMask::visible_tensor`].
    #[fusion(default)]
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self> {
        attention::forward::<Self>(q, k, v, visible, &mask)
    }

    /// The gradients of q, k and v.
    #[fusion(default)]
    fn attention_backward(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        mask: AttentionMask,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        attention::backward::<Self>(grad, [q, k, v], visible, &mask)
    }

    /// The sum of the rows' cross entropies, `[1]`, f32.
    #[fusion(default)]
    fn cross_entropy_sum(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        cross_entropy::forward::<Self>(logits, targets)
    }

    /// The sum, and its gradient `softmax(logits) - onehot(targets)` in the type of the logits.
    #[fusion(default)]
    fn cross_entropy_with_grad(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cross_entropy::forward_with_grad::<Self>(logits, targets)
    }
}

#[cfg(all(
    any(feature = "cuda", feature = "rocm", feature = "wgpu"),
    not(feature = "fusion")
))]
impl LlamaOps for Cube {}
#[cfg(feature = "ndarray")]
impl LlamaOps for NdArray {}
#[cfg(feature = "tch")]
impl LlamaOps for LibTorch {}
