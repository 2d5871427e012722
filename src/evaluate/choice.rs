//! Multiple choice by likelihood.

use std::path::Path;

use serde::Deserialize;

use super::Evaluator;
use super::evaluator::nothing;
use crate::files::read_text;
use crate::{Error, Result};

/// What stands between a question and each choice.
const DELIMITER: &str = " ";

/// A question with several answers, one of which is right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChoiceRecord {
    /// The text before the choice.
    pub context: String,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub answer: usize,
}

impl ChoiceRecord {
    /// A question.
    pub fn new<S: Into<String>>(
        context: impl Into<String>,
        choices: impl IntoIterator<Item = S>,
        answer: usize,
    ) -> Self {
        Self {
            context: context.into(),
            choices: choices.into_iter().map(Into::into).collect(),
            answer,
        }
    }
}

/// A record as a file has it.
#[derive(Deserialize)]
struct Fields {
    context: String,
    choices: Vec<String>,
    answer: Answer,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Index(usize),
    Text(String),
}

/// Reads questions from JSON lines, each with a `context`, its `choices` and the `answer`: the index of the right choice,
/// from 0, or its text.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, else those of [`parse_choices`].
pub fn load_choices(path: impl AsRef<Path>) -> Result<Vec<ChoiceRecord>> {
    let path = path.as_ref();
    parse_choices(&read_text(path)?, path)
}

/// Reads questions from memory; `origin` is what errors call it.
///
/// # Errors
/// [`Error::Record`] if a line is no such record or has fewer than two choices, [`Error::Format`] if there is none.
pub fn parse_choices(text: &str, origin: impl AsRef<Path>) -> Result<Vec<ChoiceRecord>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let records = lines.enumerate().map(|(index, (line, text))| {
        record(text).map_err(|message| Error::Record {
            path: origin.as_ref().to_owned(),
            record: index + 1,
            line: Some(line + 1),
            message,
        })
    });
    let records = records.collect::<Result<Vec<_>>>()?;
    match records.is_empty() {
        true => Err(Error::format(origin, "the file has no record")),
        false => Ok(records),
    }
}

fn record(line: &str) -> Result<ChoiceRecord, String> {
    let fields: Fields = serde_json::from_str(line).map_err(|error| {
        format!(
            "{error}; a line has a `context`, its `choices` and the `answer`, an index or a text"
        )
    })?;
    let choices = fields.choices;
    if choices.len() < 2 {
        return Err("a record needs at least two `choices`".into());
    }
    if let Some(index) = choices.iter().position(String::is_empty) {
        return Err(format!("the choice of index {index} is empty"));
    }
    let (answer, shown) = match fields.answer {
        Answer::Index(index) => (Some(index), index.to_string()),
        Answer::Text(text) => (
            choices.iter().position(|choice| *choice == text),
            format!("{text:?}"),
        ),
    };
    match answer.filter(|index| *index < choices.len()) {
        Some(answer) => Ok(ChoiceRecord {
            context: fields.context,
            choices,
            answer,
        }),
        None => Err(format!("`answer` is {shown}, which is none of the choices")),
    }
}

/// What a model chose.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The logarithm of each choice's probability.
    pub log_probs: Vec<f64>,
    /// Whether the likeliest choice is the right one.
    pub is_right: bool,
    /// Whether it is with logarithms divided by the number of the choice's characters.
    pub is_right_by_length: bool,
}

/// The shares of right choices.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChoiceScores {
    /// What was chosen, record by record.
    pub choices: Vec<Choice>,
}

impl ChoiceScores {
    /// The share of records whose likeliest choice is right.
    pub fn acc(&self) -> f64 {
        self.share(|choice| choice.is_right)
    }

    /// The same with logarithms divided by the number of characters, which does not favour short choices.
    pub fn acc_norm(&self) -> f64 {
        self.share(|choice| choice.is_right_by_length)
    }

    /// The standard error of a share, `sqrt(p (1 - p) / (n - 1))`.
    pub fn stderr(&self, share: f64) -> f64 {
        let others = self.choices.len().saturating_sub(1).max(1) as f64;
        (share * (1.0 - share) / others).sqrt()
    }

    fn share(&self, is_right: fn(&Choice) -> bool) -> f64 {
        let right = self.choices.iter().filter(|choice| is_right(choice));
        right.count() as f64 / self.choices.len() as f64
    }
}

impl Evaluator<'_> {
    /// Lets the model choose: the likeliest answer after its question and a space.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no record, a record's answer is none of its choices, or a choice is empty;
    /// those of [`Evaluator::log_likelihoods`].
    pub fn multiple_choice(&self, records: &[ChoiceRecord]) -> Result<ChoiceScores> {
        if records.is_empty() {
            return Err(nothing("records", "give at least one"));
        }
        let mut completions = Vec::new();
        for record in records {
            if record.answer >= record.choices.len() {
                let message = "the answer of a record is none of its choices";
                return Err(nothing("records", message));
            }
            for choice in &record.choices {
                let continuation = format!("{DELIMITER}{choice}");
                completions.push(self.encode(&record.context, &continuation)?);
            }
        }
        let mut found = self.log_likelihoods(&completions)?.into_iter();
        let choices = records.iter().map(|record| {
            let found = found.by_ref().take(record.choices.len());
            chosen(record, found.map(|choice| choice.log_prob).collect())
        });
        Ok(ChoiceScores {
            choices: choices.collect(),
        })
    }
}

fn chosen(record: &ChoiceRecord, log_probs: Vec<f64>) -> Choice {
    let lengths = record.choices.iter().map(|choice| choice.chars().count());
    let by_length = log_probs.iter().zip(lengths);
    let by_length: Vec<_> = by_length
        .map(|(log_prob, len)| log_prob / len as f64)
        .collect();
    Choice {
        is_right: likeliest(&log_probs) == record.answer,
        is_right_by_length: likeliest(&by_length) == record.answer,
        log_probs,
    }
}

/// The index of the largest, of equal ones the first.
fn likeliest(log_probs: &[f64]) -> usize {
    let indices = (0..log_probs.len()).rev();
    let largest = indices.max_by(|a, b| log_probs[*a].total_cmp(&log_probs[*b]));
    largest.expect("a record has choices")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_index_or_text() {
        let text = r#"{"context": "q", "choices": ["a", "b"], "answer": 1, "id": 7}

{"context": "r", "choices": ["a", "b"], "answer": "a"}"#;
        let records = parse_choices(text, "x.jsonl").unwrap();
        let expected = [
            ChoiceRecord::new("q", ["a", "b"], 1),
            ChoiceRecord::new("r", ["a", "b"], 0),
        ];
        assert_eq!(records, expected);
    }

    #[test]
    fn a_record_that_is_none_is_named() {
        for (line, message) in [
            (
                r#"{"choices": ["a", "b"], "answer": 1}"#,
                "missing field `context`",
            ),
            (
                r#"{"context": "", "choices": ["a", "b"], "answer": 2}"#,
                "`answer` is 2",
            ),
            (
                r#"{"context": "", "choices": ["a", "b"], "answer": "c"}"#,
                "`answer` is \"c\"",
            ),
            (
                r#"{"context": "", "choices": ["a"], "answer": 0}"#,
                "two `choices`",
            ),
            (
                r#"{"context": "", "choices": ["a", ""], "answer": 0}"#,
                "is empty",
            ),
        ] {
            let text = format!("\n{line}");
            let error = parse_choices(&text, "x.jsonl").unwrap_err().to_string();
            assert!(error.starts_with("x.jsonl: record 1 (line 2)"), "{error}");
            assert!(error.contains(message), "{error}");
        }
        assert!(parse_choices("\n", "x.jsonl").is_err());
    }

    #[test]
    fn long_choices_are_not_less_right() {
        let record = ChoiceRecord::new("q", ["a", "long"], 1);
        let choice = chosen(&record, vec![-2.0, -4.0]);
        assert!(!choice.is_right && choice.is_right_by_length);
    }
}
