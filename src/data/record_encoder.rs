//! Records of all kinds as samples.

use std::iter;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::records::{Format, Place, RawRecord, Record, Records, Split, for_each_raw};
use super::store::SampleStore;
use super::tokens::{IGNORE_INDEX, Sample, label, longest};
use crate::settings::setters;
use crate::tokenizer::{ChatEncoder, ChatTemplate, Conversation, PlacedToken, Tokenizer};
use crate::{Error, Result};

/// How many records of files, and how many bytes of them, are encoded at a time.
const PART_RECORDS: usize = 2048;
const PART_BYTES: usize = 2 << 20;

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

/// What becomes of a record that may be a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Treatment {
    /// It is used.
    Keep,
    /// It is left out.
    Drop,
    /// It is an error.
    Error,
}

/// The special tokens of a tokenizer, which no text becomes.
struct SpecialTokens {
    texts: Vec<(u32, String)>,
    /// Whether one begins with a byte.
    begins: [bool; 256],
}

impl SpecialTokens {
    fn of(tokenizer: &Tokenizer) -> Self {
        let texts = tokenizer.special_tokens();
        let mut begins = [false; 256];
        for byte in texts.iter().filter_map(|(_, text)| text.bytes().next()) {
            begins[usize::from(byte)] = true;
        }
        Self { texts, begins }
    }

    /// The first that a text names.
    fn named_in(&self, text: &str) -> Option<u32> {
        let rest = (0..text.len()).map(|at| &text.as_bytes()[at..]);
        let mut rest = rest.filter(|rest| self.begins[usize::from(rest[0])]);
        rest.find_map(|rest| {
            let mut texts = self.texts.iter();
            texts.find_map(|(id, text)| rest.starts_with(text.as_bytes()).then_some(*id))
        })
    }
}

/// Why a record may not be what its file's writer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    EmptyInstruction,
    EmptyAnswer,
    TooLong,
    PromptOnly,
    WithoutLabels,
}

/// A record's sample, and what is to be told of it.
struct Encoded {
    sample: Sample,
    flaws: Vec<Flaw>,
    /// A special token that a text of the record names.
    special: Option<u32>,
    is_conversation: bool,
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
    special: SpecialTokens,
    /// By which conversations become texts; without one they are an error.
    pub template: Option<ChatTemplate>,
    /// Whether Alpaca's records are [conversations](Records::into_conversations) too.
    pub as_conversations: bool,
    /// Which tokens of a conversation have labels.
    pub train_on: TrainOn,
    /// Whether the prompts of Alpaca's records, and those with a completion, have labels too.
    pub train_on_input: bool,
    /// The most tokens of a sample.
    pub max_seq_len: Option<usize>,
    /// What becomes of longer records.
    pub too_long: TooLong,
    /// What becomes of a record whose prompt fills [`max_seq_len`](Self::max_seq_len), so that nothing of its answer is
    /// left.
    pub prompt_only: Treatment,
    /// What becomes of another record of which the loss counts nothing: a conversation without an answer, say.
    pub without_labels: Treatment,
    /// What becomes of a record whose answer says nothing.
    pub empty_answers: Treatment,
    /// What becomes of a record that asks nothing.
    pub empty_instructions: Treatment,
}

/// What became of a data set's records. One that is of several kinds counts as each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordCounts {
    /// All records.
    pub read: usize,
    /// Those that a chat template writes.
    pub conversations: usize,
    /// Those that are samples now.
    pub used: usize,
    /// Those of them that lost their end.
    pub cut: usize,
    /// Those of more tokens than there is room for.
    pub too_long: usize,
    /// Those of them of which only the prompt has room.
    pub prompt_only: usize,
    /// Those of which the loss counts nothing, for another reason.
    pub without_labels: usize,
    /// Those whose answer says nothing.
    pub empty_answers: usize,
    /// Those that ask nothing.
    pub empty_instructions: usize,
    /// Those of which a text names a special token, `</s>` say. It is text there, letter by letter: special tokens are those
    /// that a template or the end of a text writes.
    pub special_as_text: usize,
    /// The first such token.
    pub first_special: Option<u32>,
}

impl RecordCounts {
    /// All of them, in words.
    pub fn named(&self) -> [(&'static str, usize); 10] {
        [
            ("read", self.read),
            ("by the chat template", self.conversations),
            ("used", self.used),
            ("used and cut", self.cut),
            ("longer than max_seq_len", self.too_long),
            ("of these only a prompt", self.prompt_only),
            ("nothing for the loss", self.without_labels),
            ("empty answer", self.empty_answers),
            ("empty instruction", self.empty_instructions),
            ("special token as text", self.special_as_text),
        ]
    }

    fn of(&mut self, flaw: Flaw) -> &mut usize {
        match flaw {
            Flaw::EmptyInstruction => &mut self.empty_instructions,
            Flaw::EmptyAnswer => &mut self.empty_answers,
            Flaw::TooLong => &mut self.too_long,
            Flaw::PromptOnly => &mut self.prompt_only,
            Flaw::WithoutLabels => &mut self.without_labels,
        }
    }
}

impl<'a> RecordEncoder<'a> {
    /// For no conversations yet; labels on answers, samples of any length. Records without an instruction or without
    /// labels are left out, empty answers kept.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            chat: ChatEncoder::new(tokenizer),
            special: SpecialTokens::of(tokenizer),
            template: None,
            as_conversations: false,
            train_on: TrainOn::Assistant,
            train_on_input: false,
            max_seq_len: None,
            too_long: TooLong::Cut,
            prompt_only: Treatment::Drop,
            without_labels: Treatment::Drop,
            empty_answers: Treatment::Keep,
            empty_instructions: Treatment::Drop,
        }
    }

    setters! {
        with_template => template: Option<ChatTemplate>,
        with_as_conversations => as_conversations: bool,
        with_train_on => train_on: TrainOn,
        with_train_on_input => train_on_input: bool,
        with_max_seq_len => max_seq_len: Option<usize>,
        with_too_long => too_long: TooLong,
        with_prompt_only => prompt_only: Treatment,
        with_without_labels => without_labels: Treatment,
        with_empty_answers => empty_answers: Treatment,
        with_empty_instructions => empty_instructions: Treatment,
    }

    pub(super) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// A sample of the whole record, or of its beginning of `max_seq_len` tokens, whatever it says. No more of a long
    /// record is encoded than that takes.
    ///
    /// - Alpaca's: [`Sample::from_record`].
    /// - A conversation: what the template writes, encoded by [`ChatEncoder`], with labels on what
    ///   [`train_on`](Self::train_on) names ([`ChatTemplate::answers`]): on a token if any letter of it is in
    ///   an answer.
    /// - A prompt with its completion: [`Sample::from_prompt`].
    /// - A text: BOS, the text and EOS, with labels.
    ///
    /// What is cut does not end with the token that ends a text.
    ///
    /// # Errors
    ///
    /// Those of [`Sample::from_prompt`], [`ChatTemplate::render`] and [`ChatTemplate::answers`], and
    /// [`Error::InvalidArgument`] for a conversation without a template.
    pub fn encode(&self, record: &Record) -> Result<Sample> {
        self.sample_of(record).map(|(sample, _)| sample)
    }

    /// Appends the samples of the records of files that are used, in their order, to a store, and tells what became of all.
    /// The files are read as [`load_split`](super::load_split) reads them, but as a stream: only some records are in memory at
    /// a time. Those are encoded by all processors.
    ///
    /// # Errors
    ///
    /// Those of [`load_split`](super::load_split), [`encode_all`](Self::encode_all) and [`SampleStore::push`].
    pub fn encode_files(
        &self,
        path: impl AsRef<Path>,
        split: Split,
        format: Format,
        store: &mut SampleStore,
    ) -> Result<RecordCounts> {
        let mut counts = RecordCounts::default();
        let (mut part, mut bytes) = (Vec::new(), 0);
        for_each_raw(path.as_ref(), split, format, &mut |raw| {
            bytes += raw.num_bytes();
            part.push(raw);
            if part.len() >= PART_RECORDS || bytes >= PART_BYTES {
                bytes = 0;
                self.encode_part(std::mem::take(&mut part), store, &mut counts)?;
            }
            Ok(())
        })?;
        self.encode_part(part, store, &mut counts)?;
        Ok(counts)
    }

    fn encode_part(
        &self,
        part: Vec<RawRecord>,
        store: &mut SampleStore,
        counts: &mut RecordCounts,
    ) -> Result<()> {
        let all = part.into_par_iter().map(|raw| {
            let (record, place) = raw.parse()?;
            let encoded = self.examine(&record);
            Ok((encoded.map_err(|error| in_record(error, &place))?, place))
        });
        for encoded in all.collect::<Vec<Result<_>>>() {
            let (encoded, place) = encoded?;
            if let Some(sample) = self.used(encoded, &place, counts)? {
                store.push(&sample)?;
            }
        }
        Ok(())
    }

    /// The samples of the records that are used, in their order, and what became of all.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] with the file and the record: those of [`RecordEncoder::encode`] that are about it,
    /// and a record of a kind that is to be an error.
    pub fn encode_all(&self, records: &Records) -> Result<(Vec<Sample>, RecordCounts)> {
        let all: Vec<Result<Encoded>> = records
            .as_slice()
            .par_iter()
            .map(|record| self.examine(record))
            .collect();
        let mut counts = RecordCounts::default();
        let mut samples = Vec::new();
        for (encoded, place) in all.into_iter().zip(records.places()) {
            let encoded = encoded.map_err(|error| in_record(error, place))?;
            samples.extend(self.used(encoded, place, &mut counts)?);
        }
        Ok((samples, counts))
    }

    /// A record's sample, if it is one that is used.
    fn used(
        &self,
        Encoded {
            sample,
            flaws,
            special,
            is_conversation,
        }: Encoded,
        place: &Place,
        counts: &mut RecordCounts,
    ) -> Result<Option<Sample>> {
        counts.read += 1;
        counts.conversations += usize::from(is_conversation);
        counts.special_as_text += usize::from(special.is_some());
        counts.first_special = counts.first_special.or(special);
        let mut is_used = true;
        for flaw in flaws {
            *counts.of(flaw) += 1;
            match self.treatment(flaw) {
                Treatment::Keep => {}
                Treatment::Drop => is_used = false,
                Treatment::Error => return Err(place.error(&self.complaint(flaw))),
            }
        }
        counts.used += usize::from(is_used);
        counts.cut += usize::from(is_used && sample.is_cut);
        Ok(is_used.then_some(sample))
    }

    fn treatment(&self, flaw: Flaw) -> Treatment {
        match (flaw, self.too_long) {
            (Flaw::TooLong, TooLong::Cut) => Treatment::Keep,
            (Flaw::TooLong, TooLong::Drop) => Treatment::Drop,
            (Flaw::TooLong, TooLong::Error) => Treatment::Error,
            (Flaw::PromptOnly, _) => self.prompt_only,
            (Flaw::WithoutLabels, _) => self.without_labels,
            (Flaw::EmptyAnswer, _) => self.empty_answers,
            (Flaw::EmptyInstruction, _) => self.empty_instructions,
        }
    }

    /// What is wrong with a record of a kind that is an error, and what to do.
    fn complaint(&self, flaw: Flaw) -> String {
        let max = self.max_seq_len.unwrap_or_default();
        match flaw {
            Flaw::TooLong => format!(
                "it is longer than {max} tokens; give a larger max_seq_len, or have such records cut or left out \
                 (too_long)"
            ),
            Flaw::PromptOnly => format!(
                "its prompt fills {max} tokens, so that nothing of its answer is left; give a larger max_seq_len, or \
                 have such records left out (prompt_only)"
            ),
            Flaw::WithoutLabels => {
                "the loss counts nothing of it; give it an answer, or have such records left out \
                                    (without_labels)"
                    .into()
            }
            Flaw::EmptyAnswer => {
                "its answer is empty; write one, or have such records kept or left out \
                                  (empty_answers)"
                    .into()
            }
            Flaw::EmptyInstruction => {
                "its instruction is empty; write the task there, or have such records kept or \
                                       left out (empty_instructions)"
                    .into()
            }
        }
    }

    /// The record's sample with what may be wrong with it.
    fn examine(&self, record: &Record) -> Result<Encoded> {
        let (sample, is_prompt) = self.sample_of(record)?;
        let flaws = [
            (Flaw::EmptyInstruction, record.has_empty_instruction()),
            (Flaw::EmptyAnswer, record.has_empty_answer()),
            (Flaw::TooLong, sample.is_cut),
            (Flaw::PromptOnly, is_prompt),
            (
                Flaw::WithoutLabels,
                !is_prompt && sample.num_label_tokens() == 0,
            ),
        ];
        let flaws = flaws.into_iter().filter(|(_, is_so)| *is_so);
        let is_alpaca = matches!(record, Record::Alpaca(_));
        Ok(Encoded {
            flaws: flaws.map(|(flaw, _)| flaw).collect(),
            sample,
            special: record.find_in_texts(|text| self.special.named_in(text)),
            is_conversation: matches!(record, Record::Chat(_))
                || self.as_conversations && is_alpaca,
        })
    }

    /// The record's sample, and whether only its prompt has room.
    fn sample_of(&self, record: &Record) -> Result<(Sample, bool)> {
        let of_prompt = |prompt: &str, answer: &str, train_on_input| {
            let (tokenizer, max) = (self.tokenizer, self.max_seq_len);
            let sample = Sample::with_prompt_len(prompt, answer, tokenizer, train_on_input, max);
            sample.map(|(sample, prompt_len)| {
                let is_prompt = sample.is_cut && prompt_len == sample.len();
                (sample, is_prompt)
            })
        };
        match record {
            Record::Alpaca(record) if self.as_conversations => self.chat(&record.into()),
            Record::Alpaca(record) => {
                of_prompt(&record.prompt(), &record.output, self.train_on_input)
            }
            Record::Completion { prompt, completion } => {
                of_prompt(prompt, completion, self.train_on_input)
            }
            Record::Text(text) => of_prompt("", text, true),
            Record::Chat(conversation) => self.chat(conversation),
        }
    }

    /// What a model is asked to see whether it knows a record, as tokens up to where the answer begins, and the right
    /// answer. Of a conversation that is the last that the assistant says and is to be learned. Without a prompt, or without
    /// words in the answer, nothing is asked.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode_with_bos`] and [`ChatTemplate::prompt`], and [`Error::InvalidArgument`] for a
    /// conversation without a template.
    pub fn question(&self, record: &Record) -> Result<Option<(Vec<u32>, String)>> {
        let of_prompt = |prompt: &str, answer: &str| {
            let prompt = self.tokenizer.encode_with_bos(prompt)?;
            Ok(Some((prompt, answer.to_owned())))
        };
        let question = match record {
            Record::Alpaca(record) if self.as_conversations => self.last_answer(&record.into()),
            Record::Alpaca(record) => of_prompt(&record.prompt(), &record.output),
            Record::Completion { prompt, .. } if prompt.is_empty() => Ok(None),
            Record::Completion { prompt, completion } => of_prompt(prompt, completion),
            Record::Text(_) => Ok(None),
            Record::Chat(conversation) => self.last_answer(conversation),
        }?;
        Ok(question.filter(|(_, answer)| !answer.trim().is_empty()))
    }

    fn last_answer(&self, conversation: &Conversation) -> Result<Option<(Vec<u32>, String)>> {
        let Some((last @ 1.., message)) = conversation.learned().next_back() else {
            return Ok(None);
        };
        let template = self.template.as_ref().ok_or_else(no_template)?;
        let prompt = template.prompt(&conversation.up_to(last), self.tokenizer)?;
        Ok(Some((prompt, message.text())))
    }

    fn chat(&self, conversation: &Conversation) -> Result<(Sample, bool)> {
        let template = self.template.as_ref().ok_or_else(no_template)?;
        let max = longest(self.max_seq_len)?;
        let rendered = template.render(conversation, false)?;
        let mut tokens = self.chat.encode_first(&rendered, max.saturating_add(1))?;
        let is_cut = tokens.len() > max;
        tokens.truncate(max);
        let end = match is_cut {
            true => tokens.last().map_or(0, |token| token.place.end),
            false => rendered.text.len(),
        };
        let last = self.train_on == TrainOn::Last;
        let found = match (self.train_on, is_cut) {
            (TrainOn::All, false) => Ok(Vec::new()),
            _ => template.answers_before(end, conversation, &rendered, last),
        };
        let is_answered = conversation.learned().next().is_some();
        let lost = |found: &Vec<_>| !begins(found, end);
        let is_prompt = is_cut && is_answered && found.as_ref().is_ok_and(lost);
        let answers = match self.train_on {
            // A template that does not tell answers serves here too.
            TrainOn::All => iter::once(0..rendered.text.len()).collect(),
            _ => found?,
        };
        let labels = labels_of(&tokens, answers)?;
        // A vector of its own: one in the place of the larger tokens would stay as large as they were.
        let tokens = tokens.iter().map(|token| token.id).collect();
        let sample = Sample {
            tokens,
            labels,
            is_cut,
        };
        Ok((sample, is_prompt))
    }
}

/// Whether any of the answers has a letter before `end`.
fn begins(answers: &[Range<usize>], end: usize) -> bool {
    let mut answers = answers.iter();
    answers.any(|answer| !answer.is_empty() && answer.start < end)
}

/// A label for each token of which any letter is in an answer.
fn labels_of(tokens: &[PlacedToken], answers: Vec<Range<usize>>) -> Result<Vec<i32>> {
    let mut labels = vec![IGNORE_INDEX; tokens.len()];
    for answer in answers.into_iter().filter(|answer| !answer.is_empty()) {
        let start = tokens.partition_point(|token| token.place.end <= answer.start);
        let end = tokens.partition_point(|token| token.place.start < answer.end);
        for (label_of, token) in labels.iter_mut().zip(tokens).take(end).skip(start) {
            *label_of = label(token.id)?;
        }
    }
    Ok(labels)
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
