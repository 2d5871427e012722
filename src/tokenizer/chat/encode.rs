//! A rendered conversation as token ids.

use std::ops::Range;

use fancy_regex::Regex;

use super::{Rendered, words};
use crate::tokenizer::beginning::first_tokens;
use crate::tokenizer::parts::Parts;
use crate::tokenizer::{BEFORE, Tokenizer};
use crate::{Error, Result};

/// A token and the bytes of the text that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacedToken {
    /// The token.
    pub id: u32,
    /// Its place.
    pub place: Range<usize>,
}

/// Encodes what a [`ChatTemplate`](super::ChatTemplate) has rendered. Unlike [`Tokenizer::encode`], the names
/// of special tokens that the template wrote become these tokens; those that messages say stay text. Nothing
/// is put before or behind: a template writes its BOS itself, or there is none.
pub struct ChatEncoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The same, with the names of special tokens as these tokens.
    parsing: tokenizers::Tokenizer,
    parsed_parts: Parts,
    words: Option<Regex>,
}

impl<'a> ChatEncoder<'a> {
    /// Copies the tokenizer's vocabulary.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let mut parsing = tokenizer.inner.clone();
        parsing.set_encode_special_tokens(false);
        Self {
            tokenizer,
            parsed_parts: Parts::of(&parsing),
            parsing,
            words: words(tokenizer, true),
        }
    }

    /// The tokens of a text.
    ///
    /// The text beside a special token's name that a message says is encoded on its own, as transformers does
    /// by `sanitize_control_tokens`.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode(&self, rendered: &Rendered) -> Result<Vec<PlacedToken>> {
        self.encode_first(rendered, usize::MAX)
    }

    /// The first `count` tokens of a text, of which no more is encoded than that takes; see
    /// [`Tokenizer::encode_first`].
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode_first(&self, rendered: &Rendered, count: usize) -> Result<Vec<PlacedToken>> {
        let text = &rendered.text;
        let mut tokens = Vec::new();
        let mut done = 0;
        for quoted in &rendered.quoted {
            self.encode_part(text, done..quoted.start, true, count, &mut tokens)?;
            self.encode_part(text, quoted.clone(), false, count, &mut tokens)?;
            done = quoted.end;
        }
        self.encode_part(text, done..text.len(), true, count, &mut tokens)?;
        Ok(tokens)
    }

    /// Appends the tokens of a part, so that there are at most `count` of all.
    fn encode_part(
        &self,
        text: &str,
        part: Range<usize>,
        parses: bool,
        count: usize,
        tokens: &mut Vec<PlacedToken>,
    ) -> Result<()> {
        let (start, part) = (part.start, &text[part]);
        let count = count - tokens.len();
        if part.is_empty() || count == 0 {
            return Ok(());
        }
        tokens.extend(first_tokens(part, count, |piece| {
            let start = start + piece.start;
            let mut found = match start {
                0 => self.encode_text(&part[piece], parses),
                _ => self.encode_behind(&part[piece], parses),
            }?;
            for PlacedToken { place, .. } in &mut found {
                *place = place.start + start..place.end + start;
            }
            Ok(found)
        })?);
        Ok(())
    }

    /// A part that is not the first: without what a tokenizer puts before a text.
    fn encode_behind(&self, part: &str, parses: bool) -> Result<Vec<PlacedToken>> {
        let before = self.encode_text(BEFORE, parses)?;
        let joined = self.encode_text(&format!("{BEFORE}{part}"), parses)?;
        let is_same = |(a, b): (&PlacedToken, &PlacedToken)| a.id == b.id;
        if joined.len() < before.len() || !before.iter().zip(&joined).all(is_same) {
            return self.encode_text(part, parses);
        }
        let rest = joined.into_iter().skip(before.len());
        let shifted = rest.map(|PlacedToken { id, place }| PlacedToken {
            id,
            place: place.start.saturating_sub(BEFORE.len())..place.end.saturating_sub(BEFORE.len()),
        });
        Ok(shifted.collect())
    }

    fn encode_text(&self, text: &str, parses: bool) -> Result<Vec<PlacedToken>> {
        if self.tokenizer.sentencepiece.is_some() {
            return self.encode_pieces(text, parses);
        }
        let (tokenizer, parts) = match parses {
            true => (&self.parsing, &self.parsed_parts),
            false => (&self.tokenizer.inner, &self.tokenizer.parts),
        };
        parts.encode(tokenizer, text).map_err(|error| {
            let message = format!("the conversation cannot be encoded: {error}");
            Error::format(&self.tokenizer.origin, message)
        })
    }

    /// By SentencePiece's own way to join pieces, the text between special tokens each on its own, as Llama
    /// 2's program does.
    fn encode_pieces(&self, text: &str, parses: bool) -> Result<Vec<PlacedToken>> {
        let words = self.words.as_ref().filter(|_| parses);
        let mut tokens = Vec::new();
        let mut done = 0;
        let found = words
            .iter()
            .flat_map(|words| words.find_iter(text).flatten());
        for word in found {
            self.place(text, done..word.start(), &mut tokens)?;
            let id = self.tokenizer.inner.token_to_id(word.as_str());
            tokens.extend(id.map(|id| PlacedToken {
                id,
                place: word.range(),
            }));
            done = word.end();
        }
        self.place(text, done..text.len(), &mut tokens)?;
        Ok(tokens)
    }

    /// Finds the places of pieces by their letters.
    fn place(&self, text: &str, part: Range<usize>, tokens: &mut Vec<PlacedToken>) -> Result<()> {
        let mut at = part.start;
        for id in self.tokenizer.encode(&text[part.clone()])? {
            let start = at;
            let piece = self.tokenizer.inner.id_to_token(id).unwrap_or_default();
            at = behind(&text[..part.end], at, &piece);
            tokens.push(PlacedToken {
                id,
                place: start..at,
            });
        }
        Ok(())
    }
}

/// Where a piece ends that begins at `at`: `▁` is a space, or none at the beginning, and `<0x0A>` a byte.
fn behind(text: &str, at: usize, piece: &str) -> usize {
    const SPACE: char = '\u{2581}';
    let is_byte = piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>');
    // Within a character of several bytes nothing is left.
    let rest = |at| text.get(at..).unwrap_or_default();
    if is_byte && !rest(at).starts_with(piece) {
        return (at + 1).min(text.len());
    }
    piece.chars().fold(at, |at, letter| {
        let rest = rest(at);
        let skipped = rest.len() - rest.trim_start_matches(' ').len();
        match (letter, rest.chars().next()) {
            (SPACE, Some(' ')) => at + 1,
            (letter, Some(found)) if letter == found => at + found.len_utf8(),
            (SPACE, _) => at,
            (letter, _) if rest[skipped..].starts_with(letter) => at + skipped + letter.len_utf8(),
            (_, found) => at + found.map_or(0, char::len_utf8),
        }
    })
}
