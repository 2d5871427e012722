//! Text to token ids and back.
//!
//! One type, [`Tokenizer`], reads the files that a Llama comes with: Hugging Face's `tokenizer.json`, the
//! `tokenizer.model` of Meta's releases (SentencePiece, or the words of tiktoken), and llama.cpp's GGUF. Each joins pieces as the library
//! does that it comes from, which may differ where a text can be joined in several ways of equal score.

mod beginning;
mod chat;
mod checks;
mod gguf;
mod gguf_files;
mod parts;
mod sentencepiece;
mod sentencepiece_proto;
mod tiktoken;
mod to_gguf;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::files::{create_dir, read_bytes, read_text, remove_if_there, write_atomic};
use crate::gguf::is_gguf;
use crate::{Error, Result};
use beginning::first_tokens;
use chat::ChatFiles;
pub use chat::{ChatEncoder, ChatTemplate, Conversation, Message, PlacedToken, Rendered};
use gguf_files::save_gguf_tokenizer;
use parts::Parts;
use sentencepiece_proto::ModelProto;
pub(crate) use tiktoken::MetaTokens;
pub(crate) use to_gguf::gguf_vocabulary;

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
const MAP_FILE: &str = "special_tokens_map.json";
/// What other programs look for beside a tokenizer.
const COMPANIONS: [&str; 5] = [
    CONFIG_FILE,
    MAP_FILE,
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
];

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
    parts: Parts,
    /// What encodes in place of `inner`, for a SentencePiece model.
    sentencepiece: Option<Arc<sentencepiece::Encoder>>,
    origin: PathBuf,
    vocab_size: usize,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pad_id: u32,
    chat: Arc<ChatFiles>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, a `tokenizer.model` or a GGUF file ([`Tokenizer::from_gguf`]); the content decides which. A
    /// `tokenizer.model` is one of SentencePiece, or Llama 3's: tiktoken's words in base64, each with its rank. To those
    /// belong the 256 special tokens of Llama 3.1, whose ids follow.
    ///
    /// EOS is the `eos_token` of the `tokenizer_config.json` or `special_tokens_map.json` beside the file, else
    /// a token of a usual name. BOS is what a `tokenizer.json` puts before a text, whatever other files say,
    /// as in transformers 5. A `tokenizer.model` has the `bos_token` of those files, else a token of a usual
    /// name, unless `add_bos_token` is false there. That of Llama 3 has `<|begin_of_text|>`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is none of these, is
    /// damaged, or is a SentencePiece model of a kind that Llama does not use (anything but BPE
    /// with the identity normalisation); also if a file beside it is not JSON or names a token
    /// that the file does not have.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if is_gguf(path)? {
            return Self::from_gguf(path);
        }
        let bytes = read_bytes(path)?;
        let names = Names::beside(path)?;
        let chat = ChatFiles::beside(path)?;
        let tokenizer = match (is_json(&bytes), tiktoken::is_tiktoken(&bytes)) {
            (true, _) => Self::from_json(&bytes, path, &names)?,
            (false, true) => {
                let json = tiktoken::Words::parse(&bytes, path)?.to_json();
                Self::from_json(json.to_string().as_bytes(), path, &names)?
            }
            (false, false) => {
                let model = sentencepiece::parse(&bytes, path)?;
                let tokenizer = Self::from_sentencepiece(&model, path, &names)?;
                Self {
                    bos_id: tokenizer.named_bos(&names)?,
                    ..tokenizer
                }
            }
        };
        Ok(Self {
            chat: Arc::new(chat),
            ..tokenizer
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

    /// Reads the tokenizer of a model: that of its folder ([`Tokenizer::from_dir`]), or that of a file
    /// ([`Tokenizer::from_file`]).
    ///
    /// # Errors
    ///
    /// Those of the two.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        match path.as_ref().is_dir() {
            true => Self::from_dir(path),
            false => Self::from_file(path),
        }
    }

    /// Reads a `tokenizer.json` that is in memory, such as one embedded in the program.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] if it is not a tokenizer.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        let origin = Path::new("<embedded tokenizer.json>");
        Self::from_json(bytes, origin, &Names::default())
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
        if let Some(encoder) = &self.sentencepiece {
            return Ok(encoder.encode(text));
        }
        let tokens = self.parts.encode(&self.inner, text);
        let tokens = tokens
            .map_err(|e| Error::format(&self.origin, format!("the text cannot be encoded: {e}")))?;
        Ok(tokens.iter().map(|token| token.id).collect())
    }

    /// The first `count` token ids of `text`. Of a long text no more is encoded than they take, so that a token may
    /// differ from that of the whole text only where that depends on letters some hundred bytes behind it. Where hundreds of
    /// kilobytes make fewer tokens than that, they are encoded piece by piece, each to the end of a word if it has one.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode_first(&self, text: &str, count: usize) -> Result<Vec<u32>> {
        first_tokens(text, count, |part| match part.start {
            0 => self.encode(&text[part]),
            _ => self.encode_continuation(&text[part]),
        })
    }

    /// The token ids of `text` after the token that begins a sequence, if there is one: what a model is asked
    /// with.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        Ok(self.bos_id.into_iter().chain(ids).collect())
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

    /// The first `count` of the [ids of a text that goes on](Self::encode_continuation), as
    /// [`encode_first`](Self::encode_first).
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn encode_continuation_first(&self, text: &str, count: usize) -> Result<Vec<u32>> {
        first_tokens(text, count, |part| self.encode_continuation(&text[part]))
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

    /// The text of ids from the middle of a text, special tokens by their names: for people to read.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::decode`].
    pub fn show(&self, ids: &[u32]) -> Result<String> {
        let ids = [&self.encode(BEFORE)?, ids].concat();
        let text = self.inner.decode(&ids, false);
        let text = text
            .map_err(|e| Error::format(&self.origin, format!("the ids cannot be decoded: {e}")))?;
        Ok(text.strip_prefix(BEFORE).unwrap_or(&text).to_owned())
    }

    /// The tokens that no text becomes, and what they are called.
    pub(crate) fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        let special = added.filter(|(_, token)| token.special && !token.content.is_empty());
        special.map(|(id, token)| (id, token.content)).collect()
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

    /// The token to fill a batch with, for a model of `vocab_size` tokens: the padding token, else the unknown
    /// token, else 0. Some tokenizers have a padding token for which the model has no row; then it is 0 too.
    pub fn pad_id(&self, vocab_size: usize) -> u32 {
        match (self.pad_id as usize) < vocab_size {
            true => self.pad_id,
            false => 0,
        }
    }

    /// The template, in Jinja's language, by which a conversation becomes a text for the model, if the file has one or
    /// one lies beside it. [`ChatTemplate::of`] applies it.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat
            .template
            .as_ref()
            .map(|source| source.text.as_str())
    }

    fn from_sentencepiece(model: &ModelProto, origin: &Path, names: &Names) -> Result<Self> {
        let tokenizer = Self::from_json(&sentencepiece::to_json(model), origin, names)?;
        Ok(Self {
            sentencepiece: Some(Arc::new(sentencepiece::Encoder::new(model))),
            ..tokenizer
        })
    }

    fn from_json(bytes: &[u8], origin: &Path, names: &Names) -> Result<Self> {
        checks::check(bytes, origin)?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::format(origin, format!("not a tokenizer.json: {e}")))?;
        Self::from_inner(inner, origin, names)
    }

    fn from_inner(mut inner: tokenizers::Tokenizer, origin: &Path, names: &Names) -> Result<Self> {
        inner.set_encode_special_tokens(true);
        // Some files hold the settings of their last use; a length limit belongs to the data set.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(origin, e))?;
        keep_no_texts(&mut inner);
        let largest = inner.get_vocab(true).into_values().max();
        let largest = largest.ok_or_else(|| Error::format(origin, "the vocabulary is empty"))?;
        let named = names.id_of(|file| &file.eos_token, &inner, origin)?;
        Ok(Self {
            vocab_size: largest as usize + 1,
            bos_id: prefix(&inner, origin)?,
            eos_id: named.or_else(|| first(&EOS_NAMES, &inner)),
            pad_id: first(&PAD_NAMES, &inner).unwrap_or(0),
            origin: origin.to_owned(),
            sentencepiece: None,
            chat: Arc::default(),
            parts: Parts::of(&inner),
            inner,
        })
    }

    /// The BOS of a tokenizer whose file does not tell whether it stands before a text.
    fn named_bos(&self, names: &Names) -> Result<Option<u32>> {
        if names.adds_bos() == Some(false) {
            return Ok(None);
        }
        let named = names.id_of(|file| &file.bos_token, &self.inner, &self.origin)?;
        Ok(named.or_else(|| first(&BOS_NAMES, &self.inner)))
    }
}

/// The library keeps thousands of words with their tokens, in each thread for as long as that lives. Where nothing splits a
/// text into words, it would keep whole texts, which take hundreds of megabytes and never come again.
fn keep_no_texts(tokenizer: &mut tokenizers::Tokenizer) {
    if tokenizer.get_pre_tokenizer().is_none() {
        let mut model = tokenizer.get_model().clone();
        model.resize_cache(0);
        tokenizer.with_model(model);
    }
}

/// The first of these tokens that the vocabulary has.
fn first(names: &[&str], tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    names.iter().find_map(|name| tokenizer.token_to_id(name))
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

/// The files beside a tokenizer that name its special tokens; the first that names one holds.
#[derive(Default)]
struct Names(Vec<NamesFile>);

/// What is read of `tokenizer_config.json` and of `special_tokens_map.json`.
#[derive(Deserialize)]
struct NamesFile {
    add_bos_token: Option<bool>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    /// Where `tokenizer_config.json` has this, all is there that older versions wrote to the other file.
    added_tokens_decoder: Option<IgnoredAny>,
    #[serde(skip)]
    path: PathBuf,
}

/// A special token, in either of the two forms that it has there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Content(String),
    Added { content: String },
}

impl Token {
    /// Some old conversions name no token by an empty text.
    fn content(&self) -> Option<&str> {
        let (Self::Content(content) | Self::Added { content }) = self;
        Some(content.as_str()).filter(|content| !content.is_empty())
    }
}

impl NamesFile {
    fn read(path: PathBuf) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let file = serde_json::from_str(&read_text(&path)?);
        let file: Self = file.map_err(|error| Error::format(&path, error))?;
        Ok(Some(Self { path, ..file }))
    }
}

impl Names {
    /// Those beside a tokenizer's file, in transformers' order.
    fn beside(tokenizer: &Path) -> Result<Self> {
        let read = |name| NamesFile::read(tokenizer.with_file_name(name));
        let (config, map) = (read(CONFIG_FILE)?, read(MAP_FILE)?);
        let is_complete = |config: &NamesFile| config.added_tokens_decoder.is_some();
        let order = match config.as_ref().is_some_and(is_complete) {
            true => [config, map],
            false => [map, config],
        };
        Ok(Self(order.into_iter().flatten().collect()))
    }

    fn adds_bos(&self) -> Option<bool> {
        self.0.iter().find_map(|file| file.add_bos_token)
    }

    /// The id of a token that is named here.
    fn id_of(
        &self,
        token: fn(&NamesFile) -> &Option<Token>,
        tokenizer: &tokenizers::Tokenizer,
        origin: &Path,
    ) -> Result<Option<u32>> {
        let content = |file| Some((file, token(file).as_ref()?.content()?));
        let Some((file, content)) = self.0.iter().find_map(content) else {
            return Ok(None);
        };
        let id = tokenizer.token_to_id(content);
        id.map(Some).ok_or_else(|| {
            let message = format!(
                "`{content}` is not in {}; take a tokenizer.json that has it (transformers writes one: \
                 `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)`)",
                origin.display()
            );
            Error::format(&file.path, message)
        })
    }
}

/// The special token that a `tokenizer.json` puts before a text.
fn prefix(tokenizer: &tokenizers::Tokenizer, origin: &Path) -> Result<Option<u32>> {
    let Ok(encoding) = tokenizer.encode_fast("a", true) else {
        return Ok(None);
    };
    let is_special = encoding.get_special_tokens_mask().first() == Some(&1);
    let Some(id) = encoding.get_ids().first().copied().filter(|_| is_special) else {
        return Ok(None);
    };
    match tokenizer.id_to_token(id) {
        Some(_) => Ok(Some(id)),
        None => {
            let name = encoding.get_tokens().first().map_or("", String::as_str);
            let message = format!(
                "`post_processor` puts `{name}` before a text, with the id {id}, which no token has"
            );
            Err(Error::format(origin, message))
        }
    }
}

/// Copies a tokenizer's files into a model's folder, under the names by which other programs look for
/// them there, in the place of another tokenizer's. `from` is a folder, or a tokenizer's file with what lies beside it; or a GGUF file, whose tokenizer is
/// written as a `tokenizer.json` or `tokenizer.model` of the same ids, with a `tokenizer_config.json`. Of Llama 3's
/// `tokenizer.model` the same is written as a `tokenizer.json`.
///
/// # Errors
///
/// [`Error::Io`] if a file cannot be read or written, and those of [`Tokenizer::from_gguf`] and of
/// [`Tokenizer::from_file`] on a file of Llama 3's.
pub fn copy_tokenizer(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    if from.is_file() && is_gguf(from)? {
        create_dir(to)?;
        remove_tokenizer(to)?;
        return save_gguf_tokenizer(from, to);
    }
    let words = tiktoken_words(from)?;
    let (folder, file) = match from.is_dir() {
        true => (from, None),
        false => (
            from.parent()
                .filter(|folder| *folder != Path::new(""))
                .unwrap_or(Path::new(".")),
            Some(from),
        ),
    };
    let named = |name: &&'static str| (folder.join(name), *name);
    let mut files: Vec<_> = COMPANIONS.iter().map(named).collect();
    match (&words, file) {
        (Some(_), _) => {}
        (None, Some(file)) => files.push((file.to_owned(), kind_of(file)?)),
        (None, None) => files.extend([JSON_FILE, SENTENCEPIECE_FILE].iter().map(named)),
    }
    create_dir(to)?;
    if fs::canonicalize(folder).ok() != fs::canonicalize(to).ok() {
        remove_tokenizer(to)?;
    }
    for (file, name) in files.iter().filter(|(file, _)| file.exists()) {
        let copy = to.join(name);
        create_dir(copy.parent().unwrap_or(to))?;
        write_atomic(&copy, |temporary| {
            fs::copy(file, temporary).map(drop).map_err(Error::io(file))
        })?;
    }
    match words {
        None => Ok(()),
        Some(words) => tiktoken::save(&words, to, !folder.join(CONFIG_FILE).exists()),
    }
}

/// Removes what another tokenizer has left, which would be read in the place of the new one or beside it.
fn remove_tokenizer(dir: &Path) -> Result<()> {
    let mut names = COMPANIONS.iter().chain([&JSON_FILE, &SENTENCEPIECE_FILE]);
    names.try_for_each(|name| remove_if_there(&dir.join(name)))?;
    // That it is there says something, too; it stays if it holds what is not ours.
    let _ = fs::remove_dir(dir.join("additional_chat_templates"));
    Ok(())
}

/// The words of a tokenizer that is one of tiktoken's.
fn tiktoken_words(from: &Path) -> Result<Option<tiktoken::Words>> {
    let path = to_gguf::file_of(from);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bytes(&path)?;
    let is_tiktoken = tiktoken::is_tiktoken(&bytes);
    is_tiktoken
        .then(|| tiktoken::Words::parse(&bytes, &path))
        .transpose()
}

/// The usual name of a tokenizer's file.
fn kind_of(path: &Path) -> Result<&'static str> {
    let bytes = read_bytes(path)?;
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
