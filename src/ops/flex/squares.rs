use burn::backend::TensorMetadata;
use rayon::prelude::*;

use super::vector::{dot, vectorized};
use super::{Primitive, contiguous, into_contiguous};

/// Each part gets the squares of as many numbers: on any number of threads and every processor the same
/// sums, which members of a training rely on.
pub fn add(parts: Primitive, values: &Primitive) -> Primitive {
    let (mut parts, values) = (into_contiguous(parts), contiguous(values));
    let values: &[f32] = values.storage();
    let count = parts.shape().num_elements();
    let chunks = values.par_chunks(values.len().div_ceil(count).max(1));
    let parts_of_chunks = parts.storage_mut::<f32>().par_iter_mut().zip(chunks);
    parts_of_chunks.for_each(|(part, chunk)| {
        *part += vectorized(
            #[inline(always)]
            || dot(chunk, chunk),
        );
    });
    parts
}
