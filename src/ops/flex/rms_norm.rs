use burn::backend::TensorMetadata;
use rayon::prelude::*;

use super::vector::{dot, map_rows};
use super::{Primitive, contiguous, primitive};

pub fn forward(x: &Primitive, weight: &Primitive, eps: f64) -> Primitive {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let weight: &[f32] = weight.storage();
    let values = map_rows(weight.len(), [x.storage()], |_, [x], out| {
        write_normed(out, x, weight, eps);
    });
    primitive(values, &x.shape())
}

#[inline(always)]
pub fn write_normed(out: &mut [f32], x: &[f32], weight: &[f32], eps: f64) {
    let norm = inverse_norm(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * norm * weight;
    }
}

/// With `n = 1 / sqrt(mean(x²) + eps)` and `h = w · grad`: `n h - n³ x mean(h · x)`.
pub fn x_grad(grad: &Primitive, x: &Primitive, weight: &Primitive, eps: f64) -> Primitive {
    let (grad, x, weight) = (contiguous(grad), contiguous(x), contiguous(weight));
    let weight: &[f32] = weight.storage();
    let inputs = [grad.storage(), x.storage()];
    let values = map_rows(weight.len(), inputs, |_, [grad, x], out| {
        for ((out, grad), weight) in out.iter_mut().zip(grad).zip(weight) {
            *out = grad * weight;
        }
        across(out, x, eps);
    });
    primitive(values, &x.shape())
}

/// `n h - n³ x mean(h · x)`, in the place of h.
#[inline(always)]
pub fn across(h: &mut [f32], x: &[f32], eps: f64) {
    let norm = inverse_norm(x, eps);
    let along = norm * norm * norm * dot(h, x) / x.len() as f32;
    for (h, x) in h.iter_mut().zip(x) {
        *h = norm * *h - along * x;
    }
}

#[inline(always)]
fn inverse_norm(x: &[f32], eps: f64) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps as f32).sqrt()
}

/// The sum over all rows of `grad · n x`, some rows at a time, always in the same order.
pub fn weight_grad(grad: &Primitive, x: &Primitive, weight: &Primitive, eps: f64) -> Primitive {
    const ROWS: usize = 64;
    let (grad, x) = (contiguous(grad), contiguous(x));
    let dim = weight.shape().num_elements();
    let parts = grad.storage::<f32>().par_chunks(ROWS * dim);
    let parts = parts.zip(x.storage::<f32>().par_chunks(ROWS * dim));
    let part = |(grad, x): (&[f32], &[f32])| {
        let mut sums = vec![0.0; dim];
        for (grad, x) in grad.chunks_exact(dim).zip(x.chunks_exact(dim)) {
            let norm = inverse_norm(x, eps);
            for ((sum, grad), x) in sums.iter_mut().zip(grad).zip(x) {
                *sum += grad * x * norm;
            }
        }
        sums
    };
    let parts: Vec<Vec<f32>> = parts.map(part).collect();
    let sums = (0..dim).map(|i| parts.iter().map(|part| part[i]).sum());
    primitive(sums.collect(), &weight.shape())
}
