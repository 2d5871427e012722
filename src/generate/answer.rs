//! A question and its answer.

use super::{GenerateOptions, generate_text};
use crate::data::AlpacaRecord;
use crate::llama::TransformerDecoder;
use crate::tokenizer::{ChatTemplate, Conversation, Tokenizer};
use crate::{Error, Result};

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// A text to go on with, behind the token that begins a sequence, if there is one.
    Text(String),
    /// A conversation whose next answer is asked for, by the tokenizer's chat template, or ChatML if it has none. For
    /// another template there is [`ChatTemplate::prompt`].
    Chat(Conversation),
    /// The tokens to go on with.
    Ids(Vec<u32>),
}

impl Prompt {
    /// The tokens of the prompt.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`], [`ChatTemplate::choose`] and [`ChatTemplate::prompt`].
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        match self {
            Self::Text(text) => tokenizer.encode_with_bos(text),
            Self::Chat(conversation) => {
                ChatTemplate::choose(None, tokenizer)?.prompt(conversation, tokenizer)
            }
            Self::Ids(ids) => Ok(ids.clone()),
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&AlpacaRecord> for Prompt {
    /// The prompt of Alpaca's training, up to where the answer begins.
    fn from(record: &AlpacaRecord) -> Self {
        Self::Text(record.prompt())
    }
}

impl From<Conversation> for Prompt {
    fn from(conversation: Conversation) -> Self {
        Self::Chat(conversation)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// What a model says to a prompt.
///
/// ```
/// use burn::tensor::Device;
/// use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer};
/// use burn_peft::data::AlpacaRecord;
/// use burn_peft::generate::{GenerateOptions, answer};
/// use burn_peft::tokenizer::Conversation;
///
/// # fn main() -> burn_peft::Result<()> {
/// let dir = "examples/assets/tiny";
/// let model = load_model(dir, None, &LoadOptions::new(&Device::default()))?;
/// let tokenizer = load_tokenizer(dir, &model.config)?;
/// let options = GenerateOptions::greedy(24);
///
/// let text = answer(&model, &tokenizer, "A tyre is made of", &options)?;
/// let question = AlpacaRecord::new("What is a tyre made of?");
/// let by_alpacas_prompt = answer(&model, &tokenizer, &question, &options)?;
/// let by_chat_template = answer(&model, &tokenizer, Conversation::ask("What is a tyre made of?"), &options)?;
/// assert!(by_alpacas_prompt.contains("rubber"), "{text} {by_chat_template}");
/// # Ok(())
/// # }
/// ```
///
/// The answer to a conversation ends where the template ends a turn, too ([`GenerateOptions::with_end_of_turn`]).
/// [`TextGeneration`](super::TextGeneration) gives an answer as it comes, and several at a time.
///
/// # Errors
/// Those of [`Prompt::encode`] and [`generate_text`], and [`Error::InvalidArgument`] if the options ask for several answers.
pub fn answer(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    prompt: impl Into<Prompt>,
    options: &GenerateOptions,
) -> Result<String> {
    if options.answers > 1 {
        let message = "`answer` gives one: take `generate_text` for more".to_owned();
        let name = "answers";
        return Err(Error::InvalidArgument { name, message });
    }
    let (prompt, options) = match prompt.into() {
        Prompt::Chat(conversation) => {
            let template = ChatTemplate::choose(None, tokenizer)?;
            let options = options.clone();
            let options = options.with_end_of_turn(&template, tokenizer, &model.config);
            (template.prompt(&conversation, tokenizer)?, options)
        }
        other => (other.encode(tokenizer)?, options.clone()),
    };
    let mut answers = generate_text(model, tokenizer, &[prompt], &options)?;
    Ok(answers.pop().unwrap_or_default())
}
