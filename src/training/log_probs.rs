//! How likely a model finds given tokens.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};

use crate::data::Batch;

/// What a model says of the labelled tokens of a sample, each after those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SampleLogProb {
    /// The logarithm of their probability: the sum of the tokens' own. NaN or infinite if a logit is.
    pub log_prob: f64,
    /// How many they are; the first token of a sample is none of them, for nothing predicts it.
    pub num_tokens: usize,
    /// Whether each is the likeliest at its place.
    pub is_greedy: bool,
}

/// What a model says of a token.
pub(super) struct TokenLogProb {
    /// The index of its sample.
    pub sample: usize,
    pub log_prob: f32,
    pub is_greedy: bool,
}

/// The logarithms of the targets' probabilities, in f32.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`, output the same
pub(super) fn log_probs(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let log_probs = log_softmax(logits.cast(DType::F32), 1);
    log_probs.gather(1, targets.unsqueeze_dim(1)).squeeze_dim(1)
}

/// The same on the host, and whether the target is the likeliest.
pub(super) fn token_log_probs(logits: Tensor<2>, targets: Tensor<1, Int>) -> Vec<(f32, bool)> {
    let likeliest = logits.clone().argmax(1).squeeze_dim::<1>(1);
    let is_greedy = likeliest.equal(targets.clone()).into_data();
    let log_probs = log_probs(logits, targets).into_data();
    log_probs
        .iter::<f32>()
        .zip(is_greedy.iter::<bool>())
        .collect()
}

/// The sums over the samples of a batch.
pub(super) fn sample_log_probs_of(batch: &Batch, tokens: &[TokenLogProb]) -> Vec<SampleLogProb> {
    let none = SampleLogProb {
        log_prob: 0.0,
        num_tokens: 0,
        is_greedy: true,
    };
    let mut samples = vec![none; batch.segments.iter().map(Vec::len).sum()];
    for token in tokens {
        let sample = &mut samples[token.sample];
        sample.log_prob += f64::from(token.log_prob);
        sample.num_tokens += 1;
        sample.is_greedy &= token.is_greedy;
    }
    samples
}
