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
    squared_norm_by(TOGETHER, model, grads)
}

/// [`squared_norm`] with at most so many numbers squared together.
fn squared_norm_by<M: Module>(
    limit: usize,
    model: &M,
    grads: &GradientsParams,
) -> Option<Tensor<1>> {
    let mut squares = Squares {
        grads,
        limit,
        together: Vec::new(),
        sums: Vec::new(),
    };
    model.visit(&mut squares);
    squares.square();
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

/// How many numbers are squared together. Adapters are many and small: to launch four kernels for each
/// takes longer than to copy them first.
const TOGETHER: usize = 1 << 24;

struct Squares<'a> {
    grads: &'a GradientsParams,
    limit: usize,
    /// What will be squared next: no more numbers than the limit, or one tensor.
    together: Vec<Tensor<1>>,
    sums: Vec<Tensor<1>>,
}

impl Squares<'_> {
    fn square(&mut self) {
        let mut together = std::mem::take(&mut self.together);
        let numbers = match together.len() {
            0 => return,
            1 => together.remove(0),
            _ => Tensor::cat(together, 0),
        };
        self.sums.push(numbers.square().sum());
    }
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let len = grad.shape().num_elements();
            let waiting = self.together.iter().map(|grad| grad.dims()[0]);
            if waiting.sum::<usize>() + len > self.limit {
                self.square();
            }
            self.together.push(grad.cast(DType::F32).reshape([len]));
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

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_norm_is_that_of_all_gradients_however_many_are_squared_together() {
        let device = Device::default().autodiff();
        let model: Vec<_> = (1..6)
            .map(|d_output| LinearConfig::new(3, d_output).init(&device))
            .collect();
        let x = Tensor::<1>::from_floats([1.0, -2.0, 0.5], &device).unsqueeze::<2>();
        let outputs = model.iter().map(|layer| layer.forward(x.clone()).sum());
        let grads = Tensor::cat(outputs.collect(), 0).sum().backward();
        let grads = GradientsParams::from_grads(grads, &model);
        // Each output has the gradient x for its weights and 1 for its bias.
        let expected = 15.0 * (1.0 + 4.0 + 0.25 + 1.0);
        for limit in [1, 6, 20, TOGETHER] {
            let square = squared_norm_by(limit, &model, &grads).expect("there are gradients");
            assert_eq!(square.into_scalar::<f32>(), expected, "{limit}");
        }
    }
}
