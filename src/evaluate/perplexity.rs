use std::f64::consts::LN_2;

use super::evaluator::nothing;
use super::{Completion, Evaluator};
use crate::Result;

/// How surprised a model is by a text.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// The logarithm of the text's probability.
    pub log_prob: f64,
    /// Its tokens. Perplexities by token of models with different tokenizers cannot be compared, the others can.
    pub tokens: usize,
    /// Its words: what white space parts.
    pub words: usize,
    /// Its bytes in UTF-8.
    pub bytes: usize,
}

impl Perplexity {
    /// `exp(-log_prob / tokens)`.
    pub fn by_token(&self) -> f64 {
        self.by(self.tokens)
    }

    /// `exp(-log_prob / words)`.
    pub fn by_word(&self) -> f64 {
        self.by(self.words)
    }

    /// `exp(-log_prob / bytes)`.
    pub fn by_byte(&self) -> f64 {
        self.by(self.bytes)
    }

    /// `-log₂ p / bytes`.
    pub fn bits_per_byte(&self) -> f64 {
        -self.log_prob / self.bytes as f64 / LN_2
    }

    fn by(&self, count: usize) -> f64 {
        (-self.log_prob / count as f64).exp()
    }
}

impl Evaluator<'_> {
    /// The perplexity of a text, however long: every token is predicted once. A text that is longer than the model's context
    /// is cut into windows of that length, each with one token before it; the last one sees as much as fits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the text is empty, and those of
    /// [`Evaluator::log_likelihoods`].
    pub fn perplexity(&self, text: &str) -> Result<Perplexity> {
        let ids = self.tokenizer.encode_with_bos(text)?;
        if text.is_empty() || ids.is_empty() {
            return Err(nothing("text", "it is empty: there is nothing to predict"));
        }
        let windows = windows(&ids, self.prefix()?, self.model.config.context_len());
        let found = self.log_likelihoods(&windows)?;
        Ok(Perplexity {
            log_prob: found.iter().map(|window| window.log_prob).sum(),
            tokens: ids.len(),
            words: words(text),
            bytes: text.len(),
        })
    }
}

/// The pieces of at most `len` tokens in which a text is predicted, each with what stands before it.
fn windows(ids: &[u32], prefix: u32, len: usize) -> Vec<Completion> {
    let first = ids.len().min(len);
    let mut windows = vec![Completion::new(vec![prefix], ids[..first].to_vec())];
    let mut predicted = first;
    while predicted < ids.len() {
        let end = (predicted + len).min(ids.len());
        let context = ids[end - len - 1..predicted].to_vec();
        windows.push(Completion::new(context, ids[predicted..end].to_vec()));
        predicted = end;
    }
    windows
}

/// The parts between white space, as `re.split(r"\s+", text)` counts them: an empty one before white space that the text
/// begins with, and one after white space at its end.
fn words(text: &str) -> usize {
    let mut before = false;
    let gaps = text.chars().filter(|c| {
        let begins = c.is_whitespace() && !before;
        before = c.is_whitespace();
        begins
    });
    gaps.count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `get_rolling_token_windows` and `make_disjoint_window` of lm-eval 0.4.13 give them.
    #[test]
    fn every_token_is_predicted_once() {
        let pairs = |count: u32, len| {
            let ids: Vec<u32> = (1..=count).collect();
            let windows = windows(&ids, 0, len).into_iter();
            windows
                .map(|w| (w.context, w.continuation))
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(3, 4), [(vec![0], vec![1, 2, 3])]);
        assert_eq!(pairs(4, 4), [(vec![0], vec![1, 2, 3, 4])]);
        let expected = [
            (vec![0], vec![1, 2, 3, 4]),
            (vec![4], vec![5, 6, 7, 8]),
            (vec![6, 7, 8], vec![9, 10]),
        ];
        assert_eq!(pairs(10, 4), expected);
    }

    #[test]
    fn words_are_what_python_counts() {
        for (text, count) in [("", 1), ("a", 1), ("a  b\n c", 3), (" a ", 3)] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
