use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::Kept;
use super::backend::StepOps;
use super::dispatch::{dispatched, dispatched_words};
use super::meta::{F32, MetaOp, MetaParam, MetaTensor};
use super::types::{DropoutMask, PackedTensor};

/// `x Wᵀ`. A weight of another type than `x` is brought to that of `x`: as a whole, or, fused, a
/// part at a time. Neither is kept.
///
/// # Shapes
/// - `x`: `[..., in_dim]`
/// - `weight`: `[out_dim, in_dim]`
/// - output: `[..., out_dim]`
///
/// # Panics
/// If the last dimension of `x` is not `in_dim`.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    assert_fits(&x, weight.dims());
    Tensor::from_dispatch(Dispatch::linear(dispatched(x), weight.into_dispatch()))
}

/// [`linear`] of a packed weight, which is decoded a part at a time, forward and backward.
///
/// # Panics
/// If the last dimension of `x` is not the weight's number of columns.
pub(crate) fn packed_linear<const D: usize>(x: Tensor<D>, weight: PackedTensor) -> Tensor<D> {
    assert_fits(&x, weight.layout.shape());
    let words = weight.words.into_dispatch();
    Tensor::from_dispatch(Dispatch::packed_linear(dispatched(x), words, weight.layout))
}

/// The rows of some indices of a packed weight, `[indices, columns]`, f32.
pub(crate) fn packed_rows(weight: PackedTensor, indices: Tensor<1, Int>) -> Tensor<2> {
    let words = dispatched_words(weight.words);
    let rows = Dispatch::packed_rows(words, indices.into_dispatch(), weight.layout);
    Tensor::from_dispatch(rows)
}

/// The sum of the squares of each row of a packed weight, `[rows]`, f32.
pub(crate) fn packed_row_squares(weight: PackedTensor) -> Tensor<1> {
    let words = dispatched_words(weight.words);
    Tensor::from_dispatch(Dispatch::packed_row_squares(words, weight.layout))
}

/// All of a packed weight, f32.
pub(crate) fn unpacked(weight: PackedTensor) -> Tensor<2> {
    let words = dispatched_words(weight.words);
    Tensor::from_dispatch(Dispatch::unpacked(words, weight.layout))
}

/// A linear layer with a low-rank adapter, `x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ`. Hu et al.,
/// <https://arxiv.org/abs/2106.09685>, equation 3. `scale` is s, `mask` what is dropped, if anything.
///
/// For the backward pass it keeps `x`, which others may share, and the product of rank r.
///
/// # Shapes
/// - `x`: `[..., in_dim]`
/// - `weight`: `[out_dim, in_dim]`
/// - `a`: `[rank, in_dim]`, `b`: `[out_dim, rank]`
/// - output: `[..., out_dim]`
///
/// # Panics
/// If the shapes do not fit each other.
pub fn lora_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    [a, b]: [Tensor<2>; 2],
    scale: f64,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    assert_fits(&x, weight.dims());
    assert_factors_fit(&a, &b, weight.dims());
    let [weight, a, b] = [weight, a, b].map(Tensor::into_dispatch);
    let out = Dispatch::lora_linear(dispatched(x), weight, a, b, scale, mask);
    Tensor::from_dispatch(out)
}

/// [`lora_linear`] of a packed weight.
///
/// # Panics
/// If the shapes do not fit each other.
pub(crate) fn packed_lora_linear<const D: usize>(
    x: Tensor<D>,
    PackedTensor { words, layout }: PackedTensor,
    [a, b]: [Tensor<2>; 2],
    scale: f64,
    mask: Option<DropoutMask>,
) -> Tensor<D> {
    assert_fits(&x, layout.shape());
    assert_factors_fit(&a, &b, layout.shape());
    let (x, words, [a, b]) = (
        dispatched(x),
        words.into_dispatch(),
        [a, b].map(Tensor::into_dispatch),
    );
    Tensor::from_dispatch(Dispatch::packed_lora_linear(
        x, words, a, b, layout, scale, mask,
    ))
}

fn assert_fits<const D: usize>(x: &Tensor<D>, [_, in_dim]: [usize; 2]) {
    let width = x.dims()[D - 1];
    assert_eq!(width, in_dim, "the input's width is not the weight's");
}

fn assert_factors_fit(a: &Tensor<2>, b: &Tensor<2>, [out_dim, in_dim]: [usize; 2]) {
    let [rank, _] = a.dims();
    assert_eq!(a.dims(), [rank, in_dim], "A does not fit the weight");
    assert_eq!(b.dims(), [out_dim, rank], "B does not fit A and the weight");
}

/// What [`linear`] holds: it keeps x for a trained weight. The gradient of one in half precision is formed in f32.
pub(crate) fn linear_meta(x: MetaTensor, weight: MetaParam, out_dim: usize) -> MetaTensor {
    let widened = usize::from(weight.number_size < F32) * weight.numbers * F32;
    let op = MetaOp::of([x.clone()]).trains(weight, widened);
    op.keeps_for_params(&x, weight.is_trained).output(out_dim)
}

/// What [`lora_linear`] with a trained B holds: it keeps x for a trained A, and the product of rank r. What of the
/// gradient of x goes through a dropout exists for itself, before and after.
pub(crate) fn lora_linear_kept(rank: usize, trains_a: bool, drops: bool) -> Kept {
    let kept = Kept::per_token(rank).with_input(trains_a);
    kept.with_inputs_at_once(2 * usize::from(drops))
}
