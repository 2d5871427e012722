use burn::tensor::{DType, Device, Tensor};

use super::FirstValues;
use crate::lora::linalg::from_host;
use crate::lora::random::{rng, uniform};

/// `A` of `U(-k, k)` with `k = 1 / sqrt(in)`, and `B = 0`: what LoRA's authors published. It is the
/// distribution of He et al., <https://arxiv.org/abs/1502.01852>, for a leaky ReLU of slope `sqrt(5)`.
///
/// The same on every device.
///
/// # Shapes
/// - `shape`: the weight's `[out, in]`
/// - output: `a [r, in]`, `b [out, r]`
pub fn kaiming(
    [out_dim, in_dim]: [usize; 2],
    rank: usize,
    seed: u64,
    device: &Device,
) -> FirstValues {
    let k = 1.0 / (in_dim as f32).sqrt();
    let a = uniform(&mut rng(seed), rank * in_dim, k);
    let b = Tensor::zeros([out_dim, rank], (device, DType::F32));
    FirstValues::unshifted(from_host(a, [rank, in_dim], device), b)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::linalg::to_host;
    use crate::lora::random::seed_of;

    /// The numbers were computed apart from this crate and its dependencies.
    #[test]
    fn a_seed_gives_these_numbers() {
        let seed = seed_of("layers.0.attn.q_proj.lora_a.weight", 0);
        let first = kaiming([3, 4], 2, seed, &Device::flex());
        let a = to_host(first.a);
        assert_eq!(a[..3], [0.12510002, -0.25223112, 0.20333368]);
        assert_eq!((first.b.dims(), to_host(first.b)), ([3, 2], vec![0.0; 6]));
    }
}
