use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaTensor};
use super::types::{Piece, Whole};

/// The pieces of `x` along a dimension, one after the other: what each of several projections gives that are one matrix, or
/// the rows of each of several experts. They are copied, since a view would hold all of `x`. In a backward pass each piece
/// writes its part of one gradient, where slices would each fill the whole with zeros.
///
/// # Shapes
/// - `x`: `[..., sizes.sum(), ...]`
/// - outputs: `[..., size, ...]`
///
/// # Panics
/// If `x` has no such dimension, or the sizes are not above 0 and together the dimension's.
pub fn split<const D: usize>(x: Tensor<D>, dim: usize, sizes: &[usize]) -> Vec<Tensor<D>> {
    assert!(dim < D, "there is no dimension {dim} of {D}");
    let fits = !sizes.contains(&0) && sizes.iter().sum::<usize>() == x.dims()[dim];
    assert!(
        fits,
        "{sizes:?} are not the sizes of pieces of {}",
        x.dims()[dim]
    );
    let x = dispatched(x);
    let whole = Whole::default();
    let mut start = 0;
    let piece = |len: &usize| {
        let range = start..start + len;
        start += len;
        let piece = Piece { dim, range };
        Tensor::from_dispatch(Dispatch::piece(x.clone(), piece, whole.clone()))
    };
    sizes.iter().map(piece).collect()
}

/// What a piece of [`split`] along the last dimension holds: it keeps nothing.
pub(crate) fn columns_meta(x: MetaTensor, width: usize) -> MetaTensor {
    MetaOp::of([x]).output(width)
}

/// The same along the rows.
pub(crate) fn rows_meta(x: MetaTensor, rows: usize) -> MetaTensor {
    let width = x.width;
    MetaOp::of([x]).rows(rows).output(width)
}
