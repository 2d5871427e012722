//! Records of all formats: finding files, telling formats apart, reading.

use std::io::BufRead;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::alpaca::AlpacaRecord;
use super::formats;
use super::json;
use super::source::{Source, without_compression};
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
            // A completion may be of nothing.
            Self::Completion { .. } | Self::Text(_) => false,
        }
    }

    /// Whether what it teaches says nothing.
    pub fn has_empty_answer(&self) -> bool {
        match self {
            Self::Alpaca(record) => record.output.trim().is_empty(),
            Self::Chat(conversation) => {
                let mut learned = conversation.learned();
                learned.any(|(_, message)| message.is_empty())
            }
            Self::Completion { completion, .. } => completion.trim().is_empty(),
            Self::Text(text) => text.trim().is_empty(),
        }
    }

    /// What is first found in one of its texts.
    pub(super) fn find_in_texts<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        match self {
            Self::Alpaca(record) => {
                let texts = [&record.instruction, &record.input, &record.output];
                texts.into_iter().find_map(|text| find(text))
            }
            Self::Chat(conversation) => {
                let mut messages = conversation.messages.iter();
                messages.find_map(|message| find(&message.text()))
            }
            Self::Completion { prompt, completion } => find(prompt).or_else(|| find(completion)),
            Self::Text(text) => find(text),
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

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn line(&self) -> Option<usize> {
        self.line
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

    fn push(&mut self, raw: RawRecord) -> Result<()> {
        let (record, place) = raw.parse()?;
        self.records.push(record);
        self.places.push(place);
        Ok(())
    }
}

/// Which files of a folder are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Split {
    /// Those whose names begin with `train`, and those in a folder of that name.
    Train,
    /// Those whose names begin with `validation`, `valid`, `val`, `dev` or `test`, and those in a folder of that name: of
    /// the first of these names that there is.
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
/// there or in its folder `data`: `train.jsonl`, `train-00000-of-00002.json`, `validation.csv`, `train/0000.parquet`; or, if
/// the folder has one file of records alone, that one to train on. All records are in memory then; [`RecordEncoder::encode_files`](super::RecordEncoder::encode_files) reads them as a stream.
///
/// A file is a JSON array of records, JSON lines with a record a line, CSV with a header (by its name; `.tsv` has tabs),
/// or, with the feature `parquet`, Parquet (by its name). A cell that holds a list or an object in JSON counts as that one
/// where a record has one. All but Parquet may be compressed by gzip or zstd, which their first bytes tell.
///
/// # Errors
///
/// - [`Error::Io`] if a file cannot be read.
/// - [`Error::Format`] if it is malformed (with line and column) or empty, if its records are of no known
///   format (the message names their keys), if a folder has no such files, or for Parquet without the feature.
/// - [`Error::Record`] for a record that lacks something or has something else there.
pub fn load_split(path: impl AsRef<Path>, split: Split, format: Format) -> Result<Records> {
    let mut all = Records::default();
    for_each_raw(path.as_ref(), split, format, &mut |raw| all.push(raw))?;
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
    let mut all = Records::default();
    let source = Source::text(text, origin.as_ref());
    File::new(source, Kind::Json).read(format, &mut |raw| all.push(raw))?;
    Ok(all)
}

/// Gives the records of all files on, one by one.
///
/// # Errors
/// Those of [`load_split`] but for what is wrong within a record, and those of `each`.
pub(super) fn for_each_raw(
    path: &Path,
    split: Split,
    format: Format,
    each: &mut dyn FnMut(RawRecord) -> Result<()>,
) -> Result<()> {
    for path in files(path, split)? {
        File::new(Source::file(&path)?, Kind::of(&path)).read(format, each)?;
    }
    Ok(())
}

/// A record as its file has it.
pub(super) struct RawRecord {
    place: Place,
    content: Content,
    form: Form,
}

impl RawRecord {
    /// About as much memory as it takes.
    pub(super) fn num_bytes(&self) -> usize {
        match &self.content {
            Content::Json(text) => text.len(),
            Content::Value(value) => num_bytes(value),
        }
    }

    /// What it says, and where.
    ///
    /// # Errors
    /// [`Error::Format`] if it is malformed, [`Error::Record`] if it lacks something or has something else there.
    pub(super) fn parse(self) -> Result<(Record, Place)> {
        let value = self.content.into_value(&self.place)?;
        let record = formats::record(value, self.form.format, self.form.is_chat);
        let record = record.map_err(|what| self.place.error(&what))?;
        Ok((record, self.place))
    }
}

pub(super) enum Content {
    /// An object's text, not parsed yet.
    Json(String),
    /// An object.
    Value(Value),
}

impl Content {
    pub(super) fn into_value(self, place: &Place) -> Result<Value> {
        match self {
            Self::Json(text) => json::parse(&text, place),
            Self::Value(value) => Ok(value),
        }
    }

    fn value(&self, place: &Place) -> Result<Value> {
        match self {
            Self::Json(text) => json::parse(text, place),
            Self::Value(value) => Ok(value.clone()),
        }
    }

    /// Whether a record of Alpaca's keys has more than one exchange, or a system message.
    fn has_turns(&self, place: &Place) -> Result<bool> {
        let names = |key: &&str| match self {
            Self::Json(text) => text.contains(*key),
            Self::Value(value) => value.get(key).is_some(),
        };
        match formats::TURNS.iter().any(names) {
            true => self.value(place).map(|value| formats::has_turns(&value)),
            false => Ok(false),
        }
    }
}

fn num_bytes(value: &Value) -> usize {
    let within: usize = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(num_bytes).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| key.len() + num_bytes(value))
            .sum(),
        _ => 0,
    };
    size_of::<Value>() + within
}

/// What the records of a file are.
#[derive(Clone, Copy)]
struct Form {
    format: Format,
    /// Whether those of Alpaca's keys are conversations, as some have several exchanges or a system message.
    is_chat: bool,
}

/// How a file is laid out.
#[derive(Clone, Copy)]
enum Kind {
    Json,
    /// With this between the cells of a row.
    Csv(u8),
    Parquet,
}

impl Kind {
    fn of(path: &Path) -> Self {
        match extension(path).as_str() {
            "parquet" => Self::Parquet,
            "csv" => Self::Csv(b','),
            "tsv" => Self::Csv(b'\t'),
            _ => Self::Json,
        }
    }
}

/// A file of records.
struct File<'a> {
    source: Source<'a>,
    kind: Kind,
}

impl<'a> File<'a> {
    fn new(source: Source<'a>, kind: Kind) -> Self {
        Self { source, kind }
    }

    fn read(&self, format: Format, each: &mut dyn FnMut(RawRecord) -> Result<()>) -> Result<()> {
        let form = self.form(format)?;
        self.contents(&mut |place, content| {
            each(RawRecord {
                place,
                content,
                form,
            })?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// What its first record is, and for Alpaca's keys whether any has turns.
    fn form(&self, asked: Format) -> Result<Form> {
        let mut form = None;
        self.contents(&mut |place, content| {
            let form = match &mut form {
                Some(form) => form,
                none => none.insert(self.form_of_first(&place, &content, asked)?),
            };
            form.is_chat = form.format == Format::Alpaca && content.has_turns(&place)?;
            Ok(match form.format == Format::Alpaca && !form.is_chat {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        })?;
        form.ok_or_else(|| self.source.empty())
    }

    fn form_of_first(&self, place: &Place, content: &Content, asked: Format) -> Result<Form> {
        let format = match asked {
            Format::Auto => formats::of_record(&content.value(place)?)
                .map_err(|what| Error::format(self.source.path, what))?,
            format => format,
        };
        Ok(Form {
            format,
            is_chat: false,
        })
    }

    fn contents(&self, each: &mut json::Each) -> Result<()> {
        match self.kind {
            Kind::Json => {
                let is_record = |object: &_| formats::detect(object).is_some();
                json::read_json(&self.source, &is_record, each)
            }
            Kind::Csv(delimiter) => read_csv(self.source.open()?, delimiter, &self.source, each),
            Kind::Parquet => read_parquet(&self.source, each),
        }
    }
}

fn read_csv(
    text: impl BufRead,
    delimiter: u8,
    source: &Source,
    each: &mut json::Each,
) -> Result<()> {
    let broken = |error: csv::Error| Error::format(source.path, format!("malformed CSV: {error}"));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(text);
    let header = reader.headers().map_err(broken)?.clone();
    for (index, row) in reader.records().enumerate() {
        let row = row.map_err(broken)?;
        let line = row.position().map(|position| position.line() as usize);
        let cells = header.iter().zip(&row);
        let cells = cells.map(|(name, cell)| (name.trim().to_owned(), Value::from(cell)));
        let place = Place::new(source.path, index + 1, line);
        if each(place, Content::Value(Value::Object(cells.collect())))?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The data sets that a text names, commas between them, each with the weight by which its records are taken: the number
/// behind an `@` at the end, or 1. A file that there is under the whole text is that file.
///
/// ```
/// use burn_peft::data::weighted_paths;
///
/// let found = weighted_paths("chats.jsonl@2, texts@0.5, more.csv")?;
/// assert_eq!(found, [("chats.jsonl".into(), 2.0), ("texts".into(), 0.5), ("more.csv".into(), 1.0)]);
/// # Ok::<(), burn_peft::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] for a weight that is not above 0.
pub fn weighted_paths(path: impl AsRef<Path>) -> Result<Vec<(PathBuf, f64)>> {
    let path = path.as_ref();
    let Some(text) = path.to_str().filter(|_| !path.exists()) else {
        return Ok(vec![(path.to_owned(), 1.0)]);
    };
    let parts = text.split(',').map(str::trim);
    parts.map(weighted_path).collect()
}

fn weighted_path(text: &str) -> Result<(PathBuf, f64)> {
    let weighted = text
        .rsplit_once('@')
        .and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
    match weighted.filter(|_| !Path::new(text).exists()) {
        None => Ok((text.into(), 1.0)),
        Some((path, weight)) if weight > 0.0 && weight.is_finite() => Ok((path.into(), weight)),
        Some((path, weight)) => Err(Error::InvalidArgument {
            name: "dataset",
            message: format!(
                "the weight of {path} is {weight}; give a number above 0, or leave the file out"
            ),
        }),
    }
}

/// The files that a path means, in the order of their names.
pub(super) fn files(path: &Path, split: Split) -> Result<Vec<PathBuf>> {
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
    let data = folder.join("data");
    let mut found = record_files(folder)?;
    found.extend(record_files(&data)?);
    for name in split.names() {
        let mut files = found.clone();
        files.retain(|path| is_split(path, name));
        for folder in [folder.join(name), data.join(name)] {
            files.extend(record_files(&folder)?);
        }
        if !files.is_empty() {
            files.sort();
            return Ok(files);
        }
    }
    if let ([file], Split::Train) = (found.as_slice(), split)
        && !Split::Validation
            .names()
            .iter()
            .any(|name| is_split(file, name))
    {
        return Ok(found);
    }
    let name = split.names()[0];
    let message = format!(
        "the folder has no {name}*.jsonl, .json, .csv or .parquet, nor has its folder `data`, and no folder {name} of \
         such files; name a file of records"
    );
    Err(Error::format(folder, message))
}

/// The files of a folder that can hold records, by their names; none if it is no folder.
fn record_files(folder: &Path) -> Result<Vec<PathBuf>> {
    const KNOWN: [&str; 6] = ["json", "jsonl", "ndjson", "csv", "tsv", "parquet"];
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            found.push(entry.map_err(Error::io(folder))?.path());
        }
    }
    found.retain(|path| KNOWN.contains(&extension(path).as_str()));
    Ok(found)
}

/// Whether a file's name is the split's, or begins with it: `train.json`, `train-00000-of-00001.jsonl`,
/// `train_sft.csv`.
fn is_split(path: &Path, name: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let rest = stem.strip_prefix(name);
    rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// The end of a name that tells how a file is laid out.
fn extension(path: &Path) -> String {
    without_compression(path)
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase()
}

#[cfg(feature = "parquet")]
fn read_parquet(source: &Source, each: &mut json::Each) -> Result<()> {
    super::parquet::read(source.path, &mut |index, row| {
        each(
            Place::new(source.path, index + 1, None),
            Content::Value(row),
        )
    })
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(source: &Source, _each: &mut json::Each) -> Result<()> {
    let message = format!(
        "Parquet is read with the feature `parquet` (--features parquet); or write it as JSON lines, in Python: \
         `datasets.load_dataset(\"parquet\", data_files=\"{}\", split=\"train\").to_json(\"train.jsonl\")`",
        source.path.display()
    );
    Err(Error::format(source.path, message))
}
