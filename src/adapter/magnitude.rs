use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use super::path::{Path, follow_path};
use crate::lora::first_magnitude;

/// Gives DoRA's magnitudes, those whose keys `is_new` names, their first values: the row norms of their
/// layers' weights, if those have values.
pub(super) fn set_first_magnitudes<M: Module>(model: M, is_new: impl Fn(&str) -> bool) -> M {
    model.map(&mut Magnitudes {
        path: Path::default(),
        is_new,
        weight: None,
    })
}

struct Magnitudes<F> {
    path: Path,
    is_new: F,
    /// The last matrix outside of an adapter, which is the weight of the layer that holds the adapter;
    /// none if it has no value yet.
    weight: Option<Tensor<2>>,
}

impl<F: Fn(&str) -> bool> ModuleMapper for Magnitudes<F> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.path.in_adapter() {
            if let [rows, columns] = param.lazy_shape()[..] {
                let weight = param.is_initialized().then(|| param.val());
                self.weight = weight.map(|weight| weight.reshape([rows, columns]));
            }
            return param;
        }
        let key = self.path.key();
        let is_magnitude = key.rsplit('.').next() == Some("magnitude");
        match self.weight.clone() {
            Some(weight) if is_magnitude && (self.is_new)(&key) => {
                let id = param.id;
                param.transform_for_load(first_magnitude(weight).unsqueeze(), id)
            }
            _ => param,
        }
    }
}
