//! Losses over whole samples.

use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;

use super::{SampleLogProb, sample_log_probs};
use crate::data::Batch;
use crate::llama::TransformerDecoder;

/// A loss of your own, over the log-probabilities of a batch's samples: [`Trainer::step_by`](super::Trainer::step_by)
/// minimises it, with the logits in chunks and activations kept or recomputed as for the cross entropy.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_peft::data::Batch;
/// use burn_peft::training::{SampleLogProb, SequenceLoss};
///
/// /// The mean log-probability of a token, with samples weighed alike however long they are.
/// struct PerSample;
///
/// impl<M> SequenceLoss<M> for PerSample {
///     fn sum(&self, _: &M, _: &Batch, samples: &[SampleLogProb], log_probs: Tensor<1>) -> Tensor<1> {
///         let lengths: Vec<f32> = samples.iter().map(|sample| sample.num_tokens as f32).collect();
///         (log_probs.clone() / Tensor::from_floats(&lengths[..], &log_probs.device())).sum().neg()
///     }
/// }
/// ```
pub trait SequenceLoss<M = TransformerDecoder> {
    /// The sum of the losses of a batch's samples, `[1]`, from the logarithms of the probabilities of each one's labelled
    /// tokens, `[samples]`. The loss's derivative by these is what the samples are worth; `samples` has the same numbers on
    /// the host. `model` is the one that is trained, to ask more of.
    fn sum(
        &self,
        model: &M,
        batch: &Batch,
        samples: &[SampleLogProb],
        log_probs: Tensor<1>,
    ) -> Tensor<1>;

    /// How many losses [`sum`](Self::sum) adds up. The loss of a step is divided by those of all its micro-batches.
    fn count(&self, batch: &Batch) -> usize {
        batch.segments.iter().map(Vec::len).sum()
    }
}

/// Direct preference optimization: `-log σ(β ((log π(w) - log π₀(w)) - (log π(l) - log π₀(l))))` for a preferred answer w
/// and another l to one prompt. π₀ is the base: the same model with its adapters off. Rafailov et al.,
/// <https://arxiv.org/abs/2305.18290>, equation 7.
///
/// Samples come in pairs, the preferred one first. No second model is held, and the base is asked once more in each step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Dpo {
    /// β, how much is worth how far the model goes from the base; 0.1 in most recipes.
    pub beta: f64,
    /// The share of pairs that are the wrong way round: 0 in the paper, more is Mitchell's conservative loss.
    /// <https://ericmitchell.ai/cdpo.pdf>
    pub label_smoothing: f64,
}

impl Dpo {
    /// The paper's loss.
    pub fn new(beta: f64) -> Self {
        Self {
            beta,
            label_smoothing: 0.0,
        }
    }

    /// With some pairs taken to be the wrong way round.
    pub fn with_label_smoothing(mut self, share: f64) -> Self {
        self.label_smoothing = share;
        self
    }

    /// How much more the model has come to prefer each pair's first answer than the base does, times β: above zero where
    /// the pair is right.
    ///
    /// # Panics
    /// If the samples are not pairs.
    pub fn margins(&self, model: &TransformerDecoder, batch: &Batch) -> Vec<f64> {
        let change = |samples: &[SampleLogProb]| {
            let base = base_log_probs(model, batch);
            let pairs = samples.chunks(2).zip(base.chunks(2));
            pairs
                .map(|(own, base)| {
                    let gain = |index: usize| own[index].log_prob - base[index].log_prob;
                    self.beta * (gain(0) - gain(1))
                })
                .collect()
        };
        assert_pairs(batch);
        change(&sample_log_probs(model, batch))
    }
}

impl SequenceLoss for Dpo {
    /// # Panics
    /// If the samples are not pairs.
    fn sum(
        &self,
        model: &TransformerDecoder,
        batch: &Batch,
        _: &[SampleLogProb],
        log_probs: Tensor<1>,
    ) -> Tensor<1> {
        assert_pairs(batch);
        let base = base_log_probs(model, batch);
        let base: Vec<f32> = base.iter().map(|sample| sample.log_prob as f32).collect();
        let base = Tensor::from_floats(&base[..], &log_probs.device());
        let gains = (log_probs - base).reshape([-1, 2]);
        let margins = gains.clone().narrow(1, 0, 1) - gains.narrow(1, 1, 1);
        let margins = margins.mul_scalar(self.beta);
        let right = log_sigmoid(margins.clone()).mul_scalar(self.label_smoothing - 1.0);
        match self.label_smoothing {
            0.0 => right.sum(),
            share => (right - log_sigmoid(margins.neg()).mul_scalar(share)).sum(),
        }
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.segments.iter().map(Vec::len).sum::<usize>() / 2
    }
}

fn assert_pairs(batch: &Batch) {
    let samples: usize = batch.segments.iter().map(Vec::len).sum();
    assert!(
        samples.is_multiple_of(2),
        "{samples} samples are no pairs of a preferred answer and another"
    );
}

/// What the model says without adapters.
fn base_log_probs(model: &TransformerDecoder, batch: &Batch) -> Vec<SampleLogProb> {
    let none = vec![None::<String>; batch.batch_size];
    sample_log_probs(model, &batch.clone().with_adapters(none))
}
