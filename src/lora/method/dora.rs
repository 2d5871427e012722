//! DoRA: the update's direction is LoRA's, its length per output is trained on its own.
//! Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, <https://arxiv.org/abs/2402.09353>.

use burn::tensor::{DType, Int, Tensor};

use super::lora::{LORA, embedded_update, factors, update, update_factors};
use super::{FirstValue, Kept, LayerKind, LayerParams, LayerShape, Method, ParamSpec};
use crate::lora::params::{AdapterParams, AdapterSettings};
use crate::lora::plain::PlainLinear;
use crate::ops::{DropoutMask, dropout};
use crate::weight::{FrozenWeight, untracked};

/// Weight-decomposed low-rank adaptation.
pub static DORA: DoRA = DoRA;

/// See [`DORA`].
#[derive(Debug)]
pub struct DoRA;

const MAGNITUDE: &str = "magnitude";

impl Method for DoRA {
    fn name(&self) -> &'static str {
        "dora"
    }

    fn adapts(&self, kind: LayerKind) -> bool {
        LORA.adapts(kind)
    }

    fn params(&self, layer: &LayerShape, settings: &AdapterSettings) -> Vec<ParamSpec> {
        let (len, first): (_, fn(&LayerParams, &AdapterSettings) -> Tensor<1>) = match layer.kind {
            LayerKind::Embedding => (layer.dims[1], first_column_magnitude),
            _ => (layer.dims[0], first_row_magnitude),
        };
        let first = FirstValue::VectorOfLayer(first);
        let mut params = factors(layer, settings);
        params.push(ParamSpec::vector(
            MAGNITUDE,
            "lora_magnitude_vector",
            len,
            first,
        ));
        params
    }

    fn add_update(
        &self,
        adapter: &AdapterParams,
        base: &PlainLinear,
        x: Tensor<3>,
        y: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let y = LORA.add_update(adapter, base, x.clone(), y, mask);
        rescaled(adapter, base, x, y, mask)
    }

    fn forward(
        &self,
        adapter: &AdapterParams,
        base: &PlainLinear,
        x: Tensor<3>,
        mask: Option<DropoutMask>,
    ) -> Tensor<3> {
        let y = LORA.forward(adapter, base, x.clone(), mask);
        rescaled(adapter, base, x, y, mask)
    }

    fn embed(
        &self,
        adapter: &AdapterParams,
        weight: &FrozenWeight,
        ids: Tensor<1, Int>,
        rows: Tensor<2>,
    ) -> Tensor<2> {
        // An embedding's update is `s·(B·A)ᵀ`.
        let [a, b] = update_factors(adapter);
        let norm = weight.column_norms(Some([b.transpose(), a.transpose()]));
        let sum = rows.clone().cast(DType::F32) + embedded_update(adapter, ids).cast(DType::F32);
        (sum * (magnitude(adapter) / norm).unsqueeze()).cast(rows.dtype())
    }

    /// The norm is that of the base with this update alone, as in the forward pass.
    fn merge(
        &self,
        adapter: &AdapterParams,
        layer: &LayerShape,
        base: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        let update = update(adapter, layer.kind);
        let (combined, sum) = (base.clone() + update.clone(), weight + update);
        let magnitude = untracked(magnitude(adapter));
        match layer.kind {
            LayerKind::Embedding => sum * (magnitude / column_norm(combined)).unsqueeze(),
            _ => sum * (magnitude / row_norm(combined)).unsqueeze_dim(1),
        }
    }

    /// Beside what LoRA keeps the outputs that the magnitude scales, with dropout those of the dropped input too;
    /// and `W + s·B·A` with its square to take the norm of.
    fn kept(&self, layer: &LayerShape, settings: &AdapterSettings) -> Kept {
        let mut kept = LORA.kept(layer, settings);
        let (drops, [rows, columns]) = (usize::from(settings.dropout > 0.0), layer.dims);
        let scaled = match layer.kind {
            LayerKind::Embedding => columns,
            _ => rows,
        };
        kept.per_token += scaled * (1 + drops);
        kept.with_outputs_at_once(3 + drops)
            .with_inputs_at_once(kept.inputs_at_once + 2 * drops)
            .with_weight_copies(2)
    }
}

fn magnitude(adapter: &AdapterParams) -> Tensor<1> {
    let magnitude = adapter.vector(MAGNITUDE);
    magnitude.expect("DoRA has a magnitude").cast(DType::F32)
}

fn first_row_magnitude(layer: &LayerParams, _: &AdapterSettings) -> Tensor<1> {
    first_weight(layer).row_norms(None)
}

fn first_column_magnitude(layer: &LayerParams, _: &AdapterSettings) -> Tensor<1> {
    first_weight(layer).column_norms(None)
}

fn first_weight(layer: &LayerParams) -> &FrozenWeight {
    layer.weight.as_ref().expect("DoRA adapts matrices")
}

/// DoRA's output without the base's bias, `ratio·(W x + s·B(A x))` with `ratio = m / ‖W + s·B·A‖`, the norm
/// taken as a constant (section 4.3 of the paper). `y` is LoRA's.
///
/// With dropout the base sees the whole input, as in PEFT: with `x'` what is left of it,
/// `W x + (ratio - 1)·W x' + ratio·s·B(A x')`, which is `ratio·y + (ratio - 1)·W (x' - x)`.
fn rescaled(
    adapter: &AdapterParams,
    base: &PlainLinear,
    x: Tensor<3>,
    y: Tensor<3>,
    mask: Option<DropoutMask>,
) -> Tensor<3> {
    let norm = base.weight.row_norms(Some(update_factors(adapter)));
    rescale(y, magnitude(adapter) / norm, x, &base.weight, mask)
}

fn rescale(
    y: Tensor<3>,
    ratio: Tensor<1>,
    x: Tensor<3>,
    weight: &FrozenWeight,
    mask: Option<DropoutMask>,
) -> Tensor<3> {
    // In half precision most ratios would be rounded to 1.
    let change = (ratio - 1.0).cast(y.dtype()).unsqueeze::<3>();
    let rescaled = y.clone() + y * change.clone();
    match mask {
        None => rescaled,
        Some(mask) => {
            let dropped = dropout(x.clone(), mask) - x;
            rescaled + weight.product(dropped) * change
        }
    }
}

/// The Euclidean norm of each row, `[rows]`.
fn row_norm(weight: Tensor<2>) -> Tensor<1> {
    weight.square().sum_dim(1).sqrt().squeeze_dim(1)
}

/// The Euclidean norm of each column, `[columns]`.
fn column_norm(weight: Tensor<2>) -> Tensor<1> {
    weight.square().sum_dim(0).sqrt().squeeze_dim(0)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::Device;

    #[test]
    fn a_ratio_near_one_counts_in_half_precision() {
        let device = Device::flex();
        // 200.6, in bf16 201; the ratio itself is 1 there.
        let y = Tensor::<3>::full([1, 1, 4], 200.0, (&device, DType::BF16));
        let ratio = Tensor::<1>::full([4], 1.003, (&device, DType::F32));
        let weight = Tensor::ones([4, 4], (&device, DType::BF16));
        let weight = FrozenWeight::from(Param::from_tensor(weight));
        let out = rescale(y.clone(), ratio, y, &weight, None);
        assert_eq!(out.dtype(), DType::BF16);
        let out = out.cast(DType::F32).into_data();
        assert_eq!(out.as_slice::<f32>().unwrap(), [201.0; 4]);
    }
}
