//! Alpaca records: reading them and writing them as a prompt.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::read_text;
use crate::{Error, Result};

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
        let instruction = required("instruction", text("instruction")?)?;
        if instruction.trim().is_empty() {
            return Err("`instruction` is empty; write the task there, or drop the record".into());
        }
        Ok(Self {
            instruction,
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
/// [`Error::Io`] if the file cannot be read, else those of [`parse_alpaca`].
pub fn load_alpaca(path: impl AsRef<Path>) -> Result<Vec<AlpacaRecord>> {
    let path = path.as_ref();
    let text = read_text(path)?;
    parse_alpaca(&text, path)
}

/// Reads a data set from memory; `origin` is what errors call it.
///
/// # Errors
///
/// - [`Error::Format`]: malformed JSON (with line and column), neither of the two forms, or no
///   record at all.
/// - [`Error::Record`]: a record without a task or an answer, or with something else than texts.
pub fn parse_alpaca(text: &str, origin: impl AsRef<Path>) -> Result<Vec<AlpacaRecord>> {
    let origin = origin.as_ref();
    let text = text.trim_start_matches('\u{feff}');
    let records = match text.trim_start().chars().next() {
        Some('[') => parse_array(text, origin)?,
        Some('{') if !holds_list(text) => parse_lines(text, origin)?,
        Some(_) => {
            let message = "neither a JSON array of records nor JSON lines with a record a line";
            return Err(Error::format(origin, message));
        }
        None => Vec::new(),
    };
    if records.is_empty() {
        let message = "the data set is empty; it must hold at least one record";
        return Err(Error::format(origin, message));
    }
    Ok(records)
}

/// Whether the whole text is one object that is no record and holds a list, `{"data": [...]}` say.
fn holds_list(text: &str) -> bool {
    let object: Result<Map<String, Value>, _> = serde_json::from_str(text);
    object.is_ok_and(|object| {
        !object.contains_key("instruction") && object.values().any(Value::is_array)
    })
}

fn parse_array(text: &str, origin: &Path) -> Result<Vec<AlpacaRecord>> {
    let values: Vec<Value> = serde_json::from_str(text).map_err(|e| malformed(origin, &e, 0))?;
    values
        .into_iter()
        .enumerate()
        .map(|(index, value)| record(value, origin, index + 1, None))
        .collect()
}

fn parse_lines(text: &str, origin: &Path) -> Result<Vec<AlpacaRecord>> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .enumerate()
        .map(|(index, (above, line))| {
            let value = serde_json::from_str(line).map_err(|e| match e.is_eof() {
                true => unfinished(origin, above + 1),
                false => malformed(origin, &e, above),
            })?;
            record(value, origin, index + 1, Some(above + 1))
        })
        .collect()
}

fn unfinished(origin: &Path, line: usize) -> Error {
    let message = format!(
        "line {line} is not a whole record; JSON lines have a record a line, and records over several \
         lines must stand in a list"
    );
    Error::format(origin, message)
}

fn record(value: Value, origin: &Path, record: usize, line: Option<usize>) -> Result<AlpacaRecord> {
    serde_json::from_value(value).map_err(|e| Error::Record {
        path: origin.to_owned(),
        record,
        line,
        message: e.to_string(),
    })
}

/// An [`Error::Format`] that says where in the file, of which `lines_above` lines came before the
/// text that was parsed.
fn malformed(origin: &Path, error: &serde_json::Error, lines_above: usize) -> Error {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let what = text
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&text);
    let line = line + lines_above;
    Error::format(
        origin,
        format!("malformed JSON at line {line}, column {column}: {what}"),
    )
}
