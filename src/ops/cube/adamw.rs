use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elementwise, into_owned, vector_size};
use crate::ops::types::AdamWStep;

#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    grad_scale: f32,
    beta1: f32,
    /// `1 - β₁` and `1 - β₂` are formed in f64: near 1, f32 has few digits left.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    eps: f32,
    decay: f32,
    step_size: f32,
    correction2: f32,
}

#[cube(launch)]
fn adamw_kernel<N: Size>(
    value: &mut Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    exp_avg: &mut Tensor<Vector<f32, N>>,
    exp_avg_sq: &mut Tensor<Vector<f32, N>>,
    numbers: Numbers,
) {
    if ABSOLUTE_POS >= value.len() {
        terminate!();
    }
    let grad = grad[ABSOLUTE_POS] * Vector::new(numbers.grad_scale);
    let m = exp_avg[ABSOLUTE_POS] * Vector::new(numbers.beta1) + grad * Vector::new(numbers.rest1);
    let v = exp_avg_sq[ABSOLUTE_POS] * Vector::new(numbers.beta2)
        + grad * grad * Vector::new(numbers.rest2);
    let denominator = v.sqrt() / Vector::new(numbers.correction2) + Vector::new(numbers.eps);
    let kept = value[ABSOLUTE_POS] * Vector::new(numbers.decay);
    value[ABSOLUTE_POS] = kept - m / denominator * Vector::new(numbers.step_size);
    exp_avg[ABSOLUTE_POS] = m;
    exp_avg_sq[ABSOLUTE_POS] = v;
}

/// Writes the new value and moments in the places of the old ones, if nobody else reads these.
pub fn update(
    value: CubeTensor,
    grad: CubeTensor,
    exp_avg: CubeTensor,
    exp_avg_sq: CubeTensor,
    step: AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let grad = into_contiguous(grad);
    let [value, exp_avg, exp_avg_sq] = [value, exp_avg, exp_avg_sq].map(into_owned);
    let len = value.shape().num_elements();
    let vector = vector_size(&value, len);
    let client = value.client.clone();
    let (count, dim) = elementwise(&client, len / vector);
    adamw_kernel::launch(
        &client,
        count,
        dim,
        vector,
        value.clone().into_tensor_arg(),
        grad.into_tensor_arg(),
        exp_avg.clone().into_tensor_arg(),
        exp_avg_sq.clone().into_tensor_arg(),
        NumbersLaunch::new(
            step.grad_scale as f32,
            step.beta1 as f32,
            (1.0 - step.beta1) as f32,
            step.beta2 as f32,
            (1.0 - step.beta2) as f32,
            step.eps as f32,
            step.decay as f32,
            step.step_size as f32,
            step.correction2 as f32,
        ),
    );
    (value, exp_avg, exp_avg_sq)
}
