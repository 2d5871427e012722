use burn::backend::TensorMetadata;

use super::vector::map_indexed;
use super::{Primitive, contiguous, primitive};
use crate::ops::types::DropoutMask;

pub fn forward(x: &Primitive, mask: DropoutMask) -> Primitive {
    let x = contiguous(x);
    let values = map_indexed(x.storage(), |index, x| x * mask.factor_at(index));
    primitive(values, &x.shape())
}
