//! A conversation with a model.

use super::{End, GenerateOptions, Generation, TextGeneration};
use crate::llama::TransformerDecoder;
use crate::tokenizer::{ChatTemplate, Conversation, Message, Tokenizer};
use crate::{Error, Result};

/// A conversation that goes on, question by question. What no longer fits the model's context is forgotten, the oldest
/// question with its answer first; a system message stays. The model reads only what is new since its last answer
/// ([`Generation::after`]), which ends where the template ends a turn, too ([`GenerateOptions::with_end_of_turn`]).
///
/// ```
/// use burn::tensor::Device;
/// use burn_peft::checkpoint::{LoadOptions, load_model, load_tokenizer};
/// use burn_peft::generate::{Chat, GenerateOptions};
///
/// # fn main() -> burn_peft::Result<()> {
/// let dir = "examples/assets/tiny";
/// let model = load_model(dir, None, &LoadOptions::new(&Device::default()))?;
/// let tokenizer = load_tokenizer(dir, &model.config)?;
/// let mut chat = Chat::new(&model, &tokenizer, GenerateOptions::greedy(8))?;
/// for question in ["What is a tyre made of?", "And a window?"] {
///     let reply = chat.ask(question, |piece| print!("{piece}"))?;
///     println!(" ({} messages are forgotten)", reply.forgotten);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Chat<'a> {
    model: &'a TransformerDecoder,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    options: GenerateOptions,
    system: Option<Message>,
    conversation: Conversation,
    /// The last answer, whose text the model need not read again.
    last: Option<Generation>,
}

/// What a model has said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// Its answer.
    pub text: String,
    /// How many messages of the conversation were forgotten to make room.
    pub forgotten: usize,
    /// Whether the answer ended because of its length, not by itself.
    pub is_cut: bool,
}

impl<'a> Chat<'a> {
    /// A conversation that has not begun, by the tokenizer's chat template, or ChatML if it has none.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::choose`], and [`Error::InvalidArgument`] if the options ask for several answers.
    pub fn new(
        model: &'a TransformerDecoder,
        tokenizer: &'a Tokenizer,
        options: GenerateOptions,
    ) -> Result<Self> {
        if options.answers > 1 {
            return Err(Error::InvalidArgument {
                name: "answers",
                message: "a conversation goes on with one answer".into(),
            });
        }
        Ok(Self {
            template: ChatTemplate::choose(None, tokenizer)?,
            model,
            tokenizer,
            options,
            system: None,
            conversation: Conversation::default(),
            last: None,
        })
    }

    /// By another template.
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = template;
        self
    }

    /// With a message of the system before all others. A conversation that has begun is begun anew.
    pub fn with_system(mut self, text: &str) -> Self {
        self.system = Some(Message::new("system", text));
        self.reset();
        self
    }

    /// The conversation, as far as it is remembered.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Forgets everything but the system's message.
    pub fn reset(&mut self) {
        self.conversation = Conversation::new(self.system.clone());
        self.last = None;
    }

    /// Asks a question; `tell` gets the answer in pieces as it comes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the question alone is longer than the model's context, and those of
    /// [`ChatTemplate::prompt`] and [`TextGeneration`]. The conversation is what it was then.
    pub fn ask(&mut self, question: &str, mut tell: impl FnMut(&str)) -> Result<Reply> {
        let mut conversation = self.conversation.clone();
        conversation.messages.push(Message::new("user", question));
        let before = conversation.messages.len();
        let prompt = self.fit(&mut conversation)?;
        let forgotten = before - conversation.messages.len();
        let mut text = String::new();
        let (model, tokenizer) = (self.model, self.tokenizer);
        let options = self.options.clone();
        let options = options.with_end_of_turn(&self.template, tokenizer, &model.config);
        let mut generation = TextGeneration::new(model, tokenizer, &[prompt], &options)?;
        if let Some(last) = self.last.take() {
            generation = generation.after(last);
        }
        for pieces in &mut generation {
            for piece in pieces? {
                tell(&piece.text);
                text += &piece.text;
            }
        }
        let generation = generation.into_generation();
        let is_cut = generation.answers()[0].end == Some(End::Length);
        self.last = Some(generation);
        conversation.messages.push(Message::new("assistant", &text));
        self.conversation = conversation;
        Ok(Reply {
            text,
            forgotten,
            is_cut,
        })
    }

    /// The tokens of a conversation, of which as much is forgotten as it takes to leave room for an answer: a quarter of the
    /// context, unless the answers are to be shorter.
    fn fit(&self, conversation: &mut Conversation) -> Result<Vec<u32>> {
        let context = self.model.config.context_len();
        let room = self.options.max_new_tokens.min(context / 4);
        let first = usize::from(self.system.is_some());
        loop {
            let ids = self.template.prompt(conversation, self.tokenizer)?;
            if ids.len() + room <= context {
                return Ok(ids);
            }
            let later = conversation.messages.iter().skip(first + 1);
            match later.map(Message::role).position(|role| role == "user") {
                Some(place) => drop(conversation.messages.drain(first..=first + place)),
                // There is less room, but some.
                None if ids.len() < context => return Ok(ids),
                None => {
                    let message = format!(
                        "it has {} tokens by the chat template, and the model takes {context}; ask a shorter one",
                        ids.len()
                    );
                    let name = "question";
                    return Err(Error::InvalidArgument { name, message });
                }
            }
        }
    }
}
