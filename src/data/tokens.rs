//! Records as token ids with labels.

use std::ops::Range;

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

use super::AlpacaRecord;

/// The label of a position that the loss leaves out.
pub const IGNORE_INDEX: i32 = -100;

/// A sequence of token ids and, for each position, the label: the same token, or
/// [`IGNORE_INDEX`] where nothing is to be learned.
///
/// The labels are not shifted. The token at position `t` is predicted from those before it, so
/// the loss compares the logits at `t - 1` with the label at `t`, and the label at position 0 is
/// never used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sample {
    /// The token ids.
    pub tokens: Vec<u32>,
    /// A label for each token.
    pub labels: Vec<i32>,
    /// Whether the record was longer and lost its end.
    pub is_cut: bool,
}

impl Sample {
    /// The record as `[BOS] prompt answer [EOS]`; see [`Sample::from_prompt`].
    ///
    /// # Errors
    ///
    /// Those of [`Sample::from_prompt`].
    pub fn from_record(
        record: &AlpacaRecord,
        tokenizer: &Tokenizer,
        train_on_input: bool,
        max_seq_len: Option<usize>,
    ) -> Result<Self> {
        let prompt = record.prompt();
        Self::from_prompt(
            &prompt,
            &record.output,
            tokenizer,
            train_on_input,
            max_seq_len,
        )
    }

    /// `[BOS] prompt answer [EOS]`, the prompt encoded on its own, so that its tokens are the same at
    /// training and at generation, and the answer as [what goes on
    /// there](Tokenizer::encode_continuation). There is no BOS if the tokenizer has none. With an empty
    /// prompt and `train_on_input` it is a sample of plain text.
    ///
    /// With `train_on_input` every token has a label, otherwise only the answer and EOS.
    ///
    /// Longer than `max_seq_len`, it is the first tokens of that: an answer that is cut does not end with EOS, for
    /// that would teach to stop there. If nothing of the answer is left, the sample has no label without
    /// `train_on_input` ([`Sample::num_label_tokens`] is 0), and with it those of a prompt alone:
    /// [`RecordEncoder`](super::RecordEncoder) drops either.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the tokenizer has no EOS or `max_seq_len` is 0,
    /// [`Error::TokenOutOfRange`] if an id is not below 2^31, and the errors of
    /// [`Tokenizer::encode`].
    pub fn from_prompt(
        prompt: &str,
        answer: &str,
        tokenizer: &Tokenizer,
        train_on_input: bool,
        max_seq_len: Option<usize>,
    ) -> Result<Self> {
        Self::with_prompt_len(prompt, answer, tokenizer, train_on_input, max_seq_len)
            .map(|(sample, _)| sample)
    }

    /// The same, and how many of its tokens are the prompt's.
    pub(super) fn with_prompt_len(
        prompt: &str,
        answer: &str,
        tokenizer: &Tokenizer,
        train_on_input: bool,
        max_seq_len: Option<usize>,
    ) -> Result<(Self, usize)> {
        let eos = tokenizer.eos_id().ok_or_else(no_eos)?;
        let max = longest(max_seq_len)?;
        // One token more than there is room for tells that the record is longer.
        let room = |tokens: &Vec<u32>| max.saturating_add(1).saturating_sub(tokens.len());
        let mut tokens = Vec::from_iter(tokenizer.bos_id());
        tokens.extend(tokenizer.encode_first(prompt, room(&tokens))?);
        let prompt_len = tokens.len().min(max);
        tokens.extend(match prompt.is_empty() {
            true => tokenizer.encode_first(answer, room(&tokens))?,
            false => tokenizer.encode_continuation_first(answer, room(&tokens))?,
        });
        tokens.push(eos);
        let is_cut = tokens.len() > max;
        tokens.truncate(max);

        let labels = tokens.iter().map(|&t| label(t));
        let mut labels = labels.collect::<Result<Vec<_>>>()?;
        if !train_on_input {
            labels[..prompt_len].fill(IGNORE_INDEX);
        }
        let sample = Self {
            tokens,
            labels,
            is_cut,
        };
        Ok((sample, prompt_len))
    }

    /// Tokens that follow each other and have labels, or have none, with whether they have: what the loss counts, and
    /// what it only reads. The first token of a sample is never counted.
    pub fn spans(&self) -> Vec<(Range<usize>, bool)> {
        let is_counted = |place: usize| place > 0 && self.labels[place] != IGNORE_INDEX;
        let mut spans: Vec<(Range<usize>, bool)> = Vec::new();
        for place in 0..self.len() {
            match spans.last_mut() {
                Some((span, counted)) if *counted == is_counted(place) => span.end += 1,
                _ => spans.push((place..place + 1, is_counted(place))),
            }
        }
        spans
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// How many positions the loss counts: labels other than [`IGNORE_INDEX`], the first position
    /// left out because nothing predicts it.
    pub fn num_label_tokens(&self) -> usize {
        let predicted = self.labels.iter().skip(1);
        predicted.filter(|label| **label != IGNORE_INDEX).count()
    }
}

/// [`Sample::from_record`] for a whole data set, in its order.
///
/// # Errors
///
/// Those of [`Sample::from_prompt`].
pub fn tokenize_records(
    records: &[AlpacaRecord],
    tokenizer: &Tokenizer,
    train_on_input: bool,
    max_seq_len: Option<usize>,
) -> Result<Vec<Sample>> {
    records
        .iter()
        .map(|record| Sample::from_record(record, tokenizer, train_on_input, max_seq_len))
        .collect()
}

pub(super) fn label(id: u32) -> Result<i32> {
    i32::try_from(id).map_err(|_| Error::TokenOutOfRange {
        id,
        vocab_size: i32::MAX as usize,
    })
}

fn no_eos() -> Error {
    Error::InvalidArgument {
        name: "tokenizer",
        message: "it names no end-of-sequence token; set `eos_token` in tokenizer_config.json or \
                  `eos_token_id` in config.json, or in a program `Tokenizer::with_special_ids`"
            .into(),
    }
}

/// The most tokens of a sample, in numbers.
pub(super) fn longest(max_seq_len: Option<usize>) -> Result<usize> {
    match max_seq_len {
        Some(0) => Err(Error::InvalidArgument {
            name: "max_seq_len",
            message: "0 leaves no room for a token; give at least 1, or leave it out".into(),
        }),
        max => Ok(max.unwrap_or(usize::MAX)),
    }
}
