//! Records of all formats: finding files, telling formats apart, reading.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::alpaca::AlpacaRecord;
use super::formats;
use super::json::{parse_json, require_some};
use crate::files::read_text;
use crate::tokenizer::Conversation;
use crate::{Error, Result};

/// The form of the records of a data set, which their keys tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// What the keys of a file's first record say.
    #[default]
    Auto,
    /// `instruction`, `input` and `output`, and `system` and `history` where there are some.
    Alpaca,
    /// OpenAI's: `messages` with `role` and `content`, and `tools`.
    Messages,
    /// `conversations` with `from` and `value`.
    Sharegpt,
    /// `prompt` and `completion`, texts or lists of messages.
    PromptCompletion,
    /// `text`.
    Text,
}

impl Format {
    /// The formats with the keys by which their records are known.
    pub(super) const KEYS: [(Self, &'static [&'static str]); 5] = [
        (Self::Messages, &["messages"]),
        (Self::Sharegpt, &["conversations"]),
        (Self::PromptCompletion, &["prompt", "completion"]),
        (Self::Alpaca, &["instruction"]),
        (Self::Text, &["text"]),
    ];
}

/// One record of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// An instruction, for the prompt of Alpaca.
    Alpaca(AlpacaRecord),
    /// A conversation, for the model's chat template.
    Chat(Conversation),
    /// A prompt and what goes on there, in no template.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// A text to learn as a whole.
    Text(String),
}

impl Record {
    /// Whether it asks nothing: the instruction of Alpaca's, or the last that the user says in a conversation.
    pub fn has_empty_instruction(&self) -> bool {
        match self {
            Self::Alpaca(record) => record.instruction.trim().is_empty(),
            Self::Chat(conversation) => {
                let mut messages = conversation.messages.iter().rev();
                let asked = messages.find(|message| message.role() == "user");
                asked.is_some_and(|message| message.is_empty())
            }
            Self::Completion { .. } | Self::Text(_) => false,
        }
    }

    /// Whether what it teaches says nothing.
    pub fn has_empty_answer(&self) -> bool {
        match self {
            Self::Alpaca(record) => record.output.trim().is_empty(),
            Self::Chat(conversation) => {
                let mut messages = conversation.messages.iter().rev();
                let last = messages.find(|message| message.role() == "assistant");
                last.is_some_and(|message| message.is_empty())
            }
            Self::Completion { completion, .. } => completion.trim().is_empty(),
            Self::Text(text) => text.trim().is_empty(),
        }
    }
}

/// Where a record stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: Arc<Path>,
    record: usize,
    line: Option<usize>,
}

impl Place {
    pub(super) fn new(path: &Path, record: usize, line: Option<usize>) -> Self {
        let path = path.into();
        Self { path, record, line }
    }

    /// An [`Error::Record`] for this place.
    pub(super) fn error(&self, message: &str) -> Error {
        Error::Record {
            path: self.path.to_path_buf(),
            record: self.record,
            line: self.line,
            message: message.to_owned(),
        }
    }
}

/// The records of a data set, in the order of its files.
#[derive(Clone, Debug, Default)]
pub struct Records {
    records: Vec<Record>,
    places: Vec<Place>,
}

impl Records {
    /// The records.
    pub fn as_slice(&self) -> &[Record] {
        &self.records
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The same with Alpaca's records as conversations, for a model that has been taught to follow
    /// instructions: the instruction, with the input on the next line, is what the user says.
    pub fn into_conversations(mut self) -> Self {
        for record in &mut self.records {
            if let Record::Alpaca(alpaca) = record {
                *record = Record::Chat(Conversation::from(&*alpaca));
            }
        }
        self
    }

    /// Whether any record needs a chat template.
    pub fn has_conversations(&self) -> bool {
        let mut records = self.records.iter();
        records.any(|record| matches!(record, Record::Chat(_)))
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }
}

/// Which files of a folder are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Split {
    /// Those whose names begin with `train`.
    Train,
    /// Those whose names begin with `validation`, `valid`, `val`, `dev` or `test`: the first of these that
    /// there are.
    Validation,
}

impl Split {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Validation => &["validation", "valid", "val", "dev", "test"],
        }
    }
}

/// Reads the records to train on: [`load_split`] of [`Split::Train`].
///
/// # Errors
///
/// Those of [`load_split`].
pub fn load_records(path: impl AsRef<Path>, format: Format) -> Result<Records> {
    load_split(path, Split::Train, format)
}

/// Reads a file, several (their paths with commas between them), or those of a folder as the Hub lays it out,
/// there or in its folder `data`: `train.jsonl`, `train-00000-of-00002.json`, `validation.csv`.
///
/// A file is a JSON array of records, JSON lines with a record a line, or CSV (by its name; `.tsv` has tabs)
/// with a header. A cell that holds a list or an object in JSON counts as that one where a record has one.
///
/// # Errors
///
/// - [`Error::Io`] if a file cannot be read.
/// - [`Error::Format`] if it is malformed (with line and column) or empty, if its records are of no known
///   format (the message names their keys), if a folder has no such files, or for Parquet.
/// - [`Error::Record`] for a record that lacks something or has something else there.
pub fn load_split(path: impl AsRef<Path>, split: Split, format: Format) -> Result<Records> {
    let mut all = Records::default();
    for file in files(path.as_ref(), split)? {
        let found = match extension(&file).as_str() {
            "parquet" => Err(parquet(&file)),
            "csv" => parse_csv(&read_text(&file)?, b',', &file, format),
            "tsv" => parse_csv(&read_text(&file)?, b'\t', &file, format),
            _ => parse_records(&read_text(&file)?, &file, format),
        }?;
        all.records.extend(found.records);
        all.places.extend(found.places);
    }
    Ok(all)
}

/// Reads records from memory, JSON of either form; `origin` is what errors call it.
///
/// ```
/// use burn_peft::data::{Format, Record, parse_records};
///
/// let text = r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}"#;
/// let records = parse_records(text, "doc.jsonl", Format::Auto)?;
/// assert!(matches!(&records.as_slice()[0], Record::Chat(chat) if chat.messages.len() == 2));
/// # Ok::<(), burn_peft::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Format`] and [`Error::Record`], as [`load_split`].
pub fn parse_records(text: &str, origin: impl AsRef<Path>, format: Format) -> Result<Records> {
    let origin = origin.as_ref();
    let values = parse_json(text, origin, |object| formats::detect(object).is_some())?;
    of_values(values, origin, format)
}

fn parse_csv(text: &str, delimiter: u8, origin: &Path, format: Format) -> Result<Records> {
    let text = text.trim_start_matches('\u{feff}');
    let broken = |error: csv::Error| Error::format(origin, format!("malformed CSV: {error}"));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(broken)?.clone();
    let mut values = Vec::new();
    for (index, row) in reader.records().enumerate() {
        let row = row.map_err(broken)?;
        let line = row.position().map(|position| position.line() as usize);
        let cells = header.iter().zip(&row);
        let cells = cells.map(|(name, cell)| (name.trim().to_owned(), Value::from(cell)));
        values.push((
            Place::new(origin, index + 1, line),
            Value::Object(cells.collect()),
        ));
    }
    of_values(require_some(values, origin)?, origin, format)
}

fn of_values(values: Vec<(Place, Value)>, origin: &Path, format: Format) -> Result<Records> {
    let format = match (format, values.first()) {
        (Format::Auto, Some((_, first))) => {
            formats::of_record(first).map_err(|what| Error::format(origin, what))?
        }
        (format, _) => format,
    };
    let is_chat =
        format == Format::Alpaca && values.iter().any(|(_, value)| formats::has_turns(value));
    let mut all = Records::default();
    for (place, value) in values {
        let record = formats::record(value, format, is_chat).map_err(|what| place.error(&what))?;
        all.records.push(record);
        all.places.push(place);
    }
    Ok(all)
}

/// The files that a path means, in the order of their names.
fn files(path: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return files_of_folder(path, split);
    }
    match path.to_str() {
        Some(text) if !path.exists() && text.contains(',') => {
            let paths = text
                .split(',')
                .map(|path| files(Path::new(path.trim()), split));
            Ok(paths.collect::<Result<Vec<_>>>()?.concat())
        }
        _ => Ok(vec![path.to_owned()]),
    }
}

fn files_of_folder(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    const KNOWN: [&str; 5] = ["json", "jsonl", "csv", "tsv", "parquet"];
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("data")]
        .iter()
        .filter(|folder| folder.is_dir())
    {
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            found.push(entry.map_err(Error::io(folder))?.path());
        }
    }
    found.retain(|path| KNOWN.contains(&extension(path).as_str()));
    found.sort();
    let of_name = |name: &str| -> Vec<PathBuf> {
        let files = found.iter().filter(|path| is_split(path, name));
        files.cloned().collect()
    };
    let groups = split.names().iter().map(|name| of_name(name));
    groups.into_iter().find(|files| !files.is_empty()).ok_or_else(|| {
        let name = split.names()[0];
        let message = format!(
            "the folder has no {name}*.jsonl, .json or .csv, nor has its folder `data`; name a file of \
             records"
        );
        Error::format(folder, message)
    })
}

/// Whether a file's name is the split's, or begins with it: `train.json`, `train-00000-of-00001.jsonl`,
/// `train_sft.csv`.
fn is_split(path: &Path, name: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let rest = stem.strip_prefix(name);
    rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase()
}

fn parquet(path: &Path) -> Error {
    let message = format!(
        "Parquet is not read; write it as JSON lines, in Python: \
         `datasets.load_dataset(\"parquet\", data_files=\"{}\", split=\"train\").to_json(\"train.jsonl\")`",
        path.display()
    );
    Error::format(path, message)
}
