//! Samples in rows of one length, and the order they come in.

use burn::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::{Error, Result};

use super::tokens::count_labels;
use super::{IGNORE_INDEX, Sample};

/// How long the rows of a [`Batch`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// As long as the longest sample.
    #[default]
    Longest,
    /// The length of the longest sample, rounded up to a multiple of this: fewer distinct shapes,
    /// for backends that compile or tune a kernel for each.
    MultipleOf(usize),
    /// This length, which no sample may exceed.
    Fixed(usize),
}

/// Samples of a step, padded on the right to rows of one length. Lives on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, row by row; `[batch_size, seq_len]`.
    pub input_ids: Vec<i32>,
    /// A label for each token, not shifted, [`IGNORE_INDEX`] on padding; `[batch_size, seq_len]`.
    pub labels: Vec<i32>,
    /// The number of real tokens in each row; `[batch_size]`.
    pub lengths: Vec<usize>,
    /// The number of rows.
    pub batch_size: usize,
    /// The length of each row.
    pub seq_len: usize,
}

impl Batch {
    /// Puts samples into rows as long as the longest of them, filled up with `pad_id`.
    ///
    /// # Panics
    ///
    /// If `samples` is empty, a sample has not one label a token, or an id is not below 2^31.
    pub fn collate(samples: &[&Sample], pad_id: u32) -> Self {
        Self::collate_to(samples, pad_id, Padding::Longest)
    }

    /// Puts samples into rows of the length that `padding` says, filled up with `pad_id`.
    ///
    /// # Panics
    ///
    /// As [`Batch::collate`]; also if a sample is longer than [`Padding::Fixed`], or
    /// [`Padding::MultipleOf`] is 0.
    pub fn collate_to(samples: &[&Sample], pad_id: u32, padding: Padding) -> Self {
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.len()).collect();
        let longest = *lengths.iter().max().expect("a batch needs a sample");
        let seq_len = match padding {
            Padding::Longest => longest,
            Padding::MultipleOf(step) => longest.next_multiple_of(step),
            Padding::Fixed(length) => length,
        };
        assert!(
            longest <= seq_len,
            "a sample of {longest} tokens does not fit in rows of {seq_len}"
        );
        let mut input_ids = Vec::with_capacity(samples.len() * seq_len);
        let mut labels = Vec::with_capacity(samples.len() * seq_len);
        for (row, sample) in samples.iter().enumerate() {
            assert_eq!(
                sample.tokens.len(),
                sample.labels.len(),
                "a sample needs one label for each token"
            );
            input_ids.extend(sample.tokens.iter().map(|&id| to_i32(id)));
            input_ids.resize((row + 1) * seq_len, to_i32(pad_id));
            labels.extend(&sample.labels);
            labels.resize((row + 1) * seq_len, IGNORE_INDEX);
        }
        Self {
            input_ids,
            labels,
            batch_size: lengths.len(),
            lengths,
            seq_len,
        }
    }

    /// How many positions the loss counts; see [`Sample::num_label_tokens`].
    pub fn num_label_tokens(&self) -> usize {
        self.labels
            .chunks(self.seq_len.max(1))
            .map(count_labels)
            .sum()
    }

    /// The positions whose next token has a label, counted over all rows, and those labels.
    pub fn predictions(&self) -> (Vec<i32>, Vec<i32>) {
        let is_first = |index: usize| index.is_multiple_of(self.seq_len);
        let labelled = self.labels.iter().enumerate();
        labelled
            .filter(|(index, label)| **label != IGNORE_INDEX && !is_first(*index))
            .map(|(index, label)| (index as i32 - 1, *label))
            .unzip()
    }

    /// How many tokens are not padding.
    pub fn num_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The token ids as a tensor.
    ///
    /// # Shapes
    ///
    /// - output: `[batch_size, seq_len]`
    pub fn input_tensor(&self, device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(self.input_ids.clone(), [self.batch_size, self.seq_len]);
        Tensor::from_data(data, device)
    }

    /// `true` at each real token and `false` at padding; `None` if nothing is padded, when
    /// attention needs no mask but the causal one.
    ///
    /// # Shapes
    ///
    /// - output: `[batch_size, seq_len]`
    pub fn attention_mask(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        if self.lengths.iter().all(|&length| length == self.seq_len) {
            return None;
        }
        let real: Vec<bool> = self
            .lengths
            .iter()
            .flat_map(|&length| (0..self.seq_len).map(move |t| t < length))
            .collect();
        let data = TensorData::new(real, [self.batch_size, self.seq_len]);
        Some(Tensor::from_data(data, device))
    }
}

fn to_i32(id: u32) -> i32 {
    i32::try_from(id).expect("a token id is below 2^31")
}

/// The order of `len` samples in an epoch: `0..len`, shuffled if `shuffle` says so.
///
/// The same arguments give the same order on every platform and in every version of this crate
/// with the same major number: Fisher and Yates' shuffle with ChaCha8, whose key is the seed, the
/// epoch (eight bytes each, little end first), the letters `epoch`, and zeros.
pub fn shuffled_indices(len: usize, seed: u64, epoch: u64, shuffle: bool) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    if shuffle {
        shuffle_with(&mut indices, &mut generator(seed, epoch, b"epoch"));
    }
    indices
}

/// The parts of `indices` that make a batch each; the last one may be smaller.
///
/// # Panics
///
/// If `batch_size` is 0.
pub fn batches_of(indices: &[usize], batch_size: usize) -> impl ExactSizeIterator<Item = &[usize]> {
    indices.chunks(batch_size)
}

/// Picks `validation` of `len` samples at random, by seed and as stably as [`shuffled_indices`],
/// and returns the indices for training and those for validation, each in ascending order.
///
/// # Errors
///
/// [`Error::InvalidArgument`] if nothing would be left to train on.
pub fn split_validation(
    len: usize,
    validation: usize,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>)> {
    if validation >= len {
        return Err(Error::InvalidArgument {
            name: "validation",
            message: format!("{validation} of {len} samples leave none to train on; give fewer"),
        });
    }
    let mut held_out: Vec<usize> = (0..len).collect();
    shuffle_with(&mut held_out, &mut generator(seed, 0, b"split"));
    let mut train = held_out.split_off(validation);
    held_out.sort_unstable();
    train.sort_unstable();
    Ok((train, held_out))
}

/// `purpose` keeps apart what is drawn from one seed.
fn generator(seed: u64, epoch: u64, purpose: &[u8; 5]) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..21].copy_from_slice(purpose);
    ChaCha8Rng::from_seed(key)
}

/// Written out here because `rand` may change what its shuffle draws, and draws by `usize`.
fn shuffle_with(items: &mut [usize], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let other = below(last as u64 + 1, rng);
        items.swap(last, other as usize);
    }
}

/// A number below `bound`, each equally likely: draws from the incomplete last multiple of
/// `bound` are thrown away.
fn below(bound: u64, rng: &mut ChaCha8Rng) -> u64 {
    let usable = u64::MAX - u64::MAX % bound;
    loop {
        let draw = rng.next_u64();
        if draw < usable {
            return draw % bound;
        }
    }
}
