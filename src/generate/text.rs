//! Generated tokens as text, and the texts at which to stop.

use super::options::ends_of_texts;
use super::{GenerateOptions, Generation};
use crate::Result;
use crate::llama::TransformerDecoder;
use crate::tokenizer::Tokenizer;

/// Continues prompts together; returns the texts of the answers to the first prompt, then those to the second, and so on.
/// A text that a [stop string](GenerateOptions::stop_strings) ended does not have it.
///
/// # Errors
/// As [`TextGeneration::new`] and [`TextGeneration::next`].
pub fn generate_text<P: AsRef<[u32]>>(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    prompts: &[P],
    options: &GenerateOptions,
) -> Result<Vec<String>> {
    let mut generation = TextGeneration::new(model, tokenizer, prompts, options)?;
    let mut texts = vec![String::new(); generation.generation.answers().len()];
    for pieces in &mut generation {
        for NewText { answer, text } in pieces? {
            texts[answer] += &text;
        }
    }
    Ok(texts)
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewText {
    /// The index of the answer: those to the first prompt come first.
    pub answer: usize,
    /// What its text goes on with.
    pub text: String,
}

/// A [`Generation`] in pieces of text, which are told as soon as they are certain: not in the middle of a character, and
/// not what a stop string may begin with. The pieces of an answer together are its text.
pub struct TextGeneration<'a> {
    generation: Generation,
    pieces: Vec<TextPieces<'a>>,
    has_ended: Vec<bool>,
}

impl<'a> TextGeneration<'a> {
    /// A generation that has not begun. Unless the options say where to stop, the tokenizer's end of a text ends an answer
    /// too.
    ///
    /// # Errors
    /// As [`Generation::new`], stop strings excepted.
    pub fn new<P: AsRef<[u32]>>(
        model: &TransformerDecoder,
        tokenizer: &'a Tokenizer,
        prompts: &[P],
        options: &GenerateOptions,
    ) -> Result<Self> {
        let mut options = options.clone();
        let ends = || ends_of_texts(tokenizer, &model.config);
        options.stop_tokens.get_or_insert_with(ends);
        let generation = Generation::of_ids(model, prompts, &options)?;
        let pieces = TextPieces::new(tokenizer, &options.stop_strings);
        let count = generation.answers().len();
        Ok(Self {
            generation,
            pieces: vec![pieces; count],
            has_ended: vec![false; count],
        })
    }

    /// The same after another, see [`Generation::after`].
    pub fn after(mut self, last: Generation) -> Self {
        self.generation = self.generation.after(last);
        self
    }

    /// The generation alone.
    pub fn into_generation(self) -> Generation {
        self.generation
    }

    /// The tokens behind the texts: those of a stop string too.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    fn pass(&mut self) -> Result<Vec<NewText>> {
        let Some(tokens) = self.generation.next() else {
            return Ok(Vec::new());
        };
        let mut texts = Vec::new();
        for token in tokens? {
            let pieces = &mut self.pieces[token.answer];
            let text = pieces.push(token.id)?;
            if pieces.is_stopped() {
                self.generation.end(token.answer);
            }
            texts.extend(piece(token.answer, text));
        }
        let answers = self.generation.answers().iter().enumerate();
        for (index, _) in answers.filter(|(_, answer)| answer.end.is_some()) {
            if !std::mem::replace(&mut self.has_ended[index], true) {
                texts.extend(piece(index, self.pieces[index].finish()));
            }
        }
        Ok(texts)
    }
}

impl Iterator for TextGeneration<'_> {
    type Item = Result<Vec<NewText>>;

    /// What another pass adds to the texts, maybe nothing; none after the last, and after an error:
    /// [`Error::NotFinite`](crate::Error::NotFinite) if a logit is no number, and those of [`Tokenizer::decode`].
    fn next(&mut self) -> Option<Self::Item> {
        let is_done = self.has_ended.iter().all(|has_ended| *has_ended);
        if is_done || self.generation.has_failed() {
            return None;
        }
        let texts = self.pass();
        if texts.is_err() {
            self.generation.fail();
        }
        Some(texts)
    }
}

fn piece(answer: usize, text: String) -> Option<NewText> {
    (!text.is_empty()).then_some(NewText { answer, text })
}

/// Tokens that go on where a text ends, as pieces of text, up to the first stop string.
///
/// ```no_run
/// use burn_peft::generate::TextPieces;
/// # fn main() -> burn_peft::Result<()> {
/// # let tokenizer = burn_peft::tokenizer::Tokenizer::from_dir("model")?;
/// # let ids = [1, 2, 3];
///
/// let mut pieces = TextPieces::new(&tokenizer, &["\n\n".to_owned()]);
/// for id in ids {
///     print!("{}", pieces.push(id)?);
///     if pieces.is_stopped() {
///         break;
///     }
/// }
/// println!("{}", pieces.finish());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TextPieces<'a> {
    tokenizer: &'a Tokenizer,
    stop_strings: Vec<String>,
    ids: Vec<u32>,
    /// The text so far, without a stop string.
    text: String,
    /// The bytes of it that were given out.
    told: usize,
    is_stopped: bool,
}

impl<'a> TextPieces<'a> {
    /// No text yet.
    pub fn new(tokenizer: &'a Tokenizer, stop_strings: &[String]) -> Self {
        Self {
            tokenizer,
            stop_strings: stop_strings.to_vec(),
            ids: Vec::new(),
            text: String::new(),
            told: 0,
            is_stopped: false,
        }
    }

    /// Adds a token; returns what is certain now. After a stop string that is nothing.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.is_stopped {
            return Ok(String::new());
        }
        self.ids.push(id);
        self.text = self.tokenizer.decode_continuation(&self.ids)?;
        let certain = match first_of(&self.text, self.told, &self.stop_strings) {
            Some(end) => {
                self.is_stopped = true;
                self.text.truncate(end);
                end
            }
            None => certain_len(&self.text, &self.stop_strings),
        };
        Ok(self.tell(certain))
    }

    /// Whether the text has come to a stop string.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// What was held back, when no token follows.
    pub fn finish(&mut self) -> String {
        self.tell(self.text.len())
    }

    fn tell(&mut self, end: usize) -> String {
        let new = self.text.get(self.told..end).unwrap_or("").to_owned();
        self.told = self.told.max(end);
        new
    }
}

/// Where the first stop string begins that is not told already.
fn first_of(text: &str, told: usize, stop_strings: &[String]) -> Option<usize> {
    let rest = text.get(told..)?;
    let starts = stop_strings.iter().filter_map(|stop| rest.find(stop));
    starts.min().map(|start| told + start)
}

/// How much of a text stays, whatever follows: not the beginning of a character, nor of a stop string.
fn certain_len(text: &str, stop_strings: &[String]) -> usize {
    let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let is_begun = |start: &usize| {
        let end = &whole[*start..];
        stop_strings.iter().any(|stop| stop.starts_with(end))
    };
    let mut starts = whole.char_indices().map(|(start, _)| start);
    starts.find(is_begun).unwrap_or(whole.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let stops = ["###".to_owned(), "\n\nQ".to_owned()];
        for (text, certain) in [
            ("an answer", "an answer"),
            ("an answer #", "an answer "),
            ("a ##b", "a ##b"),
            ("a\n", "a"),
            ("a\n\n", "a"),
            ("a\nb", "a\nb"),
            ("né\u{fffd}", "né"),
        ] {
            assert_eq!(&text[..certain_len(text, &stops)], certain, "{text:?}");
        }
        assert_eq!(first_of("a\n\nQ ###", 0, &stops), Some(1));
        assert_eq!(first_of("a ##", 0, &stops), None);
    }
}
