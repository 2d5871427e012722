//! DoRA: the update's direction is LoRA's, its length per output row is trained on its own.
//! Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, <https://arxiv.org/abs/2402.09353>.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

use super::PlainLinear;
use crate::ops::{DropoutMask, dropout, linear};

/// The magnitude of a new adapter: the norm of each row of the base weight, since `B` is zero.
///
/// Lazy like the weight, so the base may still be loaded after this was called, by
/// [`load_state_dict`](crate::adapter::load_state_dict) and what is built on it. After Burn's own records
/// [`initialize_adapters`](crate::adapter::initialize_adapters) takes the norms of the loaded weights.
pub(super) fn magnitude_param(base: &PlainLinear) -> Param<Tensor<1>> {
    let [out_dim, _] = base.shape();
    let weight = base.weight.clone();
    let init = move |device: &Device, require_grad| {
        let weight = weight.val().to_device(device);
        first_magnitude(weight).set_require_grad(require_grad)
    };
    Param::uninitialized(
        ParamId::new(),
        init,
        base.weight.lazy_device(),
        true,
        [out_dim].into(),
    )
}

/// The row norms of the base weight, f32 and without a graph.
pub(crate) fn first_magnitude(weight: Tensor<2>) -> Tensor<1> {
    row_norm(weight.cast(DType::F32)).detach()
}

/// DoRA's output without bias, `ratio·(W x + s·B(A x))` with `ratio = m / ‖W + s·B·A‖`, the norm taken as
/// a constant (section 4.3 of the paper). `y` is LoRA's.
///
/// With dropout the base sees the whole input, as in PEFT: with `x'` what is left of it,
/// `W x + (ratio - 1)·W x' + ratio·s·B(A x')`, which is `ratio·y + (ratio - 1)·W (x' - x)`.
pub(super) fn rescale<const D: usize>(
    y: Tensor<D>,
    ratio: Tensor<1>,
    x: Tensor<D>,
    weight: Tensor<2>,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    // In half precision most ratios would be rounded to 1.
    let change = (ratio - 1.0).cast(y.dtype()).unsqueeze::<D>();
    let rescaled = y.clone() + y * change.clone();
    match mask {
        None => rescaled,
        Some(mask) => {
            let dropped = dropout(x.clone(), mask) - x;
            rescaled + linear(dropped, weight) * change
        }
    }
}

/// Scales row i of `weight` to the length `magnitude[i]`.
pub(super) fn rescale_rows(weight: Tensor<2>, magnitude: Tensor<1>) -> Tensor<2> {
    let ratio = magnitude / row_norm(weight.clone());
    weight * ratio.unsqueeze_dim(1)
}

/// The Euclidean norm of each row, `[rows]`.
pub(super) fn row_norm(weight: Tensor<2>) -> Tensor<1> {
    weight.square().sum_dim(1).sqrt().squeeze_dim(1)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_near_one_counts_in_half_precision() {
        let device = Device::flex();
        // 200.6, in bf16 201; the ratio itself is 1 there.
        let y = Tensor::<2>::full([1, 4], 200.0, (&device, DType::BF16));
        let ratio = Tensor::<1>::full([4], 1.003, (&device, DType::F32));
        let out = rescale(y.clone(), ratio, y.clone(), y, None);
        assert_eq!(out.dtype(), DType::BF16);
        let out = out.cast(DType::F32).into_data();
        assert_eq!(out.as_slice::<f32>().unwrap(), [201.0; 4]);
    }
}
