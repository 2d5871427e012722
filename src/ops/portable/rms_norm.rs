use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::Shape;

use super::{cast, rows, to_f32};

pub fn forward<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let (dtype, shape) = (x.dtype().into(), x.shape());
    let x = to_f32::<B>(rows::<B>(x));
    let normed = B::float_mul(x.clone(), inverse_norm::<B>(x, eps));
    let out = B::float_mul(normed, row::<B>(weight));
    B::float_reshape(cast::<B>(out, dtype), shape)
}

/// A vector as a matrix of one row.
fn row<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let dim = vector.shape().num_elements();
    B::float_reshape(vector, Shape::new([1, dim]))
}

/// `1 / sqrt(mean(x²) + eps)` of each row.
fn inverse_norm<B: Backend>(x: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let mean_square = B::float_mean_dim(B::float_mul(x.clone(), x), 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean_square, eps.into())))
}

/// The gradients of x and, if asked for, of the weight. With `n = 1 / sqrt(mean(x²) + eps)` and
/// `h = w · grad`: `n h - n³ x mean(h · x)`, and the sum of `grad · n x` over all rows.
fn backward<B: Backend>(
    grad: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    is_weight_trained: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (dtype, shape) = (x.dtype().into(), x.shape());
    let [grad, x] = [grad, x].map(|x| to_f32::<B>(rows::<B>(x)));
    let norm = inverse_norm::<B>(x.clone(), eps);
    let normed = B::float_mul(x, norm.clone());
    let weight_grad = is_weight_trained.then(|| {
        let sum = B::float_sum_dim(B::float_mul(grad.clone(), normed.clone()), 0);
        B::float_reshape(sum, weight.shape())
    });
    let scaled = B::float_mul(grad, row::<B>(weight));
    let along = B::float_mean_dim(B::float_mul(scaled.clone(), normed.clone()), 1);
    let across = B::float_sub(scaled, B::float_mul(normed, along));
    let x_grad = cast::<B>(B::float_mul(across, norm), dtype);
    (B::float_reshape(x_grad, shape), weight_grad)
}

pub fn tracked<B: Backend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let backward = RMSNormBackward.prepare::<C>([x.node(), weight.node()]);
    let (x, weight) = (x.into_primitive(), weight.into_primitive());
    let out = forward::<B>(x.clone(), weight.clone(), eps);
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((x, weight, eps), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct RMSNormBackward;

impl<B: Backend> Backward<B, 2> for RMSNormBackward {
    /// x, weight and eps.
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, eps) = ops.state;
        let [x_node, weight_node] = ops.parents;
        let (x_grad, weight_grad) = backward::<B>(grad, x, weight, eps, weight_node.is_some());
        for (node, grad) in [(x_node, Some(x_grad)), (weight_node, weight_grad)] {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}
