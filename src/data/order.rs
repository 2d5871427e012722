//! Which samples come when, by seed.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::settings::setters;
use crate::{Error, Result};

/// Which samples each optimizer step of a training takes. A step depends on its number alone, so a
/// training resumes in the middle of an epoch by asking for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataOrder {
    /// The number of samples.
    pub num_samples: usize,
    /// The samples of a micro-batch.
    pub batch_size: usize,
    /// The micro-batches of a step that each process makes.
    pub accumulation_steps: usize,
    /// The processes that the run began with, at least 1. They share a step's samples, as do those
    /// that go on with the run, however many they are.
    pub num_processes: usize,
    /// Where to cut an epoch short.
    pub max_steps_per_epoch: Option<usize>,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// The seed of the orders.
    pub seed: u64,
    /// The length of each sample, if a micro-batch is to hold samples of about the same length: of the samples of 50 steps the
    /// longest make a micro-batch, then the next, and these come in any order.
    pub lengths: Option<Arc<[u32]>>,
    last_epoch: LastEpoch,
}

/// The order of the epoch that was asked for last, which the next step is most likely of: to shuffle a million samples takes
/// longer than to read those of a step.
#[derive(Debug, Clone, Default)]
struct LastEpoch(Arc<Mutex<Option<Epoch>>>);

/// An epoch's order, and what it follows from.
type Epoch = (EpochKey, Arc<[usize]>);

/// The number of samples, the seed, the epoch, whether it is shuffled.
type EpochKey = (usize, u64, u64, bool);

impl PartialEq for LastEpoch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LastEpoch {}

impl LastEpoch {
    fn order(&self, key: EpochKey) -> Arc<[usize]> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, order)) if *known == key => Arc::clone(order),
            _ => {
                let (len, seed, epoch, shuffle) = key;
                let order: Arc<[usize]> = shuffled_indices(len, seed, epoch, shuffle).into();
                *last = Some((key, Arc::clone(&order)));
                order
            }
        }
    }
}

/// The steps among whose samples those of about the same length are looked for.
const STEPS_TOGETHER: usize = 50;

impl DataOrder {
    /// Shuffled by the seed 0, one micro-batch a step, in one process.
    pub fn new(num_samples: usize, batch_size: usize) -> Self {
        Self {
            num_samples,
            batch_size,
            accumulation_steps: 1,
            num_processes: 1,
            max_steps_per_epoch: None,
            shuffle: true,
            seed: 0,
            lengths: None,
            last_epoch: LastEpoch::default(),
        }
    }

    setters! {
        with_accumulation_steps => accumulation_steps: usize,
        with_num_processes => num_processes: usize,
        with_max_steps_per_epoch => max_steps_per_epoch: Option<usize>,
        with_shuffle => shuffle: bool,
        with_seed => seed: u64,
        with_lengths => lengths: Option<Arc<[u32]>>,
    }

    /// The steps of an epoch; its last micro-batch and its last step may be smaller.
    ///
    /// # Panics
    /// If `batch_size`, `accumulation_steps` or `num_processes` is 0.
    pub fn steps_per_epoch(&self) -> usize {
        let steps = self.num_samples.div_ceil(self.samples_per_step());
        self.max_steps_per_epoch.map_or(steps, |max| steps.min(max))
    }

    /// The epoch of a step, both counted from 0.
    ///
    /// # Panics
    /// If there are no samples or `max_steps_per_epoch` is 0, and as [`Self::steps_per_epoch`].
    pub fn epoch_of(&self, step: usize) -> usize {
        step / self.steps_per_epoch()
    }

    /// The sample indices of each micro-batch of a step, counted from 0 over all epochs, for a
    /// process that does the whole step.
    ///
    /// # Panics
    /// As [`Self::epoch_of`].
    pub fn step(&self, step: usize) -> Vec<Vec<usize>> {
        self.shard(step, 0, 1)
    }

    /// The part of a step that the process `rank` of `size` does: a contiguous part of the step's
    /// samples, cut in micro-batches. The parts of all ranks, one after the other, are the step;
    /// they differ by at most one sample, so that one may be empty.
    ///
    /// # Panics
    /// If `rank` is not below `size` or there are not as many lengths as samples, and as [`Self::epoch_of`].
    pub fn shard(&self, step: usize, rank: usize, size: usize) -> Vec<Vec<usize>> {
        assert!(rank < size, "rank {rank} of {size} processes");
        let epoch = self.epoch_of(step) as u64;
        let key = (self.num_samples, self.seed, epoch, self.shuffle);
        let order = self.last_epoch.order(key);
        let of_step = self.samples_per_step();
        let start = (step % self.steps_per_epoch()) * of_step;
        let end = (start + of_step).min(self.num_samples);
        let samples = match &self.lengths {
            None => order[start..end].to_vec(),
            Some(lengths) => {
                let first = start - start % (of_step * STEPS_TOGETHER);
                let last = (first + of_step * STEPS_TOGETHER).min(self.num_samples);
                let together = self.grouped(&order[first..last], lengths, epoch, first);
                together[start - first..end - first].to_vec()
            }
        };
        let begin = |rank: usize| samples.len() * rank / size;
        let batches = samples[begin(rank)..begin(rank + 1)].chunks(self.batch_size);
        batches.map(<[usize]>::to_vec).collect()
    }

    /// Samples in micro-batches of about the same length, which come in any order, the smaller last one last.
    fn grouped(&self, samples: &[usize], lengths: &[u32], epoch: u64, first: usize) -> Vec<usize> {
        assert_eq!(lengths.len(), self.num_samples, "a sample has a length");
        let mut samples = samples.to_vec();
        samples.sort_by_key(|sample| Reverse(lengths[*sample]));
        let (batches, rest) = samples.split_at(samples.len() - samples.len() % self.batch_size);
        let mut batches = Vec::from_iter(batches.chunks(self.batch_size));
        if self.shuffle {
            let mut key = key(self.seed, epoch, b"group");
            key[24..].copy_from_slice(&(first as u64).to_le_bytes());
            shuffle_with(&mut batches, &mut ChaCha8Rng::from_seed(key));
        }
        [batches.concat(), rest.to_vec()].concat()
    }

    fn samples_per_step(&self) -> usize {
        self.batch_size * self.accumulation_steps * self.num_processes
    }
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

/// Each sample of a part of the data as often as its weight says: the whole part so many times, and of what is left of the
/// weight a part of the samples, picked by seed and as stably as [`shuffled_indices`]. Every epoch has the same.
///
/// ```
/// use burn_peft::data::weighted_indices;
///
/// assert_eq!(weighted_indices(&[3, 4, 7, 8], 2.0, 0), [3, 4, 7, 8, 3, 4, 7, 8]);
/// assert_eq!(weighted_indices(&[3, 4, 7, 8], 0.5, 0).len(), 2);
/// ```
///
/// # Panics
/// If the weight is negative or not finite.
pub fn weighted_indices(indices: &[usize], weight: f64, seed: u64) -> Vec<usize> {
    assert!(
        weight >= 0.0 && weight.is_finite(),
        "a weight is a number from 0 up, not {weight}"
    );
    let mut all = indices.repeat(weight as usize);
    let mut part: Vec<usize> = (0..indices.len()).collect();
    shuffle_with(&mut part, &mut generator(seed, 0, b"parts"));
    part.truncate((indices.len() as f64 * weight.fract()).round() as usize);
    part.sort_unstable();
    all.extend(part.into_iter().map(|place| indices[place]));
    all
}

/// `purpose` keeps apart what is drawn from one seed.
fn generator(seed: u64, epoch: u64, purpose: &[u8; 5]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(key(seed, epoch, purpose))
}

fn key(seed: u64, epoch: u64, purpose: &[u8; 5]) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..21].copy_from_slice(purpose);
    key
}

/// Written out here because `rand` may change what its shuffle draws, and draws by `usize`.
fn shuffle_with<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_epoch_has_its_own_order() {
        for (shuffle, max_steps_per_epoch) in [(true, None), (false, None), (true, Some(2))] {
            let order = DataOrder {
                num_samples: 11,
                batch_size: 2,
                accumulation_steps: 1,
                num_processes: 2,
                max_steps_per_epoch,
                shuffle,
                seed: 7,
                lengths: None,
                last_epoch: LastEpoch::default(),
            };
            let steps = order.steps_per_epoch();
            assert_eq!(steps, max_steps_per_epoch.unwrap_or(3));
            for epoch in 0..2 {
                let all = (epoch * steps..(epoch + 1) * steps).flat_map(|step| order.step(step));
                let expected = shuffled_indices(11, 7, epoch as u64, shuffle);
                let taken = (steps * 4).min(11);
                assert_eq!(all.collect::<Vec<_>>().concat(), expected[..taken]);
            }
        }
    }

    #[test]
    fn an_order_that_was_asked_for_is_no_other_ones() {
        let mut order = DataOrder::new(1000, 1);
        let first = order.step(0);
        assert_eq!(order.step(0), first);
        assert_ne!(order.step(1000), first);
        let clone = order.clone().with_seed(1);
        assert_ne!(clone.step(0), first);
        assert_eq!(order.step(0), first);
        order.num_samples = 10;
        let all = (0..10).flat_map(|step| order.step(step).concat());
        assert_eq!(all.collect::<Vec<_>>(), shuffled_indices(10, 0, 0, true));
    }

    proptest! {
        #[test]
        fn the_processes_of_an_epoch_take_every_sample_once(
            num_samples in 1usize..60,
            batch_size in 1usize..5,
            accumulation_steps in 1usize..4,
            num_processes in 1usize..4,
            size in 1usize..6,
            epoch in 0usize..3,
            is_grouped: bool,
        ) {
            let lengths = (0..num_samples as u32).map(|sample| sample * 7 % 13);
            let order = DataOrder {
                lengths: is_grouped.then(|| lengths.collect()),
                num_samples,
                batch_size,
                accumulation_steps,
                num_processes,
                max_steps_per_epoch: None,
                shuffle: true,
                seed: 7,
                last_epoch: LastEpoch::default(),
            };
            let steps = order.steps_per_epoch();
            let mut seen = Vec::new();
            for step in epoch * steps..(epoch + 1) * steps {
                let shards: Vec<_> = (0..size).map(|rank| order.shard(step, rank, size)).collect();
                let batches = shards.concat();
                prop_assert!(batches.iter().all(|b| !b.is_empty() && b.len() <= batch_size));
                prop_assert_eq!(batches.concat(), order.step(step).concat());
                let counts: Vec<usize> = shards.iter().map(|s| s.concat().len()).collect();
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                prop_assert!(most - least <= 1);
                // As many processes as the run began with make no more micro-batches than asked.
                let expected = num_processes != size
                    || shards.iter().all(|s| s.len() <= accumulation_steps);
                prop_assert!(expected);
                seen.extend(batches.concat());
            }
            seen.sort();
            prop_assert_eq!(seen, (0..num_samples).collect::<Vec<_>>());
        }
    }
}
