//! The tokenizer of a GGUF file as the files of a model folder.

use std::fs;
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::gguf::{Kind, Vocabulary};
use super::sentencepiece::unknown;
use super::sentencepiece_proto::{ModelProto, TrainerSpec};
use super::{CONFIG_FILE, JSON_FILE, SENTENCEPIECE_FILE};
use crate::files::{write_atomic, write_text};
use crate::gguf::GgufFile;
use crate::{Error, Result};

/// Writes a `tokenizer.json` or `tokenizer.model` of the same tokens, and a `tokenizer_config.json` with what the file
/// says of special tokens and its chat template.
///
/// # Errors
/// Those of [`Tokenizer::from_gguf`](super::Tokenizer::from_gguf), and [`Error::Io`] if a file cannot be written.
pub(super) fn save_gguf_tokenizer(from: &Path, to: &Path) -> Result<()> {
    let file = GgufFile::open(from)?;
    let vocabulary = Vocabulary::read(&file)?;
    let special = Special::of(&vocabulary)?;
    let class = match vocabulary.kind()? {
        Kind::ByteLevel(mut json) => {
            json["post_processor"] = special.before_a_text();
            write_text(&to.join(JSON_FILE), &json.to_string())?;
            "PreTrainedTokenizerFast"
        }
        Kind::SentencePiece(model) => {
            let model = special.named_in(*model).encode_to_vec();
            write_atomic(&to.join(SENTENCEPIECE_FILE), |path| {
                fs::write(path, model).map_err(Error::io(path))
            })?;
            "LlamaTokenizer"
        }
    };
    let config = special.config(class, vocabulary.chat_template()?);
    let text = serde_json::to_string_pretty(&config).expect("JSON serialises");
    write_text(&to.join(CONFIG_FILE), &(text + "\n"))
}

/// A token's id and text.
type Token<'a> = (u32, &'a str);

/// The tokens that a file names.
pub(super) struct Special<'a> {
    bos: Option<Token<'a>>,
    eos: Option<Token<'a>>,
    pad: Option<Token<'a>>,
    unknown: Option<Token<'a>>,
    adds_bos: bool,
}

impl<'a> Special<'a> {
    pub(super) fn of(vocabulary: &Vocabulary<'a>) -> Result<Self> {
        let token = |kind| {
            let id = vocabulary.special(kind)?;
            Ok(id.map(|id| (id, vocabulary.tokens[id as usize])))
        };
        Ok(Self {
            bos: token("bos")?,
            eos: token("eos")?,
            pad: token("padding")?,
            unknown: token("unknown")?,
            adds_bos: vocabulary.adds_bos,
        })
    }

    pub(super) fn config(&self, class: &str, chat_template: Option<&str>) -> Value {
        let text = |token: Option<Token<'a>>| token.map(|(_, text)| text);
        let mut config = json!({
            "tokenizer_class": class,
            "add_bos_token": self.adds_bos,
            "add_eos_token": false,
            "clean_up_tokenization_spaces": false,
        });
        for (key, text) in [
            ("bos_token", text(self.bos)),
            ("eos_token", text(self.eos)),
            ("pad_token", text(self.pad)),
            ("unk_token", text(self.unknown)),
            ("chat_template", chat_template),
        ] {
            if let Some(text) = text {
                config[key] = text.into();
            }
        }
        config
    }

    /// The post-processor that puts BOS before a text, if there is one.
    fn before_a_text(&self) -> Value {
        match self.bos.filter(|_| self.adds_bos) {
            Some((id, text)) => begin_with(id as usize, text),
            None => Value::Null,
        }
    }

    /// The model with the special tokens by their numbers, by which programs ask for them; -1 is none.
    fn named_in(&self, model: ModelProto) -> ModelProto {
        let id = |token: Option<Token<'a>>| Some(token.map_or(-1, |(id, _)| id as i32));
        let piece = |token: Option<Token<'a>>| token.map(|(_, text)| text.to_owned());
        let own = unknown(&model).map(|id| (id as u32, model.pieces[id].piece().to_owned()));
        let trainer = model.trainer_spec.clone().unwrap_or_default();
        ModelProto {
            trainer_spec: Some(TrainerSpec {
                unk_id: own.as_ref().map(|(id, _)| *id as i32),
                unk_piece: own.map(|(_, text)| text),
                bos_id: id(self.bos),
                bos_piece: piece(self.bos),
                eos_id: id(self.eos),
                eos_piece: piece(self.eos),
                pad_id: id(self.pad),
                pad_piece: piece(self.pad),
                ..trainer
            }),
            ..model
        }
    }
}

/// The post-processor of a `tokenizer.json` that puts a token before a text.
pub(super) fn begin_with(id: usize, text: &str) -> Value {
    let begin = |sequence| json!({ "SpecialToken": { "id": text, "type_id": sequence } });
    let part = |name, sequence| json!({ "Sequence": { "id": name, "type_id": sequence } });
    json!({
        "type": "TemplateProcessing",
        "single": [begin(0), part("A", 0)],
        "pair": [begin(0), part("A", 0), begin(1), part("B", 1)],
        "special_tokens": { text: { "id": text, "ids": [id], "tokens": [text] } },
    })
}
