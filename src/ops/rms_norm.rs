use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaParam, MetaTensor};

/// `w · x / sqrt(mean(x²) + eps)` over the last dimension, computed in f32. Zhang and Sennrich,
/// <https://arxiv.org/abs/1910.07467>.
///
/// # Shapes
/// - `x`: `[..., dim]`, output the same
/// - `weight`: `[dim]`
///
/// # Panics
/// If the last dimension of `x` is not `dim`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let ([dim], width) = (weight.dims(), x.dims()[D - 1]);
    assert_eq!(width, dim, "the input's width is not the weight's");
    let weight = weight.cast(DType::F32).into_dispatch();
    Tensor::from_dispatch(Dispatch::rms_norm(dispatched(x), weight, eps))
}

/// What [`rms_norm`] holds: it keeps x.
pub(crate) fn rms_norm_meta(x: MetaTensor, weight: MetaParam) -> MetaTensor {
    let op = MetaOp::of([x.clone()]).trains(weight, 0);
    op.keeps_narrowed(&x).output(x.width)
}
