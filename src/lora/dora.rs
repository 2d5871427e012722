//! DoRA: the update's direction is LoRA's, its length per output row is trained on its own.
//! Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, <https://arxiv.org/abs/2402.09353>.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

use super::Linear;
use crate::ops::{DropoutMask, dropout};

/// The magnitude of a new adapter: the norm of each row of the base weight, since `B` is zero.
///
/// Lazy like the weight, so the base may still be loaded after this was called.
pub(super) fn magnitude_param(base: &Linear) -> Param<Tensor<1>> {
    let [out_dim, _] = base.shape();
    let weight = base.weight.clone();
    let init = move |_: &Device, require_grad| {
        row_norm(weight.val().cast(DType::F32))
            .detach()
            .set_require_grad(require_grad)
    };
    Param::uninitialized(
        ParamId::new(),
        init,
        base.weight.lazy_device(),
        true,
        [out_dim].into(),
    )
}

/// `y = (m / ‖W + s·B·A‖)·(W x + s·B(A x)) + b`, the norm taken as a constant (section 4.3 of the
/// paper). With dropout the base sees the whole input: `W x + (m/‖·‖ - 1)·W x' + m/‖·‖·s·B(A x')`
/// with `x'` the dropped input, as PEFT computes it.
///
/// `combined` is `W + s·B·A` in f32 and outside of the graph; `update` drops what `mask` says.
pub(super) fn forward<const D: usize>(
    base: &Linear,
    mask: Option<DropoutMask>,
    magnitude: &Param<Tensor<1>>,
    combined: Tensor<2>,
    x: Tensor<D>,
    update: impl Fn(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let without_bias = Linear {
        weight: base.weight.clone(),
        bias: None,
    };
    let ratio = (magnitude.val() / row_norm(combined))
        .cast(x.dtype())
        .unsqueeze::<D>();
    let base_out = without_bias.forward(x.clone());
    let y = match mask {
        Some(mask) => {
            let dropped_out = without_bias.forward(dropout(x.clone(), mask));
            base_out + dropped_out * (ratio.clone() - 1.0) + update(x) * ratio
        }
        None => (base_out + update(x)) * ratio,
    };
    match &base.bias {
        None => y,
        Some(bias) => {
            let dtype = y.dtype();
            y + bias.val().cast(dtype).unsqueeze()
        }
    }
}

/// Scales row i of `weight` to the length `magnitude[i]`.
pub(super) fn rescale_rows(weight: Tensor<2>, magnitude: Tensor<1>) -> Tensor<2> {
    let ratio = magnitude / row_norm(weight.clone());
    weight * ratio.unsqueeze_dim(1)
}

/// The Euclidean norm of each row, `[rows]`.
pub(crate) fn row_norm(weight: Tensor<2>) -> Tensor<1> {
    weight.square().sum_dim(1).sqrt().squeeze_dim(1)
}
