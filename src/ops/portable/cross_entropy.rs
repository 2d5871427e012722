use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, FloatDType, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape};

use super::{cast, to_f32};

pub fn forward<B: Backend>(logits: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    let targets = column::<B>(targets);
    loss::<B>(B::log_softmax(to_f32::<B>(logits), 1), targets)
}

pub fn forward_with_grad<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dtype, device, targets) = (logits.dtype().into(), logits.device(), column::<B>(targets));
    let log_probs = B::log_softmax(to_f32::<B>(logits), 1);
    let loss = loss::<B>(log_probs.clone(), targets.clone());
    let ones = B::float_ones(targets.shape(), &device, FloatDType::F32);
    let probs = B::float_exp(log_probs);
    let grad = B::float_scatter(1, probs, targets, B::float_neg(ones), IndexingUpdateOp::Add);
    (loss, cast::<B>(grad, dtype))
}

fn column<B: Backend>(targets: IntTensor<B>) -> IntTensor<B> {
    let rows = targets.shape().num_elements();
    B::int_reshape(targets, Shape::new([rows, 1]))
}

fn loss<B: Backend>(log_probs: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    B::float_neg(B::float_sum(B::float_gather(1, log_probs, targets)))
}
