use burn::tensor::{DType, Tensor};

use super::{BaseShift, FirstValues, balanced, check_rank, check_scale};
use crate::lora::linalg::{Decomposition, truncated_svd};
use crate::{Error, Result};

/// LoftQ: a quantized base and an adapter that together are close to the weight. From `A = B = 0`, over
/// and over,
///
/// `Q = q(W - s·B·A)`, then `s·B·A` the closest matrix of rank r to `W - Q`.
///
/// Li et al., *LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models*,
/// <https://arxiv.org/abs/2310.08659>, algorithm 1.
///
/// `quantize_dequantize` is `q`: it gives the numbers that the quantized matrix stands for. The base to
/// quantize and keep is [`FirstValues::base`], of `A` and `B` before the last iteration. One iteration
/// quantizes the weight itself; 5 are usual. Not every iteration comes closer to the weight.
/// [`initialize_loftq`](crate::adapter::initialize_loftq) does this for the packed weights of a model.
///
/// PEFT leaves the scale out, as if it were 1.
///
/// # Shapes
/// - `weight`, and what `quantize_dequantize` takes and gives: `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no iteration, if the rank is zero or beyond the weight's smaller
/// side, if the scale is not positive, or if the weight holds NaN or infinite numbers; and the errors of
/// `quantize_dequantize`.
pub fn loftq(
    weight: Tensor<2>,
    rank: usize,
    scale: f64,
    iterations: usize,
    decomposition: Decomposition,
    mut quantize_dequantize: impl FnMut(Tensor<2>) -> Result<Tensor<2>>,
) -> Result<FirstValues> {
    check_rank(rank, weight.dims())?;
    let weight = weight.detach().cast(DType::F32);
    let quantized = quantize_dequantize(weight.clone())?;
    loftq_from(
        [weight, quantized],
        rank,
        scale,
        iterations,
        decomposition,
        quantize_dequantize,
    )
}

/// [`loftq`] where the weight, the first of the two, has been quantized already, to the second.
pub(crate) fn loftq_from(
    [weight, quantized]: [Tensor<2>; 2],
    rank: usize,
    scale: f64,
    iterations: usize,
    decomposition: Decomposition,
    mut quantize_dequantize: impl FnMut(Tensor<2>) -> Result<Tensor<2>>,
) -> Result<FirstValues> {
    check_rank(rank, weight.dims())?;
    check_scale(scale)?;
    check_iterations(iterations)?;
    let closest = |quantized: Tensor<2>| -> Result<_> {
        let error = weight.clone() - quantized.cast(DType::F32);
        let svd = truncated_svd(error, rank, decomposition)?;
        Ok(balanced(svd, scale))
    };
    let (mut a, mut b) = closest(quantized)?;
    let mut base_shift = None;
    for _ in 1..iterations {
        let shift = BaseShift { a, b };
        let quantized = quantize_dequantize(shift.take_off(weight.clone(), scale))?;
        (a, b) = closest(quantized)?;
        base_shift = Some(shift);
    }
    Ok(FirstValues { a, b, base_shift })
}

fn check_iterations(iterations: usize) -> Result<()> {
    match iterations {
        0 => Err(Error::InvalidArgument {
            name: "iterations",
            message: "LoftQ needs at least one iteration; 5 are usual".into(),
        }),
        _ => Ok(()),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::init::tests::{assert_close, product, weight};
    use crate::lora::linalg::to_host;

    const EXACT: Decomposition = Decomposition::Exact;

    /// Rounds each row to multiples of its largest number over 2.7.
    fn round(weight: Tensor<2>) -> Tensor<2> {
        let step = weight.clone().abs().max_dim(1) / 2.7;
        (weight / step.clone() + 0.5).floor() * step
    }

    fn rounded(weight: Tensor<2>) -> Result<Tensor<2>> {
        Ok(round(weight))
    }

    fn error(first: &FirstValues, scale: f64) -> f32 {
        let base = round(first.base(weight(), scale));
        let error = weight() - base - product(first) * scale;
        error.square().sum().sqrt().into_scalar()
    }

    /// By the functions of PEFT 0.21.2 for one iteration, which know no scale.
    #[test]
    fn the_values_are_those_of_peft() {
        for scale in [1.0, 4.0] {
            for (iterations, expected, distance) in
                [(1, ONE, 0.28884), (2, TWO, 0.3953), (3, THREE, 0.42752)]
            {
                let first = loftq(weight(), 2, scale, iterations, EXACT, rounded).unwrap();
                assert_close(product(&first) * scale, &expected, 5e-6);
                let found = error(&first, scale);
                assert!((found - distance).abs() < 1e-5, "{found}");
                // 0.7089 without an adapter.
                assert_eq!(first.base_shift.is_none(), iterations == 1);
            }
        }
    }

    #[rustfmt::skip]
    const ONE: [f32; 24] = [
        -0.231245, -0.30837, 0.239273, -0.155427, -0.146018, 0.161856, 0.066254, 0.150404, 0.185872,
        -0.066582, -0.117515, -0.094252, -0.041231, 0.056636, 0.016107, 0.05009, -0.053879, 0.09488,
        0.016083, 0.080003, -0.108311, -0.073516, 0.095199, -0.023366,
    ];
    #[rustfmt::skip]
    const TWO: [f32; 24] = [
        -0.304834, -0.232592, 0.254436, -0.366826, -0.283805, 0.164298, 0.168474, 0.088153, 0.246237,
        -0.127765, -0.148828, -0.059803, -0.061965, 0.045621, 0.035033, 0.030246, -0.130256, 0.075153,
        0.077369, 0.040172, -0.042383, -0.035116, 0.035875, -0.054136,
    ];
    #[rustfmt::skip]
    const THREE: [f32; 24] = [
        -0.38714, -0.084011, 0.211492, -0.641303, -0.438874, 0.129404, 0.225553, 0.090111, 0.280943,
        -0.094332, -0.14366, -0.099493, -0.066246, 0.015904, 0.034275, 0.000402, -0.209161, 0.02744,
        0.109659, -0.081571, -0.064819, 0.024142, 0.032995, 0.031605,
    ];

    #[test]
    fn an_adapter_of_full_rank_takes_all_of_the_error() {
        let first = loftq(weight(), 4, 2.0, 1, EXACT, rounded).unwrap();
        let effective = round(first.base(weight(), 2.0)) + product(&first) * 2.0;
        assert_close(effective, &to_host(weight()), 1e-6);
    }

    #[test]
    fn no_iteration_and_a_quantization_to_nan_are_errors() {
        assert!(loftq(weight(), 2, 1.0, 0, EXACT, rounded).is_err());
        let nan = |weight: Tensor<2>| Ok(weight * f32::NAN);
        assert!(loftq(weight(), 2, 1.0, 1, EXACT, nan).is_err());
    }
}
