//! Records of all kinds as samples.

use std::iter;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::records::{Place, Record, Records};
use super::tokens::{IGNORE_INDEX, Sample, label};
use crate::settings::setters;
use crate::tokenizer::{ChatEncoder, ChatTemplate, Conversation, PlacedToken, Tokenizer};
use crate::{Error, Result};

/// Which tokens of a record the loss counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainOn {
    /// All that the assistant says, with the token that ends its turn.
    Assistant,
    /// The last of it.
    Last,
    /// All tokens.
    All,
}

/// What becomes of a record of more tokens than there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TooLong {
    /// It loses its end.
    #[default]
    Cut,
    /// It is left out.
    Drop,
    /// It is an error.
    Error,
}

/// Makes samples of records.
///
/// ```no_run
/// use burn_peft::data::{Format, RecordEncoder, load_records};
/// use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
///
/// # fn main() -> burn_peft::Result<()> {
/// let tokenizer = Tokenizer::from_dir("Qwen2.5-0.5B-Instruct")?;
/// let template = ChatTemplate::choose(None, &tokenizer)?;
/// let encoder = RecordEncoder::new(&tokenizer).with_template(Some(template)).with_max_seq_len(Some(512));
/// let (samples, counts) = encoder.encode_all(&load_records("chats.jsonl", Format::Auto)?)?;
/// assert_eq!(samples.len(), counts.used);
/// # Ok(())
/// # }
/// ```
pub struct RecordEncoder<'a> {
    tokenizer: &'a Tokenizer,
    chat: ChatEncoder<'a>,
    /// By which conversations become texts; without one they are an error.
    pub template: Option<ChatTemplate>,
    /// Which tokens of a conversation have labels.
    pub train_on: TrainOn,
    /// Whether the prompts of Alpaca's records, and those with a completion, have labels too.
    pub train_on_input: bool,
    /// The most tokens of a sample.
    pub max_seq_len: Option<usize>,
    /// What becomes of longer records.
    pub too_long: TooLong,
}

/// What became of a data set's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordCounts {
    /// All records.
    pub read: usize,
    /// Those that are samples now.
    pub used: usize,
    /// Those of them that lost their end.
    pub cut: usize,
    /// Those of them whose answer says nothing.
    pub empty_answers: usize,
    /// Those left out because they are too long, where that was asked for.
    pub too_long: usize,
    /// Those left out because nothing of them is to be learned: no answer, or none in the part that is left.
    pub without_labels: usize,
}

impl<'a> RecordEncoder<'a> {
    /// For no conversations yet; labels on answers, samples of any length.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            chat: ChatEncoder::new(tokenizer),
            template: None,
            train_on: TrainOn::Assistant,
            train_on_input: false,
            max_seq_len: None,
            too_long: TooLong::Cut,
        }
    }

    setters! {
        with_template => template: Option<ChatTemplate>,
        with_train_on => train_on: TrainOn,
        with_train_on_input => train_on_input: bool,
        with_max_seq_len => max_seq_len: Option<usize>,
        with_too_long => too_long: TooLong,
    }

    /// A sample of the whole record, or of its beginning of `max_seq_len` tokens.
    ///
    /// - Alpaca's: [`Sample::from_record`].
    /// - A conversation: what the template writes, encoded by [`ChatEncoder`], with labels on what
    ///   [`train_on`](Self::train_on) names ([`ChatTemplate::answers`]): on a token if any letter of it is in
    ///   an answer. What is cut ends without an end token.
    /// - A prompt with its completion: [`Sample::from_prompt`].
    /// - A text: BOS, the text and EOS, with labels.
    ///
    /// # Errors
    ///
    /// Those of [`Sample::from_prompt`], [`ChatTemplate::render`] and [`ChatTemplate::answers`], and
    /// [`Error::InvalidArgument`] for a conversation without a template.
    pub fn encode(&self, record: &Record) -> Result<Sample> {
        let (tokenizer, max) = (self.tokenizer, self.max_seq_len);
        match record {
            Record::Alpaca(record) => {
                Sample::from_record(record, tokenizer, self.train_on_input, max)
            }
            Record::Completion { prompt, completion } => {
                Sample::from_prompt(prompt, completion, tokenizer, self.train_on_input, max)
            }
            Record::Text(text) => Sample::from_prompt("", text, tokenizer, true, max),
            Record::Chat(conversation) => self.chat(conversation),
        }
    }

    /// The samples of the records that can be used, in their order, and what became of all.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] with the file and the record: those of [`RecordEncoder::encode`] that are about it,
    /// and a record that is too long where `too_long` makes that an error.
    pub fn encode_all(&self, records: &Records) -> Result<(Vec<Sample>, RecordCounts)> {
        let all: Vec<Result<Sample>> = records
            .as_slice()
            .par_iter()
            .map(|record| self.encode(record))
            .collect();
        let mut counts = RecordCounts {
            read: all.len(),
            ..RecordCounts::default()
        };
        let mut samples = Vec::new();
        for ((sample, record), place) in all
            .into_iter()
            .zip(records.as_slice())
            .zip(records.places())
        {
            let sample = sample.map_err(|error| in_record(error, place))?;
            match self.too_long {
                TooLong::Drop if sample.is_cut => counts.too_long += 1,
                TooLong::Error if sample.is_cut => return Err(self.too_many_tokens(place)),
                _ if sample.num_label_tokens() == 0 => counts.without_labels += 1,
                _ => {
                    counts.used += 1;
                    counts.cut += usize::from(sample.is_cut);
                    counts.empty_answers += usize::from(record.has_empty_answer());
                    samples.push(sample);
                }
            }
        }
        Ok((samples, counts))
    }

    fn chat(&self, conversation: &Conversation) -> Result<Sample> {
        let template = self.template.as_ref().ok_or_else(no_template)?;
        let max = match self.max_seq_len {
            Some(0) => return Err(super::tokens::zero_length()),
            max => max.unwrap_or(usize::MAX),
        };
        let rendered = template.render(conversation, false)?;
        let answers = match self.train_on {
            TrainOn::All => iter::once(0..rendered.text.len()).collect(),
            train_on => template.answers(conversation, &rendered, train_on == TrainOn::Last)?,
        };
        let tokens = self.chat.encode(&rendered)?;
        let mut labels = vec![IGNORE_INDEX; tokens.len()];
        for answer in answers.into_iter().filter(|answer| !answer.is_empty()) {
            let start = tokens.partition_point(|token| token.place.end <= answer.start);
            let end = tokens.partition_point(|token| token.place.start < answer.end);
            for (label_of, token) in labels.iter_mut().zip(&tokens).take(end).skip(start) {
                *label_of = label(token.id)?;
            }
        }
        labels.truncate(max);
        let is_cut = tokens.len() > max;
        let tokens = tokens
            .into_iter()
            .take(max)
            .map(|PlacedToken { id, .. }| id);
        Ok(Sample {
            tokens: tokens.collect(),
            labels,
            is_cut,
        })
    }

    fn too_many_tokens(&self, place: &Place) -> Error {
        let max = self.max_seq_len.unwrap_or_default();
        place.error(&format!(
            "it is longer than {max} tokens; give a larger max_seq_len, or have such records cut or left out \
             (too_long)"
        ))
    }
}

/// What is wrong with a record, and where it stands; what is wrong with the tokenizer or the settings is not
/// its fault.
fn in_record(error: Error, place: &Place) -> Error {
    match error {
        Error::Format { .. } => place.error(&error.to_string()),
        other => other,
    }
}

fn no_template() -> Error {
    Error::InvalidArgument {
        name: "template",
        message: "a conversation needs a chat template; give the tokenizer's (`ChatTemplate::of`), one of \
                  your own, or `ChatTemplate::chatml`"
            .into(),
    }
}
