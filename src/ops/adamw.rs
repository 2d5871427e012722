use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::types::AdamWStep;

/// AdamW's update: the new value and both new moments. All are f32 and of one length.
pub(crate) fn adamw(
    value: Tensor<1>,
    grad: Tensor<1>,
    [exp_avg, exp_avg_sq]: [Tensor<1>; 2],
    step: AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let (value, exp_avg, exp_avg_sq) = Dispatch::adamw(
        dispatched(value),
        grad.into_dispatch(),
        exp_avg.into_dispatch(),
        exp_avg_sq.into_dispatch(),
        step,
    );
    let moments = [exp_avg, exp_avg_sq].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(value), moments)
}
