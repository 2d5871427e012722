use burn::backend::TensorMetadata;
use rayon::prelude::*;

use super::vector::{CHUNK, map, sigmoid, vectorized};
use super::{Primitive, contiguous, into_contiguous, primitive};

pub fn forward(gate: &Primitive, up: &Primitive) -> Primitive {
    let (gate, up) = (contiguous(gate), contiguous(up));
    let inputs = [gate.storage(), up.storage()];
    let values = map(inputs, |[gate, up]| gate * sigmoid(gate) * up);
    primitive(values, &gate.shape())
}

/// The gradients of gate and up, in their places.
pub fn backward(grad: &Primitive, gate: Primitive, up: Primitive) -> (Primitive, Primitive) {
    let grad = contiguous(grad);
    let [mut gate, mut up] = [gate, up].map(into_contiguous);
    let pairs = gate.storage_mut::<f32>().par_chunks_mut(CHUNK);
    let pairs = pairs.zip(up.storage_mut::<f32>().par_chunks_mut(CHUNK));
    let grads = grad.storage::<f32>().par_chunks(CHUNK);
    pairs.zip(grads).for_each(|((gate, up), grad)| {
        vectorized(
            #[inline(always)]
            || {
                for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                    let sigmoid = sigmoid(*gate);
                    let activation = *gate * sigmoid;
                    let slope = sigmoid + activation * (1.0 - sigmoid);
                    (*gate, *up) = (grad * *up * slope, grad * activation);
                }
            },
        );
    });
    (gate, up)
}
