use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaTensor};

/// Turns the pair of the elements i and `i + pairs` of each head by an angle: `(x₁ cos - x₂ sin, x₂ cos + x₁ sin)`.
/// Elements of a head after its pairs stay. Su et al., <https://arxiv.org/abs/2104.09864>.
///
/// # Shapes
/// - `x`: `[batch, seq, heads, head_dim]`, output the same
/// - `cos`, `sin`: `[batch or 1, seq, 1, pairs]`, of half a head at most
///
/// # Panics
/// If the shapes do not fit.
pub fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let [batch, seq, _, head_dim] = x.dims();
    let [rows, _, _, pairs] = cos.dims();
    let is_angles = |angles: &Tensor<4>| angles.dims() == [rows, seq, 1, pairs];
    let fits = (rows == 1 || rows == batch) && is_angles(&cos) && is_angles(&sin);
    let fits = fits && pairs > 0 && 2 * pairs <= head_dim;
    assert!(fits, "the angles do not fit the heads");
    let [cos, sin] = [cos, sin].map(|angles| angles.cast(DType::F32).into_dispatch());
    Tensor::from_dispatch(Dispatch::rotary(dispatched(x), cos, sin))
}

/// What [`rotary`] holds: it keeps the angles, which all layers share.
pub(crate) fn rotary_meta(x: MetaTensor) -> MetaTensor {
    let width = x.width;
    MetaOp::of([x]).output(width)
}
