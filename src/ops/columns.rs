use std::ops::Range;

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::backend::StepOps;
use super::dispatch::dispatched;
use super::meta::{MetaOp, MetaTensor};

/// Some numbers of each row: what one of several projections gives that are one matrix. They are copied, since a view
/// would hold all of `x`.
///
/// # Shapes
/// - `x`: `[..., width]`
/// - output: `[..., columns.len()]`
///
/// # Panics
/// If `x` does not have such columns.
pub fn columns<const D: usize>(x: Tensor<D>, columns: Range<usize>) -> Tensor<D> {
    let width = x.dims()[D - 1];
    let fits = columns.start < columns.end && columns.end <= width;
    assert!(fits, "there are no columns {columns:?} of {width}");
    let out = Dispatch::columns(dispatched(x), columns.start, columns.len());
    Tensor::from_dispatch(out)
}

/// What [`columns`] holds: it keeps nothing. The gradient of `x` is as wide as `x`, zeros elsewhere.
pub(crate) fn columns_meta(x: MetaTensor, width: usize) -> MetaTensor {
    MetaOp::of([x]).output(width)
}
