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
