use burn::backend::TensorMetadata;

use super::vector::map_rows;
use super::{Primitive, contiguous, primitive};

pub fn forward(x: &Primitive, cos: &Primitive, sin: &Primitive) -> Primitive {
    let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
    let [_, _, heads, head_dim] = x.shape().dims();
    let [.., pairs] = cos.shape().dims::<4>();
    let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
    let positions = cos.len() / pairs;
    let values = map_rows(heads * head_dim, [x.storage()], |position, [x], out| {
        let start = position % positions * pairs;
        let (cos, sin) = (&cos[start..][..pairs], &sin[start..][..pairs]);
        let heads = x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (x, out) in heads {
            let (first, rest) = x.split_at(pairs);
            let (second, kept) = rest.split_at(pairs);
            let (out_first, out_rest) = out.split_at_mut(pairs);
            let (out_second, out_kept) = out_rest.split_at_mut(pairs);
            out_kept.copy_from_slice(kept);
            for i in 0..pairs {
                out_first[i] = first[i] * cos[i] - second[i] * sin[i];
                out_second[i] = second[i] * cos[i] + first[i] * sin[i];
            }
        }
    });
    primitive(values, &x.shape())
}
