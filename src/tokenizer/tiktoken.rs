//! Llama 3's `tokenizer.model`: tiktoken's file of words, each in base64 with its rank, as a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::gguf::{bytes, llama3_pre_tokenizer};
use super::gguf_files::begin_with;
use super::sentencepiece::special_token;
use super::{CONFIG_FILE, JSON_FILE, SENTENCEPIECE_FILE};
use crate::files::{read_bytes, write_text};
use crate::{Error, Result};

/// How many special tokens follow the words.
const NUM_SPECIAL: usize = 256;

/// Those that have a name, by their order; the rest are reserved. The names are those of Llama 3.1 and later, as
/// transformers has them.
const NAMED: [&str; 11] = [
    BEGIN,
    END,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
];
const BEGIN: &str = "<|begin_of_text|>";
const END: &str = "<|end_of_text|>";
/// By which a text ends: that of a document, of a message and of a turn.
const ENDS: [u32; 3] = [1, 8, 9];

/// The number of the first reserved token after the named ones.
const FIRST_RESERVED: usize = 3;

/// Whether a file is one of tiktoken's words: its first line is a word in base64 and a rank.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next();
    first.and_then(parse_line).is_some()
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (word, rank) = str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let word = BASE64_STANDARD.decode(word).ok()?;
    Some((word, rank.parse().ok()?)).filter(|(word, _)| !word.is_empty())
}

/// Words in the order of their ranks, which are their ids. Where pieces of a text can be joined to several words, that of the
/// lowest rank is made first.
pub(super) struct Words {
    words: Vec<Vec<u8>>,
    ranks: HashMap<Vec<u8>, usize>,
}

impl Words {
    /// # Errors
    /// [`Error::Format`] if a line is no word with a rank, ranks are not those from 0 on, or a byte is no word.
    pub(super) fn parse(file: &[u8], origin: &Path) -> Result<Self> {
        let mut words = Self {
            words: Vec::new(),
            ranks: HashMap::new(),
        };
        let lines = file.split(|byte| *byte == b'\n').enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
            let added =
                parse_line(line).ok_or_else(|| "no word in base64 with its rank".to_owned());
            let added = added.and_then(|(word, rank)| words.add(word, rank));
            added.map_err(|message| {
                Error::format(origin, format!("line {}: {message}", index + 1))
            })?;
        }
        let missing = (0..=u8::MAX).find(|byte| !words.ranks.contains_key(&[*byte][..]));
        match missing {
            None => Ok(words),
            Some(byte) => {
                let message = format!(
                    "the byte {byte:#04x} is no word, so not every text has one; was the download cut short?"
                );
                Err(Error::format(origin, message))
            }
        }
    }

    fn add(&mut self, word: Vec<u8>, rank: usize) -> Result<(), String> {
        let expected = self.words.len();
        if rank != expected {
            return Err(format!("the rank {rank}, where {expected} is expected"));
        }
        match self.ranks.insert(word.clone(), rank) {
            None => self.words.push(word),
            Some(first) => return Err(format!("the word of rank {first} again")),
        }
        Ok(())
    }

    /// The `tokenizer.json` of the same ids, which puts `<|begin_of_text|>` before a text that gets special tokens.
    pub(super) fn to_json(&self) -> Value {
        let texts: Vec<String> = self.words.iter().map(|word| as_text(word)).collect();
        let merges = self.merges();
        let merges = merges.iter().map(|pair| pair.map(|rank| &texts[rank]));
        let merges: Vec<_> = merges.collect();
        let vocab = texts.iter().enumerate();
        let vocab: serde_json::Map<String, Value> = vocab
            .map(|(rank, text)| (text.clone(), rank.into()))
            .collect();
        let added = special_tokens().enumerate();
        let added = added.map(|(index, name)| special_token(self.words.len() + index, &name));
        json!({
            "version": "1.0",
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": llama3_pre_tokenizer(),
            "post_processor": begin_with(self.words.len(), BEGIN),
            "decoder": bytes(false),
            "model": { "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": true },
        })
    }

    /// All pairs of words that make a word, those of the lowest rank first.
    fn merges(&self) -> Vec<[usize; 2]> {
        let pairs = |word: &Vec<u8>| {
            let splits = (1..word.len()).map(|at| word.split_at(at));
            let pairs = splits.filter_map(|(left, right)| {
                Some([*self.ranks.get(left)?, *self.ranks.get(right)?])
            });
            let mut pairs: Vec<_> = pairs.collect();
            pairs.sort();
            pairs
        };
        self.words.iter().flat_map(pairs).collect()
    }
}

/// The special tokens in the order of their ids, which follow those of the words.
fn special_tokens() -> impl Iterator<Item = String> {
    let reserved = (FIRST_RESERVED..).map(|number| format!("<|reserved_special_token_{number}|>"));
    let named = NAMED.iter().map(|name| (*name).to_owned());
    named.chain(reserved).take(NUM_SPECIAL)
}

/// Bytes as a byte-level tokenizer writes them: what Latin-1 can show is that character, the others follow from 256 on.
fn as_text(word: &[u8]) -> String {
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let number = |byte: u8| match is_shown(byte) {
        true => u32::from(byte),
        false => 256 + (0..byte).filter(|other| !is_shown(*other)).count() as u32,
    };
    let characters = word.iter().map(|byte| char::from_u32(number(*byte)));
    characters
        .map(|character| character.expect("a letter"))
        .collect()
}

/// Writes the tokenizer of such a file as a `tokenizer.json`, with a `tokenizer_config.json` unless there is to be
/// another one.
///
/// # Errors
/// Those of [`Words::parse`], and [`Error::Io`].
pub(super) fn save(words: &Words, to: &Path, with_config: bool) -> Result<()> {
    write_text(&to.join(JSON_FILE), &words.to_json().to_string())?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "clean_up_tokenization_spaces": false,
        "model_input_names": ["input_ids", "attention_mask"],
    });
    let text = serde_json::to_string_pretty(&config).expect("JSON serialises");
    match with_config {
        true => write_text(&to.join(CONFIG_FILE), &(text + "\n")),
        false => Ok(()),
    }
}

/// The ids by which texts begin and end for a model that Meta has released.
#[derive(Debug, Default)]
pub(crate) struct MetaTokens {
    pub bos: Option<u32>,
    pub ends: Vec<u32>,
}

impl MetaTokens {
    /// By the kind of the `tokenizer.model` in a folder; none if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, and those of [`Words::parse`].
    pub(crate) fn beside(dir: &Path) -> Result<Self> {
        let path = dir.join(SENTENCEPIECE_FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let file = read_bytes(&path)?;
        let (bos, ends) = match is_tiktoken(&file) {
            true => {
                let first = Words::parse(&file, &path)?.words.len() as u32;
                (first, ENDS.map(|index| first + index).to_vec())
            }
            // Of Llama 1 and 2.
            false => (1, vec![2]),
        };
        Ok(Self {
            bos: Some(bos),
            ends,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte, and then these.
    fn file(words: &[&str]) -> Vec<u8> {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let words = bytes.chain(words.iter().map(|word| word.as_bytes().to_vec()));
        let lines = words.enumerate();
        let lines = lines.map(|(rank, word)| format!("{} {rank}\n", BASE64_STANDARD.encode(word)));
        lines.collect::<String>().into_bytes()
    }

    fn parse(file: &[u8]) -> Result<Words> {
        Words::parse(file, Path::new("tokenizer.model"))
    }

    #[test]
    fn pairs_that_make_a_word_are_merges_in_the_order_of_ranks() {
        let words = parse(&file(&["he", "lo", "el", "hel", "helo"])).unwrap();
        let texts = |pair: [usize; 2]| pair.map(|rank| as_text(&words.words[rank]));
        let merges: Vec<_> = words.merges().into_iter().map(texts).collect();
        let expected = [
            ["h", "e"],
            ["l", "o"],
            ["e", "l"],
            ["h", "el"],
            ["he", "l"],
            ["he", "lo"],
            ["hel", "o"],
        ];
        assert_eq!(merges, expected.map(|pair| pair.map(str::to_owned)));
    }

    #[test]
    fn special_tokens_are_those_of_llama_3_1() {
        let tokens: Vec<String> = special_tokens().collect();
        assert_eq!(tokens.len(), NUM_SPECIAL);
        assert_eq!(tokens[11], "<|reserved_special_token_3|>");
        assert_eq!(tokens[255], "<|reserved_special_token_247|>");
        assert_eq!(
            ENDS.map(|index| NAMED[index as usize]),
            [END, "<|eom_id|>", "<|eot_id|>"]
        );
    }

    #[test]
    fn bytes_are_written_as_characters() {
        assert_eq!(
            as_text(b" a\n~\xc3\xad\x00\x7f"),
            "\u{120}a\u{10a}~\u{c3}\u{143}\u{100}\u{121}"
        );
    }

    #[test]
    fn a_file_is_told_by_its_first_line_and_errors_name_the_line() {
        assert!(is_tiktoken(&file(&[])));
        for other in [
            &b"{\"model\": {}}"[..],
            b"\n\x0e\n\x05<unk>",
            b"",
            b" 0",
            b"aGVsbG8=",
        ] {
            assert!(!is_tiktoken(other), "{other:?}");
        }
        let edited = |from: &str, to: &str| {
            let text = String::from_utf8(file(&["he"])).unwrap();
            assert!(text.contains(from));
            parse(text.replace(from, to).as_bytes())
                .err()
                .unwrap()
                .to_string()
        };
        for (from, to, message) in [
            ("aGU= 256", "aGU 256", "line 257: no word in base64"),
            ("aGU= 256", "aGU= 258", "line 257: the rank 258, where 256"),
            ("aGU= 256", "AA== 256", "line 257: the word of rank 0 again"),
            ("/w== 255\naGU= 256", "aGU= 255", "the byte 0xff is no word"),
        ] {
            let found = edited(from, to);
            assert!(found.contains(message), "{found}");
        }
    }
}
