use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

/// The Euclidean norm of all gradients of a model taken as one vector.
pub fn grad_norm<M: Module>(model: &M, grads: &GradientsParams) -> f64 {
    let square = squared_norm(model, grads);
    square.map_or(0.0, |square| f64::from(square.into_scalar::<f32>()).sqrt())
}

/// Its square, still on the device; none if there is no gradient.
pub(super) fn squared_norm<M: Module>(model: &M, grads: &GradientsParams) -> Option<Tensor<1>> {
    let mut squares = Squares {
        grads,
        sums: Vec::new(),
    };
    model.visit(&mut squares);
    let sums = Some(squares.sums).filter(|sums| !sums.is_empty());
    sums.map(|sums| Tensor::cat(sums, 0).sum())
}

/// Scales all gradients by `max_norm / norm` if their [`grad_norm`] is above `max_norm`, like
/// `torch.nn.utils.clip_grad_norm_`. Returns the norm before clipping.
pub fn clip_grad_norm<M: Module>(model: &M, grads: &mut GradientsParams, max_norm: f64) -> f64 {
    let norm = grad_norm(model, grads);
    clip_from(norm, model, grads, max_norm);
    norm
}

/// Clips gradients whose norm is known.
pub(super) fn clip_from<M: Module>(
    norm: f64,
    model: &M,
    grads: &mut GradientsParams,
    max_norm: f64,
) {
    // PyTorch adds the same small number.
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        model.visit(&mut Scale { grads, factor });
    }
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.sums.push(grad.cast(DType::F32).square().sum());
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad * self.factor);
        }
    }
}
