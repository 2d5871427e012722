use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;

/// The numbers of one of AdamW's updates, see [`AdamW`](crate::training::AdamW) for their names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    /// What the gradient is multiplied by before all else.
    pub grad_scale: f64,
    /// `β₁`.
    pub beta1: f64,
    /// `β₂`.
    pub beta2: f64,
    /// `ε`.
    pub eps: f64,
    /// `1 - lr·λ`, what is left of the value.
    pub decay: f64,
    /// `lr / (1 - β₁ᵗ)`.
    pub step_size: f64,
    /// `sqrt(1 - β₂ᵗ)`.
    pub correction2: f64,
}

/// AdamW's update: the new value and both new moments. All are f32 and of one length.
pub(crate) fn adamw(
    value: Tensor<1>,
    grad: Tensor<1>,
    [exp_avg, exp_avg_sq]: [Tensor<1>; 2],
    step: AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let (value, exp_avg, exp_avg_sq) = Dispatch::adamw(
        value.into_dispatch(),
        grad.into_dispatch(),
        exp_avg.into_dispatch(),
        exp_avg_sq.into_dispatch(),
        step,
    );
    let moments = [exp_avg, exp_avg_sq].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(value), moments)
}
