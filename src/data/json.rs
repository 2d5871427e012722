//! Files of JSON records: an array, or a record a line.

use std::path::Path;

use serde_json::{Map, Value};

use super::records::Place;
use crate::{Error, Result};

/// The records of a text, with their places. `is_record` tells a record from an object that only holds a list
/// of them.
///
/// # Errors
/// [`Error::Format`]: malformed JSON (with line and column), neither of the two forms, or no record at all.
pub(super) fn parse_json(
    text: &str,
    origin: &Path,
    is_record: impl Fn(&Map<String, Value>) -> bool,
) -> Result<Vec<(Place, Value)>> {
    let text = text.trim_start_matches('\u{feff}');
    let records = match text.trim_start().chars().next() {
        Some('[') => parse_array(text, origin)?,
        Some('{') if !holds_list(text, is_record) => parse_lines(text, origin)?,
        Some(_) => {
            let message = "neither a JSON array of records nor JSON lines with a record a line";
            return Err(Error::format(origin, message));
        }
        None => Vec::new(),
    };
    require_some(records, origin)
}

/// The same records, if there are any.
pub(super) fn require_some<T>(records: Vec<T>, origin: &Path) -> Result<Vec<T>> {
    match records.is_empty() {
        false => Ok(records),
        true => {
            let message = "the data set is empty; it must hold at least one record";
            Err(Error::format(origin, message))
        }
    }
}

/// Whether the whole text is one object that is no record and holds a list, `{"data": [...]}` say. On a line
/// of its own it may be a record of keys that nobody knows, unless the list is one of records.
fn holds_list(text: &str, is_record: impl Fn(&Map<String, Value>) -> bool) -> bool {
    let holds_records = |value: &Value| {
        let first = value.get(0).and_then(Value::as_object);
        first.is_some_and(&is_record)
    };
    let over_lines = text.trim().contains('\n');
    let object: Result<Map<String, Value>, _> = serde_json::from_str(text);
    object.is_ok_and(|object| {
        let is_list = |value: &Value| value.is_array() && (over_lines || holds_records(value));
        !is_record(&object) && object.values().any(is_list)
    })
}

fn parse_array(text: &str, origin: &Path) -> Result<Vec<(Place, Value)>> {
    let values: Vec<Value> = serde_json::from_str(text).map_err(|e| malformed(origin, &e, 0))?;
    let values = values.into_iter().enumerate();
    Ok(values
        .map(|(index, value)| (Place::new(origin, index + 1, None), value))
        .collect())
}

fn parse_lines(text: &str, origin: &Path) -> Result<Vec<(Place, Value)>> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .enumerate()
        .map(|(index, (above, line))| {
            let value = serde_json::from_str(line).map_err(|e| match e.is_eof() {
                true => unfinished(origin, above + 1),
                false => malformed(origin, &e, above),
            })?;
            Ok((Place::new(origin, index + 1, Some(above + 1)), value))
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
