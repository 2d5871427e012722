//! What a `tokenizer.json` must keep to beyond what the library asks of it, which takes these to be so and panics where they
//! are not.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::{Error, Result};

/// The parts of the file that are looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Ids(HashMap<String, IgnoredAny>),
    /// A Unigram model's, which has no merges.
    Scores(IgnoredAny),
}

/// In either of the two forms that a file may have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) if line.starts_with("#version") => None,
            Self::Line(line) => line.split_once(' '),
        }
    }
}

/// Checks what the library does not; the rest is left to it.
///
/// # Errors
/// [`Error::Format`] with the part of the file, also if it is not of a tokenizer's form.
pub(super) fn check(bytes: &[u8], path: &Path) -> Result<()> {
    let file = serde_json::from_slice::<File>(bytes);
    let file =
        file.map_err(|error| Error::format(path, format!("not a tokenizer.json: {error}")))?;
    let found = check_merges(&file.model)
        .and_then(|()| check_post_processor(&file.post_processor))
        .and_then(|()| each(&file.normalizer, "normalizers", check_normalizer))
        .and_then(|()| each(&file.pre_tokenizer, "pretokenizers", check_pre_tokenizer))
        .and_then(|()| each(&file.decoder, "decoders", check_decoder));
    found.map_err(|message| Error::format(path, message))
}

/// Visits a part of a file, or the parts of the sequence that it is.
fn each(part: &Value, list: &str, check: fn(&Value) -> Result<(), String>) -> Result<(), String> {
    match part[list].as_array() {
        Some(parts) => parts.iter().try_for_each(|part| each(part, list, check)),
        None => check(part),
    }
}

fn check_merges(model: &Model) -> Result<(), String> {
    let Vocab::Ids(words) = &model.vocab else {
        return Ok(());
    };
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
    for (left, right) in model.merges.iter().filter_map(Merge::pair) {
        let merge = format!("`model.merges` has `{left} {right}`");
        let end = right.strip_prefix(prefix);
        let end = end
            .ok_or_else(|| format!("{merge}, whose second part does not begin with `{prefix}`"))?;
        let word = format!("{left}{end}");
        if !words.contains_key(&word) {
            return Err(format!("{merge}, but `model.vocab` has no `{word}`"));
        }
    }
    Ok(())
}

fn check_post_processor(post_processor: &Value) -> Result<(), String> {
    each(post_processor, "processors", check_template)?;
    // What a template has put together is no single text any more for another one.
    match count_templates(post_processor) {
        0 | 1 => Ok(()),
        count => Err(format!(
            "`post_processor` has {count} templates, one behind the other"
        )),
    }
}

fn count_templates(processor: &Value) -> usize {
    match processor["processors"].as_array() {
        Some(processors) => processors.iter().map(count_templates).sum(),
        None => usize::from(processor["single"].is_array()),
    }
}

/// The template of a single text, which is all that is asked for.
fn check_template(processor: &Value) -> Result<(), String> {
    let Some(pieces) = processor["single"].as_array() else {
        return Ok(());
    };
    let tokens = pieces
        .iter()
        .filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    for token in tokens {
        if processor["special_tokens"][token].is_null() {
            return Err(format!(
                "`post_processor.single` names the token `{token}`, which is not in its `special_tokens`"
            ));
        }
    }
    let mut texts = pieces
        .iter()
        .filter_map(|piece| piece["Sequence"]["id"].as_str());
    match (texts.next(), texts.next()) {
        (Some("A"), None) => Ok(()),
        _ => Err("`post_processor.single` must have the sequence `A` once, and no other".into()),
    }
}

fn check_pre_tokenizer(splitter: &Value) -> Result<(), String> {
    match splitter["type"] == "FixedLength" && splitter["length"] == 0 {
        true => Err("`pre_tokenizer` splits a text into parts of the length 0".into()),
        false => Ok(()),
    }
}

/// The library takes letters off the end of a token before it looks whether there are any.
fn check_decoder(decoder: &Value) -> Result<(), String> {
    match decoder["content"].is_string() && decoder["stop"].as_u64() > Some(0) {
        true => Err(
            "`decoder` strips the ends of tokens (`stop` above 0), which is not supported".into(),
        ),
        false => Ok(()),
    }
}

fn check_normalizer(normalizer: &Value) -> Result<(), String> {
    if normalizer["type"] != "Precompiled" {
        return Ok(());
    }
    let map = normalizer["precompiled_charsmap"].as_str();
    let map = map.and_then(|map| BASE64_STANDARD.decode(map).ok());
    match map.is_some_and(|map| is_charsmap(&map)) {
        true => Ok(()),
        false => Err("`normalizer.precompiled_charsmap` is damaged".into()),
    }
}

/// Whether SentencePiece's map of letters can be read whatever the text: the bytes of a trie, in units of 32 bits, then texts in
/// which its leaves are places. <https://github.com/google/sentencepiece/blob/master/third_party/darts_clone/darts.h>
fn is_charsmap(bytes: &[u8]) -> bool {
    let find = || {
        let (size, rest) = bytes.split_first_chunk()?;
        let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4)?;
        let (units, _) = trie.as_chunks();
        let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        walk_trie(&units, std::str::from_utf8(texts).ok()?)
    };
    find().is_some()
}

/// Goes everywhere where a text can lead.
fn walk_trie(units: &[u32], texts: &str) -> Option<()> {
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut seen = HashSet::new();
    let mut nodes = vec![offset(*units.first()?)];
    while let Some(node) = nodes.pop() {
        if !seen.insert(node) {
            continue;
        }
        for byte in 1..=0xff {
            let child = node ^ byte;
            let unit = *units.get(child)?;
            if (unit & ((1 << 31) | 0xff)) as usize != byte {
                continue;
            }
            let next = child ^ offset(unit);
            if (unit >> 8) & 1 == 1 {
                texts.get((units.get(next)? & ((1 << 31) - 1)) as usize..)?;
            }
            nodes.push(next);
        }
    }
    Some(())
}
