use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use crate::ops::types::AdamWStep;

pub fn update<B: Backend>(
    value: FloatTensor<B>,
    grad: FloatTensor<B>,
    exp_avg: FloatTensor<B>,
    exp_avg_sq: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let times = |x, factor: f64| B::float_mul_scalar(x, factor.into());
    let grad = match step.grad_scale == 1.0 {
        true => grad,
        false => times(grad, step.grad_scale),
    };
    let square = B::float_mul(grad.clone(), grad.clone());
    let exp_avg = B::float_add(times(exp_avg, step.beta1), times(grad, 1.0 - step.beta1));
    let exp_avg_sq = B::float_add(
        times(exp_avg_sq, step.beta2),
        times(square, 1.0 - step.beta2),
    );
    let root = B::float_div_scalar(B::float_sqrt(exp_avg_sq.clone()), step.correction2.into());
    let denominator = B::float_add_scalar(root, step.eps.into());
    let change = times(B::float_div(exp_avg.clone(), denominator), step.step_size);
    let value = B::float_sub(times(value, step.decay), change);
    (value, exp_avg, exp_avg_sq)
}
