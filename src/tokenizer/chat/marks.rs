//! What a rendered text tells beside its words: which of it the assistant wrote, and which special tokens'
//! names are a message's own words.
//!
//! Both are marked by characters that no input has, and cut out again: a template may move a text, trim it or
//! join it with others, and the marks go with it.

use std::ops::Range;

use fancy_regex::Regex;
use minijinja::value::Value;
use serde_json::Value as Json;

/// The variables that hold the marks of an answer's beginning and end.
const BEGIN: &str = "_generation_begins_";
const END: &str = "_generation_ends_";

/// From where on Unicode leaves characters to everybody's own use; nobody's text has them, but it may.
const PRIVATE: char = '\u{100000}';

/// Writes `{% generation %}` as two blocks with a mark between them, so that white space around the tag goes where it
/// went; what is set within is not known outside, as in transformers. Every line keeps its number.
pub(super) fn without_generation_tags(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::new(), source, false);
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let close = if rest[start..].starts_with("{#") {
            "#}"
        } else {
            "%}"
        };
        let Some(length) = rest[start + 2..].find(close) else {
            break;
        };
        let (before, from) = rest.split_at(start);
        let (tag, after) = from.split_at(length + 4);
        out.push_str(before);
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        let written = match (close, word) {
            ("%}", "generation") => Some(format!("if true %}}{{{{ {BEGIN} }}}}{{% with")),
            ("%}", "endgeneration") => Some(format!("endwith %}}{{{{ {END} }}}}{{% endif")),
            _ => None,
        };
        found |= written.is_some();
        out.push_str(
            &written.map_or_else(|| tag.to_owned(), |written| tag.replacen(word, &written, 1)),
        );
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}

/// Characters that no input of a rendering has.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    generated: [char; 2],
    quoted: [char; 2],
}

/// A conversation as a text, see [`ChatTemplate::render`](super::ChatTemplate::render).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The bytes of it that the template marks as the assistant's, by `{% generation %}`.
    pub generated: Vec<Range<usize>>,
    /// The bytes of it that are a special token's name and no special token, because a message or a tool says
    /// them.
    pub quoted: Vec<Range<usize>>,
}

impl Marks {
    /// Marks that are in none of these.
    pub(super) fn absent_from(source: &str, inputs: &Json) -> Self {
        let inputs = inputs.to_string();
        let mut free =
            (PRIVATE..=char::MAX).filter(|c| !inputs.contains(*c) && !source.contains(*c));
        let mut next = || free.next().unwrap_or(PRIVATE);
        Self {
            generated: [next(), next()],
            quoted: [next(), next()],
        }
    }

    /// What a template without tags writes around answers.
    pub(super) fn variables(self) -> impl Iterator<Item = (String, Value)> {
        let marks = [BEGIN, END].into_iter().zip(self.generated);
        marks.map(|(name, mark)| (name.to_owned(), mark.to_string().into()))
    }

    /// The same texts with every one of these words marked, but for the keys of objects.
    pub(super) fn quote(self, inputs: &Json, words: &Regex) -> Json {
        match inputs {
            Json::String(text) => {
                let [open, close] = self.quoted;
                words
                    .replace_all(text, format!("{open}${{0}}{close}"))
                    .into_owned()
                    .into()
            }
            Json::Array(items) => items.iter().map(|item| self.quote(item, words)).collect(),
            Json::Object(fields) => {
                let fields = fields.iter();
                fields
                    .map(|(key, value)| (key.clone(), self.quote(value, words)))
                    .collect()
            }
            other => other.clone(),
        }
    }

    /// Cuts the marks out. One without its partner says nothing.
    pub(super) fn take_from(self, marked: &str) -> Rendered {
        let mut found = Rendered::default();
        let (mut generated, mut quoted) = (Vec::new(), None);
        for c in marked.chars() {
            let place = found.text.len();
            if c == self.generated[0] {
                generated.push(place);
            } else if c == self.generated[1] {
                found
                    .generated
                    .extend(generated.pop().map(|start| start..place));
            } else if c == self.quoted[0] {
                quoted = Some(place);
            } else if c == self.quoted[1] {
                found.quoted.extend(quoted.take().map(|start| start..place));
            } else {
                found.text.push(c);
            }
        }
        found
    }
}

/// Whether any text has any of these words, keys of objects aside.
pub(super) fn has_any(inputs: &Json, words: &Regex) -> bool {
    match inputs {
        Json::String(text) => words.is_match(text).unwrap_or(true),
        Json::Array(items) => items.iter().any(|item| has_any(item, words)),
        Json::Object(fields) => fields.values().any(|value| has_any(value, words)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generation_tags_become_blocks_with_marks() {
        let source =
            "{# {% generation %} #}\n{%- generation -%}\n{{ x }}{%endgeneration\n%}{% if a %}";
        let expected = "{# {% generation %} #}\n{%- if true %}{{ _generation_begins_ }}{% with -%}\n{{ x }}\
                        {%endwith %}{{ _generation_ends_ }}{% endif\n%}{% if a %}";
        assert_eq!(without_generation_tags(source), (expected.into(), true));
        let unfinished = "{% if generation %} {% generation";
        assert_eq!(
            without_generation_tags(unfinished),
            (unfinished.into(), false)
        );
    }

    #[test]
    fn marks_are_in_no_input() {
        let inputs = json!({"a": ["\u{100000}", {"\u{100001}": 1}]});
        let marks = Marks::absent_from("\u{100002}", &inputs);
        assert_eq!(marks.generated, ['\u{100003}', '\u{100004}']);
        let words = Regex::new("<s>|</s>").unwrap();
        let quoted = marks.quote(&json!({"<s>": ["a<s>", 1]}), &words);
        assert_eq!(quoted, json!({"<s>": ["a\u{100005}<s>\u{100006}", 1]}));
    }

    #[test]
    fn marks_are_cut_out() {
        let marks = Marks::absent_from("", &Json::Null);
        let marked = "ä\u{100000}b\u{100002}<s>\u{100003}\u{100001}c\u{100003}\u{100001}";
        let found = marks.take_from(marked);
        assert_eq!(found.text, "äb<s>c");
        let places = [found.generated, found.quoted].concat();
        assert_eq!(places, [2..6, 3..6]);
    }
}
