//! Files of JSON records: an array, or a record a line.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::records::{Content, Place};
use super::source::Source;
use crate::{Error, Result};

/// As much of a text as is looked at to tell an object over several lines.
const LOOKED_AT: u64 = 16 << 20;

/// What is done with each record: whether to go on.
pub(super) type Each<'a> = dyn FnMut(Place, Content) -> Result<ControlFlow<()>> + 'a;

/// Goes through the records of a text, of which no more is in memory than one: lines as they are, elements of an array
/// parsed. `is_record` tells a record from an
/// object that only holds a list of them.
///
/// # Errors
/// [`Error::Format`]: neither of the two forms, or an array that is malformed (with line and column); those of reading,
/// and of `each`.
pub(super) fn read_json(
    source: &Source,
    is_record: &dyn Fn(&Map<String, Value>) -> bool,
    each: &mut Each,
) -> Result<()> {
    let mut reader = source.open()?;
    match first_letter(&mut *reader).map_err(|e| source.io(e))? {
        Some(b'[') => read_array(source, each),
        Some(b'{') => read_lines(source, is_record, each),
        Some(_) => Err(foreign(source)),
        None => Ok(()),
    }
}

/// The record of a line, at its place.
///
/// # Errors
/// [`Error::Format`] with line and column.
pub(super) fn parse(text: &str, place: &Place) -> Result<Value> {
    let line = place.line().unwrap_or(1);
    serde_json::from_str(text).map_err(|error| {
        let message = match error.is_eof() {
            true => format!(
                "line {line} is not a whole record; JSON lines have a record a line, and records over several \
                 lines must stand in a list"
            ),
            false => {
                let (column, what) = (error.column(), message(&error));
                format!("malformed JSON at line {line}, column {column}: {what}")
            }
        };
        Error::format(place.path(), message)
    })
}

/// The first byte that is no white space.
fn first_letter(reader: &mut dyn BufRead) -> io::Result<Option<u8>> {
    let is_letter = |byte: &io::Result<u8>| !matches!(byte, Ok(byte) if byte.is_ascii_whitespace());
    reader.bytes().find(is_letter).transpose()
}

fn read_lines(
    source: &Source,
    is_record: &dyn Fn(&Map<String, Value>) -> bool,
    each: &mut Each,
) -> Result<()> {
    let mut reader = source.open()?;
    let (mut above, mut count) = (0, 0);
    let mut line = String::new();
    while reader.read_line(&mut line).map_err(|e| source.io(e))? > 0 {
        above += 1;
        let text = line.trim_end_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            count += 1;
            if count == 1 && is_container(text, &mut *reader, is_record) {
                return Err(foreign(source));
            }
            let place = Place::new(source.path, count, Some(above));
            if each(place, Content::Json(text.to_owned()))?.is_break() {
                return Ok(());
            }
        }
        line.clear();
    }
    Ok(())
}

/// Whether the first line begins an object that is no record and holds a list, `{"data": [...]}` say. On a line
/// of its own it may be a record of keys that nobody knows, unless the list is one of records.
fn is_container(
    first: &str,
    rest: &mut dyn BufRead,
    is_record: &dyn Fn(&Map<String, Value>) -> bool,
) -> bool {
    let holds_records = |value: &Value| {
        let first = value.get(0).and_then(Value::as_object);
        first.is_some_and(is_record)
    };
    let holds_list = |text: &str, is_list: &dyn Fn(&Value) -> bool| {
        let object: Result<Map<String, Value>, _> = serde_json::from_str(text);
        object.is_ok_and(|object| !is_record(&object) && object.values().any(is_list))
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(first) {
        Ok(_) => holds_list(first, &holds_records),
        Err(error) if error.is_eof() => {
            let mut text = first.as_bytes().to_vec();
            let read = rest.take(LOOKED_AT).read_to_end(&mut text);
            let text = String::from_utf8_lossy(&text);
            read.is_ok() && holds_list(&text, &Value::is_array)
        }
        Err(_) => false,
    }
}

fn read_array(source: &Source, each: &mut Each) -> Result<()> {
    let mut failed = None;
    let mut elements = Elements {
        source,
        each,
        failed: &mut failed,
        is_over: false,
    };
    let mut json = serde_json::Deserializer::from_reader(source.open()?);
    let read = (&mut elements).deserialize(&mut json);
    let is_over = elements.is_over;
    let read = read.and_then(|()| json.end());
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Err(error)) if !is_over => Err(malformed(source, error)),
        (None, _) => Ok(()),
    }
}

/// Gives each element of an array on.
struct Elements<'a, 'e> {
    source: &'a Source<'a>,
    each: &'a mut Each<'e>,
    failed: &'a mut Option<Error>,
    /// Whether no more are wanted.
    is_over: bool,
}

impl<'de> DeserializeSeed<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut count = 0;
        while let Some(value) = elements.next_element::<Value>()? {
            count += 1;
            let place = Place::new(self.source.path, count, None);
            match (self.each)(place, Content::Value(value)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => {
                    self.is_over = true;
                    return Err(A::Error::custom("enough"));
                }
                Err(error) => {
                    *self.failed = Some(error);
                    return Err(A::Error::custom("failed"));
                }
            }
        }
        Ok(())
    }
}

fn foreign(source: &Source) -> Error {
    let message = "neither a JSON array of records nor JSON lines with a record a line";
    Error::format(source.path, message)
}

fn malformed(source: &Source, error: serde_json::Error) -> Error {
    if error.is_io() {
        return source.io(error.into());
    }
    let (line, column, what) = (error.line(), error.column(), message(&error));
    let message = format!("malformed JSON at line {line}, column {column}: {what}");
    Error::format(source.path, message)
}

/// What is wrong, without the place.
fn message(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}
