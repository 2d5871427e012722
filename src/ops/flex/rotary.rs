use burn::backend::TensorMetadata;

use super::vector::map_rows;
use super::{Primitive, contiguous, primitive};

pub fn forward(x: &Primitive, cos: &Primitive, sin: &Primitive) -> Primitive {
    let (x, angles) = (contiguous(x), Angles::new([cos, sin]));
    let [_, _, heads, head_dim] = x.shape().dims();
    let values = map_rows(heads * head_dim, [x.storage()], |position, [x], out| {
        out.copy_from_slice(x);
        let (cos, sin) = angles.of(position);
        for head in out.chunks_exact_mut(head_dim) {
            turn(head, cos, sin, 1.0);
        }
    });
    primitive(values, &x.shape())
}

/// cos and sin of the angles of each position.
pub struct Angles {
    cos: Primitive,
    sin: Primitive,
    pairs: usize,
    positions: usize,
}

impl Angles {
    pub fn new([cos, sin]: [&Primitive; 2]) -> Self {
        let [.., pairs] = cos.shape().dims::<4>();
        Self {
            pairs,
            positions: cos.shape().num_elements() / pairs,
            cos: contiguous(cos),
            sin: contiguous(sin),
        }
    }

    /// Those of a position; the positions of the rows are one after another, or the same for all rows.
    #[inline(always)]
    pub fn of(&self, position: usize) -> (&[f32], &[f32]) {
        let start = position % self.positions * self.pairs;
        let (cos, sin): (&[f32], &[f32]) = (self.cos.storage(), self.sin.storage());
        (&cos[start..][..self.pairs], &sin[start..][..self.pairs])
    }
}

/// Turns the pairs of a head, which stand in its first half and its second, by the angles or, with a `direction` of -1,
/// back. What follows them stays.
#[inline(always)]
pub fn turn(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let pairs = cos.len();
    let (first, rest) = head.split_at_mut(pairs);
    let (second, sin) = (&mut rest[..pairs], &sin[..pairs]);
    for i in 0..pairs {
        let (a, b, sin) = (first[i], second[i], direction * sin[i]);
        first[i] = a * cos[i] - b * sin;
        second[i] = b * cos[i] + a * sin;
    }
}
