use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, FloatDType, TensorMetadata};

use super::cast;

/// A weight of another type is brought to that of `x` here and again in the backward pass: no copy
/// of it is kept.
pub fn forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = transposed::<B>(weight, x.dtype().into());
    B::linear(x, weight, None)
}

/// `grad W`.
fn x_grad<B: Backend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = transposed::<B>(weight, grad.dtype().into());
    B::linear_x_backward(weight, grad)
}

/// `gradᵀ x`, in the weight's type.
fn weight_grad<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: &FloatTensor<B>,
) -> FloatTensor<B> {
    let grad = B::linear_weight_backward(x, grad);
    transposed::<B>(grad, weight.dtype().into())
}

/// Burn's layout of a weight, `[in_dim, out_dim]`, or back.
fn transposed<B: Backend>(weight: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    B::float_swap_dims(cast::<B>(weight, dtype), 0, 1)
}

/// Keeps `x` for a trained weight only.
pub fn tracked<B: Backend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let is_trained = weight.is_tracked();
    let backward = LinearBackward.prepare::<C>([x.node(), weight.node()]);
    let (x, weight) = (x.into_primitive(), weight.into_primitive());
    let out = forward::<B>(x.clone(), weight.clone());
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((is_trained.then_some(x), weight), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: Backend> Backward<B, 2> for LinearBackward {
    /// x, if the weight is trained, and the weight.
    type State = (Option<FloatTensor<B>>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight) = ops.state;
        if let Some((node, x)) = weight_node.zip(x) {
            let weight_grad = weight_grad::<B>(grad.clone(), x, &weight);
            grads.register::<B>(node.id, weight_grad);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, x_grad::<B>(grad, weight));
        }
    }
}
