//! Alpaca records: reading them and writing them as a prompt.

use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::read_json;
use super::source::Source;
use crate::Result;
use crate::files::read_text;
use crate::tokenizer::{Conversation, Message};

/// One example of an Alpaca data set: what to do, to what, and the answer.
///
/// As JSON an object with the texts `instruction` and `output` and, where there is one, `input`
/// (missing, `null` and `""` all mean none). Other keys are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct AlpacaRecord {
    /// The task.
    pub instruction: String,
    /// What the task is about; empty if the instruction says it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// The answer to learn; may be empty.
    pub output: String,
}

impl AlpacaRecord {
    /// A task that says it all, without an answer: a question.
    pub fn new(instruction: impl Into<String>) -> Self {
        Self {
            instruction: instruction.into(),
            input: String::new(),
            output: String::new(),
        }
    }

    /// The same task about something.
    pub fn with_input(mut self, input: impl Into<String>) -> Self {
        self.input = input.into();
        self
    }

    /// The prompt that Stanford's Alpaca was trained with, up to where the answer begins.
    ///
    /// ```
    /// use burn_peft::data::parse_alpaca;
    ///
    /// let records = parse_alpaca(r#"[{"instruction": "Say hi.", "output": "Hi!"}]"#, "doc.json")?;
    /// let prompt = records[0].prompt();
    /// assert!(prompt.ends_with("\n\n### Instruction:\nSay hi.\n\n### Response:\n"));
    /// # Ok::<(), burn_peft::Error>(())
    /// ```
    pub fn prompt(&self) -> String {
        let Self {
            instruction, input, ..
        } = self;
        if input.is_empty() {
            format!(
                "Below is an instruction that describes a task. \
                 Write a response that appropriately completes the request.\n\n\
                 ### Instruction:\n{instruction}\n\n### Response:\n"
            )
        } else {
            format!(
                "Below is an instruction that describes a task, \
                 paired with an input that provides further context. \
                 Write a response that appropriately completes the request.\n\n\
                 ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
            )
        }
    }
}

impl From<&AlpacaRecord> for Conversation {
    /// The instruction, with the input on the next line, and its answer.
    fn from(record: &AlpacaRecord) -> Self {
        let question = match record.input.is_empty() {
            true => record.instruction.clone(),
            false => format!("{}\n{}", record.instruction, record.input),
        };
        let answer = Message::new("assistant", &record.output);
        Self::new([Message::new("user", &question), answer])
    }
}

/// The keys of a record before they are checked, so that an error can name the key at fault.
#[derive(Deserialize)]
struct Fields(Map<String, Value>);

impl TryFrom<Fields> for AlpacaRecord {
    type Error = String;

    fn try_from(Fields(mut fields): Fields) -> Result<Self, String> {
        let mut text = |key: &str| match fields.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` is not a text")),
        };
        let required = |key: &str, found: Option<String>| {
            found.ok_or_else(|| {
                format!("`{key}` is missing; a record needs `instruction` and `output`")
            })
        };
        Ok(Self {
            instruction: required("instruction", text("instruction")?)?,
            input: text("input")?.unwrap_or_default(),
            output: required("output", text("output")?)?,
        })
    }
}

/// Reads a data set: a JSON array of records, or JSON lines with a record a line. The content
/// decides, not the file's name.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if the file cannot be read, else those of [`parse_alpaca`].
pub fn load_alpaca(path: impl AsRef<Path>) -> Result<Vec<AlpacaRecord>> {
    let path = path.as_ref();
    let text = read_text(path)?;
    parse_alpaca(&text, path)
}

/// Reads a data set from memory; `origin` is what errors call it.
///
/// # Errors
///
/// - [`Error::Format`](crate::Error::Format): malformed JSON (with line and column), neither of the two
///   forms, or no record at all.
/// - [`Error::Record`](crate::Error::Record): a record without a task or an answer, or with something else
///   than texts.
pub fn parse_alpaca(text: &str, origin: impl AsRef<Path>) -> Result<Vec<AlpacaRecord>> {
    let source = Source::text(text, origin.as_ref());
    let is_record = |object: &Map<String, Value>| object.contains_key("instruction");
    let mut records = Vec::new();
    read_json(&source, &is_record, &mut |place, content| {
        let record = record(content.into_value(&place)?).and_then(with_task);
        records.push(record.map_err(|what| place.error(&what))?);
        Ok(ControlFlow::Continue(()))
    })?;
    match records.is_empty() {
        false => Ok(records),
        true => Err(source.empty()),
    }
}

fn with_task(record: AlpacaRecord) -> Result<AlpacaRecord, String> {
    match record.instruction.trim().is_empty() {
        false => Ok(record),
        true => Err("`instruction` is empty; write the task there, or drop the record".into()),
    }
}

/// A record as JSON has it, or what is wrong with it.
pub(super) fn record(value: Value) -> Result<AlpacaRecord, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}
