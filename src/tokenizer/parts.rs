//! Parts of texts that come again, encoded once.
//!
//! ```text
//! "It is, then, a tyre."  ─►  "It" · " is," · " then," · " a" · " tyre."
//! ```
//!
//! Most tokenizers split a text into words before they join letters, and no token goes over the end of a word. So a text may
//! be cut before the space of a new word and each part encoded on its own. Most parts of a text are words of everyday, whose
//! tokens each thread keeps: these are found again without the library's normalizer, splitter and joins.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString};
use tokenizers::{PreTokenizer, Tokenizer};

use super::PlacedToken;

/// How many parts a thread keeps for a tokenizer, and how long they are at most.
const KEPT: usize = 1 << 15;
const LONGEST: usize = 48;
/// For how many tokenizers a thread keeps parts.
const TOKENIZERS: usize = 4;

static NUMBERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The parts of some tokenizers, by their numbers, the last one that came last.
    static KNOWN: RefCell<Vec<(u64, Known)>> = const { RefCell::new(Vec::new()) };
}

type Known = HashMap<Box<str>, Box<[PlacedToken]>>;

/// Encodes texts with a tokenizer, in parts where that gives the same.
#[derive(Clone)]
pub(super) struct Parts {
    /// The number of a tokenizer of which a text may be encoded in parts.
    number: Option<u64>,
}

impl Parts {
    /// For a tokenizer whose settings do not change any more.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let splits = splits_before_words(tokenizer);
        Self {
            number: splits.then(|| NUMBERS.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// The tokens of a text, without special ones around it.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> tokenizers::Result<Vec<PlacedToken>> {
        let Some(number) = self.number else {
            return encode_whole(tokenizer, text);
        };
        KNOWN.with_borrow_mut(|all| {
            let known = known_of(all, number);
            let mut tokens = Vec::with_capacity(text.len() / 3);
            for part in parts(text) {
                let (start, part) = (part.start, &text[part]);
                let placed = |token: &PlacedToken| PlacedToken {
                    id: token.id,
                    place: token.place.start + start..token.place.end + start,
                };
                if let Some(found) = known.get(part) {
                    tokens.extend(found.iter().map(placed));
                    continue;
                }
                let found = encode_whole(tokenizer, part)?;
                tokens.extend(found.iter().map(placed));
                if part.len() <= LONGEST && known.len() < KEPT {
                    known.insert(part.into(), found.into());
                }
            }
            Ok(tokens)
        })
    }
}

fn known_of(all: &mut Vec<(u64, Known)>, number: u64) -> &mut Known {
    let place = all.iter().position(|(known, _)| *known == number);
    let place = place.unwrap_or_else(|| {
        if all.len() == TOKENIZERS {
            all.remove(0);
        }
        all.push((number, Known::new()));
        all.len() - 1
    });
    &mut all[place].1
}

fn encode_whole(tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Vec<PlacedToken>> {
    let encoding = tokenizer.encode(text, false)?;
    let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
    Ok(tokens
        .map(|(&id, &(start, end))| PlacedToken {
            id,
            place: start..end,
        })
        .collect())
}

/// The parts of a text: each begins with a space and a letter of ASCII, behind something that is no space.
fn parts(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let begins = |at: &usize| {
            bytes[*at] == b' '
                && bytes[at - 1].is_ascii_graphic()
                && bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic)
        };
        let end = (start + 1..bytes.len()).find(begins).unwrap_or(bytes.len());
        let part = start..end;
        start = end;
        Some(part)
    })
}

/// Whether no token goes over the beginning of a part, and none depends on what stands on its other side.
fn splits_before_words(tokenizer: &Tokenizer) -> bool {
    let normalizer = json!(tokenizer.get_normalizer());
    let is_local = normalizer.is_null() || normalizer["type"] == "NFC";
    let added = tokenizer.get_added_tokens_decoder();
    let stays_within = |token: &tokenizers::AddedToken| {
        let mut letters = token.content.chars();
        let is_space = letters.clone().all(char::is_whitespace);
        let is_word = !letters.any(char::is_whitespace);
        (is_space || is_word) && !(token.lstrip || token.rstrip || token.single_word)
    };
    is_local && added.values().all(stays_within) && splits_samples(tokenizer)
}

/// Whether the words of texts, with all that may stand before and behind the space, are split there.
fn splits_samples(tokenizer: &Tokenizer) -> bool {
    let Some(splitter) = tokenizer.get_pre_tokenizer() else {
        return false;
    };
    if !are_known(&json!(splitter)) {
        return false;
    }
    let mut text = String::new();
    for last in '!'..='~' {
        for first in ('a'..='z').chain('A'..='Z') {
            let rest = ["", "x", "X", "1", "'s", "\n"][usize::from(first as u8 + last as u8) % 6];
            let _ = writeln!(
                text,
                "x{last} {first}{rest} 7{last} {first}.{last}{last} {first}x"
            );
        }
    }
    let mut split = PreTokenizedString::from(text.as_str());
    if splitter.pre_tokenize(&mut split).is_err() {
        return false;
    }
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let starts: std::collections::HashSet<usize> = splits.iter().map(|(_, at, _)| at.0).collect();
    parts(&text).all(|part| starts.contains(&part.start))
}

/// Whether a splitter is one that looks at letters near a place alone.
fn are_known(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        Some("Sequence") => {
            let all = splitter["pretokenizers"].as_array();
            all.is_some_and(|all| all.iter().all(are_known))
        }
        Some(kind) => ["ByteLevel", "Digits", "Punctuation", "Split"].contains(&kind),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tokenizers::models::bpe::BPE;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::SplitDelimiterBehavior;
    use tokenizers::{AddedToken, PreTokenizerWrapper};

    use super::*;

    #[test]
    fn parts_are_words_with_what_stands_behind() {
        let of = |text| Vec::from_iter(parts(text).map(|part| &text[part]));
        assert_eq!(
            of("It is,  then, a\n tyre. 3 \u{e9} x"),
            ["It", " is,  then,", " a\n tyre. 3 \u{e9} x"]
        );
        assert_eq!(of(" a"), [" a"]);
        assert!(of("").is_empty());
    }

    fn bytes() -> Tokenizer {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/tiny/tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(file).unwrap();
        tokenizer.set_encode_special_tokens(true);
        tokenizer
    }

    /// The splitters of Llama 3, Qwen 2 and GPT-4o's kind.
    const PATTERNS: [&str; 3] = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ];

    fn with_pattern(pattern: &str) -> Tokenizer {
        let behaviour = SplitDelimiterBehavior::Isolated;
        let split = Split::new(SplitPattern::Regex(pattern.into()), behaviour, false).unwrap();
        let all = [
            PreTokenizerWrapper::Split(split),
            ByteLevel::new(false, true, false).into(),
        ];
        let mut tokenizer = bytes();
        let sequence = tokenizers::pre_tokenizers::sequence::Sequence::new(all.into());
        tokenizer.with_pre_tokenizer(Some(sequence));
        tokenizer
    }

    #[test]
    fn which_tokenizers_split_before_words() {
        assert!(splits_before_words(&bytes()));
        assert!(
            PATTERNS
                .iter()
                .all(|pattern| splits_before_words(&with_pattern(pattern)))
        );
        // Those that split elsewhere, or nowhere.
        assert!(!splits_before_words(&with_pattern(r"\n")));
        assert!(!splits_before_words(&with_pattern(r"\p{L}+ |[^\p{L}]+")));
        let whole = |splitter: Option<PreTokenizerWrapper>| {
            let mut tokenizer = bytes();
            tokenizer.with_pre_tokenizer(splitter);
            tokenizer
        };
        assert!(!splits_before_words(&whole(None)));
        let bytes_alone = ByteLevel::new(false, true, false);
        assert!(!splits_before_words(&whole(Some(bytes_alone.into()))));
        assert!(!splits_before_words(&Tokenizer::new(BPE::default())));
        // A token that takes the space beside it.
        for (name, expected) in [("<think>", true), ("a word", false), ("x ", false)] {
            let mut tokenizer = bytes();
            tokenizer
                .add_tokens([AddedToken::from(name, false)])
                .unwrap();
            assert_eq!(splits_before_words(&tokenizer), expected, "{name}");
        }
        let mut tokenizer = bytes();
        let mask = AddedToken::from("<mask>", false).rstrip(true);
        tokenizer.add_tokens([mask]).unwrap();
        assert!(!splits_before_words(&tokenizer));
    }

    static ALL: LazyLock<Vec<(Tokenizer, Parts)>> = LazyLock::new(|| {
        let all = [bytes()].into_iter().chain(PATTERNS.map(with_pattern));
        all.map(|tokenizer| (tokenizer.clone(), Parts::of(&tokenizer)))
            .collect()
    });

    proptest! {
        /// In parts or whole, the tokens and their places are the same.
        #[test]
        fn parts_change_nothing(
            text in r#"([a-z']{1,6}|[A-Z]{1,3}|[0-9]{1,4}|[ \n\t]{1,3}|[.,!?"'()<>/|-]{1,2}|[éß世\u{a0}\u{3000}\u{301}🙂]|<\|im_end\|>){0,40}"#,
        ) {
            for (tokenizer, parts) in ALL.iter() {
                prop_assert!(parts.number.is_some());
                let expected = encode_whole(tokenizer, &text).unwrap();
                // The second time the parts are known.
                prop_assert_eq!(&parts.encode(tokenizer, &text).unwrap(), &expected);
                prop_assert_eq!(&parts.encode(tokenizer, &text).unwrap(), &expected);
            }
        }
    }
}
