//! From YAML and from `key=value` to settings: dotted keys with a value and the place it was
//! written at.

use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::keys::{self, RecipeKey};
use crate::{Error, Result};

/// What errors name as the origin of an override.
const COMMAND_LINE: &str = "command line";

/// A key that was given a value, and where.
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: Value,
    origin: String,
    line: Option<usize>,
}

impl Setting {
    fn error(&self, message: String, nearest: Vec<String>) -> Error {
        Error::Config {
            origin: self.origin.clone(),
            key: self.key.clone(),
            line: self.line,
            message,
            nearest,
        }
    }

    pub(super) fn unknown_key(&self) -> Error {
        let Self { key, value, .. } = self;
        match keys::keys_below(key) {
            below if below.is_empty() => {
                self.error(format!("unknown key `{key}`"), keys::nearest_keys(key))
            }
            below => self.error(
                format!(
                    "`{key}` is {value}, expected keys below it: {}",
                    below.join(", ")
                ),
                vec![],
            ),
        }
    }

    pub(super) fn bad_value(&self, key: &RecipeKey) -> Error {
        let Self { value, .. } = self;
        self.error(
            format!("`{}` is {value}, expected {}", self.key, key.accepts()),
            key.nearest_choices(value),
        )
    }
}

/// An error about `key` in its relation to other keys, at the place of its last setting.
pub(super) fn conflict(settings: &[Setting], key: &str, message: &str) -> Error {
    let setting = settings.iter().rev().find(|s| s.key == key);
    Error::Config {
        origin: setting.map_or("recipe", |s| &s.origin).to_owned(),
        key: key.to_owned(),
        line: setting.and_then(|s| s.line),
        message: message.to_owned(),
        nearest: vec![],
    }
}

/// The settings in a YAML file.
pub(super) fn parse_file(text: &str, origin: &str) -> Result<Vec<Setting>> {
    let node = parse(text).map_err(|error| Error::format(origin, error.without_snippet()))?;
    let mut settings = Vec::new();
    match node {
        Node::Section(entries) => {
            reject_repeated_entries("", &entries, origin)?;
            flatten("", entries, origin, &mut settings);
        }
        // A file that holds only comments.
        Node::Leaf(Value::Null) => {}
        Node::Leaf(_) => {
            return Err(Error::format(
                origin,
                "expected a line `key: value` for each setting",
            ));
        }
    }
    reject_repeated(&settings)?;
    Ok(settings)
}

/// The settings of `key=value` arguments.
pub(super) fn parse_overrides(overrides: &[String]) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for text in overrides {
        parse_override(text, &mut settings)?;
    }
    Ok(settings)
}

fn parse_override(text: &str, settings: &mut Vec<Setting>) -> Result<()> {
    let error = |key: &str, message| Error::Config {
        origin: COMMAND_LINE.into(),
        key: key.to_owned(),
        line: None,
        message,
        nearest: vec![],
    };
    let Some((key, value)) = text.split_once('=') else {
        let message = format!("`{text}` is not of the form key=value");
        return Err(error(text, message));
    };
    let key = key.trim();
    let node = parse(value).map_err(|e| {
        error(
            key,
            format!("the value of `{key}` is not YAML: {}", e.without_snippet()),
        )
    })?;
    let first = settings.len();
    push(key.to_owned(), None, node, COMMAND_LINE, settings);
    for setting in &mut settings[first..] {
        // Lines within an argument say nothing to its reader.
        setting.line = None;
    }
    Ok(())
}

fn parse(text: &str) -> Result<Node, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        // `y` and `no` are words, not booleans.
        strict_booleans: true,
        // Repeated keys and numbers such as .nan are reported below, with the key's name.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn flatten(prefix: &str, entries: Vec<Entry>, origin: &str, settings: &mut Vec<Setting>) {
    for (key, node) in entries {
        let line = usize::try_from(key.referenced.line()).ok();
        push(
            format!("{prefix}{}", key.value),
            line,
            node,
            origin,
            settings,
        );
    }
}

fn push(key: String, line: Option<usize>, node: Node, origin: &str, settings: &mut Vec<Setting>) {
    let is_map = RecipeKey::find(&key).is_some_and(RecipeKey::is_map);
    let value = match node {
        Node::Section(_) if is_map => node.into_value(),
        Node::Section(entries) if !entries.is_empty() => {
            return flatten(&format!("{key}."), entries, origin, settings);
        }
        Node::Section(_) => Value::Object(Default::default()),
        Node::Leaf(value) => value,
    };
    settings.push(Setting {
        key,
        value,
        origin: origin.to_owned(),
        line,
    });
}

/// Keys and sections that stand twice in one section.
fn reject_repeated_entries(prefix: &str, entries: &[Entry], origin: &str) -> Result<()> {
    let line = |key: &Spanned<String>| usize::try_from(key.referenced.line()).ok();
    for (i, (key, node)) in entries.iter().enumerate() {
        let name = format!("{prefix}{}", key.value);
        let mut before = entries[..i].iter();
        if let Some((first, _)) = before.find(|(first, _)| first.value == key.value) {
            return Err(repeated(name, line(key), line(first), origin));
        }
        if let Node::Section(entries) = node {
            reject_repeated_entries(&format!("{name}."), entries, origin)?;
        }
    }
    Ok(())
}

fn repeated(key: String, line: Option<usize>, first: Option<usize>, origin: &str) -> Error {
    let on_line = first.map_or(String::new(), |line| format!(" on line {line}"));
    Error::Config {
        message: format!("`{key}` is set already{on_line}"),
        origin: origin.to_owned(),
        key,
        line,
        nearest: vec![],
    }
}

/// The same setting by a section and by a dotted key.
fn reject_repeated(settings: &[Setting]) -> Result<()> {
    for (i, setting) in settings.iter().enumerate() {
        let Some(first) = settings[..i].iter().find(|s| s.key == setting.key) else {
            continue;
        };
        let Setting {
            key, line, origin, ..
        } = setting;
        return Err(repeated(key.clone(), *line, first.line, origin));
    }
    Ok(())
}

/// A YAML value that remembers the lines of its keys.
enum Node {
    Leaf(Value),
    Section(Vec<Entry>),
}

type Entry = (Spanned<String>, Node);

impl Node {
    fn into_value(self) -> Value {
        match self {
            Self::Leaf(value) => value,
            Self::Section(entries) => {
                let entries = entries.into_iter();
                let entries = entries.map(|(key, node)| (key.value, node.into_value()));
                Value::Object(entries.collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Section(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Node, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(seq)).map(Node::Leaf)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }
}
