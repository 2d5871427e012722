//! Samples by their number, wherever they are.

use std::sync::Arc;

use super::{Batch, Sample};
use crate::ops::mix;
use crate::{Error, Result};

/// Samples that can be asked for by number, in any order: in memory, in a file, or made when they are needed.
/// [`DataOrder`](super::DataOrder) says which samples a step takes. What comes as a stream becomes one in a
/// [`SampleStore`](super::SampleStore).
///
/// ```
/// use burn_peft::data::{Batch, DataOrder, Dataset, Sample};
///
/// /// Counts from one number to the next.
/// struct Counting(Vec<u32>);
///
/// impl Dataset for Counting {
///     fn len(&self) -> usize {
///         self.0.len()
///     }
///
///     fn sample(&self, index: usize) -> burn_peft::Result<Sample> {
///         let tokens = vec![self.0[index], self.0[index] + 1];
///         let labels = tokens.iter().map(|token| *token as i32).collect();
///         Ok(Sample { tokens, labels, is_cut: false })
///     }
/// }
///
/// let dataset = Counting(vec![3, 7, 5]);
/// let order = DataOrder::new(dataset.len(), 2).with_shuffle(false);
/// let batch = Batch::of_dataset(&dataset, &order.step(0)[0], 0)?;
/// assert_eq!(batch.input_ids, [3, 4, 7, 8]);
/// # Ok::<(), burn_peft::Error>(())
/// ```
pub trait Dataset: Send + Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// A sample; the same each time.
    ///
    /// # Errors
    /// Those of reading or making it.
    ///
    /// # Panics
    /// May panic if `index` is not below [`len`](Self::len).
    fn sample(&self, index: usize) -> Result<Sample>;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of a sample's tokens, where that is told faster than the sample is made.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    ///
    /// # Panics
    /// As [`sample`](Self::sample).
    fn sample_len(&self, index: usize) -> Result<usize> {
        self.sample(index).map(|sample| sample.len())
    }
}

impl Dataset for [Sample] {
    fn len(&self) -> usize {
        self.len()
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        Ok(self[index].clone())
    }

    fn sample_len(&self, index: usize) -> Result<usize> {
        Ok(self[index].len())
    }
}

impl<const N: usize> Dataset for [Sample; N] {
    fn len(&self) -> usize {
        N
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        self.as_slice().sample(index)
    }

    fn sample_len(&self, index: usize) -> Result<usize> {
        self.as_slice().sample_len(index)
    }
}

/// A type that leaves everything to another one.
macro_rules! like_its_target {
    ([$($generics:tt)*] $type:ty) => {
        impl<$($generics)*> Dataset for $type {
            fn len(&self) -> usize {
                (**self).len()
            }

            fn sample(&self, index: usize) -> Result<Sample> {
                (**self).sample(index)
            }

            fn sample_len(&self, index: usize) -> Result<usize> {
                (**self).sample_len(index)
            }
        }
    };
}
like_its_target!([] Vec<Sample>);
like_its_target!([D: Dataset + ?Sized] &D);
like_its_target!([D: Dataset + ?Sized] Box<D>);
like_its_target!([D: Dataset + ?Sized] Arc<D>);

/// Some samples of a data set, in an order of their own; one may be there several times.
#[derive(Clone, Debug)]
pub struct Subset<D> {
    dataset: D,
    indices: Vec<usize>,
}

impl<D: Dataset> Subset<D> {
    /// The samples with these numbers.
    ///
    /// # Panics
    /// If the data set has no sample of a number.
    pub fn new(dataset: D, indices: Vec<usize>) -> Self {
        let len = dataset.len();
        assert!(
            indices.iter().all(|index| *index < len),
            "a number is not below {len}"
        );
        Self { dataset, indices }
    }
}

impl<D: Dataset> Dataset for Subset<D> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        self.dataset.sample(self.indices[index])
    }

    fn sample_len(&self, index: usize) -> Result<usize> {
        self.dataset.sample_len(self.indices[index])
    }
}

/// A number that differs where tokens, labels or the order of samples do, the same in every version of this
/// crate: for [`RunDir::on_data`](crate::training::RunDir::on_data).
///
/// # Errors
/// Those of [`Dataset::sample`].
pub fn fingerprint(dataset: &(impl Dataset + ?Sized)) -> Result<u64> {
    let of_sample = |hash, sample: Sample| {
        let labels = sample.labels.iter().map(|label| *label as u32);
        let numbers = sample.tokens.iter().copied().chain(labels);
        numbers.fold(mix(hash, sample.len() as u64), |hash, number| {
            mix(hash, u64::from(number))
        })
    };
    (0..dataset.len()).try_fold(0, |hash, index| Ok(of_sample(hash, dataset.sample(index)?)))
}

/// Checks that every token id has a row in an embedding of `vocab_size` rows. An id beyond it
/// means the tokenizer of another model, and on a GPU reads foreign memory rather than failing.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`] with the first such id, and those of [`Dataset::sample`].
pub fn check_vocab(dataset: &(impl Dataset + ?Sized), vocab_size: usize) -> Result<()> {
    for index in 0..dataset.len() {
        let tokens = dataset.sample(index)?.tokens;
        if let Some(&id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange { id, vocab_size });
        }
    }
    Ok(())
}

impl Batch {
    /// [`Batch::collate`] of samples of a data set.
    ///
    /// # Errors
    /// Those of [`Dataset::sample`].
    ///
    /// # Panics
    /// As [`Batch::collate`] and [`Dataset::sample`].
    pub fn of_dataset(
        dataset: &(impl Dataset + ?Sized),
        indices: &[usize],
        pad_id: u32,
    ) -> Result<Self> {
        let samples = indices.iter().map(|index| dataset.sample(*index));
        let samples: Vec<Sample> = samples.collect::<Result<_>>()?;
        Ok(Self::collate(&Vec::from_iter(&samples), pad_id))
    }
}
