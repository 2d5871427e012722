//! Parameters of the base that are trained as they are, as copies: the layer's own stay what they were.

use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor};

use super::{FirstValue, Kept, LayerKind, LayerParams, LayerShape, Method, ParamSpec};
use crate::lora::params::{AdapterParams, AdapterSettings};
use crate::lora::plain::PlainLinear;
use crate::ops::{DropoutMask, linear};
use crate::weight::{FrozenWeight, untracked, with_rows};

/// All of a layer, its weight and its bias: PEFT's `modules_to_save`.
pub static FULL: Full = Full;

/// A layer's bias only: PEFT's `bias`, on layers without another adapter.
pub static BIAS: Bias = Bias;

/// See [`FULL`].
#[derive(Debug)]
pub struct Full;

/// See [`BIAS`].
#[derive(Debug)]
pub struct Bias;

pub(crate) const FULL_WEIGHT: &str = "full.weight";
pub(crate) const TRAINED_BIAS: &str = "full.bias";

impl Method for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn adapts(&self, _: LayerKind) -> bool {
        true
    }

    fn params(&self, layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec> {
        let weight = match layer.kind {
            LayerKind::Norm => {
                let first = FirstValue::VectorOfLayer(norm_weight);
                ParamSpec::vector(FULL_WEIGHT, "weight", layer.dims[0], first)
            }
            _ => {
                let rows = settings.vocab_size.unwrap_or(layer.dims[0]);
                let first = FirstValue::MatrixOfLayer(weight);
                ParamSpec::matrix(FULL_WEIGHT, "weight", [rows, layer.dims[1]], first)
            }
        };
        let mut params = vec![weight];
        if layer.has_bias {
            params.push(trained_bias(layer, "bias"));
        }
        let params = params.into_iter();
        params
            .map(|spec| spec.trained(settings.trains_layer))
            .collect()
    }

    fn add_update(
        &self,
        adapter: &AdapterParams,
        _base: &PlainLinear,
        x: Tensor<3>,
        _y: Tensor<3>,
        _mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        linear(x, adapter.matrix(FULL_WEIGHT))
    }

    fn forward(
        &self,
        adapter: &AdapterParams,
        _base: &PlainLinear,
        x: Tensor<3>,
        _mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        linear(x, adapter.matrix(FULL_WEIGHT))
    }

    fn embed(
        &self,
        adapter: &AdapterParams,
        _weight: &FrozenWeight,
        ids: Tensor<1, Int>,
        rows: Tensor<2>,
    ) -> Tensor<2> {
        let new = embedding(adapter.matrix(FULL_WEIGHT), ids.unsqueeze::<2>());
        new.squeeze_dim::<2>(0).cast(rows.dtype())
    }

    fn merge(
        &self,
        adapter: &AdapterParams,
        _layer: &LayerShape,
        _base: &Tensor<2>,
        _weight: Tensor<2>,
    ) -> Tensor<2> {
        untracked(adapter.matrix(FULL_WEIGHT)).cast(DType::F32)
    }

    fn kept(&self, _layer: &LayerShape, settings: &AdapterSettings) -> Kept {
        Kept::per_token(0).with_input(settings.trains_layer)
    }
}

impl Method for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn adapts(&self, kind: LayerKind) -> bool {
        kind == LayerKind::Linear
    }

    fn params(&self, layer: &LayerShape, _settings: &AdapterSettings) -> Vec<ParamSpec> {
        vec![trained_bias(layer, "bias")]
    }

    fn add_update(
        &self,
        _adapter: &AdapterParams,
        _base: &PlainLinear,
        _x: Tensor<3>,
        y: Tensor<3>,
        _mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        y
    }

    fn merge(
        &self,
        _adapter: &AdapterParams,
        _layer: &LayerShape,
        _base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        weight
    }

    fn kept(&self, _layer: &LayerShape, _settings: &AdapterSettings) -> Kept {
        Kept::per_token(0).with_input(false)
    }
}

/// A copy of the layer's bias, which takes its place whatever the method.
pub(in crate::lora) fn trained_bias(layer: &LayerShape, peft_name: &'static str) -> ParamSpec {
    let first = FirstValue::VectorOfLayer(bias);
    ParamSpec::vector(TRAINED_BIAS, peft_name, layer.dims[0], first)
}

fn weight(layer: &LayerParams, settings: &AdapterSettings) -> Tensor<2> {
    let weight = layer.weight.as_ref().expect("the layer has a matrix");
    let weight = weight.to_f32();
    match settings.vocab_size {
        Some(rows) => with_rows(weight, rows),
        None => weight,
    }
}

fn bias(layer: &LayerParams, _: &AdapterSettings) -> Tensor<1> {
    let bias = layer.bias.as_ref().expect("the layer has a bias");
    untracked(bias.val()).cast(DType::F32)
}

fn norm_weight(layer: &LayerParams, _: &AdapterSettings) -> Tensor<1> {
    let weight = layer.norm_weight.as_ref().expect("the layer is a norm");
    untracked(weight.val()).cast(DType::F32)
}
