use super::{batches_of, shuffled_indices};

/// Which samples each optimizer step of a training takes. A step depends on its number alone, so a
/// training resumes in the middle of an epoch by asking for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataOrder {
    /// The number of samples.
    pub num_samples: usize,
    /// The samples of a micro-batch.
    pub batch_size: usize,
    /// The micro-batches of a step.
    pub accumulation_steps: usize,
    /// Where to cut an epoch short.
    pub max_steps_per_epoch: Option<usize>,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// The seed of the orders.
    pub seed: u64,
}

impl DataOrder {
    /// The steps of an epoch; its last micro-batch and its last step may be smaller.
    pub fn steps_per_epoch(&self) -> usize {
        let per_step = self.batch_size * self.accumulation_steps;
        let steps = self.num_samples.div_ceil(per_step);
        self.max_steps_per_epoch.map_or(steps, |max| steps.min(max))
    }

    /// The epoch of a step, both counted from 0.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn epoch_of(&self, step: usize) -> usize {
        step / self.steps_per_epoch()
    }

    /// The sample indices of each micro-batch of a step, counted from 0 over all epochs.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn step(&self, step: usize) -> Vec<Vec<usize>> {
        let epoch = self.epoch_of(step);
        let order = shuffled_indices(self.num_samples, self.seed, epoch as u64, self.shuffle);
        let per_step = self.batch_size * self.accumulation_steps;
        let start = (step % self.steps_per_epoch()) * per_step;
        let end = (start + per_step).min(self.num_samples);
        let batches = batches_of(&order[start..end], self.batch_size);
        batches.map(<[usize]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_takes_every_sample_once(
            num_samples in 1usize..60,
            batch_size in 1usize..5,
            accumulation_steps in 1usize..4,
            epoch in 0usize..3,
        ) {
            let order = DataOrder {
                num_samples,
                batch_size,
                accumulation_steps,
                max_steps_per_epoch: None,
                shuffle: true,
                seed: 7,
            };
            let steps = order.steps_per_epoch();
            let mut seen = Vec::new();
            for step in epoch * steps..(epoch + 1) * steps {
                let batches = order.step(step);
                prop_assert!(!batches.is_empty() && batches.len() <= accumulation_steps);
                prop_assert!(batches.iter().all(|b| !b.is_empty() && b.len() <= batch_size));
                seen.extend(batches.concat());
            }
            seen.sort();
            prop_assert_eq!(seen, (0..num_samples).collect::<Vec<_>>());
        }
    }
}
