use burn::tensor::{DType, Tensor};

use super::{FirstValues, check_rank};
use crate::Result;
use crate::lora::linalg::{finite_values, qr};

/// OLoRA: the adapter begins with an orthonormal basis. With `W = Q·R`,
///
/// `B = Q_r`, `A = R_r`, `W <- W - s·B·A`,
///
/// the leading r columns of `Q` and rows of `R`. Büyükakyüz, *OLoRA: Orthonormal Low-Rank Adaptation of
/// Large Language Models*, <https://arxiv.org/abs/2406.01775>.
///
/// `Q_r` is that of the leading r columns of `W` alone, and `R_r = Q_r^T·W`: no whole decomposition is
/// needed.
///
/// # Shapes
/// - `weight`: `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the rank is zero or beyond the weight's
/// smaller side, or if the weight holds NaN or infinite numbers.
pub fn olora(weight: Tensor<2>, rank: usize) -> Result<FirstValues> {
    check_rank(rank, weight.dims())?;
    let weight = weight.detach().cast(DType::F32);
    let (q, _) = qr(weight.clone().narrow(1, 0, rank))?;
    let r = q.clone().transpose().matmul(weight);
    finite_values(r.clone())?;
    Ok(FirstValues::shifted(r, q))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::init::tests::{assert_close, product, weight};
    use crate::lora::linalg::to_host;

    /// By PEFT 0.21.2: rank 2, alpha 3; the signs of the vectors are not determined.
    #[test]
    fn the_values_are_those_of_peft() {
        let first = olora(weight(), 2).unwrap();
        assert_close(product(&first), &PRODUCT, 2e-6);
        assert_close(first.a.clone().abs(), &A.map(f32::abs), 2e-6);
        assert_close(first.b.clone().abs(), &B.map(f32::abs), 2e-6);
        assert_close(first.base(weight(), 1.5), &BASE, 2e-6);
    }

    #[rustfmt::skip]
    const A: [f32; 8] = [
        -1.987461, 0.314472, 0.334598, -1.36858, 0.0, -2.040492, -0.012143, 1.74204,
    ];
    #[rustfmt::skip]
    const B: [f32; 12] = [
        -0.251577, 0.451306, -0.754732, -0.483874, 0.150946, -0.417807, -0.0, -0.196031,
        -0.503155, 0.020472, 0.301893, -0.590575,
    ];
    #[rustfmt::skip]
    const PRODUCT: [f32; 24] = [
        0.5, -1.0, -0.089658, 1.130497, 1.5, 0.75, -0.246656, 0.189983, -0.3,
        0.9, 0.05558, -0.934419, 0.0, 0.4, 0.00238, -0.341494, 1.0, -0.2,
        -0.168603, 0.72427, -0.6, 1.3, 0.108184, -1.44197,
    ];
    #[rustfmt::skip]
    const BASE: [f32; 24] = [
        -0.25, 0.5, 0.384486, 0.304255, -0.75, -0.375, -0.130016, -0.184974, 0.15,
        -0.45, 1.11663, 0.301628, 0.0, -0.2, -0.803571, 1.112241, -0.5, 0.1,
        0.602905, -0.386405, 0.3, -0.65, -0.112276, 1.262954,
    ];

    #[test]
    fn columns_of_zeros_still_give_an_orthonormal_basis() {
        let first = olora(weight().slice_fill([0..6, 0..2], 0.0), 3).unwrap();
        let gram = first.b.clone().transpose().matmul(first.b);
        let eye = Tensor::<2>::eye(3, &gram.device());
        assert_close(gram, &to_host(eye), 1e-6);
    }
}
