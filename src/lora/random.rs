//! Numbers drawn from a seed on the host, the same for every device.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::ops::mix;

/// The seed of one parameter, so that its numbers do not depend on which other parameters there are.
#[cfg_attr(not(test), expect(dead_code))]
pub(crate) fn seed_of(name: &str, seed: u64) -> u64 {
    name.bytes()
        .fold(seed, |seed, byte| mix(seed, u64::from(byte)))
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Numbers of `U(-k, k)`.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, count: usize, k: f32) -> Vec<f32> {
    // The 24 bits that an f32 holds.
    let number = || (rng.next_u32() >> 8) as f32 / 2f32.powi(23) - 1.0;
    let numbers = std::iter::repeat_with(number).take(count);
    numbers.map(|x| k * x).collect()
}

/// Numbers of `N(0, 1)`, by Box's and Muller's transform of pairs of uniform numbers,
/// <https://doi.org/10.1214/aoms/1177706645>. In f64, where the last bit of a platform's logarithm is lost
/// when the number is rounded to f32.
pub(crate) fn normal(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        // Above zero, since its logarithm is taken.
        let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(rng)).sin_cos();
        numbers.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    numbers.truncate(count);
    numbers
}

/// For each of `count` elements 1 with the probability `keep`, else 0.
pub(crate) fn bernoulli(rng: &mut ChaCha8Rng, count: usize, keep: f64) -> Vec<f32> {
    let number = || if unit(rng) < keep { 1.0 } else { 0.0 };
    std::iter::repeat_with(number).take(count).collect()
}

/// A number of `[0, 1)` with the 53 bits that an f64 holds.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / 2f64.powi(53)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed must mean the same in every version of this crate and of its dependencies. The numbers were
    /// computed apart from both.
    #[test]
    fn a_seed_gives_these_numbers() {
        let seed = seed_of("layers.0.attn.q_proj.lora_a.weight", 0);
        let numbers = uniform(&mut rng(seed), 3, 0.5);
        assert_eq!(numbers, [0.12510002, -0.25223112, 0.20333368]);
        let numbers = normal(&mut rng(seed), 5);
        assert_eq!(numbers, NORMAL);
    }

    const NORMAL: [f32; 5] = [-0.48808342, -0.57549804, -0.9384586, -2.179226, -1.4270941];

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let numbers = normal(&mut rng(7), 100_000);
        let moment = |power| {
            let powers = numbers.iter().map(|x| f64::from(*x).powi(power));
            powers.sum::<f64>() / numbers.len() as f64
        };
        // Within five standard deviations of what chance gives.
        assert!(moment(1).abs() < 0.016, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.023, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.16, "{}", moment(4));
    }

    #[test]
    fn elements_are_kept_with_the_probability() {
        let kept: f32 = bernoulli(&mut rng(7), 100_000, 0.3).iter().sum();
        assert!((kept / 1e5 - 0.3).abs() < 0.008, "{kept}");
        assert_eq!(bernoulli(&mut rng(7), 3, 1.0), [1.0; 3]);
    }
}
