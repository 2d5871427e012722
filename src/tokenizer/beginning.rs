//! The first tokens of a long text, without encoding all of it.

use crate::Result;

/// How many tokens at the end of a text's beginning may be others than those in the whole text. A token depends on what
/// stands near it, in practice on its own word.
const UNSURE: usize = 64;
/// What few texts have more of.
const BYTES_PER_TOKEN: usize = 8;

/// The first `count` tokens of a text, of a part of it that is long enough.
pub(super) fn first_tokens<T>(
    text: &str,
    count: usize,
    encode: impl Fn(&str) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let enough = count.saturating_add(UNSURE);
    let mut bytes = enough.saturating_mul(BYTES_PER_TOKEN);
    while bytes < text.len() {
        let mut tokens = encode(beginning(text, bytes))?;
        if tokens.len() >= enough {
            tokens.truncate(count);
            return Ok(tokens);
        }
        bytes = bytes.saturating_mul(2);
    }
    let mut tokens = encode(text)?;
    tokens.truncate(count);
    Ok(tokens)
}

/// About so many bytes, to the end of a word if one ends there.
fn beginning(text: &str, bytes: usize) -> &str {
    let text = &text[..text.floor_char_boundary(bytes)];
    match text.rfind(char::is_whitespace) {
        Some(end) if end > bytes / 2 => &text[..end],
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Words as tokens.
    fn words(text: &str, seen: &Cell<usize>) -> Result<Vec<String>> {
        seen.set(seen.get() + text.len());
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn what_is_read_of_a_text_follows_from_the_count() {
        let text = "ab cd ".repeat(100_000);
        for count in [0, 1, 2, 500] {
            let seen = Cell::new(0);
            let found = first_tokens(&text, count, |text| words(text, &seen)).unwrap();
            assert_eq!(found.len(), count);
            assert!(seen.get() <= (count + UNSURE) * BYTES_PER_TOKEN);
        }
        // Few tokens in many bytes: all of it, in parts that double.
        let text = "a".repeat(1_000_000);
        let seen = Cell::new(0);
        let found = first_tokens(&text, 2, |text| words(text, &seen)).unwrap();
        assert_eq!(found, std::slice::from_ref(&text));
        assert!(seen.get() < 3 * text.len());
    }

    #[test]
    fn a_text_is_cut_behind_a_word_and_within_no_letter() {
        assert_eq!(beginning("ab cd ef", 7), "ab cd");
        assert_eq!(beginning("ab cdefghij", 8), "ab cdefg");
        assert_eq!(beginning("\u{e9}\u{e9}\u{e9}", 3), "\u{e9}");
    }
}
