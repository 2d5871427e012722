use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::vector::sigmoid;
use super::{Primitive, Tracked, map};

pub fn forward(gate: &Primitive, up: &Primitive) -> Primitive {
    map([gate, up], |[gate, up]| gate * sigmoid(gate) * up)
}

pub fn tracked<C: CheckpointStrategy>(gate: Tracked, up: Tracked) -> Tracked {
    let backward = SwigluBackward.prepare::<C>([gate.node(), up.node()]);
    let (gate, up) = (gate.into_primitive(), up.into_primitive());
    let out = forward(&gate, &up);
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((gate, up), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl Backward<Flex, 2> for SwigluBackward {
    /// gate and up.
    type State = (Primitive, Primitive);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (gate, up) = ops.state;
        let [gate_node, up_node] = ops.parents;
        if let Some(node) = up_node {
            let up_grad = map([&gate, &grad], |[gate, grad]| grad * gate * sigmoid(gate));
            grads.register::<Flex>(node.id, up_grad);
        }
        if let Some(node) = gate_node {
            let gate_grad = map([&gate, &up, &grad], |[gate, up, grad]| {
                let sigmoid = sigmoid(gate);
                grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
            });
            grads.register::<Flex>(node.id, gate_grad);
        }
    }
}
