use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use indexmap::IndexMap;

use super::gradients::read_sum;
use crate::adapter::get_params;
use crate::ops::SumOfSquares;

/// The Euclidean norm of all gradients of a model taken as one vector.
pub fn grad_norm<M: Module>(model: &M, grads: &GradientsParams) -> f64 {
    let square = squared_norm(model, grads);
    read_sum(square.into_iter().collect()).sqrt()
}

/// The square of [`grad_norm`] in parts, still on the device; none if there is no gradient.
pub(super) fn squared_norm<M: Module>(model: &M, grads: &GradientsParams) -> Option<Tensor<1>> {
    let mut squares = Squares { grads, sum: None };
    model.visit(&mut squares);
    squares.sum.map(SumOfSquares::parts)
}

/// Scales all gradients by `max_norm / norm` if their [`grad_norm`] is above `max_norm`, like
/// `torch.nn.utils.clip_grad_norm_`. Returns the norm before clipping.
pub fn clip_grad_norm<M: Module>(model: &M, grads: &mut GradientsParams, max_norm: f64) -> f64 {
    let norm = grad_norm(model, grads);
    let factor = clip_factor(norm, max_norm);
    if factor < 1.0 {
        scale_gradients(model, grads, factor);
    }
    norm
}

/// The Euclidean norm of each parameter's gradient, by name, of those that have one. This waits for the device.
pub(super) fn param_norms<M: Module>(model: &M, grads: &GradientsParams) -> IndexMap<String, f64> {
    let mut each = EachSquare {
        grads,
        squares: Vec::new(),
    };
    model.visit(&mut each);
    let mut squares = each.squares.into_iter().peekable();
    let params = get_params(model);
    let norms = params.iter().filter_map(|(name, info)| {
        let (_, square) = squares.next_if(|(id, _)| *id == info.id)?;
        Some((name.to_owned(), read_sum(vec![square]).sqrt()))
    });
    norms.collect()
}

pub(super) fn scale_gradients<M: Module>(model: &M, grads: &mut GradientsParams, factor: f64) {
    scale_each(model, grads, |_| factor);
}

/// Multiplies each parameter's gradient by a factor of its own.
pub(super) fn scale_each<M: Module>(
    model: &M,
    grads: &mut GradientsParams,
    factor: impl Fn(ParamId) -> f64,
) {
    model.visit(&mut Scale { grads, factor });
}

/// What clipping multiplies gradients of this norm by, at most 1.
pub(super) fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    // PyTorch adds the same small number.
    (max_norm / (norm + 1e-6)).min(1.0)
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sum: Option<SumOfSquares>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let sum = self.sum.take();
            let sum = sum.unwrap_or_else(|| SumOfSquares::zero(&grad.device()));
            self.sum = Some(sum.add(grad));
        }
    }
}

/// The squared norms of single gradients, in the model's order.
struct EachSquare<'a> {
    grads: &'a GradientsParams,
    squares: Vec<(ParamId, Tensor<1>)>,
}

impl ModuleVisitor for EachSquare<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let square = SumOfSquares::zero(&grad.device()).add(grad);
            self.squares.push((param.id, square.parts()));
        }
    }
}

struct Scale<'a, F> {
    grads: &'a mut GradientsParams,
    factor: F,
}

impl<F: Fn(ParamId) -> f64> ModuleVisitor for Scale<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let factor = (self.factor)(param.id);
            self.grads.register(param.id, grad * factor);
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use burn::tensor::Device;

    /// A parameter whose gradient is (3, 4), of norm 5.
    fn model_and_grads() -> (Param<Tensor<1>>, GradientsParams) {
        let device = Device::flex().autodiff();
        let param = Param::from_tensor(Tensor::from_floats([1.0, 1.0], &device));
        let loss = param.val() * Tensor::from_floats([3.0, 4.0], &device);
        let mut grads = loss.sum().backward();
        let grads = GradientsParams::from_module(&mut grads, &param);
        (param, grads)
    }

    fn clipped_to(max_norm: f64) -> Vec<f32> {
        let (param, mut grads) = model_and_grads();
        assert_relative_eq!(grad_norm(&param, &grads), 5.0, max_relative = 1e-6);
        let before = clip_grad_norm(&param, &mut grads, max_norm);
        assert_relative_eq!(before, 5.0, max_relative = 1e-6);
        let grad = grads.get::<1>(param.id).expect("it has a gradient");
        grad.into_data().iter::<f32>().collect()
    }

    #[test]
    fn long_gradients_are_shortened_and_short_ones_left() {
        for (grad, expected) in clipped_to(1.0).into_iter().zip([0.6, 0.8]) {
            assert_relative_eq!(grad, expected, max_relative = 1e-6);
        }
        assert_eq!(clipped_to(10.0), [3.0, 4.0]);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
    }
}
