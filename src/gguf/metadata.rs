//! The metadata: values of several types by their keys.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::cursor::Cursor;
use crate::{Error, Result};

/// The key of a tokenizer's kind.
pub(crate) const TOKENIZER: &str = "tokenizer.ggml.model";
/// The key of the tokens' texts, by id.
pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
/// The kind that is a SentencePiece model.
pub(crate) const SENTENCEPIECE: &str = "llama";
/// How deep arrays of arrays may go. No known key has any.
const MAX_DEPTH: usize = 4;
/// The bytes of a text's length.
const LENGTH: usize = size_of::<u64>();
/// The bytes that stand before an array's elements: their type and number.
const ARRAY_HEADER: usize = size_of::<u32>() + LENGTH;
/// The least number of bytes of a value with its key and type.
pub(crate) const MIN_BYTES: usize = LENGTH + size_of::<u32>() + 1;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// By the numbers that stand for them in a file.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    fn read(cursor: &mut Cursor) -> Result<Self, String> {
        let id = cursor.u32()?;
        let kind = KINDS.get(id as usize).copied();
        kind.ok_or_else(|| format!("its type is {id}, which is not known"))
    }

    /// The least number of bytes that a value takes.
    fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Text => LENGTH,
            Self::Array => ARRAY_HEADER,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Text => "a text",
            Self::Array => "an array",
            Self::F32 | Self::F64 => "a float",
            _ => "a whole number",
        }
    }
}

/// A value: its type, and where in the file it is. It is read when it is asked for, so that a large list takes no memory
/// before.
#[derive(Debug, Clone)]
struct Value {
    kind: Kind,
    bytes: Range<usize>,
}

/// The values of a file.
#[derive(Debug, Default)]
pub(crate) struct Values(HashMap<String, Value>);

impl Values {
    /// Reads `count` values.
    pub(crate) fn read(cursor: &mut Cursor, count: usize) -> Result<Self, String> {
        // It grows as values are found: a large file has room for more than memory has.
        let mut values = HashMap::new();
        for number in 1..=count {
            let of_number = |message| format!("metadata {number} of {count}: {message}");
            let key = cursor.name().map_err(of_number)?;
            let value = Value::read(cursor).map_err(|message| format!("`{key}`: {message}"))?;
            if values.insert(key.to_owned(), value).is_some() {
                return Err(format!("`{key}` is there twice"));
            }
        }
        Ok(Self(values))
    }
}

impl Value {
    fn read(cursor: &mut Cursor) -> Result<Self, String> {
        let kind = Kind::read(cursor)?;
        let start = cursor.at();
        skip(cursor, kind, 0)?;
        Ok(Self {
            kind,
            bytes: start..cursor.at(),
        })
    }
}

/// Passes over a value, all of which is checked to be there.
fn skip(cursor: &mut Cursor, kind: Kind, depth: usize) -> Result<(), String> {
    match kind {
        Kind::Text => cursor.text_bytes().map(drop),
        Kind::Array if depth == MAX_DEPTH => Err(format!(
            "arrays lie in each other deeper than {MAX_DEPTH} levels"
        )),
        Kind::Array => {
            let kind = Kind::read(cursor)?;
            let len = cursor.count("elements of an array", kind.min_bytes())?;
            match kind {
                Kind::Text | Kind::Array => {
                    (0..len).try_for_each(|_| skip(cursor, kind, depth + 1))
                }
                // As many as fit, so there is no overflow.
                _ => cursor.take(len * kind.min_bytes()).map(drop),
            }
        }
        _ => cursor.take(kind.min_bytes()).map(drop),
    }
}

/// The values of a file that is open.
#[derive(Clone, Copy)]
pub(crate) struct Metadata<'a> {
    pub(crate) values: &'a Values,
    /// The whole file.
    pub(crate) bytes: &'a [u8],
    pub(crate) path: &'a Path,
}

impl<'a> Metadata<'a> {
    /// An error about a key.
    pub(crate) fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("`{key}`: {message}"))
    }

    /// The value of a key that has to be there.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not.
    pub(crate) fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| {
            let message = format!("the metadata have no `{key}`; is this the file of a model?");
            Error::format(self.path, message)
        })
    }

    /// A text.
    ///
    /// # Errors
    /// [`Error::Format`] if there is something else.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.one(key, "a text", |kind, cursor| match kind {
            Kind::Text => Some(text(cursor)),
            _ => None,
        })
    }

    /// True or false.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "true or false", |kind, cursor| match kind {
            Kind::Bool => Some(bool(cursor)),
            _ => None,
        })
    }

    /// A whole number of any type.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.one(key, "a whole number", integer)
    }

    /// A number of any type. Of f32 it is the shortest decimal that rounds to it: 1e-5, not 9.999999747e-6.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.one(key, "a number", number)
    }

    /// A list of texts.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, "texts", |kind, cursor| match kind {
            Kind::Text => Some(text(cursor)),
            _ => None,
        })
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.list(key, "whole numbers", integer)
    }

    /// A list of flags, which some files have as whole numbers.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.list(key, "flags", |kind, cursor| match kind {
            Kind::Bool => Some(bool(cursor)),
            _ => integer(kind, cursor).map(|value| value.map(|value| value != 0)),
        })
    }

    /// Whether the value of a key is a list.
    pub(crate) fn is_list(&self, key: &str) -> bool {
        let value = self.values.0.get(key);
        value.is_some_and(|value| value.kind == Kind::Array)
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "numbers", number)
    }

    /// The id of the special token of a kind (`bos`, `eos`, `padding`); 2³² - 1 and -1 are none. A SentencePiece model's
    /// BOS and EOS are 1 and 2 where the file does not say, as in llama.cpp.
    ///
    /// # Errors
    /// See [`Self::text`].
    pub(crate) fn token_id(&self, kind: &str) -> Result<Option<u32>> {
        let id = self.integer(&format!("tokenizer.ggml.{kind}_token_id"))?;
        let default = match (kind, self.text(TOKENIZER)?) {
            ("bos", Some(SENTENCEPIECE)) => Some(1),
            ("eos", Some(SENTENCEPIECE)) => Some(2),
            _ => None,
        };
        let id = id.or(default).and_then(|id| u32::try_from(id).ok());
        Ok(id.filter(|id| *id != u32::MAX))
    }

    /// The values whose keys begin so, as they are in the file.
    pub(crate) fn stored(&self, prefix: &str) -> Vec<(String, super::writer::Value)> {
        let values = self.values.0.iter();
        let values = values.filter(|(key, _)| key.starts_with(prefix));
        let mut values: Vec<_> = values
            .map(|(key, Value { kind, bytes })| {
                let id = KINDS.iter().position(|other| other == kind);
                let id = id.expect("the table has every type") as u32;
                let bytes = self.bytes[bytes.clone()].to_vec();
                (key.clone(), super::writer::Value::Stored(id, bytes))
            })
            .collect();
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values
    }

    fn one<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Option<Result<T, String>>,
    ) -> Result<Option<T>> {
        let Some(Value { kind, bytes }) = self.values.0.get(key) else {
            return Ok(None);
        };
        match read(*kind, &mut Cursor::new(&self.bytes[bytes.clone()])) {
            Some(value) => value.map(Some).map_err(|message| self.error(key, message)),
            None => {
                let found = kind.describe();
                Err(self.error(key, format!("it should be {wanted}, but is {found}")))
            }
        }
    }

    fn list<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Option<Result<T, String>>,
    ) -> Result<Option<Vec<T>>> {
        let wanted = format!("an array of {wanted}");
        self.one(key, &wanted, |kind, cursor| match kind {
            Kind::Array => Some(list(cursor, &wanted, &read)),
            _ => None,
        })
    }
}

/// The elements of an array, if they are of a type that `read` takes.
fn list<'a, T>(
    cursor: &mut Cursor<'a>,
    wanted: &str,
    read: impl Fn(Kind, &mut Cursor<'a>) -> Option<Result<T, String>>,
) -> Result<Vec<T>, String> {
    let kind = Kind::read(cursor)?;
    let len = cursor.count("elements of an array", kind.min_bytes())?;
    let mut found = Vec::new();
    for _ in 0..len {
        match read(kind, cursor) {
            Some(value) => found.push(value?),
            None => {
                let of = kind.describe();
                return Err(format!(
                    "it should be {wanted}, but each of its elements is {of}"
                ));
            }
        }
    }
    Ok(found)
}

fn text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, String> {
    let bytes = cursor.text_bytes()?;
    std::str::from_utf8(bytes).map_err(|_| "the text is not UTF-8".to_owned())
}

fn bool(cursor: &mut Cursor) -> Result<bool, String> {
    match cursor.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(format!("true is 1 and false is 0, not {other}")),
    }
}

fn integer(kind: Kind, cursor: &mut Cursor) -> Option<Result<i64, String>> {
    let value = match kind {
        Kind::U8 => cursor.array().map(|b| u8::from_le_bytes(b).into()),
        Kind::I8 => cursor.array().map(|b| i8::from_le_bytes(b).into()),
        Kind::U16 => cursor.array().map(|b| u16::from_le_bytes(b).into()),
        Kind::I16 => cursor.array().map(|b| i16::from_le_bytes(b).into()),
        Kind::U32 => cursor.array().map(|b| u32::from_le_bytes(b).into()),
        Kind::I32 => cursor.array().map(|b| i32::from_le_bytes(b).into()),
        Kind::U64 => cursor.u64().and_then(|value| {
            let signed = i64::try_from(value);
            signed.map_err(|_| format!("{value} is too large"))
        }),
        Kind::I64 => cursor.array().map(i64::from_le_bytes),
        _ => return None,
    };
    Some(value)
}

fn number(kind: Kind, cursor: &mut Cursor) -> Option<Result<f64, String>> {
    match kind {
        Kind::F32 => Some(cursor.array().map(|b| shortest(f32::from_le_bytes(b)))),
        Kind::F64 => Some(cursor.array().map(f64::from_le_bytes)),
        _ => integer(kind, cursor).map(|value| value.map(|value| value as f64)),
    }
}

/// The shortest decimal that rounds to a number of f32: what was written before it was rounded, most likely.
pub(crate) fn shortest(value: f32) -> f64 {
    let decimal = value.to_string().parse();
    decimal.expect("a number's decimal is a number")
}
