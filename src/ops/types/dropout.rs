use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Which elements of a tensor a dropout drops: a function of a seed and the element's place, the same on
/// every device. So nothing is kept of it but these two numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    /// Masks of different seeds have nothing to do with each other.
    pub seed: u64,
    /// The probability of an element to be dropped, from 0 to below 1.
    pub probability: f64,
}

thread_local! {
    /// The seed of this thread's sequence of masks, and how many were drawn of it.
    static SEQUENCE: Cell<(u64, u64)> = Cell::new((RandomState::new().build_hasher().finish(), 0));
}

/// Begins this thread's sequence of masks anew: what follows drops the same elements each time. Without
/// it the sequence is another one in each thread and run.
pub fn seed_dropout(seed: u64) {
    SEQUENCE.set((seed, 0));
}

impl DropoutMask {
    /// The next mask of this thread's sequence.
    ///
    /// # Panics
    /// If the probability is outside of `[0, 1)`.
    pub fn draw(probability: f64) -> Self {
        assert!(
            (0.0..1.0).contains(&probability),
            "the probability must lie in [0, 1), not {probability}"
        );
        let (seed, index) = SEQUENCE.get();
        SEQUENCE.set((seed, index + 1));
        Self {
            seed: mix(seed, index),
            probability,
        }
    }

    /// What the kept elements are multiplied by: `1 / (1 - probability)`.
    pub(crate) fn factor(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    /// The numbers below which [`hash`] drops an element.
    pub(crate) fn threshold(&self) -> u32 {
        (self.probability * 2f64.powi(32)) as u32
    }

    /// The two keys of [`hash`].
    pub(crate) fn keys(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// What the element at `index`, in row-major order, is multiplied by.
    #[inline(always)]
    pub(crate) fn factor_at(&self, index: usize) -> f32 {
        match hash(index as u32, self.keys()) < self.threshold() {
            true => 0.0,
            false => self.factor(),
        }
    }
}

/// The multipliers of [`hash`].
pub(crate) const MULTIPLIERS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

/// 32 bits that look random: each key goes in before a round of Wellons' `lowbias32`
/// (<https://nullprogram.com/blog/2018/07/31/>).
#[inline(always)]
fn hash(index: u32, keys: [u32; 2]) -> u32 {
    let round = |x: u32| {
        let x = (x ^ (x >> 16)).wrapping_mul(MULTIPLIERS[0]);
        let x = (x ^ (x >> 15)).wrapping_mul(MULTIPLIERS[1]);
        x ^ (x >> 16)
    };
    round(round(index ^ keys[0]) ^ keys[1])
}

/// The `index`-th number of the sequence that begins at `seed`: SplitMix64 (Steele et al.,
/// <https://doi.org/10.1145/2714064.2660195>), whose sequences for neighbouring seeds do not meet.
pub(crate) fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of dropped elements, and that of neighbours, of places and of seeds, which are both
    /// dropped: within five standard deviations of what chance gives.
    #[test]
    fn elements_are_dropped_independently() {
        const ELEMENTS: usize = 1 << 18;
        for probability in [0.05, 0.5, 0.9] {
            let is_dropped =
                |seed, index| DropoutMask { seed, probability }.factor_at(index) == 0.0;
            for seed in [0, 1, u64::MAX] {
                let share_of = |is_counted: &dyn Fn(usize) -> bool| {
                    (0..ELEMENTS).filter(|index| is_counted(*index)).count() as f64
                        / ELEMENTS as f64
                };
                let allowed = |p: f64| 5.0 * (p * (1.0 - p) / ELEMENTS as f64).sqrt();
                let alone = share_of(&|i| is_dropped(seed, i));
                assert!(
                    (alone - probability).abs() < allowed(probability),
                    "{alone}"
                );
                let both = probability * probability;
                for other in [1, 2, 64, 4096] {
                    let pairs = share_of(&|i| is_dropped(seed, i) && is_dropped(seed, i + other));
                    assert!((pairs - both).abs() < allowed(both), "{other}: {pairs}");
                    let next = seed.wrapping_add(other as u64);
                    let pairs = share_of(&|i| is_dropped(seed, i) && is_dropped(next, i));
                    assert!((pairs - both).abs() < allowed(both), "{other}: {pairs}");
                }
            }
        }
    }

    #[test]
    fn a_seed_begins_the_same_sequence() {
        let draw = || [(); 3].map(|()| DropoutMask::draw(0.1).seed);
        seed_dropout(7);
        let first = draw();
        assert_ne!(first[0], first[1]);
        assert_ne!(first, draw());
        seed_dropout(7);
        assert_eq!(draw(), first);
        std::thread::spawn(move || assert_ne!(draw(), first))
            .join()
            .unwrap();
    }

    #[test]
    #[should_panic = "must lie in [0, 1)"]
    fn a_probability_of_one_panics() {
        DropoutMask::draw(1.0);
    }
}
