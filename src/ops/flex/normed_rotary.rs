use burn::backend::TensorMetadata;

use super::rms_norm::{across, write_normed};
use super::rotary::{Angles, turn};
use super::vector::map_rows;
use super::{Primitive, contiguous, primitive};

/// A row is a position: all its heads.
pub fn forward(x: &Primitive, weight: &Primitive, eps: f64, angles: [&Primitive; 2]) -> Primitive {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let [_, _, heads, head_dim] = x.shape().dims();
    let (weight, angles): (&[f32], _) = (weight.storage(), Angles::new(angles));
    let values = map_rows(heads * head_dim, [x.storage()], |position, [x], out| {
        let groups = x.chunks_exact(weight.len());
        for (x, out) in groups.zip(out.chunks_exact_mut(weight.len())) {
            write_normed(out, x, weight, eps);
        }
        let (cos, sin) = angles.of(position);
        for head in out.chunks_exact_mut(head_dim) {
            turn(head, cos, sin, 1.0);
        }
    });
    primitive(values, &x.shape())
}

/// The gradient, turned back, through the norm.
pub fn x_grad(
    grad: &Primitive,
    x: &Primitive,
    weight: &Primitive,
    eps: f64,
    angles: [&Primitive; 2],
) -> Primitive {
    let (grad, x, weight) = (contiguous(grad), contiguous(x), contiguous(weight));
    let [_, _, heads, head_dim] = x.shape().dims();
    let (weight, angles): (&[f32], _) = (weight.storage(), Angles::new(angles));
    let inputs = [grad.storage(), x.storage()];
    let values = map_rows(heads * head_dim, inputs, |position, [grad, x], out| {
        out.copy_from_slice(grad);
        let (cos, sin) = angles.of(position);
        for head in out.chunks_exact_mut(head_dim) {
            turn(head, cos, sin, -1.0);
        }
        let groups = x.chunks_exact(weight.len());
        for (x, out) in groups.zip(out.chunks_exact_mut(weight.len())) {
            for (out, weight) in out.iter_mut().zip(weight) {
                *out *= weight;
            }
            across(out, x, eps);
        }
    });
    primitive(values, &x.shape())
}
