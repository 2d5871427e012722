//! The bodies for every backend, in Burn's tensor operations. Each has a backward pass of its own
//! that keeps the inputs and forms the rest again, where autodiff would keep the inputs of every step.
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

mod attention;
mod linear;
mod rms_norm;
mod swiglu;

#[cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu"))]
use burn::backend::Cube;
#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "tch")]
use burn::backend::LibTorch;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, FloatDType, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};

use super::AttentionMask;

pub(super) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PortableOps>::linear(x, weight))
}

pub(super) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PortableOps>::swiglu(gate, up))
}

/// `weight` is f32.
pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PortableOps>::rms_norm(x, weight, eps))
}

/// `additive` is the mask as a tensor.
pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    additive: Tensor<4>,
    mask: AttentionMask,
) -> Tensor<4> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let additive = additive.into_dispatch();
    Tensor::from_dispatch(<Dispatch as PortableOps>::attention(
        q, k, v, additive, mask,
    ))
}

/// The operations; `super` has their equations.
#[backend_extension(
    Cube: cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu")),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Autodiff,
    Fusion: cfg(feature = "fusion")
)]
trait PortableOps: Backend {
    #[fusion(default)]
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward::<Self>(x, weight)
    }

    #[fusion(default)]
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward::<Self>(gate, up)
    }

    #[fusion(default)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::forward::<Self>(x, weight, eps)
    }

    #[fusion(default)]
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        additive: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self> {
        attention::forward::<Self>(q, k, v, additive, &mask)
    }
}

#[cfg(any(feature = "cuda", feature = "rocm", feature = "wgpu"))]
impl PortableOps for Cube {}
#[cfg(feature = "flex")]
impl PortableOps for Flex {}
#[cfg(feature = "ndarray")]
impl PortableOps for NdArray {}
#[cfg(feature = "tch")]
impl PortableOps for LibTorch {}

impl<B: Backend, C: CheckpointStrategy> PortableOps for Autodiff<B, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::tracked::<B, C>(x, weight)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::tracked::<B, C>(gate, up)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::tracked::<B, C>(x, weight, eps)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        additive: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self> {
        attention::tracked::<B, C>(q, k, v, additive, mask)
    }
}

/// `[..., dim]` as a matrix, in whose memory rows follow each other: sums then are formed in the same
/// order whatever made the tensor.
fn rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let dim = shape[shape.num_dims() - 1];
    B::float_reshape(x, Shape::new([shape.num_elements() / dim, dim]))
}

fn to_f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(x, FloatDType::F32)
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    match FloatDType::from(x.dtype()) == dtype {
        true => x,
        false => B::float_cast(x, dtype),
    }
}
