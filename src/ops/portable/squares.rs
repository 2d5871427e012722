use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::to_f32;

/// Every part gets the same.
pub fn add<B: Backend>(parts: FloatTensor<B>, values: FloatTensor<B>) -> FloatTensor<B> {
    let values = to_f32::<B>(values);
    let square = B::float_sum(B::float_mul(values.clone(), values));
    let count = parts.shape().num_elements();
    B::float_add(parts, B::float_div_scalar(square, (count as f64).into()))
}
