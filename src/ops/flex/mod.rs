//! The bodies on Burn's CPU backend Flex: f32, on all threads.

mod attention;
mod cross_entropy;
mod dropout;
mod gemm;
mod glu;
mod linear;
mod narrow;
mod normed_rotary;
mod packed;
mod rms_norm;
mod rotary;
mod squares;
mod vector;

use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{DispatchDevice, Flex, IntDType};
use burn::tensor::{DType, Device, TensorData};

pub(super) use gemm::bf16_is_faster;
#[cfg(test)]
pub(super) use gemm::multiplies_bf16;

use super::backend::StepOps;
use super::is_medium;
use super::portable;
use super::types::Activation;
use super::types::DropoutMask;
use super::types::KeyRanges;
use super::types::Scores;
use super::types::{Piece, Whole};
use crate::quantization::PackedLayout;

/// Whether operations on f32 tensors of `device` are fused.
pub(super) fn fuses(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    let is_flex = matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    is_flex && super::is_fused()
}

/// Whether operations on `tensor` are fused.
fn takes(tensor: &Primitive) -> bool {
    tensor.dtype() == DType::F32 && super::is_fused()
}

type Primitive = FloatTensor<Flex>;

impl StepOps for Flex {
    fn linear(x: Primitive, weight: Primitive) -> Primitive {
        match takes(&x) {
            true => linear::forward(&x, &weight),
            false => portable::linear::forward::<Self>(x, weight),
        }
    }

    fn linear_x_grad(grad: Primitive, weight: Primitive) -> Primitive {
        match takes(&grad) {
            true => linear::x_grad(&grad, &weight),
            false => portable::linear::x_grad::<Self>(grad, weight),
        }
    }

    fn add_linear(sum: Primitive, x: Primitive, weight: Primitive) -> Primitive {
        match takes(&sum) && takes(&weight) {
            true => linear::add_forward(sum, &x, &weight),
            false => Self::float_add(sum, <Self as StepOps>::linear(x, weight)),
        }
    }

    fn add_linear_x_grad(sum: Primitive, grad: Primitive, weight: Primitive) -> Primitive {
        match takes(&sum) && takes(&weight) {
            true => linear::add_x_grad(sum, &grad, &weight),
            false => Self::float_add(sum, Self::linear_x_grad(grad, weight)),
        }
    }

    fn linear_weight_grad(grad: Primitive, x: Primitive, weight: Primitive) -> Primitive {
        match takes(&grad) {
            true => linear::weight_grad(&grad, &x, &weight),
            false => portable::linear::weight_grad::<Self>(grad, x, weight),
        }
    }

    fn packed_linear(x: Primitive, words: IntTensor<Self>, layout: PackedLayout) -> Primitive {
        match takes(&x) {
            true => packed::forward(&x, &words, layout),
            false => portable::packed::forward::<Self>(x, words, layout),
        }
    }

    fn packed_linear_x_grad(
        grad: Primitive,
        words: IntTensor<Self>,
        layout: PackedLayout,
    ) -> Primitive {
        match takes(&grad) {
            true => packed::x_grad(&grad, &words, layout),
            false => portable::packed::x_grad::<Self>(grad, words, layout),
        }
    }

    fn packed_rows(
        words: IntTensor<Self>,
        indices: IntTensor<Self>,
        layout: PackedLayout,
    ) -> Primitive {
        packed::rows(&words, indices, layout)
    }

    fn packed_row_squares(words: IntTensor<Self>, layout: PackedLayout) -> Primitive {
        packed::row_squares(&words, layout)
    }

    fn unpacked(words: IntTensor<Self>, layout: PackedLayout) -> Primitive {
        packed::unpacked(&words, layout)
    }

    fn dropout(x: Primitive, mask: DropoutMask) -> Primitive {
        match takes(&x) {
            true => dropout::forward(&x, mask),
            false => portable::dropout::forward::<Self>(x, mask),
        }
    }

    fn narrowed(x: Primitive) -> Primitive {
        match takes(&x) && is_medium() {
            true => narrow::to_bf16(&x),
            false => x,
        }
    }

    fn widened(x: Primitive) -> Primitive {
        narrow::to_f32(&x)
    }

    fn glu(gate: Primitive, up: Primitive, activation: Activation) -> Primitive {
        match takes(&gate) {
            true => glu::forward(&gate, &up, activation),
            false => portable::glu::forward::<Self>(gate, up, activation),
        }
    }

    fn glu_backward(
        grad: Primitive,
        gate: Primitive,
        up: Primitive,
        activation: Activation,
    ) -> (Primitive, Primitive) {
        match takes(&grad) {
            true => glu::backward(&grad, gate, up, activation),
            false => portable::glu::backward::<Self>(grad, gate, up, activation),
        }
    }

    fn piece(x: Primitive, piece: Piece, _whole: Whole) -> Primitive {
        contiguous(&portable::split::forward::<Self>(x, piece))
    }

    fn rms_norm(x: Primitive, weight: Primitive, eps: f64) -> Primitive {
        match takes(&x) {
            true => rms_norm::forward(&x, &weight, eps),
            false => portable::rms_norm::forward::<Self>(x, weight, eps),
        }
    }

    fn rms_norm_x_grad(grad: Primitive, x: Primitive, weight: Primitive, eps: f64) -> Primitive {
        match takes(&grad) {
            true => rms_norm::x_grad(&grad, &x, &weight, eps),
            false => portable::rms_norm::x_grad::<Self>(grad, x, weight, eps),
        }
    }

    fn rms_norm_weight_grad(
        grad: Primitive,
        x: Primitive,
        weight: Primitive,
        eps: f64,
    ) -> Primitive {
        match takes(&grad) {
            true => rms_norm::weight_grad(&grad, &x, &weight, eps),
            false => portable::rms_norm::weight_grad::<Self>(grad, x, weight, eps),
        }
    }

    fn rotary(x: Primitive, cos: Primitive, sin: Primitive) -> Primitive {
        match takes(&x) {
            true => rotary::forward(&x, &cos, &sin),
            false => portable::rotary::forward::<Self>(x, cos, sin),
        }
    }

    fn normed_rotary(
        x: Primitive,
        weight: Primitive,
        eps: f64,
        cos: Primitive,
        sin: Primitive,
    ) -> Primitive {
        match takes(&x) {
            true => normed_rotary::forward(&x, &weight, eps, [&cos, &sin]),
            false => portable::normed_rotary::forward::<Self>(x, weight, eps, [cos, sin]),
        }
    }

    fn normed_rotary_x_grad(
        grad: Primitive,
        x: Primitive,
        weight: Primitive,
        eps: f64,
        cos: Primitive,
        sin: Primitive,
    ) -> Primitive {
        match takes(&grad) {
            true => normed_rotary::x_grad(&grad, &x, &weight, eps, [&cos, &sin]),
            false => portable::normed_rotary::x_grad::<Self>(grad, x, weight, eps, [cos, sin]),
        }
    }

    fn attention(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> Primitive {
        match takes(&q) {
            true => attention::forward(&q, &k, &v, &mask, scores),
            false => portable::attention::forward::<Self>(q, k, v, visible, &mask, scores),
        }
    }

    fn attention_backward(
        grad: Primitive,
        q: Primitive,
        k: Primitive,
        v: Primitive,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> (Primitive, Primitive, Primitive) {
        match takes(&grad) {
            true => attention::backward(&grad, [&q, &k, &v], &mask, scores),
            false => portable::attention::backward::<Self>(grad, [q, k, v], visible, &mask, scores),
        }
    }

    fn cross_entropy_sum(logits: Primitive, targets: IntTensor<Self>) -> Primitive {
        match takes(&logits) {
            true => cross_entropy::forward(logits, targets),
            false => portable::cross_entropy::forward::<Self>(logits, targets),
        }
    }

    fn cross_entropy_with_grad(
        logits: Primitive,
        targets: IntTensor<Self>,
    ) -> (Primitive, Primitive) {
        match takes(&logits) {
            true => cross_entropy::forward_with_grad(logits, targets),
            false => portable::cross_entropy::forward_with_grad::<Self>(logits, targets),
        }
    }

    fn add_squares(parts: Primitive, values: Primitive) -> Primitive {
        match takes(&values) {
            true => squares::add(parts, &values),
            false => portable::squares::add::<Self>(parts, values),
        }
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

fn indices(tensor: IntTensor<Flex>) -> Vec<usize> {
    let indices = Flex::int_cast(tensor, IntDType::I64).to_contiguous();
    let indices: &[i64] = indices.storage();
    indices.iter().map(|index| *index as usize).collect()
}

fn primitive(values: Vec<f32>, shape: &[usize]) -> Primitive {
    Primitive::from_data(TensorData::new(values, shape))
}
