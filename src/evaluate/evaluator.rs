use super::Completion;
use crate::data::{Batch, Sample, check_vocab};
use crate::llama::TransformerDecoder;
use crate::tokenizer::Tokenizer;
use crate::training::{SampleLogProb, sample_log_probs, validation_loss};
use crate::{Error, Result};

/// A model, its tokenizer, and how many rows go through it at a time. Adapters act as they do in the model; dropout rests.
#[derive(Debug, Clone)]
pub struct Evaluator<'a> {
    pub(super) model: &'a TransformerDecoder,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) batch_size: usize,
}

impl<'a> Evaluator<'a> {
    /// 8 rows at a time.
    pub fn new(model: &'a TransformerDecoder, tokenizer: &'a Tokenizer) -> Self {
        Self {
            model,
            tokenizer,
            batch_size: 8,
        }
    }

    /// So many rows at a time, at least 1.
    pub fn with_batch_size(mut self, rows: usize) -> Self {
        self.batch_size = rows.max(1);
        self
    }

    /// How likely each continuation is after its context: the logarithm of its probability, and whether each of its tokens
    /// is the likeliest. Of what is longer than the model's context the beginning is left out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a continuation is longer than the model's context, [`Error::TokenOutOfRange`] if an
    /// id is beyond the vocabulary, [`Error::NotFinite`] if a probability is none.
    pub fn log_likelihoods(&self, completions: &[Completion]) -> Result<Vec<SampleLogProb>> {
        let context_len = self.model.config.context_len();
        let samples = completions.iter();
        let samples = samples.map(|completion| completion.sample(context_len));
        let samples = samples.collect::<Result<Vec<_>>>()?;
        check_vocab(&samples, self.model.vocab_size())?;
        // Rows of about the same length have little padding.
        let mut order: Vec<_> = (0..samples.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(samples[*index].len()));
        let mut found = vec![None; samples.len()];
        for indices in order.chunks(self.batch_size) {
            let rows: Vec<_> = indices.iter().map(|index| &samples[*index]).collect();
            let log_probs = sample_log_probs(self.model, &Batch::collate(&rows, 0));
            for (index, log_prob) in indices.iter().zip(log_probs) {
                found[*index] = Some(require_finite(log_prob)?);
            }
        }
        let found = found.into_iter();
        Ok(found
            .map(|found| found.expect("a place in a batch"))
            .collect())
    }

    /// The perplexity of a token with a label, over samples as they are trained on: that of a validation loss.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no token has a label, [`Error::TokenOutOfRange`] if an id is beyond the vocabulary,
    /// [`Error::NotFinite`] if the loss is no number.
    pub fn sample_perplexity(&self, samples: &[Sample]) -> Result<f64> {
        check_vocab(samples, self.model.vocab_size())?;
        let rows: Vec<_> = samples.iter().collect();
        let batches = rows.chunks(self.batch_size);
        let batches: Vec<_> = batches.map(|rows| Batch::collate(rows, 0)).collect();
        let loss = validation_loss(self.model, &batches)?;
        match loss.is_finite() {
            true => Ok(loss.exp()),
            false => Err(not_finite("the loss", loss)),
        }
    }

    /// The token that stands for what is before a text: the one that begins a sequence, else the one that ends it.
    pub(super) fn prefix(&self) -> Result<u32> {
        let ids = [
            self.tokenizer.bos_id(),
            self.model.config.bos_token_id,
            self.tokenizer.eos_id(),
        ];
        let fits = |id: &u32| (*id as usize) < self.model.vocab_size();
        let prefix = ids.into_iter().flatten().find(fits);
        prefix.ok_or_else(|| Error::InvalidArgument {
            name: "tokenizer",
            message: "it names no token that begins or ends a sequence, after which the first token of a text could \
                      be predicted"
                .into(),
        })
    }

    /// A text after another, see [`Completion::encode`].
    ///
    /// # Errors
    /// Those of [`Completion::encode`]; [`Error::InvalidArgument`] if the tokenizer has no token to stand for an empty
    /// context.
    pub fn encode(&self, context: &str, continuation: &str) -> Result<Completion> {
        let prefix = match context.is_empty() {
            true => self.prefix()?,
            false => 0,
        };
        Completion::encode(self.tokenizer, context, continuation, prefix)
    }
}

fn require_finite(found: SampleLogProb) -> Result<SampleLogProb> {
    match found.log_prob.is_finite() {
        true => Ok(found),
        false => Err(not_finite(
            "the logarithm of a completion's probability",
            found.log_prob,
        )),
    }
}

fn not_finite(what: &str, value: f64) -> Error {
    Error::NotFinite {
        what: what.to_owned(),
        value,
    }
}

pub(super) fn nothing(name: &'static str, message: &str) -> Error {
    let message = message.to_owned();
    Error::InvalidArgument { name, message }
}
