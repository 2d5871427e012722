//! LoRA: `W x + s·B(A·dropout(x))`. Hu et al., <https://arxiv.org/abs/2106.09685>; with `s = alpha / sqrt(r)`
//! rsLoRA, Kalajdzievski, <https://arxiv.org/abs/2312.03732>.

use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor};

use super::{FirstValue, Kept, LayerKind, LayerParams, LayerShape, Method, ParamSpec};
use crate::lora::init::{FirstValues, Init, olora, pissa};
use crate::lora::linalg::Decomposition;
use crate::lora::params::{AdapterParams, AdapterSettings};
use crate::lora::plain::PlainLinear;
use crate::ops::{DropoutMask, dropout, linear, lora_linear_kept};
use crate::weight::{FrozenWeight, untracked};

/// Low-rank adaptation.
pub static LORA: LoRA = LoRA;

/// See [`LORA`].
#[derive(Debug)]
pub struct LoRA;

pub(crate) const LORA_A: &str = "lora_a.weight";
pub(crate) const LORA_B: &str = "lora_b.weight";
/// What an adapter that begins with a part of the base began with.
pub(crate) const SHIFT_A: &str = "shift_a.weight";
pub(crate) const SHIFT_B: &str = "shift_b.weight";
pub(crate) const LORA_B_BIAS: &str = "lora_b.bias";

impl Method for LoRA {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn adapts(&self, kind: LayerKind) -> bool {
        kind != LayerKind::Norm
    }

    fn params(&self, layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec> {
        factors(layer, settings)
    }

    fn add_update(
        &self,
        adapter: &AdapterParams,
        _base: &PlainLinear,
        x: Tensor<3>,
        y: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let y = shifted(adapter, &x, y);
        let x = match mask {
            None => x,
            Some(mask) => dropout(x, mask),
        };
        let [a, b] = of_linear(adapter);
        let down = linear(x, a) * adapter.scale();
        add_bias(adapter, y + linear(down, b))
    }

    fn forward(
        &self,
        adapter: &AdapterParams,
        base: &PlainLinear,
        x: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let y = base
            .weight
            .lora_product(x.clone(), of_linear(adapter), adapter.scale(), mask);
        add_bias(adapter, shifted(adapter, &x, y))
    }

    fn embed(
        &self,
        adapter: &AdapterParams,
        _weight: &FrozenWeight,
        ids: Tensor<1, Int>,
        rows: Tensor<2>,
    ) -> Tensor<2> {
        let update = embedded_update(adapter, ids).cast(rows.dtype());
        rows + update
    }

    fn merge(
        &self,
        adapter: &AdapterParams,
        layer: &LayerShape,
        _base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        weight + update(adapter, layer.kind)
    }

    /// What the adapter began with is a second product beside the first, forward and backward.
    fn kept(&self, _layer: &LayerShape, settings: &AdapterSettings) -> Kept {
        let (trains_a, drops) = (!settings.freeze_a, settings.dropout > 0.0);
        let kept = lora_linear_kept(settings.rank, trains_a, drops);
        let is_shifted = usize::from(settings.begins_with_base);
        kept.with_outputs_at_once(kept.outputs_at_once + is_shifted)
            .with_inputs_at_once(kept.inputs_at_once + is_shifted)
    }
}

/// `A` and `B` of a linear layer. Those of an embedding, whose weight is an output's too, are `Bᵀ` and `Aᵀ` there.
fn of_linear(adapter: &AdapterParams) -> [Tensor<2>; 2] {
    let [a, b] = [LORA_A, LORA_B].map(|name| adapter.matrix(name));
    match adapter.layer().kind {
        LayerKind::Embedding => [b.transpose(), a.transpose()],
        _ => [a, b],
    }
}

/// The parameters of `A` and `B`, and the bias of `B` if it has one.
pub(super) fn factors(layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec> {
    let (rank, [rows, columns]) = (settings.rank, layer.dims);
    let (a, b, shapes) = match layer.kind {
        LayerKind::Embedding => (
            "lora_embedding_A",
            "lora_embedding_B",
            [[rank, rows], [columns, rank]],
        ),
        _ => (
            "lora_A.weight",
            "lora_B.weight",
            [[rank, columns], [rows, rank]],
        ),
    };
    let [first_a, first_b] = first_factors(layer, settings);
    let mut params = vec![
        ParamSpec::matrix(LORA_A, a, shapes[0], first_a).trained(!settings.freeze_a),
        ParamSpec::matrix(LORA_B, b, shapes[1], first_b),
    ];
    if layer.kind == LayerKind::Linear
        && let Some(pair) = shift_of(settings.init)
    {
        let kept = |name, shape, index| {
            let first = FirstValue::PairOfLayer(pair, index);
            ParamSpec::matrix(name, "", shape, first).trained(false)
        };
        params.push(kept(SHIFT_A, shapes[0], 0));
        params.push(kept(SHIFT_B, shapes[1], 1));
    }
    if settings.lora_bias && layer.kind == LayerKind::Linear {
        let bias = ParamSpec::vector(LORA_B_BIAS, "lora_B.bias", rows, FirstValue::Zeros);
        params.push(bias);
    }
    params
}

/// `B·A` is zero at first: on a linear layer by `B`, on an embedding by `A`, as in PEFT. An embedding's that are the
/// output's too begin as the output's.
fn first_factors(layer: &LayerShape, settings: &AdapterSettings) -> [FirstValue; 2] {
    let [_, columns] = layer.dims;
    if settings.ties_output {
        let untied = AdapterSettings {
            ties_output: false,
            ..settings.clone()
        };
        let [a, b] = first_factors(&LayerShape::linear(columns, layer.dims[0], false), &untied);
        return [b, a];
    }
    match (layer.kind, settings.init) {
        (LayerKind::Embedding, _) => [FirstValue::Zeros, FirstValue::Normal(1.0)],
        (_, Init::Gaussian) => {
            let std = 1.0 / settings.rank as f64;
            [FirstValue::Normal(std), FirstValue::Zeros]
        }
        (_, Init::Orthogonal) => [FirstValue::Orthogonal(0), FirstValue::Orthogonal(1)],
        (_, init) => match shift_of(init) {
            Some(pair) => [0, 1].map(|index| FirstValue::PairOfLayer(pair, index)),
            None => {
                let k = 1.0 / (columns as f64).sqrt();
                [FirstValue::Uniform(k), FirstValue::Zeros]
            }
        },
    }
}

/// The part of a base that an adapter begins with.
type Pair = fn(&LayerParams, &AdapterSettings) -> [Tensor<2>; 2];

fn shift_of(init: Init) -> Option<Pair> {
    match init {
        Init::Pissa | Init::PissaRandomized { .. } => Some(principal_part),
        Init::Olora => Some(leading_basis),
        Init::Kaiming | Init::Gaussian | Init::Orthogonal | Init::Eva | Init::Loftq => None,
    }
}

fn principal_part(layer: &LayerParams, settings: &AdapterSettings) -> [Tensor<2>; 2] {
    let decomposition = match settings.init {
        Init::PissaRandomized { iterations } => Decomposition::Randomized {
            iterations,
            seed: 0,
        },
        _ => Decomposition::Exact,
    };
    let first = pissa(
        first_weight(layer),
        settings.rank,
        settings.scale(),
        decomposition,
    );
    factors_of(first)
}

fn leading_basis(layer: &LayerParams, settings: &AdapterSettings) -> [Tensor<2>; 2] {
    factors_of(olora(first_weight(layer), settings.rank))
}

fn first_weight(layer: &LayerParams) -> Tensor<2> {
    let weight = layer.weight.as_ref().expect("a linear layer has a weight");
    weight.to_f32()
}

/// # Panics
/// If the weight holds NaN or infinite numbers.
fn factors_of(first: crate::Result<FirstValues>) -> [Tensor<2>; 2] {
    match first {
        Ok(first) => [first.a, first.b],
        Err(error) => panic!("the base weight cannot be decomposed: {error}"),
    }
}

/// Takes what the adapter began with off the output: the base has lost it.
fn shifted(adapter: &AdapterParams, x: &Tensor<3>, y: Tensor<3>) -> Tensor<3> {
    let [Some(a), Some(b)] = [SHIFT_A, SHIFT_B].map(|name| adapter.matrix_param(name)) else {
        return y;
    };
    let down = linear(x.clone(), a.val()) * -adapter.scale();
    y + linear(down, b.val())
}

/// The bias of `B` is scaled as its product is.
pub(super) fn add_bias(adapter: &AdapterParams, y: Tensor<3>) -> Tensor<3> {
    match adapter.vector(LORA_B_BIAS) {
        None => y,
        Some(bias) => {
            let bias = (bias * adapter.scale()).cast(y.dtype());
            y + bias.unsqueeze()
        }
    }
}

/// What a merged layer adds to its bias: the bias of `B`, scaled.
pub(in crate::lora) fn added_bias(adapter: &AdapterParams) -> Option<Tensor<1>> {
    let bias = adapter.vector(LORA_B_BIAS)?;
    Some(untracked(bias).cast(DType::F32) * adapter.scale())
}

/// `s·B·A` in f32 without a graph, in the layout of the layer's weight: an embedding's is `s·(B·A)ᵀ`.
pub(in crate::lora) fn update(adapter: &AdapterParams, kind: LayerKind) -> Tensor<2> {
    let f32 = |name| Some(untracked(adapter.matrix_param(name)?.val()).cast(DType::F32));
    let product = |a: Tensor<2>, b: Tensor<2>| match kind {
        LayerKind::Embedding => linear(a.transpose(), b),
        _ => linear(b, a.transpose()),
    };
    let [a, b] = [LORA_A, LORA_B].map(|name| f32(name).expect("a LoRA has both factors"));
    let trained = product(a, b);
    let update = match (f32(SHIFT_A), f32(SHIFT_B)) {
        (Some(a), Some(b)) => trained - product(a, b),
        _ => trained,
    };
    update * adapter.scale()
}

/// Two matrices whose product is [`update`] of a linear layer, `B·A` with the scale in `B`; f32, without a graph.
pub(super) fn update_factors(adapter: &AdapterParams) -> [Tensor<2>; 2] {
    let f32 = |name| Some(untracked(adapter.matrix_param(name)?.val()).cast(DType::F32));
    let [a, b] = [LORA_A, LORA_B].map(|name| f32(name).expect("a LoRA has both factors"));
    let [a, b] = match (f32(SHIFT_A), f32(SHIFT_B)) {
        (Some(shift_a), Some(shift_b)) => [
            Tensor::cat(vec![a, shift_a], 0),
            Tensor::cat(vec![b, -shift_b], 1),
        ],
        _ => [a, b],
    };
    [a, b * adapter.scale()]
}

/// `s·B·A` of the tokens' one-hot vectors, `[tokens, dim]`.
pub(super) fn embedded_update(adapter: &AdapterParams, ids: Tensor<1, Int>) -> Tensor<2> {
    let a = adapter.matrix(LORA_A).transpose();
    let down = embedding(a, ids.unsqueeze::<2>()).squeeze_dim::<2>(0);
    linear(down * adapter.scale(), adapter.matrix(LORA_B))
}
