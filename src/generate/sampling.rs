//! The next token, from logits on the host.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::GenerateOptions;
use crate::{Error, Result};

/// Chooses tokens from logits, as [`GenerateOptions`] say.
///
/// The logits go through the steps of transformers, in its order: repetition penalty, then, unless the temperature is 0,
/// temperature, top-k, top-p and min-p.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: GenerateOptions,
    rng: ChaCha8Rng,
}

/// A token that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenProbability {
    /// The token.
    pub id: u32,
    /// Its probability among those that can be drawn.
    pub probability: f64,
}

impl Sampler {
    /// A sampler whose draws follow from the options' seed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an option cannot be used.
    pub fn new(options: &GenerateOptions) -> Result<Self> {
        Self::of_stream(options, 0)
    }

    /// One of several with the same seed, whose draws are independent of each other.
    pub(super) fn of_stream(options: &GenerateOptions, stream: u64) -> Result<Self> {
        options.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(stream);
        Ok(Self {
            options: options.clone(),
            rng,
        })
    }

    /// Chooses a token by its logits, one for each id; `sequence` are the tokens before it, which the repetition penalty
    /// makes less likely.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is infinite or no number.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn choose(&mut self, logits: &[f32], sequence: &[u32]) -> Result<u32> {
        let candidates = Candidates::new(logits, sequence, &self.options)?;
        Ok(candidates.ids[draw(&candidates.weights, &mut self.rng)])
    }
}

/// The tokens that can be drawn, the likeliest first, and of equally likely ones that of the lowest id. With temperature 0
/// that is one token.
///
/// # Errors
/// [`Error::InvalidArgument`] if an option cannot be used; [`Error::NotFinite`] if a logit is infinite or no number.
///
/// # Panics
/// If there are no logits.
pub fn token_probabilities(
    logits: &[f32],
    sequence: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<TokenProbability>> {
    options.validate()?;
    let Candidates { ids, weights } = Candidates::new(logits, sequence, options)?;
    let sum: f64 = weights.iter().sum();
    let probability = |(id, weight)| TokenProbability {
        id,
        probability: weight / sum,
    };
    let mut all = Vec::from_iter(ids.into_iter().zip(weights).map(probability));
    all.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    Ok(all)
}

/// Tokens that can be drawn, with numbers proportional to their probabilities, 1 for the likeliest. Their order follows
/// from the logits alone, so that a seed draws the same everywhere.
struct Candidates {
    ids: Vec<u32>,
    weights: Vec<f64>,
}

impl Candidates {
    fn new(logits: &[f32], sequence: &[u32], options: &GenerateOptions) -> Result<Self> {
        require_finite(logits)?;
        let penalized = penalized(logits, sequence, options.repetition_penalty);
        let logits = penalized.as_deref().unwrap_or(logits);
        // Of equal logits that of the lower id comes first, so that the choice is the same everywhere.
        let likeliest = logits.iter().enumerate().rev();
        let likeliest = likeliest.max_by(|(_, a), (_, b)| a.total_cmp(b));
        let (likeliest, highest) = likeliest.expect("a vocabulary");
        if options.temperature == 0.0 {
            return Ok(Self {
                ids: vec![likeliest as u32],
                weights: vec![1.0],
            });
        }
        let least = options.top_k.map_or(f32::NEG_INFINITY, |k| kth(logits, k));
        let ids = (0..).zip(logits).filter(|(_, logit)| **logit >= least);
        let ids: Vec<u32> = ids.map(|(id, _)| id).collect();
        let highest = f64::from(*highest);
        let weight = |id: &u32| {
            let logit = f64::from(logits[*id as usize]);
            ((logit - highest) / options.temperature).exp()
        };
        let weights = ids.iter().map(weight).collect();
        let all = Self { ids, weights };
        let of_top_p = match options.top_p {
            Some(top_p) if top_p < 1.0 => all.nucleus(top_p),
            _ => all,
        };
        Ok(match options.min_p {
            Some(min_p) => of_top_p.at_least(min_p),
            None => of_top_p,
        })
    }

    /// The fewest that reach the share `top_p` of all weights, the largest first.
    fn nucleus(self, top_p: f64) -> Self {
        let sum = self.weights.iter().sum::<f64>();
        let wanted = top_p * sum;
        // All tokens below this have less than `1 - top_p` together: the rest suffices, and is soon sorted.
        let least = (1.0 - top_p) * sum / self.weights.len() as f64;
        let mut order = self.at_least(least).pairs();
        order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut sum = 0.0;
        let below = order.iter().take_while(|(_, weight)| {
            sum += weight;
            sum < wanted
        });
        let count = below.count() + 1;
        order.truncate(count);
        let (ids, weights) = order.into_iter().unzip();
        Self { ids, weights }
    }

    fn at_least(self, weight: f64) -> Self {
        let all = self.pairs().into_iter();
        let (ids, weights) = all.filter(|(_, own)| *own >= weight).unzip();
        Self { ids, weights }
    }

    fn pairs(self) -> Vec<(u32, f64)> {
        self.ids.into_iter().zip(self.weights).collect()
    }
}

fn require_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(id) => Err(Error::NotFinite {
            what: format!("the logit of token {id}"),
            value: f64::from(logits[id]),
        }),
        None => Ok(()),
    }
}

/// The logits with those of tokens in the sequence made less likely; none if nothing changes.
fn penalized(logits: &[f32], sequence: &[u32], penalty: f64) -> Option<Vec<f32>> {
    if penalty == 1.0 {
        return None;
    }
    let (mut logits, penalty) = (logits.to_vec(), penalty as f32);
    for id in BTreeSet::from_iter(sequence) {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = match *logit < 0.0 {
                true => *logit * penalty,
                false => *logit / penalty,
            };
        }
    }
    Some(logits)
}

/// The k-th largest of some logits; the smallest if there are fewer.
fn kth(logits: &[f32], k: usize) -> f32 {
    let mut logits = logits.to_vec();
    let index = k.min(logits.len()) - 1;
    let (_, kth, _) = logits.select_nth_unstable_by(index, |a, b| b.total_cmp(a));
    *kth
}

/// The index of a weight, drawn with a probability proportional to it.
fn draw(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    if weights.len() == 1 {
        return 0;
    }
    let mut rest = rng.random::<f64>() * weights.iter().sum::<f64>();
    let passed = weights.iter().take_while(|weight| {
        rest -= **weight;
        rest >= 0.0
    });
    passed.count().min(weights.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -1.0];

    fn shares(options: &GenerateOptions) -> [f64; 4] {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[sampler.choose(&LOGITS, &[]).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        for temperature in [0.5, 1.0, 2.0] {
            let options = GenerateOptions::greedy(1).with_temperature(temperature);
            let weights = LOGITS.map(|logit| f64::exp(f64::from(logit) / temperature));
            let sum: f64 = weights.iter().sum();
            for (share, weight) in shares(&options).into_iter().zip(weights) {
                assert_relative_eq!(share, weight / sum, epsilon = 0.01);
            }
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_not() {
        let warm = GenerateOptions::greedy(1).with_temperature(1.0);
        let [a, _, _, d] = shares(&warm.clone().with_top_k(2));
        assert_eq!((a, d), (0.0, 0.0));
        // softmax: .64 for id 1, .24 for id 2
        let [a, _, c, d] = shares(&warm.clone().with_top_p(0.7));
        assert!(c > 0.2);
        assert_eq!((a, d), (0.0, 0.0));
        assert_eq!(shares(&warm.clone().with_top_p(0.6))[2], 0.0);
        // Of the first two, .73 for id 1: top_p counts what top_k left.
        let both = warm.clone().with_top_k(2).with_top_p(0.7);
        assert_eq!(shares(&both)[2], 0.0);
        // id 2 has .37 of id 1's probability, id 0 .14.
        let [a, _, c, d] = shares(&warm.with_min_p(0.3));
        assert!(c > 0.2);
        assert_eq!((a, d), (0.0, 0.0));
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_of_the_lowest_id() {
        let options = GenerateOptions::greedy(1);
        let choose = |options: &GenerateOptions, sequence: &[u32]| {
            let mut sampler = Sampler::new(options).unwrap();
            sampler.choose(&[0.0, 3.0, 3.0], sequence).unwrap()
        };
        assert_eq!(choose(&options, &[1]), 1);
        assert_eq!(choose(&options.with_repetition_penalty(1.1), &[1]), 2);
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(&GenerateOptions::greedy(1)).unwrap();
            let error = sampler.choose(&[0.0, bad, 1.0], &[]).unwrap_err();
            let Error::NotFinite { what, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(what, "the logit of token 1");
        }
    }

    #[test]
    fn streams_of_a_seed_draw_apart() {
        let options = GenerateOptions::greedy(1).with_temperature(1.0);
        let draws = |stream| {
            let mut sampler = Sampler::of_stream(&options, stream).unwrap();
            Vec::from_iter((0..50).map(|_| sampler.choose(&LOGITS, &[]).unwrap()))
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(0), draws(1));
    }
}
