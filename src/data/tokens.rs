//! Records as token ids with labels.

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
    /// Longer than `max_seq_len`, the answer loses its tail and EOS stays the last token. If
    /// prompt and BOS leave no room for any of the answer, the prompt is cut as well and EOS, which
    /// does not follow an answer then, has no label: without `train_on_input` such a sample has no
    /// label at all ([`Sample::num_label_tokens`] is 0) and can be dropped.
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
        let eos = tokenizer.eos_id().ok_or_else(no_eos)?;
        let room = match max_seq_len {
            Some(0) => return Err(zero_length()),
            Some(length) => length - 1,
            None => usize::MAX,
        };
        let mut tokens = tokenizer.encode_with_bos(prompt)?;
        let prompt_len = tokens.len();
        tokens.extend(match prompt.is_empty() {
            true => tokenizer.encode(answer)?,
            false => tokenizer.encode_continuation(answer)?,
        });
        let is_cut = tokens.len() > room;
        let is_lost = is_cut && prompt_len >= room;
        tokens.truncate(room);
        tokens.push(eos);

        let labels = tokens.iter().map(|&t| label(t));
        let mut labels = labels.collect::<Result<Vec<_>>>()?;
        if !train_on_input {
            let masked = prompt_len.min(labels.len());
            labels[..masked].fill(IGNORE_INDEX);
        }
        if is_lost {
            labels[room] = IGNORE_INDEX;
        }
        Ok(Self {
            tokens,
            labels,
            is_cut,
        })
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

/// Checks that every token id has a row in an embedding of `vocab_size` rows. An id beyond it
/// means the tokenizer of another model, and on a GPU reads foreign memory rather than failing.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`] with the first such id.
pub fn check_vocab(samples: &[Sample], vocab_size: usize) -> Result<()> {
    let mut ids = samples.iter().flat_map(|sample| &sample.tokens);
    match ids.find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(Error::TokenOutOfRange { id, vocab_size }),
        None => Ok(()),
    }
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

pub(super) fn zero_length() -> Error {
    Error::InvalidArgument {
        name: "max_seq_len",
        message: "0 leaves no room for a token; give at least 1, or leave it out".into(),
    }
}
