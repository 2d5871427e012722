//! Noise on the embeddings in training: NEFTune, Jain et al., <https://arxiv.org/abs/2310.05914>.
//!
//! ```text
//! x ← x + α / √(L·d) · ε,   ε uniform in (-1, 1)
//! ```
//!
//! for a sample of L tokens whose vectors have d numbers, L without padding: how a batch is padded or packed changes nothing
//! of how strong the noise is.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::data::Batch;
use crate::ops::mix;

/// What the noise's seed is drawn from a step's by, apart from that of dropout, which counts layers.
const STREAM: u64 = u64::from_le_bytes(*b"neftune\0");

/// The noise of a batch; the same for the same seed, on any device.
pub(super) struct Noise<'a> {
    batch: &'a Batch,
    alpha: f64,
    seed: u64,
}

impl<'a> Noise<'a> {
    /// None without an alpha.
    pub(super) fn of(batch: &'a Batch, alpha: Option<f64>, seed: u64) -> Option<Self> {
        let seed = mix(seed, STREAM);
        alpha.map(|alpha| Self { batch, alpha, seed })
    }

    /// # Shapes
    /// - input and output: `[batch, seq, dim]`; nothing is added to padding
    pub(super) fn added_to(&self, embedded: Tensor<3>) -> Tensor<3> {
        let shape @ [_, _, dim] = embedded.dims();
        let data = TensorData::new(numbers(self.batch, dim, self.alpha, self.seed), shape);
        let options = (&embedded.device(), embedded.dtype());
        let noise = Tensor::<3>::from_data(data, options);
        embedded + noise
    }
}

fn numbers(batch: &Batch, dim: usize, alpha: f64, seed: u64) -> Vec<f32> {
    let row_len = batch.seq_len * dim;
    let mut all = vec![0.0; batch.batch_size * row_len];
    let rows = all.par_chunks_mut(row_len).zip(&batch.segments);
    rows.enumerate().for_each(|(row, (numbers, segments))| {
        let seed = mix(seed, row as u64);
        let mut start = 0;
        for length in segments {
            let size = alpha / ((length * dim) as f64).sqrt();
            let end = start + length * dim;
            for (place, number) in numbers.iter_mut().enumerate().take(end).skip(start) {
                *number = size as f32 * uniform(mix(seed, place as u64));
            }
            start = end;
        }
    });
    all
}

/// A number in (-1, 1) from the upper 24 bits, which are all that an f32 holds.
fn uniform(bits: u64) -> f32 {
    ((bits >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Padding, Sample};

    fn batch(lengths: &[usize], padding: usize) -> Batch {
        let samples = lengths.iter().map(|length| Sample {
            tokens: vec![1; *length],
            labels: vec![1; *length],
            is_cut: false,
        });
        let samples: Vec<Sample> = samples.collect();
        let longest = lengths.iter().max().unwrap();
        let samples = Vec::from_iter(&samples);
        Batch::collate_to(&samples, 0, Padding::Fixed(longest + padding))
    }

    /// Mean and variance within five standard deviations of a uniform distribution's.
    #[test]
    fn noise_is_uniform_and_as_strong_as_a_sample_is_short() {
        const DIM: usize = 64;
        let lengths = [100, 25];
        let found = numbers(&batch(&lengths, 0), DIM, 5.0, 1);
        for (row, length) in lengths.into_iter().enumerate() {
            let count = length * DIM;
            let size = 5.0 / (count as f64).sqrt();
            let numbers = found[row * 100 * DIM..].iter().take(count);
            let numbers: Vec<f64> = numbers.map(|x| f64::from(*x) / size).collect();
            assert!(numbers.iter().all(|x| x.abs() < 1.0 + 1e-6));
            let mean =
                |power: i32| numbers.iter().map(|x| x.powi(power)).sum::<f64>() / count as f64;
            let n = (count as f64).sqrt();
            assert!(mean(1).abs() < 5.0 * (1f64 / 3.0).sqrt() / n, "{}", mean(1));
            let deviation = (1f64 / 5.0 - 1.0 / 9.0).sqrt() / n;
            assert!((mean(2) - 1.0 / 3.0).abs() < 5.0 * deviation, "{}", mean(2));
        }
        assert!(found[(100 + 25) * DIM..].iter().all(|x| *x == 0.0));
    }

    #[test]
    fn noise_follows_from_seed_and_row() {
        let two = batch(&[4, 4], 0);
        let numbers = |seed| numbers(&two, 8, 1.0, seed);
        assert_eq!(numbers(3), numbers(3));
        assert_ne!(numbers(3), numbers(4));
        let (first, second) = (&numbers(3)[..32], &numbers(3)[32..]);
        assert_ne!(first, second);
        // Padding changes nothing.
        let padded = super::numbers(&batch(&[4, 4], 3), 8, 1.0, 3);
        assert_eq!(&padded[..32], first);
        assert_eq!(&padded[7 * 8..7 * 8 + 32], second);
    }
}
