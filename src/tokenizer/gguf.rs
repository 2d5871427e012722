//! The tokenizer in the metadata of a GGUF file: byte-level BPE or SentencePiece.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::gguf_files::Special;
use super::sentencepiece::{added_token, of_pieces};
use super::sentencepiece_proto::{ModelProto, Type};
use super::to_gguf::steps_of;
use super::{ChatFiles, Names, Tokenizer};
use crate::Result;
use crate::gguf::{GgufFile, Metadata, SENTENCEPIECE, TOKENIZER, TOKENS};

/// The kind that is byte-level BPE.
pub(super) const BYTE_LEVEL: &str = "gpt2";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const PRE: &str = "tokenizer.ggml.pre";

impl Tokenizer {
    /// Reads the tokenizer in the metadata of a GGUF file: byte-level BPE (`gpt2`) or SentencePiece (`llama`).
    ///
    /// Its special tokens and chat template are the file's. BOS is none where `add_bos_token` is false; where the file
    /// does not say, a SentencePiece model, Llama 3's tokenizer and Mistral's tekken have one before a text, as in llama.cpp.
    ///
    /// # Errors
    ///
    /// [`Io`](crate::Error::Io) if the file cannot be read, [`Format`](crate::Error::Format) if it is damaged, has no tokenizer, or has one of a kind
    /// that is not read: the message names the kind, or the rule by which it splits words.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self> {
        GgufFile::open(path)?.tokenizer()
    }
}

impl GgufFile {
    /// See [`Tokenizer::from_gguf`].
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`].
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let vocabulary = Vocabulary::read(self)?;
        let tokenizer = match vocabulary.kind()? {
            Kind::ByteLevel(json) => vocabulary.byte_level(&json)?,
            Kind::SentencePiece(model) => {
                Tokenizer::from_sentencepiece(&model, self.path(), &Names::default())?
            }
        };
        let bos = vocabulary.special("bos")?;
        let [pad, unknown] = [
            vocabulary.special("padding")?,
            vocabulary.special("unknown")?,
        ];
        let config = Special::of(&vocabulary)?.config("", vocabulary.chat_template()?);
        Ok(Tokenizer {
            bos_id: bos.filter(|_| vocabulary.adds_bos),
            eos_id: vocabulary.special("eos")?.or(tokenizer.eos_id),
            pad_id: pad.or(unknown).unwrap_or(tokenizer.pad_id),
            chat: Arc::new(ChatFiles::of_config(config, self.path())?),
            ..tokenizer
        })
    }
}

/// A tokenizer as Hugging Face's and SentencePiece's programs have it.
pub(super) enum Kind {
    /// A `tokenizer.json`, which puts nothing before a text.
    ByteLevel(Value),
    /// A `tokenizer.model`.
    SentencePiece(Box<ModelProto>),
}

/// The tokens of a file, by id.
pub(super) struct Vocabulary<'a> {
    file: &'a GgufFile,
    model: &'a str,
    pub(super) tokens: Vec<&'a str>,
    types: Vec<Type>,
    /// Whether BOS, if there is one, stands before a text.
    pub(super) adds_bos: bool,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(file: &'a GgufFile) -> Result<Self> {
        let metadata = file.metadata();
        let model = metadata.need(TOKENIZER, metadata.text(TOKENIZER)?)?;
        let tokens = metadata.need(TOKENS, metadata.texts(TOKENS)?)?;
        let types = match metadata.integers(TYPES)? {
            None => vec![Type::Normal; tokens.len()],
            Some(types) => types
                .into_iter()
                .map(|kind| {
                    type_of(kind).ok_or_else(|| metadata.error(TYPES, format!("{kind} is no type")))
                })
                .collect::<Result<_>>()?,
        };
        require_one_each(&metadata, TYPES, types.len(), tokens.len())?;
        let adds_bos = metadata.flag("tokenizer.ggml.add_bos_token")?;
        let usual = model == SENTENCEPIECE
            || metadata
                .text(PRE)?
                .is_some_and(|pre| LLAMA_3.contains(&pre) || TEKKEN.contains(&pre));
        Ok(Self {
            file,
            model,
            tokens,
            types,
            adds_bos: adds_bos.unwrap_or(usual),
        })
    }

    fn metadata(&self) -> Metadata<'a> {
        self.file.metadata()
    }

    /// A special token, if it is one of the tokens.
    pub(super) fn special(&self, kind: &str) -> Result<Option<u32>> {
        let id = self.metadata().token_id(kind)?;
        Ok(id.filter(|id| (*id as usize) < self.tokens.len()))
    }

    pub(super) fn chat_template(&self) -> Result<Option<&'a str>> {
        self.metadata().text("tokenizer.chat_template")
    }

    /// The tokenizer, without its special tokens.
    pub(super) fn kind(&self) -> Result<Kind> {
        match self.model {
            BYTE_LEVEL => self.byte_level_json().map(Kind::ByteLevel),
            SENTENCEPIECE => {
                let model = self.sentencepiece()?;
                Ok(Kind::SentencePiece(Box::new(model)))
            }
            other => {
                let message = format!(
                    "`{other}` is not one of {BYTE_LEVEL}, {SENTENCEPIECE}; use the tokenizer.json of the model's \
                     original folder"
                );
                Err(self.metadata().error(TOKENIZER, message))
            }
        }
    }

    fn sentencepiece(&self) -> Result<ModelProto> {
        let metadata = self.metadata();
        let scores = metadata.need(SCORES, metadata.numbers(SCORES)?)?;
        require_one_each(&metadata, SCORES, scores.len(), self.tokens.len())?;
        let pieces = self.tokens.iter().zip(&scores).zip(&self.types);
        self.require_order(&scores)?;
        of_pieces(
            pieces.map(|((text, score), kind)| ((*text).to_owned(), *score as f32, *kind)),
            metadata
                .flag("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(true),
            metadata
                .flag("tokenizer.ggml.remove_extra_whitespaces")?
                .unwrap_or(false),
            self.file.path(),
        )
    }

    /// Files that were converted without a `tokenizer.model` have one score for all pieces.
    fn require_order(&self, scores: &[f64]) -> Result<()> {
        let pieces = scores.iter().zip(&self.types);
        let mut pieces = pieces.filter(|(_, kind)| **kind == Type::Normal);
        let first = pieces.next();
        match pieces.next() {
            Some(second) if first == Some(second) && pieces.all(|other| other == second) => {
                let message = "all pieces have one score, so which to join first is not known; use the tokenizer.json \
                               of the model's original folder";
                Err(self.metadata().error(SCORES, message))
            }
            _ => Ok(()),
        }
    }

    fn byte_level(&self, json: &Value) -> Result<Tokenizer> {
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|error| {
            let message = format!("they do not make a tokenizer of the tokens: {error}");
            self.metadata().error(MERGES, message)
        })?;
        Tokenizer::from_inner(inner, self.file.path(), &Names::default())
    }

    /// As a `tokenizer.json`. Tokens that the file has only for their number are left out.
    fn byte_level_json(&self) -> Result<Value> {
        let metadata = self.metadata();
        let words = self.words()?;
        let mut vocab = serde_json::Map::new();
        let mut added = Vec::new();
        for (id, (token, kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            if *kind == Type::Unused {
                continue;
            }
            if vocab.insert((*token).to_owned(), id.into()).is_some() {
                return Err(metadata.error(TOKENS, format!("`{token}` is there twice")));
            }
            match kind {
                Type::Control | Type::Unknown => added.push(added_token(id, token, true)),
                Type::UserDefined => added.push(added_token(id, token, false)),
                _ => {}
            }
        }
        Ok(json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": words.normalizer(),
            "pre_tokenizer": words.pre_tokenizer(),
            "decoder": bytes(false),
            "model": {
                "type": "BPE", "vocab": vocab, "merges": self.merges()?, "ignore_merges": words.are_looked_up(),
            },
        }))
    }

    /// The pairs that are joined, first those that come first.
    fn merges(&self) -> Result<Vec<[&'a str; 2]>> {
        let metadata = self.metadata();
        let merges = metadata.need(MERGES, metadata.texts(MERGES)?)?;
        let pair = |merge: &'a str| {
            let pair = merge.split_once(' ').map(|(left, right)| [left, right]);
            pair.ok_or_else(|| metadata.error(MERGES, format!("`{merge}` is no pair of tokens")))
        };
        merges.into_iter().map(pair).collect()
    }

    fn words(&self) -> Result<Words> {
        let metadata = self.metadata();
        let name = metadata.text(PRE)?.unwrap_or("default");
        let row = WORDS.iter().find(|(names, _)| names.contains(&name));
        row.map(|(_, words)| *words).ok_or_else(|| {
            let known: Vec<&str> = WORDS.iter().map(|(names, _)| names[0]).collect();
            let message = format!(
                "how `{name}` splits a text into words is not known here, only {}; use the tokenizer.json of the \
                 model's original folder",
                known.join(", ")
            );
            metadata.error(PRE, message)
        })
    }
}

/// The types of tokens have SentencePiece's numbers; 0 is not known, and so a plain one.
fn type_of(kind: i64) -> Option<Type> {
    match kind {
        0 => Some(Type::Normal),
        _ => Type::try_from(i32::try_from(kind).ok()?).ok(),
    }
}

fn require_one_each(metadata: &Metadata, key: &str, found: usize, tokens: usize) -> Result<()> {
    match found == tokens {
        true => Ok(()),
        false => Err(metadata.error(key, format!("{found} of them for {tokens} tokens"))),
    }
}

/// How a text is split into words before their bytes are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// What llama.cpp does where a file does not say: GPT-2's words, punctuation and digits in threes apart.
    Default,
    /// Words, numbers and signs, each with a space before it.
    Gpt2,
    /// GPT-2's, each digit alone.
    SmolLm,
    /// Words with any one sign before them, and numbers of up to three digits.
    Llama3,
    /// Llama 3's, of which none is looked up as a whole.
    Dbrx,
    /// Capitals, then small letters, with English endings, and numbers of up to three digits. llama.cpp takes fewer letters
    /// than Unicode for capitals and small ones.
    Gpt4o,
    /// The same without endings, each digit alone.
    Tekken,
    /// Llama 3's, each digit alone, of a text in Unicode's composed form.
    Qwen2,
}

const TEKKEN: &[&str] = &["tekken"];
const LLAMA_3: &[&str] = &["llama-bpe", "llama3", "llama-v3"];

/// By the names that they have in files.
const WORDS: [(&[&str], Words); 8] = [
    (&["default"], Words::Default),
    (&["gpt-2"], Words::Gpt2),
    (&["smollm", "starcoder", "refact"], Words::SmolLm),
    (LLAMA_3, Words::Llama3),
    (&["dbrx", "smaug-bpe"], Words::Dbrx),
    (&["gpt-4o"], Words::Gpt4o),
    (TEKKEN, Words::Tekken),
    (&["qwen2"], Words::Qwen2),
];

impl Words {
    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({ "type": "NFC" }),
            _ => Value::Null,
        }
    }

    fn pre_tokenizer(self) -> Value {
        let steps = match self {
            Self::Default => vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(&gpt2_words()),
                split(r"\p{N}+"),
                split("[0-9][0-9][0-9]"),
                bytes(false),
            ],
            Self::Gpt2 => vec![bytes(true)],
            Self::SmolLm => vec![
                json!({ "type": "Digits", "individual_digits": true }),
                bytes(true),
            ],
            Self::Llama3 | Self::Dbrx => vec![split(&llama3_words("{1,3}")), bytes(false)],
            Self::Gpt4o => vec![split(&cased_words(ENDINGS, "{1,3}")), bytes(false)],
            Self::Tekken => vec![split(&cased_words("", "")), bytes(false)],
            Self::Qwen2 => vec![split(&llama3_words("")), bytes(false)],
        };
        json!({ "type": "Sequence", "pretokenizers": steps })
    }

    /// Whether a word that is a token as a whole is taken as it is, whatever could be joined.
    fn are_looked_up(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }
}

/// How Llama 3's tokenizer splits a text into words.
pub(super) fn llama3_pre_tokenizer() -> Value {
    Words::Llama3.pre_tokenizer()
}

/// The name in files of how a `tokenizer.json` splits a text into words.
///
/// # Errors
/// What to say of one that no file of llama.cpp names.
pub(super) fn words_of(json: &Value) -> Result<&'static str, String> {
    let steps = |normalizer: &Value, pre_tokenizer: &Value, is_looked_up: bool| {
        let steps = [normalizer, pre_tokenizer].map(|step| {
            let steps = steps_of(step).into_iter();
            steps.map(|step| settings_of(&step)).collect::<Vec<_>>()
        });
        (steps, is_looked_up)
    };
    let is_looked_up = json["model"]["ignore_merges"] == true;
    let found = steps(&json["normalizer"], &json["pre_tokenizer"], is_looked_up);
    let row = WORDS.iter().find(|(_, words)| {
        let pre_tokenizer = words.pre_tokenizer();
        found == steps(&words.normalizer(), &pre_tokenizer, words.are_looked_up())
    });
    row.map(|(names, _)| names[0]).ok_or_else(|| {
        let known: Vec<&str> = WORDS.iter().map(|(names, _)| names[0]).collect();
        format!(
            "how it splits a text into words is none of {}, which are known here; convert the folder by llama.cpp's \
             convert_hf_to_gguf.py",
            known.join(", ")
        )
    })
}

/// What a step does, without what says nothing of it.
fn settings_of(step: &Value) -> Vec<Value> {
    let keys: &[&str] = match step["type"].as_str() {
        Some("ByteLevel") => {
            // True is what a file means that does not say.
            let splits = step["use_regex"] != false;
            return vec![
                "ByteLevel".into(),
                step["add_prefix_space"].clone(),
                splits.into(),
            ];
        }
        Some("Split") => &["type", "pattern", "behavior", "invert"],
        Some("Digits") => &["type", "individual_digits"],
        _ => return vec![step.clone()],
    };
    keys.iter().map(|key| step[*key].clone()).collect()
}

/// Splits by a regular expression: what matches and what lies between.
fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

/// Writes each byte as a character, or back; `into_words` splits into GPT-2's words before.
pub(super) fn bytes(into_words: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": into_words,
    })
}

/// GPT-2's: the English endings, letters, digits and signs with a space before them, spaces up to the last.
fn gpt2_words() -> String {
    [
        "'s|'t|'re|'ve|'m|'ll|'d",
        r" ?\p{L}+",
        r" ?\p{N}+",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)",
    ]
    .join("|")
}

/// Words that go from capitals to small letters, with these endings and as many digits in a word.
fn cased_words(endings: &str, digits: &str) -> String {
    let capitals = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
    let small = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
    let endings = match endings {
        "" => String::new(),
        endings => format!("{endings}?"),
    };
    [
        &format!(r"[^\r\n\p{{L}}\p{{N}}]?{capitals}*{small}+{endings}"),
        &format!(r"[^\r\n\p{{L}}\p{{N}}]?{capitals}+{small}*{endings}"),
        &format!(r"\p{{N}}{digits}"),
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

/// The English endings.
const ENDINGS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// Llama 3's, with as many digits in a word.
fn llama3_words(digits: &str) -> String {
    [
        ENDINGS,
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        &format!(r"\p{{N}}{digits}"),
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}
