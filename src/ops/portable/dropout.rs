use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::TensorData;

use super::{cast, to_f32};
use crate::ops::types::DropoutMask;

/// The mask comes from the host, so that it is the same on every device.
pub fn forward<B: Backend>(x: FloatTensor<B>, mask: DropoutMask) -> FloatTensor<B> {
    let (shape, device, dtype) = (x.shape(), x.device(), x.dtype().into());
    let factors = (0..shape.num_elements()).map(|index| mask.factor_at(index));
    let factors = TensorData::new(factors.collect::<Vec<f32>>(), shape);
    let factors = B::float_from_data(factors, &device);
    cast::<B>(B::float_mul(to_f32::<B>(x), factors), dtype)
}
