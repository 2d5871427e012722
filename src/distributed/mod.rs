//! Data-parallel training: several processes or devices, each with the whole model and a part of
//! every step's samples.
//!
//! ```text
//!            all_gather          each on its own samples          all_reduce, once a step
//! rank 0     token counts  ─►  Σ loss / tokens of all  ─►  adapter gradients and loss  ─►  update
//! rank 1     token counts  ─►  Σ loss / tokens of all  ─►  adapter gradients and loss  ─►  update
//! ```
//!
//! A step of several members equals, but for the order of sums, the step of one process on the
//! micro-batches of all of them in the order of their ranks. [`Trainer::gradients`] and
//! [`Trainer::update`] do such a step; [`DataOrder::shard`] deals out the samples.
//!
//! | group | members | adds through |
//! |---|---|---|
//! | [`SingleProcess`] | one | nothing |
//! | [`DeviceGroup`] | threads of a process, each with a device | NCCL between CUDA devices, otherwise main memory |
//! | `MpiGroup`, feature `mpi` | processes, on any number of machines | MPI |
//!
//! In a loop of your own, [`reduce_gradients`] adds up the gradients of any module.
//!
//! [`Trainer::gradients`]: crate::training::Trainer::gradients
//! [`Trainer::update`]: crate::training::Trainer::update
//! [`DataOrder::shard`]: crate::data::DataOrder::shard

mod devices;
#[cfg(feature = "mpi")]
mod mpi;
mod reduce;

use std::hash::{DefaultHasher, Hash, Hasher};

use burn::tensor::Tensor;

use crate::{Error, Result};

pub use devices::DeviceGroup;
#[cfg(feature = "mpi")]
pub use mpi::MpiGroup;
pub use reduce::{broadcast_params, reduce_gradients};

/// The members of a data-parallel training, seen by one of them. All members call the same methods
/// in the same order.
pub trait ProcessGroup {
    /// This member's number, counted from 0.
    fn rank(&self) -> usize;

    /// How many members there are.
    fn size(&self) -> usize;

    /// The element-wise sum of all members' values, which are f32 and not tracked by autodiff. Every
    /// member gets the same sum to the bit.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if a member has ended.
    ///
    /// # Panics
    /// If the device of `values` has failed.
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>>;

    /// Every member's values, in the order of ranks. All bring equally many.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if a member has ended.
    fn all_gather(&self, values: &[f64]) -> Result<Vec<f64>>;
}

/// A process that trains alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleProcess;

impl ProcessGroup for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>> {
        Ok(values)
    }

    fn all_gather(&self, values: &[f64]) -> Result<Vec<f64>> {
        Ok(values.to_vec())
    }
}

/// Checks that all members have the same `value`, such as the same data or the same configuration;
/// `what` names it.
///
/// # Errors
/// [`Error::PeersDiffer`] with the ranks whose value is not that of rank 0, at every member, and
/// [`Error::PeerLost`] if a member has ended.
pub fn require_same(group: &dyn ProcessGroup, what: &str, value: &impl Hash) -> Result<()> {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    // An f64 holds 53 bits exactly.
    let hashes = group.all_gather(&[(hasher.finish() >> 11) as f64])?;
    let others: Vec<usize> = (0..hashes.len())
        .filter(|rank| hashes[*rank] != hashes[0])
        .collect();
    match others.is_empty() {
        true => Ok(()),
        false => Err(Error::PeersDiffer {
            what: what.to_owned(),
            ranks: others,
        }),
    }
}
