use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

pub fn forward<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let sigmoid = B::sigmoid(gate.clone());
    B::float_mul(B::float_mul(gate, sigmoid), up)
}

/// With `s = sigmoid(gate)` and `a = gate s`: `(grad up (s + a (1 - s)), grad a)`.
fn backward<B: Backend>(
    grad: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let sigmoid = B::sigmoid(gate.clone());
    let activation = B::float_mul(gate, sigmoid.clone());
    let rest = B::float_add_scalar(B::float_neg(sigmoid.clone()), 1.0.into());
    let slope = B::float_add(sigmoid, B::float_mul(activation.clone(), rest));
    let gate_grad = B::float_mul(B::float_mul(grad.clone(), up), slope);
    [gate_grad, B::float_mul(grad, activation)]
}

pub fn tracked<B: Backend, C: CheckpointStrategy>(
    gate: FloatTensor<Autodiff<B, C>>,
    up: FloatTensor<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let backward = SwigluBackward.prepare::<C>([gate.node(), up.node()]);
    let (gate, up) = (gate.into_primitive(), up.into_primitive());
    let out = forward::<B>(gate.clone(), up.clone());
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((gate, up), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl<B: Backend> Backward<B, 2> for SwigluBackward {
    /// gate and up.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (gate, up) = ops.state;
        for (node, grad) in ops.parents.into_iter().zip(backward::<B>(grad, gate, up)) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}
