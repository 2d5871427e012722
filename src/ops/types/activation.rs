use serde::{Deserialize, Serialize};

/// What bends the gate of a [`glu`](super::super::glu()): `x · sigmoid(w(x))`, with a `w` of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `x · sigmoid(x)`, also called swish. Hendrycks and Gimpel, <https://arxiv.org/abs/1606.08415>.
    #[default]
    Silu,
    /// GELU's approximation by tanh, `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`; the same paper.
    ///
    /// It is computed as `x · sigmoid(2 sqrt(2/π) (x + 0.044715 x³))`, which loses no digits where tanh
    /// comes near to -1.
    GeluTanh,
}

/// `w(x) = SLOPE · (x + CUBIC · x³)` of [`Activation::GeluTanh`].
pub mod gelu {
    /// `2 sqrt(2/π)`.
    pub const SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;
    pub const CUBIC: f64 = 0.044715;
    /// As far from zero the sigmoid is zero or one, in every type. `w` stays as it is there, or its cube
    /// would soon be too large for f16.
    pub const BOUND: f64 = 16.0;
}
