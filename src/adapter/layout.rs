//! The layout of the weight of Burn's `Linear`: `[in, out]` in the layer, `[out, in]` in a state dict, as that of
//! this crate's layers and of PyTorch's. The names are the same, and of a square matrix the shapes too: nothing else
//! would tell them apart.

use burn::module::Param;
use burn::tensor::{Bytes, DType, Tensor, TensorData};

use super::path::Path;

/// Whether what Burn saves of a parameter is the transposed of what a state dict has. A quantized weight stays packed
/// as it is.
pub(super) fn is_transposed<const D: usize>(param: &Param<Tensor<D>>, path: &Path) -> bool {
    let is_quantized = || param.is_initialized() && matches!(param.val().dtype(), DType::QFloat(_));
    D == 2 && path.is_burns_weight() && !is_saved_transposed(param) && !is_quantized()
}

/// The shape that a parameter has in a state dict.
pub(super) fn saved_shape<const D: usize>(param: &Param<Tensor<D>>, path: &Path) -> Vec<usize> {
    let mut shape = match param.is_initialized() {
        true => param.transform_for_save().val().shape().to_vec(),
        false => param.lazy_shape().to_vec(),
    };
    if is_transposed(param, path) {
        shape.reverse();
    }
    shape
}

/// Whether Burn saves a matrix transposed, as with `LinearLayout::Col`. Only its mappers know, so a small stand-in
/// goes through them.
fn is_saved_transposed<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    let mut shape = [1; D];
    shape[D - 1] = 2;
    let stand_in = Tensor::zeros(shape, &param.lazy_device());
    let loaded = param.clone().transform_for_load(stand_in, param.id);
    loaded.lazy_shape().to_vec() != shape
}

/// A matrix's data with rows and columns exchanged.
///
/// # Panics
/// If the data is no matrix, or its elements are not of whole bytes.
pub(crate) fn transposed(data: TensorData) -> TensorData {
    let (bytes, shape, dtype) = data.into_parts();
    let [rows, columns] = shape.dims();
    let size = dtype.size();
    let mut swapped = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let start = (row * columns + column) * size;
            swapped.extend_from_slice(&bytes[start..start + size]);
        }
    }
    TensorData::from_bytes(Bytes::from_bytes_vec(swapped), [columns, rows], dtype)
}
