//! The gradients, or the values, of a model's trained parameters as one vector, and back.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

use super::ProcessGroup;
use crate::Result;
use crate::adapter::initialize_params;
use crate::ops::GraphState;
use crate::weight::is_trained;

/// The sums of all members' gradients and of the parts of their losses, `[1]` each. Zeros stand for what
/// a member does not have, such as the gradients of a step in which it had no data. All members' models must
/// train the same parameters, of which there is one at least.
///
/// # Errors
/// [`Error::PeerLost`](crate::Error::PeerLost) if a member has ended.
///
/// # Panics
/// If members bring different numbers of gradients.
pub fn reduce_gradients<M: Module>(
    group: &dyn ProcessGroup,
    model: &M,
    mut grads: GradientsParams,
    losses: Vec<Tensor<1>>,
) -> Result<(GradientsParams, Vec<Tensor<1>>)> {
    if group.size() == 1 {
        return Ok((grads, losses));
    }
    let mut parts = GradientParts {
        grads: &mut grads,
        parts: Vec::new(),
    };
    model.visit(&mut parts);
    let mut parts = parts.parts;
    let Some(first) = parts.first() else {
        return Ok((grads, losses));
    };
    let none = Tensor::zeros([1], (&first.device(), DType::F32));
    let losses = [losses, vec![none]].concat();
    parts.push(Tensor::cat(losses, 0).sum());
    let sums = group.all_reduce(Tensor::cat(parts, 0))?;

    let mut split = SplitGradients {
        rest: Split::new(sums),
        grads: GradientsParams::new(),
    };
    model.visit(&mut split);
    let SplitGradients { mut rest, grads } = split;
    Ok((grads, vec![rest.take([1])]))
}

/// The model with rank 0's values of all trained parameters.
///
/// # Errors
/// [`Error::PeerLost`](crate::Error::PeerLost) if a member has ended.
///
/// # Panics
/// If members' models differ in what is trained.
pub fn broadcast_params<M: Module>(group: &dyn ProcessGroup, model: M) -> Result<M> {
    if group.size() == 1 {
        return Ok(model);
    }
    initialize_params(&model);
    let mut values = ValueParts(Vec::new());
    model.visit(&mut values);
    if values.0.is_empty() {
        return Ok(model);
    }
    let mine = Tensor::cat(values.0, 0);
    // A sum of rank 0's values and zeros.
    let mine = match group.rank() {
        0 => mine,
        _ => mine.zeros_like(),
    };
    let values = group.all_reduce(mine)?;
    Ok(model.map(&mut SetValues(Split::new(values))))
}

struct GradientParts<'a> {
    grads: &'a mut GradientsParams,
    parts: Vec<Tensor<1>>,
}

impl ModuleVisitor for GradientParts<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if is_trained(param) {
            let grad = self.grads.remove::<D>(param.id);
            let grad = grad.unwrap_or_else(|| param.val().inner().zeros_like());
            self.parts.push(flat(grad));
        }
    }
}

struct SplitGradients {
    rest: Split,
    grads: GradientsParams,
}

impl ModuleVisitor for SplitGradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if is_trained(param) {
            let grad = self.rest.take(param.dims());
            // A parameter that stands in two places has its gradient in the first.
            if self.grads.get::<D>(param.id).is_none() {
                self.grads.register(param.id, grad);
            }
        }
    }
}

struct ValueParts(Vec<Tensor<1>>);

impl ModuleVisitor for ValueParts {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if is_trained(param) {
            self.0.push(flat(param.val().inner()));
        }
    }
}

struct SetValues(Split);

impl ModuleMapper for SetValues {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        let id = param.id;
        param.map(|value| {
            let state = GraphState::of(&value);
            let new = self.0.take(value.dims()).cast(value.dtype());
            // In memory of its own, not as a part of all values.
            let copy = |new: Tensor<D>| new * 1.0;
            let new = new.device().memory_persistent_allocations(new, copy);
            state.give_to(new, id)
        })
    }
}

/// A vector that is taken apart from its beginning.
struct Split {
    values: Tensor<1>,
    taken: usize,
}

impl Split {
    fn new(values: Tensor<1>) -> Self {
        Self { values, taken: 0 }
    }

    fn take<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let count = shape.iter().product();
        let part = self.values.clone().narrow(0, self.taken, count);
        self.taken += count;
        part.reshape(shape)
    }
}

fn flat<const D: usize>(values: Tensor<D>) -> Tensor<1> {
    values.cast(DType::F32).flatten(0, D - 1)
}
