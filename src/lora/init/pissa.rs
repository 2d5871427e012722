use burn::tensor::Tensor;

use super::{FirstValues, balanced, check_rank, check_scale};
use crate::Result;
use crate::lora::linalg::{Decomposition, truncated_svd};

/// PiSSA: the adapter begins as the principal part of the weight, and the base keeps the rest. With
/// `W = U·S·V^T`,
///
/// `A = sqrt(S_r / s)·V_r^T`, `B = U_r·sqrt(S_r / s)`, `W <- W - s·B·A`.
///
/// Meng et al., *PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
/// Models*, <https://arxiv.org/abs/2404.02948>.
///
/// With [`Decomposition::Randomized`] it is what PEFT calls `pissa_niter_N`, but drawn with ten vectors
/// more than the rank, so closer to the exact one after as many iterations.
///
/// # Shapes
/// - `weight`: `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the rank is zero or beyond the weight's
/// smaller side, if the scale is not positive, or if the weight holds NaN or infinite numbers.
pub fn pissa(
    weight: Tensor<2>,
    rank: usize,
    scale: f64,
    decomposition: Decomposition,
) -> Result<FirstValues> {
    check_rank(rank, weight.dims())?;
    check_scale(scale)?;
    let svd = truncated_svd(weight, rank, decomposition)?;
    let (a, b) = balanced(svd, scale);
    Ok(FirstValues::shifted(a, b))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::init::tests::{assert_close, product, weight};

    /// By PEFT 0.21.2: rank 2, alpha 3; the signs of the vectors are not determined.
    #[test]
    fn the_values_are_those_of_peft() {
        let random = Decomposition::Randomized {
            iterations: 4,
            seed: 0,
        };
        for method in [Decomposition::Exact, random] {
            let first = pissa(weight(), 2, 1.5, method).unwrap();
            assert_close(product(&first), &PRODUCT, 2e-6);
            assert_close(first.a.clone().abs(), &A.map(f32::abs), 2e-6);
            assert_close(first.b.clone().abs(), &B.map(f32::abs), 2e-6);
            assert_close(first.base(weight(), 1.5), &BASE, 2e-6);
        }
    }

    #[rustfmt::skip]
    const A: [f32; 8] = [
        -0.534919, 0.741937, 0.211036, -1.150042, 0.838638, 0.648475, -0.381145, -0.041661,
    ];
    #[rustfmt::skip]
    const B: [f32; 12] = [
        -0.98521, -0.213908, -0.141108, 1.012831, 0.709856, -0.041711, -0.170038, 0.282915, -0.4279,
        0.286624, 0.705182, 0.187945,
    ];
    #[rustfmt::skip]
    const PRODUCT: [f32; 24] = [
        0.347616, -0.869677, -0.126385, 1.141944, 0.92488, 0.552103, -0.415815, 0.120085, -0.414696,
        0.49962, 0.165703, -0.814627, 0.32822, 0.057306, -0.143716, 0.183764, 0.469266, -0.131607,
        -0.199548, 0.480162, -0.219598, 0.645078, 0.077185, -0.818819,
    ];
    #[rustfmt::skip]
    const BASE: [f32; 24] = [
        -0.021424, 0.304515, 0.439578, 0.287084, 0.11268, -0.078154, 0.123722, -0.080127, 0.322044,
        0.15057, 0.951445, 0.12194, -0.49233, 0.314041, -0.584426, 0.324353, 0.296102, -0.00259,
        0.649322, -0.020244, -0.270604, 0.332383, -0.065777, 0.328229,
    ];
}
