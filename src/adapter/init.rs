use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::lasting_tensor;
use crate::lora::{
    FirstValue, ParamValue, edit_layers, normal, orthogonal_factor, rng, seed_of, set, uniform,
};

/// Gives every adapter its first values anew, those that its method's table says: `A` from Kaiming's uniform
/// distribution, `B` zero, and DoRA's magnitude the norm of each row of the weight, if that has a value. Burn's own
/// adapters stay what they are.
///
/// The numbers follow from `seed` and the parameter's name alone. So a seed gives the same adapter on
/// every device, and that of a layer does not depend on which other layers have one.
///
/// # Panics
/// If a weight that is decomposed (PiSSA, OLoRA) holds NaN or infinite numbers.
pub fn initialize_adapters<M: Module>(model: M, seed: u64) -> M {
    edit_layers(model, move |place, layer| {
        for (prefix, adapter) in layer.slot_mut().keyed_mut(place.path) {
            if place.params.is_initialized() {
                adapter.follow_layer(&place.params, |_| true);
            }
            let (shape, rank, device) = (*adapter.layer(), adapter.rank(), place.device());
            for (spec, value) in adapter.values_mut() {
                let name = format!("{prefix}{}", spec.name);
                match (value, spec.first) {
                    (ParamValue::Matrix(param), FirstValue::Orthogonal(index)) => {
                        let seed = seed_of(&prefix, seed);
                        set(param, orthogonal_factor(&shape, rank, seed, index, &device));
                    }
                    (value, first) => {
                        let numbers = first_numbers(first, &name, seed, spec.num_elements());
                        let Some(numbers) = numbers else { continue };
                        match value {
                            ParamValue::Matrix(param) => set_numbers(param, numbers),
                            ParamValue::Vector(param) => set_numbers(param, numbers),
                        }
                    }
                }
            }
        }
    })
}

/// None for what follows from the layer.
fn first_numbers(first: FirstValue, name: &str, seed: u64, count: usize) -> Option<Vec<f32>> {
    let rng = &mut rng(seed_of(name, seed));
    match first {
        FirstValue::Zeros => Some(vec![0.0; count]),
        FirstValue::Uniform(k) => Some(uniform(rng, count, k as f32)),
        FirstValue::Normal(std) => {
            let numbers = normal(rng, count).into_iter();
            Some(numbers.map(|x| x * std as f32).collect())
        }
        _ => None,
    }
}

fn set_numbers<const D: usize>(param: &mut Param<Tensor<D>>, numbers: Vec<f32>) {
    let values = TensorData::new(numbers, param.lazy_shape());
    let value = lasting_tensor(values, &param.lazy_device());
    set(param, value);
}
