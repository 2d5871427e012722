use burn::backend::Dispatch;
use burn::module::ParamId;
use burn::tensor::{GradientCheckpointingStrategy, Gradients, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;

/// The gradients of `(output · grad).sum()`, without the product and the sum: the backward pass that begins
/// at `output` with `grad`, which has no graph.
///
/// # Panics
/// If the shapes or the types differ, or `output` has no graph.
pub(crate) fn backward_from<const D: usize>(output: Tensor<D>, grad: Tensor<D>) -> Gradients {
    assert_eq!(
        output.dims(),
        grad.dims(),
        "the gradient's shape is not the output's"
    );
    assert_eq!(
        output.dtype(),
        grad.dtype(),
        "the gradient's type is not the output's"
    );
    let grad = in_graph(grad, output.gradient_checkpointing_strategy());
    let root = Dispatch::backward_root(dispatched(output), grad.into_dispatch());
    Tensor::<1>::from_dispatch(root).backward()
}

/// What autodiff knows of a parameter's value besides its numbers, taken before an update and given to the
/// new value.
pub(crate) struct GraphState {
    require_grad: bool,
    is_distributed: bool,
    checkpointing: Option<GradientCheckpointingStrategy>,
}

impl GraphState {
    pub(crate) fn of<const D: usize>(value: &Tensor<D>) -> Self {
        Self {
            require_grad: value.is_require_grad(),
            is_distributed: value.is_distributed(),
            checkpointing: value.gradient_checkpointing_strategy(),
        }
    }

    /// The new value of the parameter `id`, from one without a graph.
    pub(crate) fn give_to<const D: usize>(self, new: Tensor<D>, id: ParamId) -> Tensor<D> {
        let new = in_graph(new, self.checkpointing).set_require_grad(self.require_grad);
        match self.is_distributed {
            true => new.set_distributed(id),
            false => new,
        }
    }
}

/// A tensor without a graph in one of this strategy
/// ([`Device::gradient_checkpointing`](burn::tensor::Device::gradient_checkpointing)): Burn refuses to
/// combine tensors that differ in it.
fn in_graph<const D: usize>(
    tensor: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Tensor<D> {
    let tensor = Tensor::from_inner(tensor);
    match strategy {
        Some(strategy) => tensor.with_gradient_checkpointing_strategy(strategy),
        None => tensor,
    }
}
