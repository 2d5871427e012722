//! Values as Python writes them, which is what the authors of templates see.

use std::fmt::{self, Write};
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// A value as a template sees it.
pub(super) fn of_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Array(items) => {
            Value::from_object(List(items.into_iter().map(of_json).collect()))
        }
        serde_json::Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, of_json(value)));
            Value::from_object(Dict(fields.collect()))
        }
        plain => Value::from_serialize(plain),
    }
}

/// A list that is written as by Python wherever it is made a text.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(Arc::clone(self))))
    }
}

/// An object, likewise.
#[derive(Debug)]
struct Dict(IndexMap<String, Value>);

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(Value::from).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(Arc::clone(self))))
    }
}

/// What `str` gives: a text as it is, everything else as [`repr`] writes it.
pub(super) fn str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => repr(value),
    }
}

/// What `repr` gives: `None`, `True`, `1e-05`, `{'a': [1, 'b']}`.
pub(super) fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let pairs = items(value).map(|(key, item)| format!("{}: {}", repr(&key), repr(&item)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        ValueKind::Seq => {
            let items = value.try_iter().into_iter().flatten();
            let items: Vec<String> = items.map(|item| repr(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        _ => as_float(value).map_or_else(|| value.to_string(), float),
    }
}

fn items(map: &Value) -> impl Iterator<Item = (Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| {
        let item = map.get_item(&key).unwrap_or_default();
        (key, item)
    })
}

/// Single quotes, unless double ones save an escape.
fn quoted(text: &str) -> String {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|_| is_float)
}

/// The shortest digits that mean the number, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or_default() {
        -4..=15 => format!("{number:?}"),
        exponent => format!("{digits}e{exponent:+03}"),
    }
}

/// How `json.dumps` writes.
struct Json {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson` of transformers: `json.dumps`, by default with every character as it is.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let argument = |place: usize| match args.get(place) {
        Some(value) => Ok(Some(value.clone())),
        None => kwargs.get::<Option<Value>>(NAMES[place]),
    };
    let given = |place| Ok::<_, Error>(argument(place)?.filter(|value| !value.is_none()));
    let flag = |place| Ok::<_, Error>(given(place)?.is_some_and(|value| value.is_true()));
    let style = Json {
        ensure_ascii: flag(0)?,
        sort_keys: flag(3)?,
        ..Json::spaced(given(1)?.as_ref(), given(2)?.as_ref())?
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Json {
    fn spaced(indent: Option<&Value>, separators: Option<&Value>) -> Result<Self, Error> {
        let usual = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
        let [item_separator, key_separator] = match separators {
            None => usual,
            Some(pair) => {
                let pair: Vec<String> = pair.try_iter()?.map(|text| str(&text)).collect();
                pair.try_into()
                    .map_err(|_| invalid("`separators` of tojson are two texts"))?
            }
        };
        let indent = indent.map(|indent| match indent.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Ok::<_, Error>(" ".repeat(u8::try_from(indent.clone())?.into())),
        });
        Ok(Self {
            ensure_ascii: false,
            indent: indent.transpose()?,
            item_separator,
            key_separator,
            sort_keys: false,
        })
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&repr(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut pairs: Vec<(Value, Value)> = items(value).collect();
                if self.sort_keys {
                    pairs.sort_by_key(|(key, _)| str(key));
                }
                self.write_all("{}", pairs, depth, out, |(key, item), out| {
                    self.write_text(&str(&key), out);
                    out.push_str(&self.key_separator);
                    self.write(&item, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.write_all("[]", value.try_iter()?, depth, out, |item, out| {
                    self.write(&item, depth + 1, out)
                })?;
            }
            kind => return Err(invalid(format!("JSON cannot hold a value of kind {kind}"))),
        }
        Ok(())
    }

    fn write_all<T>(
        &self,
        brackets: &str,
        items: impl IntoIterator<Item = T>,
        depth: usize,
        out: &mut String,
        write: impl Fn(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (open, close) = brackets.split_at(1);
        let begin = out.len();
        out.push_str(open);
        for item in items {
            if out.len() > begin + 1 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            write(item, out)?;
        }
        if out.len() > begin + 1 {
            self.new_line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        let is_kept = |c: char| !self.ensure_ascii || c.is_ascii();
        for c in quoted.chars() {
            match is_kept(c) {
                true => out.push(c),
                false => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
}

/// Methods of Python's texts and lists that are not among those of `pycompat`.
pub(super) fn method(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, args) {
        (Some(text), "rsplit", _) => rsplit(text, args),
        (Some(text), _, [part]) => match part.as_str() {
            Some(part) => text_method(text, name, part),
            None => Err(ErrorKind::UnknownMethod.into()),
        },
        (None, "index", [item]) if value.kind() == ValueKind::Seq => {
            match value.try_iter()?.position(|other| other == *item) {
                Some(place) => Ok(place.into()),
                None => Err(invalid("the list does not have this item")),
            }
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn text_method(text: &str, name: &str, part: &str) -> Result<Value, Error> {
    let cut = |parts: Option<(&str, &str)>, others: [&str; 3]| match parts {
        Some((before, after)) => list([before, part, after]),
        None => list(others),
    };
    Ok(match name {
        "removeprefix" => text.strip_prefix(part).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(part).unwrap_or(text).into(),
        "partition" => cut(text.split_once(part), [text, "", ""]),
        "rpartition" => cut(text.rsplit_once(part), ["", "", text]),
        "index" => match text.find(part) {
            Some(byte) => text[..byte].chars().count().into(),
            None => return Err(invalid(format!("`{part}` is not in the text"))),
        },
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, count) = match args {
        [] => return Ok(list(text.split_whitespace())),
        [part] => (part, None),
        [part, count, ..] => (part, Some(usize::try_from(count.clone())?)),
    };
    let part = part
        .as_str()
        .ok_or_else(|| invalid("rsplit takes a text"))?;
    let parts: Vec<&str> = text
        .rsplitn(
            count.map_or(usize::MAX, |count| count.saturating_add(1)),
            part,
        )
        .collect();
    Ok(list(parts.into_iter().rev()))
}

fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    texts.into_iter().map(Value::from).collect()
}

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: serde_json::Value) -> Value {
        of_json(value)
    }

    #[test]
    fn values_are_written_as_by_python() {
        let cases = [
            (json!(null), "None"),
            (
                json!([true, 1, 1.0, "it's", "a\n\"'"]),
                r#"[True, 1, 1.0, "it's", 'a\n"\'']"#,
            ),
            (json!({"b": {}, "a": []}), "{'b': {}, 'a': []}"),
            (
                json!([1e16, 1.5e-5, 0.0001, 123456.0, -2.5e300]),
                "[1e+16, 1.5e-05, 0.0001, 123456.0, -2.5e+300]",
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(str(&of(value)), expected);
        }
        assert_eq!(str(&of(json!("it's"))), "it's");
    }

    #[test]
    fn numbers_that_are_none() {
        assert_eq!(
            [f64::NAN, f64::INFINITY, -f64::INFINITY].map(float),
            ["nan", "inf", "-inf"]
        );
    }
}
