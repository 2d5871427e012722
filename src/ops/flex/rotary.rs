use burn::backend::TensorMetadata;

use super::vector::map_rows;
use super::{Primitive, contiguous, primitive};

pub fn forward(x: &Primitive, cos: &Primitive, sin: &Primitive) -> Primitive {
    let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
    let [_, _, heads, head_dim] = x.shape().dims();
    let half = head_dim / 2;
    let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
    let positions = cos.len() / half;
    let values = map_rows(heads * head_dim, [x.storage()], |position, [x], out| {
        let start = position % positions * half;
        let (cos, sin) = (&cos[start..][..half], &sin[start..][..half]);
        let heads = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (x, out) in heads {
            let (first, second) = x.split_at(half);
            let (out_first, out_second) = out.split_at_mut(half);
            for i in 0..half {
                out_first[i] = first[i] * cos[i] - second[i] * sin[i];
                out_second[i] = second[i] * cos[i] + first[i] * sin[i];
            }
        }
    });
    primitive(values, &x.shape())
}
