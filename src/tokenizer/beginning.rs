//! The first tokens of a long text, without encoding all of it.

use std::ops::Range;

use crate::Result;

/// How many tokens at the end of a text's beginning may be others than those in the whole text. A token depends on what
/// stands near it, in practice on its own word.
const UNSURE: usize = 64;
/// What few texts have more of.
const BYTES_PER_TOKEN: usize = 8;

/// How much of a text is encoded at a time, if only its first tokens are asked for: while it is, the library takes some two
/// hundred times as much.
const MOST_BYTES: usize = 256 << 10;

/// The first `count` tokens of a text, of a part of it that is long enough. A part that is longer than is encoded at a time,
/// because its letters make hardly any tokens, is encoded piece by piece. `encode` is given the bytes of the text.
pub(super) fn first_tokens<T>(
    text: &str,
    count: usize,
    encode: impl Fn(Range<usize>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let enough = count.saturating_add(UNSURE);
    let mut bytes = enough.saturating_mul(BYTES_PER_TOKEN);
    let most = match count {
        usize::MAX => usize::MAX,
        _ => bytes.max(MOST_BYTES),
    };
    let (mut tokens, mut start) = (Vec::new(), 0);
    loop {
        let end = start + beginning(&text[start..], bytes).len();
        let found = encode(start..end)?;
        if end == text.len() || tokens.len() + found.len() >= enough {
            tokens.extend(found);
            tokens.truncate(count);
            return Ok(tokens);
        }
        match bytes.checked_mul(2).filter(|more| *more <= most) {
            Some(more) => bytes = more,
            None => {
                tokens.extend(found);
                start = end;
            }
        }
    }
}

/// About so many bytes, to the end of a word if one ends there.
fn beginning(text: &str, bytes: usize) -> &str {
    if bytes >= text.len() {
        return text;
    }
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
            let found = first_tokens(&text, count, |part| words(&text[part], &seen)).unwrap();
            assert_eq!(found.len(), count);
            assert!(seen.get() <= (count + UNSURE) * BYTES_PER_TOKEN);
        }
        // Few tokens in many bytes: parts that double, and then one after the other.
        let text = format!("{}end", " ".repeat(1_000_000));
        let (seen, longest) = (Cell::new(0), Cell::new(0));
        let encode = |part: Range<usize>| {
            longest.set(longest.get().max(part.len()));
            words(&text[part], &seen)
        };
        assert_eq!(first_tokens(&text, 2, encode).unwrap(), ["end"]);
        assert!(seen.get() < 2 * text.len() && longest.get() <= MOST_BYTES);
        // All tokens are those of the whole.
        let found = first_tokens(&text, usize::MAX, |part| {
            assert_eq!(part, 0..text.len());
            words(&text[part], &seen)
        });
        assert_eq!(found.unwrap(), ["end"]);
    }

    #[test]
    fn a_text_is_cut_behind_a_word_and_within_no_letter() {
        assert_eq!(beginning("ab cd ef", 7), "ab cd");
        assert_eq!(beginning("ab cdefghij", 8), "ab cdefg");
        assert_eq!(beginning("\u{e9}\u{e9}\u{e9}", 3), "\u{e9}");
    }
}
