use burn::tensor::{Device, Tensor, s};

use super::FirstValues;
use crate::lora::linalg::{from_host, qr};
use crate::lora::random::{normal, rng};
use crate::{Error, Result};

/// `B·A = 0` while neither is zero, so that both have gradients from the first step: PEFT's
/// `init_lora_weights="orthogonal"`, <https://datta0.github.io/posts/rethink-lora-init/>.
///
/// With a random orthogonal matrix `Q [r, r]` and normal `X [in, r/2]` and `Y [out, r/2]`,
/// `A = (X·Q_0)^T / 10` and `B = Y·Q_1 / 10`, where `Q_0` are the even rows of `Q` and `Q_1` the odd ones.
/// Each of `A` and `B` has the rank `r/2`. The same on every device.
///
/// # Shapes
/// - `shape`: the weight's `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
///
/// # Errors
/// [`Error::InvalidArgument`] if the rank is odd or zero.
pub fn orthogonal(
    [out_dim, in_dim]: [usize; 2],
    rank: usize,
    seed: u64,
    device: &Device,
) -> Result<FirstValues> {
    if rank == 0 || !rank.is_multiple_of(2) {
        return Err(Error::InvalidArgument {
            name: "rank",
            message: format!(
                "orthogonal first values need an even rank, not {rank}: half of it is for A, half for B"
            ),
        });
    }
    let rng = &mut rng(seed);
    let mut random = |rows, cols| from_host(normal(rng, rows * cols), [rows, cols], device);
    let (q, _) = qr(random(rank, rank))?;
    let (x, y): (Tensor<2>, Tensor<2>) = (random(in_dim, rank / 2), random(out_dim, rank / 2));
    let a = x.matmul(q.clone().slice(s![0..;2, ..])).transpose() / 10.0;
    let b = y.matmul(q.slice(s![1..;2, ..])) / 10.0;
    Ok(FirstValues::unshifted(a, b))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::linalg::to_host;

    #[test]
    fn the_product_is_zero_while_neither_factor_is() {
        let first = orthogonal([30, 20], 8, 1, &Device::flex()).unwrap();
        let product = to_host(first.b.clone().matmul(first.a.clone()));
        assert!(product.iter().all(|x| x.abs() < 1e-7), "{product:?}");
        assert_eq!((first.a.dims(), first.b.dims()), ([8, 20], [30, 8]));
        // 0.1 / sqrt(2), as in PEFT, whose large matrices have 0.0707 and 0.0700.
        for factor in [first.a, first.b] {
            let deviation: f32 = factor.square().mean().sqrt().into_scalar();
            assert!((deviation - 0.0707).abs() < 0.01, "{deviation}");
        }
    }

    /// By NumPy, from normal numbers that were computed apart from this crate; the signs of the columns of
    /// `Q` are not determined.
    #[test]
    fn a_seed_gives_these_numbers() {
        let first = orthogonal([3, 5], 4, 5, &Device::flex()).unwrap();
        let close = |found: Tensor<2>, expected: &[f32]| {
            for (x, y) in to_host(found).iter().zip(expected) {
                assert!((x.abs() - y).abs() < 1e-6, "{x} {y}");
            }
        };
        close(first.a, &A);
        close(first.b, &B);
    }

    #[rustfmt::skip]
    const A: [f32; 20] = [
        0.127726, 0.042114, 0.003225, 0.058591, 0.118401, 0.030615, 0.02537, 0.021035, 0.018168, 0.031151,
        0.095152, 0.033812, 0.003902, 0.043365, 0.092299, 0.093027, 0.007719, 0.021259, 0.047139, 0.02179,
    ];
    #[rustfmt::skip]
    const B: [f32; 12] = [
        0.025975, 0.00212, 0.033989, 0.000201, 0.030833, 0.027535, 0.023896, 0.026953, 0.021436, 0.069418,
        0.010905, 0.063432,
    ];

    #[test]
    fn an_odd_rank_is_refused() {
        for rank in [0, 3] {
            let error = orthogonal([3, 5], rank, 5, &Device::flex()).unwrap_err();
            assert!(error.to_string().starts_with("rank: orthogonal"), "{error}");
        }
    }
}
