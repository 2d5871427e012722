use super::{batches_of, shuffled_indices};

/// Which samples each optimizer step of a training takes. A step depends on its number alone, so a
/// training resumes in the middle of an epoch by asking for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl DataOrder {
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
    /// If `rank` is not below `size`, and as [`Self::epoch_of`].
    pub fn shard(&self, step: usize, rank: usize, size: usize) -> Vec<Vec<usize>> {
        assert!(rank < size, "rank {rank} of {size} processes");
        let epoch = self.epoch_of(step);
        let order = shuffled_indices(self.num_samples, self.seed, epoch as u64, self.shuffle);
        let start = (step % self.steps_per_epoch()) * self.samples_per_step();
        let end = (start + self.samples_per_step()).min(self.num_samples);
        let samples = &order[start..end];
        let begin = |rank: usize| samples.len() * rank / size;
        let batches = batches_of(&samples[begin(rank)..begin(rank + 1)], self.batch_size);
        batches.map(<[usize]>::to_vec).collect()
    }

    fn samples_per_step(&self) -> usize {
        self.batch_size * self.accumulation_steps * self.num_processes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_processes_of_an_epoch_take_every_sample_once(
            num_samples in 1usize..60,
            batch_size in 1usize..5,
            accumulation_steps in 1usize..4,
            num_processes in 1usize..4,
            size in 1usize..6,
            epoch in 0usize..3,
        ) {
            let order = DataOrder {
                num_samples,
                batch_size,
                accumulation_steps,
                num_processes,
                max_steps_per_epoch: None,
                shuffle: true,
                seed: 7,
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
