use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::lasting_tensor;
use super::magnitude::set_first_magnitudes;
use super::path::{Path, follow_path};
use crate::ops::mix;

/// Gives every adapter its first values anew: `A` from Kaiming's uniform distribution, `B` zero, and
/// DoRA's magnitude the norm of each row of the weight, if that has a value. Burn's own adapters stay what
/// they are.
///
/// The numbers follow from `seed` and the parameter's name alone. So a seed gives the same adapter on
/// every device, and that of a layer does not depend on which other layers have one.
pub fn initialize_adapters<M: Module>(model: M, seed: u64) -> M {
    let model = model.map(&mut Initializer {
        path: Path::default(),
        seed,
    });
    set_first_magnitudes(model, |_| true)
}

struct Initializer {
    path: Path,
    seed: u64,
}

impl Initializer {
    fn first_value<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        let (name, shape) = (self.path.key(), param.lazy_shape());
        let count = shape.num_elements();
        let values = match name.rsplit('.').take(2).collect::<Vec<_>>()[..] {
            ["weight", "lora_a"] => uniform(seed_of(&name, self.seed), count, shape[D - 1]),
            ["weight", "lora_b"] => vec![0.0; count],
            _ => return None,
        };
        let values = TensorData::new(values, shape);
        Some(lasting_tensor(values, &param.lazy_device()))
    }
}

impl ModuleMapper for Initializer {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.path.in_adapter() {
            return param;
        }
        let id = param.id;
        match self.first_value(&param) {
            Some(value) => param.transform_for_load(value, id),
            None => param,
        }
    }
}

fn seed_of(name: &str, seed: u64) -> u64 {
    name.bytes()
        .fold(seed, |seed, byte| mix(seed, u64::from(byte)))
}

/// Numbers of `U(-k, k)`, `k = 1 / sqrt(in_dim)`.
fn uniform(seed: u64, count: usize, in_dim: usize) -> Vec<f32> {
    let k = 1.0 / (in_dim as f32).sqrt();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // The 24 bits that an f32 holds.
    let number = || (rng.next_u32() >> 8) as f32 / 2f32.powi(23) - 1.0;
    std::iter::repeat_with(number)
        .take(count)
        .map(|x| k * x)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed must mean the same in every version of this crate and of its dependencies. The numbers were
    /// computed apart from both.
    #[test]
    fn a_seed_gives_these_numbers() {
        let numbers = uniform(seed_of("layers.0.attn.q_proj.lora_a.weight", 0), 3, 4);
        assert_eq!(numbers, [0.12510002, -0.25223112, 0.20333368]);
    }
}
