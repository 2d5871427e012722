//! Text to token ids and back.
//!
//! One type, [`Tokenizer`], reads both files that a Llama comes with: Hugging Face's
//! `tokenizer.json` and the SentencePiece `tokenizer.model` of Meta's releases. The second is
//! brought into the form of the first when it is read, so both run on the same engine and a text
//! has the same ids whichever file it was encoded with.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use sentencepiece_model::{ModelType, SentencePiece, SentencePieceModel, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::files::{create_dir, read_text, write_atomic};
use crate::{Error, Result};

const BOS_NAMES: [&str; 3] = ["<s>", "<|begin_of_text|>", "<bos>"];
const EOS_NAMES: [&str; 4] = ["</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"];
const PAD_NAMES: [&str; 5] = [
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<unk>",
    "[UNK]",
];

const JSON_FILE: &str = "tokenizer.json";
const SENTENCEPIECE_FILE: &str = "tokenizer.model";
const CONFIG_FILE: &str = "tokenizer_config.json";
/// What other programs look for beside a tokenizer.
const COMPANIONS: [&str; 4] = [
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// What stands before a text that goes on somewhere. Hardly any piece joins a line break to what follows it,
/// unless that is another one.
const BEFORE: &str = "\n";

/// A tokenizer that adds nothing to a text: no BOS, no EOS, no chat template. It knows which tokens
/// those are.
///
/// The text of a special token inside a user's text (`"<s>"`) is plain text here and never becomes
/// the special token, so a data set cannot end a sequence or start a new one by what it says.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: PathBuf,
    vocab_size: usize,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pad_id: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` or a SentencePiece `tokenizer.model`; the content decides which.
    ///
    /// EOS is the `eos_token` of the `tokenizer_config.json` beside the file, BOS what the
    /// `tokenizer.json` puts before a text, as in transformers. Where they say nothing,
    /// `add_bos_token` decides on BOS, as in transformers 4, and then tokens of the usual names.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is neither of the two, is
    /// damaged, or is a SentencePiece model of a kind that Llama does not use (anything but BPE
    /// with the identity normalisation); also if `tokenizer_config.json` is not JSON or names a token
    /// that the file does not have.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let tokenizer = match is_json(&bytes) {
            true => Self::from_json(&bytes, path),
            false => Self::from_sentencepiece(&bytes, path),
        }?;
        let config = path.with_file_name(CONFIG_FILE);
        match config.exists() {
            true => tokenizer.configured(&config),
            false => Ok(tokenizer),
        }
    }

    /// With the special tokens that a `tokenizer_config.json` names.
    fn configured(self, path: &Path) -> Result<Self> {
        let config: Config =
            serde_json::from_str(&read_text(path)?).map_err(|error| Error::format(path, error))?;
        let id = |token: Option<Token>| {
            // Some old conversions name no token so.
            let token = token.map(Token::into_content).filter(|t| !t.is_empty());
            token.map(|token| self.named_id(&token, path)).transpose()
        };
        let eos_id = id(config.eos_token)?.or(self.eos_id);
        let bos_id = match (prefix(&self.inner), config.add_bos_token) {
            (None, Some(false)) => None,
            (None, Some(true)) => id(config.bos_token)?.or(self.bos_id),
            (Some(_), _) | (None, None) => self.bos_id,
        };
        Ok(Self {
            bos_id,
            eos_id,
            ..self
        })
    }

    /// The id of a token that `config` names.
    fn named_id(&self, token: &str, config: &Path) -> Result<u32> {
        self.inner.token_to_id(token).ok_or_else(|| {
            let message = format!(
                "`{token}` is not in {}; take a tokenizer.json that has it (transformers writes one: \
                 `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)`)",
                self.origin.display()
            );
            Error::format(config, message)
        })
    }

    /// Reads the tokenizer of a model folder: `tokenizer.json` if it is there, else
    /// `tokenizer.model`.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::from_file`], and [`Error::Format`] if the folder has neither file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::read_dir(dir).map_err(Error::io(dir))?;
        let file = [JSON_FILE, SENTENCEPIECE_FILE]
            .map(|name| dir.join(name))
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| {
                Error::format(
                    dir,
                    "the folder has no tokenizer.json and no tokenizer.model; \
                     copy one of them from the model's release",
                )
            })?;
        Self::from_file(file)
    }

    /// Reads a `tokenizer.json` that is in memory, such as one embedded in the program.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if it is not a tokenizer.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_json(bytes, Path::new("<embedded tokenizer.json>"))
    }

    /// Takes the given ids, where there are any, in place of those found in the files, for a model
    /// whose `config.json` names others.
    pub fn with_special_ids(mut self, bos: Option<u32>, eos: Option<u32>) -> Self {
        self.bos_id = bos.or(self.bos_id);
        self.eos_id = eos.or(self.eos_id);
        self
    }

    /// The token ids of `text`, without BOS or EOS.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if the vocabulary has no token for a piece of the text and no unknown
    /// token either.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::format(&self.origin, format!("the text cannot be encoded: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of a text that goes on where another ends, such as an answer after its prompt:
    /// without the space that SentencePiece puts before a text.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let before = self.encode(BEFORE)?;
        let joined = self.encode(&format!("{BEFORE}{text}"))?;
        match joined.strip_prefix(&before[..]) {
            Some(ids) => Ok(ids.to_vec()),
            None => self.encode(text),
        }
    }

    /// The text of `ids`. Special tokens and ids that the tokenizer does not know (a model's
    /// vocabulary may be padded) are left out; bytes that are not UTF-8 become U+FFFD.
    ///
    /// The space that SentencePiece puts before a text is taken off again, so a text must be
    /// decoded as a whole, not token by token.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if the decoder that the file describes fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::format(&self.origin, format!("the ids cannot be decoded: {e}")))
    }

    /// The text of ids that go on where another text ends, such as a generated answer: with every space
    /// that it begins with. Undoes [`encode_continuation`](Self::encode_continuation).
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::decode`].
    pub fn decode_continuation(&self, ids: &[u32]) -> Result<String> {
        let text = self.decode(&[&self.encode(BEFORE)?, ids].concat())?;
        Ok(text.strip_prefix(BEFORE).unwrap_or(&text).to_owned())
    }

    /// One more than the largest token id: the rows that a model's embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that begins a sequence (`<s>`, `<|begin_of_text|>`), if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The token that ends a sequence (`</s>`, `<|end_of_text|>`), if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The token to fill a batch with: the padding token, else the unknown token, else 0.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    fn from_json(bytes: &[u8], origin: &Path) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::format(origin, format!("not a tokenizer.json: {e}")))?;
        inner.set_encode_special_tokens(true);
        // Some files hold the settings of their last use; a length limit belongs to the data set.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(origin, e))?;
        let largest = inner.get_vocab(true).into_values().max();
        let largest = largest.ok_or_else(|| Error::format(origin, "the vocabulary is empty"))?;
        let first = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self {
            vocab_size: largest as usize + 1,
            bos_id: prefix(&inner).or_else(|| first(&BOS_NAMES)),
            eos_id: first(&EOS_NAMES),
            pad_id: first(&PAD_NAMES).unwrap_or(0),
            origin: origin.to_owned(),
            inner,
        })
    }

    fn from_sentencepiece(bytes: &[u8], origin: &Path) -> Result<Self> {
        let model = SentencePieceModel::from_slice(bytes).map_err(|e| {
            let message = format!(
                "neither JSON nor a SentencePiece model ({e}); Llama 3's tokenizer.model is of \
                 another kind: use the tokenizer.json of the same release"
            );
            Error::format(origin, message)
        })?;
        check_supported(&model).map_err(|what| {
            let message = format!(
                "{what}; only Llama's kind of SentencePiece model is read (BPE with identity \
                 normalisation): use the model's tokenizer.json"
            );
            Error::format(origin, message)
        })?;
        Self::from_json(converted(&model).to_string().as_bytes(), origin)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size)
            .field("bos_id", &self.bos_id)
            .field("eos_id", &self.eos_id)
            .field("pad_id", &self.pad_id)
            .finish_non_exhaustive()
    }
}

/// What is read of `tokenizer_config.json`.
#[derive(Deserialize)]
struct Config {
    add_bos_token: Option<bool>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

/// A special token, in either of the two forms that it has there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Content(String),
    Added { content: String },
}

impl Token {
    fn into_content(self) -> String {
        match self {
            Self::Content(content) | Self::Added { content } => content,
        }
    }
}

/// The special token that a `tokenizer.json` puts before a text.
fn prefix(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    let encoding = tokenizer.encode_fast("a", true).ok()?;
    let is_special = *encoding.get_special_tokens_mask().first()? == 1;
    encoding.get_ids().first().copied().filter(|_| is_special)
}

/// Copies a tokenizer's files into a model's folder, under the names by which other programs look for
/// them there. `from` is a folder, or a tokenizer's file with what lies beside it.
///
/// # Errors
///
/// [`Error::Io`] if a file cannot be read or written.
pub fn copy_tokenizer(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let (folder, mut files) = match from.is_dir() {
        true => (
            from,
            Vec::from([JSON_FILE, SENTENCEPIECE_FILE].map(|name| (from.join(name), name))),
        ),
        false => (
            from.parent().unwrap_or(Path::new("")),
            vec![(from.to_owned(), kind_of(from)?)],
        ),
    };
    files.extend(COMPANIONS.map(|name| (folder.join(name), name)));
    create_dir(to)?;
    for (file, name) in files.iter().filter(|(file, _)| file.exists()) {
        write_atomic(&to.join(name), |temporary| {
            fs::copy(file, temporary).map(drop).map_err(Error::io(file))
        })?;
    }
    Ok(())
}

/// The usual name of a tokenizer's file.
fn kind_of(path: &Path) -> Result<&'static str> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    Ok(match is_json(&bytes) {
        true => JSON_FILE,
        false => SENTENCEPIECE_FILE,
    })
}

/// Whether the first thing in the file is a `{`. A SentencePiece model starts with the tag 0x0A,
/// a line feed, and the length of its first piece's record, which is not a `{` for any piece that
/// is shorter than 120 bytes.
fn is_json(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
}

/// `Err` with what the model has that [`converted`] would get wrong.
fn check_supported(model: &SentencePieceModel) -> Result<(), String> {
    let trainer = model.trainer().cloned().unwrap_or_default();
    let normalizer = model.normalizer().cloned().unwrap_or_default();
    let pieces = model.pieces();
    let identity = normalizer.precompiled_charsmap().is_empty();
    let distinct: HashSet<&str> = pieces.iter().map(SentencePiece::piece).collect();
    let objections = [
        (pieces.is_empty(), "the vocabulary is empty"),
        (distinct.len() < pieces.len(), "two pieces have one text"),
        (trainer.model_type() != ModelType::Bpe, "not a BPE model"),
        (!identity, "it normalises characters"),
        (!normalizer.escape_whitespaces(), "it keeps spaces as such"),
        (
            trainer.treat_whitespace_as_suffix(),
            "it puts spaces behind words",
        ),
        (
            pieces.iter().any(|p| p.r#type() == Type::UserDefined),
            "it has user-defined symbols",
        ),
    ];
    match objections.into_iter().find(|(found, _)| *found) {
        Some((_, what)) => Err(what.to_owned()),
        None => Ok(()),
    }
}

/// The `tokenizer.json` that does what the SentencePiece model does.
fn converted(model: &SentencePieceModel) -> Value {
    let trainer = model.trainer().cloned().unwrap_or_default();
    let normalizer = model.normalizer().cloned().unwrap_or_default();
    let mut vocab = serde_json::Map::new();
    let mut special = Vec::new();
    let mut unk = None;
    for (id, piece) in model.pieces().iter().enumerate() {
        vocab.insert(piece.piece().to_owned(), id.into());
        if piece.r#type() == Type::Unknown {
            unk = Some(piece.piece());
        }
        if matches!(piece.r#type(), Type::Unknown | Type::Control) {
            special.push(special_token(id, piece.piece()));
        }
    }
    json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": normalizers(
                normalizer.remove_extra_whitespaces(),
                normalizer.add_dummy_prefix(),
            ),
        },
        "decoder": { "type": "Sequence", "decoders": decoders(normalizer.add_dummy_prefix()) },
        "model": {
            "type": "BPE",
            "unk_token": unk,
            "fuse_unk": true,
            "byte_fallback": trainer.byte_fallback(),
            "vocab": vocab,
            "merges": merges(model),
        },
    })
}

fn special_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// Spaces at the ends and in rows go first, so that a text of spaces alone gets no prefix.
fn normalizers(remove_extra_whitespaces: bool, add_dummy_prefix: bool) -> Vec<Value> {
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let mut steps = Vec::new();
    if remove_extra_whitespaces {
        steps.push(replace(json!({ "Regex": r"\A +| +\z" }), ""));
        steps.push(replace(json!({ "Regex": " +" }), " "));
    }
    if add_dummy_prefix {
        steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    steps.push(replace(json!({ "String": " " }), SPACE));
    steps
}

fn decoders(add_dummy_prefix: bool) -> Vec<Value> {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if add_dummy_prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    steps
}

/// Every way to put a piece together from two others, the best score first.
///
/// SentencePiece joins the neighbours whose union scores best; a merge list says the same by its
/// order. Two ways to the same piece have the same score and are ordered by the ids of their parts.
fn merges(model: &SentencePieceModel) -> Vec<(&str, &str)> {
    let mut pieces: Vec<(usize, &SentencePiece)> = model
        .pieces()
        .iter()
        .enumerate()
        .filter(|(_, piece)| piece.r#type() == Type::Normal)
        .collect();
    let ids: HashMap<&str, usize> = pieces.iter().map(|(id, p)| (p.piece(), *id)).collect();
    pieces.sort_by(|(_, a), (_, b)| b.score().total_cmp(&a.score()));
    pieces
        .into_iter()
        .flat_map(|(_, piece)| halves(piece.piece(), &ids))
        .collect()
}

/// The cuts of `piece` into two known pieces.
fn halves<'a>(piece: &'a str, ids: &HashMap<&str, usize>) -> Vec<(&'a str, &'a str)> {
    let cuts = piece.char_indices().skip(1).map(|(i, _)| piece.split_at(i));
    let mut known: Vec<_> = cuts
        .filter_map(|(l, r)| Some(((ids.get(l)?, ids.get(r)?), (l, r))))
        .collect();
    known.sort_by_key(|(ids, _)| *ids);
    known.into_iter().map(|(_, cut)| cut).collect()
}
