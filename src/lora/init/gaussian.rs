use burn::tensor::{DType, Device, Tensor};

use super::FirstValues;
use crate::lora::linalg::from_host;
use crate::lora::random::{normal, rng};

/// `A` of `N(0, 1/r^2)`, so with the standard deviation `1/r`, and `B = 0`: PEFT's
/// `init_lora_weights="gaussian"`. Hu et al. draw `A` from a normal distribution too,
/// <https://arxiv.org/abs/2106.09685>, section 4.1.
///
/// The same on every device.
///
/// # Shapes
/// - `shape`: the weight's `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
pub fn gaussian(
    [out_dim, in_dim]: [usize; 2],
    rank: usize,
    seed: u64,
    device: &Device,
) -> FirstValues {
    let a = from_host(
        normal(&mut rng(seed), rank * in_dim),
        [rank, in_dim],
        device,
    );
    let b = Tensor::zeros([out_dim, rank], (device, DType::F32));
    FirstValues::unshifted(a / rank as f64, b)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::linalg::to_host;

    /// 0.1247 in PEFT 0.21.2 at rank 8.
    #[test]
    fn the_standard_deviation_is_one_by_the_rank() {
        let first = gaussian([5, 4000], 8, 3, &Device::flex());
        let a = to_host(first.a);
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!((variance.sqrt() - 0.125).abs() < 0.0025, "{variance}");
        assert_eq!((first.b.dims(), to_host(first.b)), ([5, 8], vec![0.0; 40]));
    }
}
