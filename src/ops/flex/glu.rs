use burn::backend::TensorMetadata;
use rayon::prelude::*;

use super::vector::{CHUNK, map, sigmoid, vectorized};
use super::{Primitive, contiguous, into_contiguous, primitive};
use crate::ops::types::{Activation, gelu};

/// `w(x)` of an activation `x · sigmoid(w(x))`, and its slope. A function of its own for each: the loops
/// are compiled for it.
trait Inner: Fn(f32) -> (f32, f32) + Copy + Sync {}
impl<F: Fn(f32) -> (f32, f32) + Copy + Sync> Inner for F {}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    (x, 1.0)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const BOUND: f32 = gelu::BOUND as f32;
    const SLOPE: f32 = gelu::SLOPE as f32;
    const CUBIC: f32 = (gelu::SLOPE * gelu::CUBIC) as f32;
    let x = if x < -BOUND { -BOUND } else { x };
    let x = if x > BOUND { BOUND } else { x };
    let cubic = CUBIC * x * x;
    (x * (SLOPE + cubic), SLOPE + 3.0 * cubic)
}

pub fn forward(gate: &Primitive, up: &Primitive, activation: Activation) -> Primitive {
    let (gate, up) = (contiguous(gate), contiguous(up));
    let inputs = [gate.storage(), up.storage()];
    let values = match activation {
        Activation::Silu => products(inputs, silu),
        Activation::GeluTanh => products(inputs, gelu_tanh),
    };
    primitive(values, &gate.shape())
}

fn products(inputs: [&[f32]; 2], inner: impl Inner) -> Vec<f32> {
    map(
        inputs,
        #[inline(always)]
        |[gate, up]| gate * sigmoid(inner(gate).0) * up,
    )
}

/// The gradients of gate and up, in their places.
pub fn backward(
    grad: &Primitive,
    gate: Primitive,
    up: Primitive,
    activation: Activation,
) -> (Primitive, Primitive) {
    let grad = contiguous(grad);
    let [mut gate, mut up] = [gate, up].map(into_contiguous);
    let (grads, values) = (grad.storage(), [gate.storage_mut(), up.storage_mut()]);
    match activation {
        Activation::Silu => differentiate(grads, values, silu),
        Activation::GeluTanh => differentiate(grads, values, gelu_tanh),
    }
    (gate, up)
}

fn differentiate(grads: &[f32], [gate, up]: [&mut [f32]; 2], inner: impl Inner) {
    let pairs = gate.par_chunks_mut(CHUNK).zip(up.par_chunks_mut(CHUNK));
    let grads = grads.par_chunks(CHUNK);
    pairs.zip(grads).for_each(|((gate, up), grad)| {
        vectorized(
            #[inline(always)]
            || {
                for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                    let (inner, inner_slope) = inner(*gate);
                    let sigmoid = sigmoid(inner);
                    let activated = *gate * sigmoid;
                    let slope = sigmoid + activated * (1.0 - sigmoid) * inner_slope;
                    (*gate, *up) = (grad * *up * slope, grad * activated);
                }
            },
        );
    });
}
