use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaParam, MetaTensor};

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
    let [cos, sin] = angles_of(&x, cos, sin).map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::rotary(dispatched(x), cos, sin))
}

/// [`rotary`] of the root-mean-square norm of `x` (see [`rms_norm`](super::rms_norm)), of each head or of all heads of a
/// position together: as many numbers as `weight` has.
///
/// # Shapes
/// - `x`: `[batch, seq, heads, head_dim]`, output the same
/// - `weight`: `[head_dim]` or `[heads * head_dim]`
/// - `cos`, `sin`: `[batch or 1, seq, 1, pairs]`, of half a head at most
///
/// # Panics
/// If the shapes do not fit.
pub fn normed_rotary(
    x: Tensor<4>,
    weight: Tensor<1>,
    eps: f64,
    cos: Tensor<4>,
    sin: Tensor<4>,
) -> Tensor<4> {
    let ([_, _, heads, head_dim], [width]) = (x.dims(), weight.dims());
    let fits = width == head_dim || width == heads * head_dim;
    assert!(
        fits,
        "the weight is as wide as neither a head nor all of them"
    );
    let [cos, sin] = angles_of(&x, cos, sin).map(Tensor::into_dispatch);
    let weight = weight.cast(DType::F32).into_dispatch();
    Tensor::from_dispatch(Dispatch::normed_rotary(
        dispatched(x),
        weight,
        eps,
        cos,
        sin,
    ))
}

/// The angles in f32.
///
/// # Panics
/// If they do not fit the heads.
fn angles_of(x: &Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> [Tensor<4>; 2] {
    let [batch, seq, _, head_dim] = x.dims();
    let [rows, _, _, pairs] = cos.dims();
    let is_angles = |angles: &Tensor<4>| angles.dims() == [rows, seq, 1, pairs];
    let fits = (rows == 1 || rows == batch) && is_angles(&cos) && is_angles(&sin);
    let fits = fits && pairs > 0 && 2 * pairs <= head_dim;
    assert!(fits, "the angles do not fit the heads");
    [cos, sin].map(|angles| angles.cast(DType::F32))
}

/// What [`normed_rotary`] holds: it keeps x.
pub(crate) fn normed_rotary_meta(x: MetaTensor, weight: MetaParam) -> MetaTensor {
    let op = MetaOp::of([x.clone()]).trains(weight, 0);
    op.keeps_narrowed(&x).output(x.width)
}

/// What [`rotary`] holds: it keeps the angles, which all layers share.
pub(crate) fn rotary_meta(x: MetaTensor) -> MetaTensor {
    let width = x.width;
    MetaOp::of([x]).output(width)
}
