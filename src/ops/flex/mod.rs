//! The bodies on Burn's CPU backend Flex: f32, on all threads, each with an own backward pass that
//! keeps no more than it needs.

mod attention;
mod cross_entropy;
mod gemm;
mod linear;
mod rms_norm;
mod rotary;
mod swiglu;
mod vector;

use std::sync::atomic::Ordering;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(test)]
pub(super) use gemm::multiplies_bf16;

use super::AttentionMask;

/// Whether operations on `tensor` are fused: it is f32 on Flex.
pub(super) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && fuses(&tensor.device())
}

/// Whether operations on f32 tensors of `device` are fused.
pub(super) fn fuses(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    let is_flex = matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    is_flex && super::FUSED.load(Ordering::Relaxed)
}

pub(super) fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch()))
}

pub(super) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::rms_norm(x, weight, eps))
}

pub(super) fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(Dispatch::rotary(x, cos, sin))
}

pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: AttentionMask,
) -> Tensor<4> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::attention(q, k, v, mask))
}

pub(super) fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let (logits, targets) = (logits.into_dispatch(), targets.into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy_sum(logits, targets))
}

/// The operations; `super` has their equations.
#[backend_extension(Flex, Autodiff)]
trait FlexOps: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: AttentionMask,
    ) -> FloatTensor<Self>;
    fn cross_entropy_sum(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self>;
}

type Primitive = FloatTensor<Flex>;
type Tracked = FloatTensor<Autodiff<Flex>>;

impl FlexOps for Flex {
    fn linear(x: Primitive, weight: Primitive) -> Primitive {
        linear::forward(&x, &weight)
    }

    fn swiglu(gate: Primitive, up: Primitive) -> Primitive {
        swiglu::forward(&gate, &up)
    }

    fn rms_norm(x: Primitive, weight: Primitive, eps: f64) -> Primitive {
        rms_norm::forward(&x, &weight, eps)
    }

    fn rotary(x: Primitive, cos: Primitive, sin: Primitive) -> Primitive {
        rotary::rotate(&x, &cos, &sin, rotary::Direction::Forward)
    }

    fn attention(q: Primitive, k: Primitive, v: Primitive, mask: AttentionMask) -> Primitive {
        attention::forward(&q, &k, &v, &mask).0
    }

    fn cross_entropy_sum(logits: Primitive, targets: IntTensor<Self>) -> Primitive {
        cross_entropy::forward(logits, targets)
    }
}

impl<C: CheckpointStrategy> FlexOps for Autodiff<Flex, C> {
    fn linear(x: Tracked, weight: Tracked) -> Tracked {
        linear::tracked::<C>(x, weight)
    }

    fn swiglu(gate: Tracked, up: Tracked) -> Tracked {
        swiglu::tracked::<C>(gate, up)
    }

    fn rms_norm(x: Tracked, weight: Tracked, eps: f64) -> Tracked {
        rms_norm::tracked::<C>(x, weight, eps)
    }

    fn rotary(x: Tracked, cos: Tracked, sin: Tracked) -> Tracked {
        rotary::tracked::<C>(x, cos, sin)
    }

    fn attention(q: Tracked, k: Tracked, v: Tracked, mask: AttentionMask) -> Tracked {
        attention::tracked::<C>(q, k, v, mask)
    }

    fn cross_entropy_sum(logits: Tracked, targets: IntTensor<Self>) -> Tracked {
        cross_entropy::tracked::<C>(logits, targets)
    }
}

/// A tensor whose numbers, and no others, lie one after another in its buffer.
fn contiguous(tensor: &Primitive) -> Primitive {
    tensor.to_contiguous()
}

/// The same, without another handle to the buffer: so that it can be written if nobody else has one.
fn into_contiguous(tensor: Primitive) -> Primitive {
    let layout = tensor.layout();
    let is_whole = tensor.bytes().len() == layout.num_elements() * size_of::<f32>();
    match layout.is_contiguous() && layout.start_offset() == 0 && is_whole {
        true => tensor,
        false => tensor.to_contiguous(),
    }
}

fn primitive(values: Vec<f32>, shape: &[usize]) -> Primitive {
    Primitive::from_data(TensorData::new(values, shape))
}
