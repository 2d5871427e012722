//! The values that an adapter's parameters have before training.

use burn::tensor::{Device, Distribution, Tensor};

use super::spec::{AdapterSettings, FirstValue, ParamSpec};
use super::{ParamValue, set};
use crate::lora::init::orthogonal;
use crate::lora::shape::{LayerParams, LayerShape};
use crate::weight::lazy_param;

/// `A` or `B` of a pair that follows from a seed.
pub(crate) fn orthogonal_factor(
    layer: &LayerShape,
    rank: usize,
    seed: u64,
    index: usize,
    device: &Device,
) -> Tensor<2> {
    let pair = orthogonal(layer.dims, rank, seed, device);
    let pair = pair.expect("a configuration with an odd rank is refused");
    if index == 0 { pair.a } else { pair.b }
}

pub(super) fn first_param(
    layer: &LayerShape,
    spec: &ParamSpec,
    settings: &AdapterSettings,
    of_layer: &LayerParams,
    device: &Device,
) -> ParamValue {
    match spec.shape[..] {
        [rows, columns] => {
            let shape = [rows, columns];
            ParamValue::Matrix(match spec.first {
                FirstValue::MatrixOfLayer(first) => {
                    let (layer, settings) = (of_layer.clone(), settings.clone());
                    lazy_param(shape, device, move |_, device| {
                        first(&layer, &settings).to_device(device)
                    })
                }
                FirstValue::PairOfLayer(first, index) => {
                    let (layer, settings) = (of_layer.clone(), settings.clone());
                    lazy_param(shape, device, move |_, device| {
                        let [a, b] = first(&layer, &settings);
                        let factor = if index == 0 { a } else { b };
                        factor.to_device(device)
                    })
                }
                FirstValue::Orthogonal(index) => {
                    let (layer, rank) = (*layer, settings.rank);
                    lazy_param(shape, device, move |_, device| {
                        orthogonal_factor(&layer, rank, 0, index, device)
                    })
                }
                first => lazy_param(shape, device, move |shape, device| {
                    first_numbers(first, shape, device)
                }),
            })
        }
        [len] => ParamValue::Vector(match spec.first {
            FirstValue::VectorOfLayer(first) => {
                let (layer, settings) = (of_layer.clone(), settings.clone());
                lazy_param([len], device, move |_, device| {
                    first(&layer, &settings).to_device(device)
                })
            }
            first => lazy_param([len], device, move |shape, device| {
                first_numbers(first, shape, device)
            }),
        }),
        _ => panic!("a parameter of an adapter has one or two dimensions"),
    }
}

fn first_numbers<const D: usize>(
    first: FirstValue,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    match first {
        FirstValue::Zeros => Tensor::zeros(shape, device),
        FirstValue::Uniform(k) => Tensor::random(shape, Distribution::Uniform(-k, k), device),
        FirstValue::Normal(std) => Tensor::random(shape, Distribution::Normal(0.0, std), device),
        _ => {
            panic!("a parameter that follows from its layer has that kind's dimensions")
        }
    }
}

/// Matrices that follow from a layer together, each computed once: a decomposition takes its time.
#[derive(Default)]
pub(super) struct Pairs(Vec<(usize, [Tensor<2>; 2])>);

impl Pairs {
    fn get(
        &mut self,
        pair: fn(&LayerParams, &AdapterSettings) -> [Tensor<2>; 2],
        layer: &LayerParams,
        settings: &AdapterSettings,
    ) -> [Tensor<2>; 2] {
        let address = pair as usize;
        if let Some((_, found)) = self.0.iter().find(|(other, _)| *other == address) {
            return found.clone();
        }
        let found = pair(layer, settings);
        self.0.push((address, found.clone()));
        found
    }
}

impl ParamValue {
    pub(super) fn follow_layer(
        &mut self,
        spec: &ParamSpec,
        settings: &AdapterSettings,
        layer: &LayerParams,
        pairs: &mut Pairs,
    ) {
        match (self, spec.first) {
            (Self::Matrix(param), FirstValue::PairOfLayer(pair, index)) => {
                let [a, b] = pairs.get(pair, layer, settings);
                set(param, if index == 0 { a } else { b });
            }
            (Self::Matrix(param), FirstValue::MatrixOfLayer(first)) => {
                set(param, first(layer, settings));
            }
            (Self::Vector(param), FirstValue::VectorOfLayer(first)) => {
                set(param, first(layer, settings));
            }
            _ => {}
        }
    }
}
