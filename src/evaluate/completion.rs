use crate::data::{IGNORE_INDEX, Sample};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Tokens whose likelihood is asked for, after others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// What comes before; not empty.
    pub context: Vec<u32>,
    /// What is asked for; not empty.
    pub continuation: Vec<u32>,
}

impl Completion {
    /// Tokens after others.
    pub fn new(context: Vec<u32>, continuation: Vec<u32>) -> Self {
        Self {
            context,
            continuation,
        }
    }

    /// A text after another, encoded as one: white space at the end of the context goes to the continuation, and what the
    /// whole has after the context's number of tokens is the continuation. `prefix` stands for an empty context.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no token is left of the continuation; those of [`Tokenizer::encode`].
    pub fn encode(
        tokenizer: &Tokenizer,
        context: &str,
        continuation: &str,
        prefix: u32,
    ) -> Result<Self> {
        let completion = match context.is_empty() {
            true => Self::after_prefix(prefix, tokenizer.encode(continuation)?),
            false => {
                let kept = context.trim_end();
                let whole = tokenizer.encode_with_bos(&format!("{context}{continuation}"))?;
                let len = tokenizer.encode_with_bos(kept)?.len().min(whole.len());
                Self::new(whole[..len].to_vec(), whole[len..].to_vec())
            }
        };
        match completion.context.is_empty() || completion.continuation.is_empty() {
            true => Err(Error::InvalidArgument {
                name: "continuation",
                message: format!("nothing is left of {continuation:?} after {context:?} as tokens"),
            }),
            false => Ok(completion),
        }
    }

    fn after_prefix(prefix: u32, ids: Vec<u32>) -> Self {
        match ids.split_first() {
            Some((first, rest)) if *first == prefix => Self::new(vec![prefix], rest.to_vec()),
            _ => Self::new(vec![prefix], ids),
        }
    }

    /// As a sample in which the continuation has labels. Of what is longer than the model's longest sequence and one more
    /// token, which it need not read, the beginning is left out.
    pub(super) fn sample(&self, context_len: usize) -> Result<Sample> {
        if self.continuation.len() > context_len {
            return Err(Error::InvalidArgument {
                name: "continuation",
                message: format!(
                    "its {} tokens do not fit in the model's context of {context_len}",
                    self.continuation.len()
                ),
            });
        }
        let all = [&self.context[..], &self.continuation].concat();
        let left_out = all.len().saturating_sub(context_len + 1);
        let given = self.context.len() - left_out;
        let tokens = all[left_out..].to_vec();
        let mut labels = vec![IGNORE_INDEX; given];
        for id in &self.continuation {
            let label = i32::try_from(*id).map_err(|_| Error::TokenOutOfRange {
                id: *id,
                vocab_size: i32::MAX as usize,
            });
            labels.push(label?);
        }
        Ok(Sample {
            tokens,
            labels,
            is_cut: left_out > 0,
        })
    }
}
