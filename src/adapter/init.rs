use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::lasting_tensor;
use crate::lora::{FirstValue, ParamValue, edit_layers, set};
use crate::ops::mix;

/// Gives every adapter its first values anew, those that its method's table says: `A` from Kaiming's uniform
/// distribution, `B` zero, and DoRA's magnitude the norm of each row of the weight, if that has a value. Burn's own
/// adapters stay what they are.
///
/// The numbers follow from `seed` and the parameter's name alone. So a seed gives the same adapter on
/// every device, and that of a layer does not depend on which other layers have one.
pub fn initialize_adapters<M: Module>(model: M, seed: u64) -> M {
    edit_layers(model, move |place, layer| {
        for (prefix, adapter) in layer.slot_mut().keyed_mut(place.path) {
            if place.params.is_initialized() {
                adapter.follow_layer(&place.params, |_| true);
            }
            for (spec, value) in adapter.values_mut() {
                let name = format!("{prefix}{}", spec.name);
                let numbers = first_numbers(spec.first, &name, seed, spec.num_elements());
                let Some(numbers) = numbers else { continue };
                match value {
                    ParamValue::Matrix(param) => set_numbers(param, numbers),
                    ParamValue::Vector(param) => set_numbers(param, numbers),
                }
            }
        }
    })
}

fn set_numbers<const D: usize>(param: &mut Param<Tensor<D>>, numbers: Vec<f32>) {
    let values = TensorData::new(numbers, param.lazy_shape());
    let value = lasting_tensor(values, &param.lazy_device());
    set(param, value);
}

/// None for what follows from the layer.
fn first_numbers(first: FirstValue, name: &str, seed: u64, count: usize) -> Option<Vec<f32>> {
    match first {
        FirstValue::Zeros => Some(vec![0.0; count]),
        FirstValue::Uniform(k) => Some(uniform(seed_of(name, seed), count, k)),
        FirstValue::Normal(std) => Some(normal(seed_of(name, seed), count, std)),
        _ => None,
    }
}

fn seed_of(name: &str, seed: u64) -> u64 {
    name.bytes()
        .fold(seed, |seed, byte| mix(seed, u64::from(byte)))
}

/// Numbers of `U(-k, k)`.
fn uniform(seed: u64, count: usize, k: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // The 24 bits that an f32 holds.
    let number = || (rng.next_u32() >> 8) as f32 / 2f32.powi(23) - 1.0;
    std::iter::repeat_with(number)
        .take(count)
        .map(|x| k as f32 * x)
        .collect()
}

/// Numbers of `N(0, std²)`. Box and Muller, <https://doi.org/10.1214/aoms/1177706645>.
fn normal(seed: u64, count: usize, std: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // In (0, 1], so that there is a logarithm.
    let mut number = || (f64::from(rng.next_u32()) + 1.0) / 2f64.powi(32);
    let pair = || {
        let radius = std * (-2.0 * number().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * number()).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    std::iter::repeat_with(pair).flatten().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed must mean the same in every version of this crate and of its dependencies. The numbers were
    /// computed apart from both.
    #[test]
    fn a_seed_gives_these_numbers() {
        let numbers = uniform(seed_of("layers.0.attn.q_proj.lora_a.weight", 0), 3, 0.5);
        assert_eq!(numbers, [0.12510002, -0.25223112, 0.20333368]);
    }

    #[test]
    fn normal_numbers_have_their_mean_and_deviation() {
        let numbers = normal(3, 100_000, 0.5);
        let count = numbers.len() as f32;
        let mean = numbers.iter().sum::<f32>() / count;
        let variance = numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        approx::assert_relative_eq!(mean, 0.0, epsilon = 0.01);
        approx::assert_relative_eq!(variance, 0.25, epsilon = 0.01);
        let above = numbers.iter().filter(|x| **x > 1.0).count() as f32 / count;
        approx::assert_relative_eq!(above, 0.0228, epsilon = 0.003);
    }
}
