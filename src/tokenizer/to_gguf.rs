//! A tokenizer as the metadata of a GGUF file: byte-level BPE or SentencePiece.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::gguf::{BYTE_LEVEL, MERGES, PRE, SCORES, TYPES, words_of};
use super::sentencepiece_proto::{ModelProto, SentencePiece, Type};
use super::tiktoken::{Words, is_tiktoken};
use super::{JSON_FILE, SENTENCEPIECE_FILE, Tokenizer, is_json, sentencepiece};
use crate::files::read_bytes;
use crate::gguf::{GgufFile, SENTENCEPIECE, TOKENIZER, TOKENS, Value, is_gguf};
use crate::llama::LlamaConfig;
use crate::{Error, Result};

/// The metadata of a tokenizer, in a folder or a file of any form, for a model of these sizes. Of a GGUF file they are as
/// they are there.
///
/// # Errors
/// Those of [`Tokenizer::from_file`]; [`Error::Format`] if the tokenizer is of a kind that llama.cpp does not have, or has
/// tokens that the model does not have.
pub(crate) fn gguf_vocabulary(path: &Path, config: &LlamaConfig) -> Result<Vec<(String, Value)>> {
    let path = file_of(path);
    if is_gguf(&path)? {
        return stored(&path, config);
    }
    let bytes = read_bytes(&path)?;
    let of_json = |json: &Json| {
        let vocabulary = Vocabulary::of_json(json);
        vocabulary.map_err(|message| Error::format(&path, message))
    };
    let vocabulary = match (is_json(&bytes), is_tiktoken(&bytes)) {
        (true, _) => {
            let json = serde_json::from_slice(&bytes);
            of_json(&json.map_err(|error| Error::format(&path, error))?)?
        }
        (false, true) => of_json(&Words::parse(&bytes, &path)?.to_json())?,
        (false, false) => Vocabulary::of_sentencepiece(&sentencepiece::parse(&bytes, &path)?),
    };
    let vocabulary = vocabulary.of_size(config.vocab_size);
    let vocabulary = vocabulary.map_err(|message| Error::format(&path, message))?;
    let mut values = vocabulary.into_values();
    values.extend(special(&Tokenizer::from_file(&path)?, config));
    let values = values.into_iter();
    Ok(values.map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The tokenizer's file of a folder, or the file itself.
pub(super) fn file_of(path: &Path) -> PathBuf {
    let json = path.join(JSON_FILE);
    match (path.is_dir(), json.exists()) {
        (false, _) => path.to_owned(),
        (true, true) => json,
        (true, false) => path.join(SENTENCEPIECE_FILE),
    }
}

fn stored(path: &Path, config: &LlamaConfig) -> Result<Vec<(String, Value)>> {
    let file = GgufFile::open(path)?;
    let metadata = file.metadata();
    let found = metadata.need(TOKENS, metadata.texts(TOKENS)?)?.len();
    match found == config.vocab_size {
        true => Ok(metadata.stored("tokenizer.")),
        false => {
            let message = format!("{found} tokens for a model of {}", config.vocab_size);
            Err(metadata.error(TOKENS, message))
        }
    }
}

/// The special tokens and the template.
fn special(tokenizer: &Tokenizer, config: &LlamaConfig) -> Vec<(&'static str, Value)> {
    let mut ends = config.eos_token_ids.clone();
    if let Some(own) = tokenizer.eos_id {
        match ends.iter().position(|id| *id == own) {
            Some(place) => ends.swap(0, place),
            None if ends.is_empty() => ends.push(own),
            None => {}
        }
    }
    let ids = [
        (
            "tokenizer.ggml.bos_token_id",
            tokenizer.bos_id.or(config.bos_token_id),
        ),
        ("tokenizer.ggml.eos_token_id", ends.first().copied()),
        ("tokenizer.ggml.eot_token_id", ends.get(1).copied()),
        ("tokenizer.ggml.eom_token_id", ends.get(2).copied()),
        ("tokenizer.ggml.padding_token_id", config.pad_token_id),
    ];
    let ids = ids.into_iter();
    let mut values: Vec<_> = ids
        .filter_map(|(key, id)| Some((key, Value::U32(id?))))
        .collect();
    let adds_bos = tokenizer.bos_id.is_some();
    values.push(("tokenizer.ggml.add_bos_token", Value::Bool(adds_bos)));
    values.push(("tokenizer.ggml.add_eos_token", Value::Bool(false)));
    let template = tokenizer.chat_template();
    values.extend(template.map(|template| ("tokenizer.chat_template", template.into())));
    values
}

/// The tokens by id, and how a text becomes some of them.
struct Vocabulary {
    tokens: HashMap<usize, (String, Type)>,
    kind: Kind,
}

enum Kind {
    ByteLevel {
        /// The name of how a text is split into words.
        words: &'static str,
        merges: Vec<String>,
    },
    SentencePiece {
        scores: HashMap<usize, f32>,
        add_space_prefix: bool,
        remove_extra_whitespaces: bool,
    },
}

impl Vocabulary {
    fn of_sentencepiece(model: &ModelProto) -> Self {
        let normalizer = model.normalizer_spec.clone().unwrap_or_default();
        let pieces = || model.pieces.iter().enumerate();
        let token = |piece: &SentencePiece| (piece.piece().to_owned(), piece.kind());
        Self {
            tokens: pieces().map(|(id, piece)| (id, token(piece))).collect(),
            kind: Kind::SentencePiece {
                scores: pieces().map(|(id, piece)| (id, piece.score())).collect(),
                add_space_prefix: normalizer.add_dummy_prefix(),
                remove_extra_whitespaces: normalizer.remove_extra_whitespaces(),
            },
        }
    }

    /// Of a `tokenizer.json`. That of a SentencePiece model has no scores, but joins pieces in their order.
    fn of_json(json: &Json) -> Result<Self, String> {
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(format!(
                "llama.cpp is given BPE only, not {}",
                model["type"]
            ));
        }
        let tokens = tokens_of(json)?;
        let merges = merges_of(&model["merges"])?;
        let steps = [&json["normalizer"], &json["pre_tokenizer"]]
            .map(steps_of)
            .concat();
        let is_byte_level = steps.iter().any(|step| step["type"] == "ByteLevel");
        let kind = match (is_byte_level, model["byte_fallback"] == true) {
            (true, _) => Kind::ByteLevel {
                words: words_of(json)?,
                merges: merges.iter().map(|[a, b]| format!("{a} {b}")).collect(),
            },
            (false, true) => Kind::SentencePiece {
                scores: scores_of(&tokens, &merges),
                add_space_prefix: steps.iter().any(puts_space_before),
                remove_extra_whitespaces: steps.iter().any(joins_spaces),
            },
            (false, false) => {
                return Err("neither byte-level BPE nor a SentencePiece model's pieces with bytes for the rest, so \
                            llama.cpp has nothing like it"
                    .into());
            }
        };
        Ok(Self { tokens, kind })
    }

    /// With a token for each row of the model's embedding. Added tokens without a row are left out.
    fn of_size(mut self, vocab_size: usize) -> Result<Self, String> {
        let is_own = |kind: Type| matches!(kind, Type::Normal | Type::Byte);
        let mut beyond = self.tokens.iter().filter(|(id, _)| **id >= vocab_size);
        if let Some((id, (token, _))) = beyond.find(|(_, (_, kind))| is_own(*kind)) {
            return Err(format!(
                "the token `{token}` has the id {id}, but the model's vocabulary {vocab_size} tokens; is this the \
                 tokenizer of the same model?"
            ));
        }
        self.tokens.retain(|id, _| *id < vocab_size);
        for id in 0..vocab_size {
            let padding = || (format!("[PAD{id}]"), Type::Unused);
            self.tokens.entry(id).or_insert_with(padding);
        }
        Ok(self)
    }

    /// The metadata, of as many tokens as there are ids.
    fn into_values(mut self) -> Vec<(&'static str, Value)> {
        let count = self.tokens.len();
        let own = (0..count).map(|id| self.tokens.remove(&id));
        let own = own.map(|token| token.expect("each id has a token"));
        let (texts, types): (Vec<String>, Vec<i32>) =
            own.map(|(text, kind)| (text, kind as i32)).unzip();
        let unknown = types.iter().position(|kind| *kind == Type::Unknown as i32);
        let mut values = vec![
            (TOKENIZER, self.kind.name().into()),
            (TOKENS, Value::Strings(texts)),
            (TYPES, Value::I32s(types)),
        ];
        values.extend(self.kind.into_values(count));
        values.extend(unknown.map(|id| ("tokenizer.ggml.unknown_token_id", Value::U32(id as u32))));
        values
    }
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::ByteLevel { .. } => BYTE_LEVEL,
            Self::SentencePiece { .. } => SENTENCEPIECE,
        }
    }

    /// What it has beside its tokens, of which there are `count`.
    fn into_values(self, count: usize) -> Vec<(&'static str, Value)> {
        match self {
            Self::ByteLevel { words, merges } => {
                vec![(PRE, words.into()), (MERGES, Value::Strings(merges))]
            }
            Self::SentencePiece {
                scores,
                add_space_prefix,
                remove_extra_whitespaces,
            } => {
                let scores = (0..count).map(|id| scores.get(&id).copied().unwrap_or_default());
                vec![
                    (PRE, "default".into()),
                    (SCORES, Value::F32s(scores.collect())),
                    (
                        "tokenizer.ggml.add_space_prefix",
                        Value::Bool(add_space_prefix),
                    ),
                    (
                        "tokenizer.ggml.remove_extra_whitespaces",
                        Value::Bool(remove_extra_whitespaces),
                    ),
                ]
            }
        }
    }
}

/// The tokens of a `tokenizer.json`, with those that were added.
fn tokens_of(json: &Json) -> Result<HashMap<usize, (String, Type)>, String> {
    let no_id = |token: &str| format!("the token `{token}` has no id");
    let model = &json["model"];
    let vocab = model["vocab"].as_object().ok_or("its model has no vocab")?;
    let has_bytes = model["byte_fallback"] == true;
    let mut tokens = HashMap::new();
    for (token, id) in vocab {
        let id = id.as_u64().ok_or_else(|| no_id(token))? as usize;
        let kind = match () {
            () if model["unk_token"] == token.as_str() => Type::Unknown,
            () if has_bytes && is_byte(token) => Type::Byte,
            () => Type::Normal,
        };
        tokens.insert(id, (token.clone(), kind));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().unwrap_or_default();
        let id = added["id"].as_u64().ok_or_else(|| no_id(content))? as usize;
        let kind = match added["special"] == true {
            _ if model["unk_token"] == content => Type::Unknown,
            true => Type::Control,
            false => Type::UserDefined,
        };
        tokens.insert(id, (content.to_owned(), kind));
    }
    Ok(tokens)
}

/// Whether a piece stands for a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// The pairs that are joined, which newer files have as lists and older ones as texts.
fn merges_of(merges: &Json) -> Result<Vec<[&str; 2]>, String> {
    let merges = merges.as_array().ok_or("its model has no merges")?;
    let no_pair = |merge| format!("the merge {merge} is no pair of tokens");
    let merges = merges.iter();
    merges
        .map(|merge| pair_of(merge).ok_or_else(|| no_pair(merge)))
        .collect()
}

fn pair_of(merge: &Json) -> Option<[&str; 2]> {
    match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        Json::Array(pair) => match &pair[..] {
            [left, right] => Some([left.as_str()?, right.as_str()?]),
            _ => None,
        },
        _ => None,
    }
}

/// Scores by which pieces are joined in the order of these pairs.
fn scores_of(tokens: &HashMap<usize, (String, Type)>, merges: &[[&str; 2]]) -> HashMap<usize, f32> {
    let mut ranks = HashMap::new();
    for (rank, pair) in merges.iter().enumerate() {
        ranks.entry(pair.concat()).or_insert(rank);
    }
    let score = |token: &str| -(ranks.get(token).copied().unwrap_or(merges.len()) as f32);
    let normal = tokens.iter().filter(|(_, (_, kind))| *kind == Type::Normal);
    normal.map(|(id, (token, _))| (*id, score(token))).collect()
}

/// The steps of a normalizer or of what splits a text, one after the other.
pub(super) fn steps_of(step: &Json) -> Vec<Json> {
    match step["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => {
            let inner = ["normalizers", "pretokenizers"].map(|name| step[name].as_array());
            let inner = inner.into_iter().flatten().flatten();
            inner.flat_map(steps_of).collect()
        }
        Some(_) => vec![step.clone()],
    }
}

/// Whether a step puts SentencePiece's space before a text.
fn puts_space_before(step: &Json) -> bool {
    match step["type"].as_str() {
        Some("Prepend") => true,
        Some("Metaspace") => {
            let scheme = step["prepend_scheme"].as_str();
            scheme.map_or(step["add_prefix_space"] == true, |scheme| scheme != "never")
        }
        _ => false,
    }
}

/// Whether a step makes one space of several.
fn joins_spaces(step: &Json) -> bool {
    step["type"] == "Replace" && step["pattern"]["Regex"] == " +" && step["content"] == " "
}
