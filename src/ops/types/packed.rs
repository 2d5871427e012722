use burn::tensor::{Int, Tensor};

use crate::quantization::PackedLayout;

/// A packed matrix on a device.
#[derive(Debug, Clone)]
pub(crate) struct PackedTensor {
    /// Its bytes, four in each, the first in the lowest bits; U32.
    pub words: Tensor<1, Int>,
    pub layout: PackedLayout,
}
