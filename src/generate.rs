//! Generating text token by token with a key-value cache.

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::llama::{KvCache, LlamaConfig, TransformerDecoder};
use crate::{Error, Result};

/// How the next token is chosen and when to stop.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// What the logits are divided by; 0 chooses the likeliest token (greedy).
    pub temperature: f64,
    /// Only the k likeliest tokens can be drawn.
    pub top_k: Option<usize>,
    /// Only the fewest tokens whose probabilities sum to at least this can be drawn.
    pub top_p: Option<f64>,
    /// The tokens at which to stop; those that end a text by the model's configuration if none are given. A
    /// tokenizer may name another, which then ends the answers that the model was finetuned on.
    pub stop_tokens: Option<Vec<u32>>,
    /// The seed of the draws.
    pub seed: u64,
}

impl GenerateOptions {
    /// The likeliest token each time, up to `max_new_tokens` of them.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            stop_tokens: None,
            seed: 0,
        }
    }

    /// Another temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws from the k likeliest tokens only.
    pub fn with_top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Draws from the likeliest tokens of this total probability only.
    pub fn with_top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Stops at one of these tokens, which is not part of the result, and at no other.
    pub fn with_stop_tokens(mut self, tokens: impl IntoIterator<Item = u32>) -> Self {
        self.stop_tokens = Some(tokens.into_iter().collect());
        self
    }

    /// Another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn validate(&self) -> Result<()> {
        let invalid = |name, message: String| Err(Error::InvalidArgument { name, message });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let message = format!("must be 0 or a positive number, not {}", self.temperature);
            return invalid("temperature", message);
        }
        if self.top_k == Some(0) {
            return invalid("top_k", "must be at least 1".into());
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return invalid("top_p", format!("must lie in (0, 1], not {p}"));
        }
        Ok(())
    }
}

/// Continues a prompt; returns the new tokens without the stop token. Ends early at the model's
/// longest sequence.
///
/// # Errors
/// [`Error::TokenOutOfRange`] if the prompt has a token beyond the vocabulary,
/// [`Error::InvalidArgument`] if it is empty, leaves no room in the model's longest sequence, or an
/// option cannot be used.
pub fn generate(
    model: &TransformerDecoder,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<u32>> {
    options.validate()?;
    check_prompt(prompt, &model.config)?;
    let model = model.valid();
    let ends = &model.config.eos_token_ids;
    let stop_tokens = options.stop_tokens.as_ref().unwrap_or(ends);
    let mut cache = KvCache::new(model.config.num_layers);
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let room = model.config.context_len() - prompt.len();
    let rope = model.config.rope();
    let mut generated = Vec::new();
    let mut input = prompt.to_vec();
    for _ in 0..options.max_new_tokens.min(room) {
        if rope.changes_at(cache.len() + input.len()) {
            // Keys in the cache are rotated as those of a shorter sequence.
            cache = KvCache::new(model.config.num_layers);
            input = [prompt, &generated].concat();
        }
        let logits = next_logits(&model, &input, &mut cache);
        let token = choose(&logits, options, &mut rng);
        if stop_tokens.contains(&token) {
            break;
        }
        generated.push(token);
        input = vec![token];
    }
    Ok(generated)
}

fn check_prompt(prompt: &[u32], config: &LlamaConfig) -> Result<()> {
    let (len, longest, vocab_size) = (prompt.len(), config.context_len(), config.vocab_size);
    let bad_length = |message| {
        Err(Error::InvalidArgument {
            name: "prompt",
            message,
        })
    };
    if len == 0 {
        return bad_length("must hold at least one token (the BOS token will do)".into());
    }
    if len >= longest {
        return bad_length(format!(
            "has {len} tokens, which leave no room for an answer in the model's context of {longest}"
        ));
    }
    match prompt.iter().find(|id| **id as usize >= vocab_size) {
        Some(&id) => Err(Error::TokenOutOfRange { id, vocab_size }),
        None => Ok(()),
    }
}

fn next_logits(model: &TransformerDecoder, ids: &[u32], cache: &mut KvCache) -> Vec<f32> {
    let device = model.norm.weight.lazy_device();
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let input = Tensor::<1, Int>::from_ints(&ids[..], &device).unsqueeze();
    let logits = model.forward_cached(input, cache).cast(DType::F32);
    let data = logits.into_data();
    data.as_slice().expect("logits were cast to f32").to_vec()
}

fn choose(logits: &[f32], options: &GenerateOptions, rng: &mut ChaCha8Rng) -> u32 {
    // Of equal logits that of the lower id comes first, so that the choice is the same everywhere.
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    let likeliest = *ids
        .iter()
        .min_by(|a, b| by_logit(a, b))
        .expect("a vocabulary");
    if options.temperature == 0.0 {
        return likeliest as u32;
    }
    if let Some(top_k) = options.top_k.filter(|top_k| *top_k < ids.len()) {
        ids.select_nth_unstable_by(top_k, by_logit);
        ids.truncate(top_k);
    }
    // The seed decides what is drawn, whatever order the ids were left in.
    ids.sort_unstable_by(by_logit);
    let highest = f64::from(logits[likeliest]);
    let weight = |id: &usize| ((f64::from(logits[*id]) - highest) / options.temperature).exp();
    let mut weights: Vec<f64> = ids.iter().map(weight).collect();
    if let Some(top_p) = options.top_p {
        weights.truncate(nucleus(&weights, top_p));
    }
    ids[draw(&weights, rng)] as u32
}

/// How many of the weights, which descend, it takes to reach the share `top_p` of their sum.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let wanted = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let below = weights.iter().take_while(|weight| {
        sum += **weight;
        sum < wanted
    });
    (below.count() + 1).min(weights.len())
}

/// The index of a weight, drawn with a probability proportional to it.
fn draw(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
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

    fn shares(options: &GenerateOptions) -> [f64; 4] {
        let logits = [0.0, 2.0, 1.0, -1.0];
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[choose(&logits, options, &mut rng) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        for temperature in [0.5, 1.0, 2.0] {
            let options = GenerateOptions::greedy(1).with_temperature(temperature);
            let weights = [0.0, 2.0, 1.0, -1.0].map(|logit| f64::exp(logit / temperature));
            let sum: f64 = weights.iter().sum();
            for (share, weight) in shares(&options).into_iter().zip(weights) {
                assert_relative_eq!(share, weight / sum, epsilon = 0.01);
            }
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let warm = GenerateOptions::greedy(1).with_temperature(1.0);
        let [a, _, _, d] = shares(&warm.clone().with_top_k(2));
        assert_eq!((a, d), (0.0, 0.0));
        // softmax: .64 for id 1, .24 for id 2
        let [a, _, c, d] = shares(&warm.clone().with_top_p(0.7));
        assert!(c > 0.2);
        assert_eq!((a, d), (0.0, 0.0));
        assert_eq!(shares(&warm.clone().with_top_p(0.6))[2], 0.0);
        // Of the first two, .73 for id 1: top_p counts what top_k left.
        let both = warm.with_top_k(2).with_top_p(0.7);
        assert_eq!(shares(&both)[2], 0.0);
    }

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let options = GenerateOptions::greedy(1);
        assert_eq!(choose(&[0.0, 3.0, 3.0], &options, &mut rng), 1);
    }
}
