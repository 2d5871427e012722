//! The first values of an adapter's `A` and `B`, a file for each way that is more than a draw of numbers (those are
//! in the method's table).
//!
//! | way | `A` | `B` | base |
//! |---|---|---|---|
//! | [`orthogonal()`] | random, with `B·A = 0` | random | `W` |
//! | [`pissa()`] | leading singular vectors of `W` | the same | `W - s·B·A` |
//! | [`olora()`] | `R` of `W = Q·R` | `Q` | `W - s·B·A` |
//! | [`ActivationStatistics`] (EVA) | leading directions of the layer's inputs | 0 | `W` |
//! | [`loftq()`] | leading singular vectors of `W - q(W)` | the same | quantized |
//!
//! In all of them but the last the adapted layer begins by computing what the layer did before; in the last
//! the adapter makes up for a part of the quantization's error.

mod eva;
mod kind;
mod loftq;
mod olora;
mod orthogonal;
mod pissa;

use burn::tensor::{DType, Tensor};

pub(crate) use eva::check_rho;
pub use eva::{ActivationStatistics, largest_rank, redistribute_ranks};
pub use kind::Init;
pub use loftq::loftq;
pub(crate) use loftq::loftq_from;
pub use olora::olora;
pub use orthogonal::orthogonal;
pub use pissa::pissa;

use super::linalg::Svd;
use crate::{Error, Result};

/// What an adapter begins with: f32, without a graph.
///
/// # Shapes
/// - `a`: `[r, in]`
/// - `b`: `[out, r]`
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FirstValues {
    /// The factor on the layer's input.
    pub a: Tensor<2>,
    /// The factor on the layer's output.
    pub b: Tensor<2>,
    /// What the base weight loses, if anything, by its own factors: see [`FirstValues::base`].
    pub base_shift: Option<BaseShift>,
}

/// The update `s·B·A` that is taken off a base weight.
///
/// # Shapes
/// - `a`: `[r, in]`
/// - `b`: `[out, r]`
#[derive(Debug, Clone)]
pub struct BaseShift {
    /// The factor on the layer's input.
    pub a: Tensor<2>,
    /// The factor on the layer's output.
    pub b: Tensor<2>,
}

impl FirstValues {
    fn unshifted(a: Tensor<2>, b: Tensor<2>) -> Self {
        let base_shift = None;
        Self { a, b, base_shift }
    }

    /// The base loses what the adapter begins with.
    fn shifted(a: Tensor<2>, b: Tensor<2>) -> Self {
        let base_shift = Some(BaseShift {
            a: a.clone(),
            b: b.clone(),
        });
        Self { a, b, base_shift }
    }

    /// The base weight to keep beside these values, `W - s·B·A` with the shift's factors, in `W`'s type
    /// of number; `W` itself without a shift. LoftQ's is the one to quantize.
    ///
    /// In half precision the difference is rounded, and the adapted layer computes what the layer did
    /// before up to that.
    ///
    /// # Shapes
    /// - `weight` and output: `[out, in]`
    pub fn base(&self, weight: Tensor<2>, scale: f64) -> Tensor<2> {
        let Some(shift) = &self.base_shift else {
            return weight;
        };
        shift.take_off(weight, scale)
    }
}

impl BaseShift {
    fn take_off(&self, weight: Tensor<2>, scale: f64) -> Tensor<2> {
        let dtype = weight.dtype();
        let update = self.b.clone().matmul(self.a.clone()) * scale;
        (weight.cast(DType::F32) - update).cast(dtype)
    }
}

/// `A = sqrt(S / s)·V^T` and `B = U·sqrt(S / s)`, whose product times s is `U·S·V^T`.
fn balanced(svd: Svd, scale: f64) -> (Tensor<2>, Tensor<2>) {
    let root = (svd.s / scale).sqrt();
    let a = svd.vt * root.clone().unsqueeze_dim(1);
    let b = svd.u * root.unsqueeze_dim(0);
    (a, b)
}

fn check_rank(rank: usize, [out_dim, in_dim]: [usize; 2]) -> Result<()> {
    let limit = out_dim.min(in_dim);
    match (1..=limit).contains(&rank) {
        true => Ok(()),
        false => Err(Error::InvalidArgument {
            name: "rank",
            message: format!(
                "a weight [{out_dim}, {in_dim}] has {limit} singular vectors, so {rank} of them cannot be \
                 an adapter's first values; take a rank from 1 to {limit}"
            ),
        }),
    }
}

fn check_scale(scale: f64) -> Result<()> {
    match scale > 0.0 && scale.is_finite() {
        true => Ok(()),
        false => Err(Error::InvalidArgument {
            name: "alpha",
            message: format!(
                "with the scale {scale} the adapter cannot begin as a part of the weight; alpha must be \
                 above 0"
            ),
        }),
    }
}

#[cfg(all(test, feature = "flex"))]
pub(super) mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::lora::Decomposition;
    use crate::lora::linalg::{from_host, to_host};
    use crate::lora::random::{normal, rng};

    /// The weight that PEFT's literals are for.
    pub(super) fn weight() -> Tensor<2> {
        #[rustfmt::skip]
        let values = vec![
            0.5, -1.0, 0.25, 2.0, 1.5, 0.75, -0.5, 0.1, -0.3, 0.9, 1.2, -1.1,
            0.0, 0.4, -0.8, 0.6, 1.0, -0.2, 0.35, 0.7, -0.6, 1.3, 0.05, -0.9,
        ];
        from_host(values, [6, 4], &Device::flex())
    }

    #[track_caller]
    pub(super) fn assert_close(found: Tensor<2>, expected: &[f32], tolerance: f32) {
        let found = to_host(found);
        assert_eq!(found.len(), expected.len());
        for (i, (x, y)) in found.iter().zip(expected).enumerate() {
            assert!((x - y).abs() <= tolerance, "element {i}: {x} {y}");
        }
    }

    pub(super) fn product(first: &FirstValues) -> Tensor<2> {
        first.b.clone().matmul(first.a.clone())
    }

    #[test]
    fn the_layer_begins_as_the_weight() {
        let values = normal(&mut rng(1), 50 * 40);
        let weight = from_host(values, [50, 40], &Device::flex());
        let random = Decomposition::Randomized {
            iterations: 1,
            seed: 2,
        };
        for scale in [0.25, 1.0, 16.0] {
            for first in [
                pissa(weight.clone(), 6, scale, Decomposition::Exact).unwrap(),
                pissa(weight.clone(), 6, scale, random).unwrap(),
                olora(weight.clone(), 6).unwrap(),
            ] {
                let base = first.base(weight.clone(), scale);
                let change: f32 = (base.clone() - weight.clone()).abs().max().into_scalar();
                assert!(change > 0.1, "{change}");
                let effective = base + product(&first) * scale;
                assert_close(effective, &to_host(weight.clone()), 1e-5);
            }
        }
    }

    #[test]
    fn a_base_without_a_shift_or_in_half_precision_keeps_its_type() {
        let half = weight().cast(DType::BF16);
        let first = olora(half.clone(), 2).unwrap();
        assert_eq!(first.a.dtype(), DType::F32);
        assert_eq!(first.base(half.clone(), 1.0).dtype(), DType::BF16);
        let first = orthogonal([6, 4], 2, 0, &Device::flex()).unwrap();
        assert_eq!(first.base(half, 1.0).dtype(), DType::BF16);
    }

    #[test]
    fn ranks_beyond_the_weight_and_scales_of_zero_are_refused() {
        for rank in [0, 5] {
            assert!(olora(weight(), rank).is_err());
            let error = pissa(weight(), rank, 1.0, Decomposition::Exact).unwrap_err();
            assert!(error.to_string().contains("from 1 to 4"), "{error}");
        }
        for scale in [0.0, -1.0, f64::NAN] {
            let error = pissa(weight(), 2, scale, Decomposition::Exact).unwrap_err();
            assert!(error.to_string().starts_with("alpha"), "{error}");
        }
        let broken = weight().slice_fill([5..6, 3..4], f32::NAN);
        assert!(olora(broken.clone(), 2).is_err());
        assert!(pissa(broken, 2, 1.0, Decomposition::Exact).is_err());
    }
}
