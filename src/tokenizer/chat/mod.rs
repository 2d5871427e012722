//! Conversations as a model was taught to see them: its chat template, applied.
//!
//! ```text
//! Conversation -- ChatTemplate::render --> Rendered (text, its marks) -- ChatEncoder::encode --> ids, places
//! ```

mod answers;
mod conversation;
mod date;
mod encode;
mod environment;
mod marks;
mod python;
mod source;

use std::path::Path;
use std::sync::Arc;

use fancy_regex::Regex;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use super::Tokenizer;
use crate::files::{read_text, write_text};
use crate::{Error, Result};

pub use conversation::{Conversation, Message};
pub use encode::{ChatEncoder, PlacedToken};
use environment::environment;
pub use marks::Rendered;
use marks::{Marks, has_any, without_generation_tags};
pub(super) use source::{ChatFiles, Source};

/// What stands before ChatML for a tokenizer that puts BOS before every text.
const BOS: &str = "{{- bos_token }}\n";
/// ChatML's own end of a turn, and that of a tokenizer which has no such token: a model can stop there, and so can who
/// serves it.
const END: &str = "{%- set end = '<|im_end|>' %}\n";
const END_OF_TEXT: &str = "{%- set end = eos_token %}\n";
const IM_END: &str = "<|im_end|>";
/// ChatML, in which many models of today speak.
const CHATML: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content if message.content is string else message.content | default([], true) |
        map(attribute='text') | select('string') | join %}
    {%- if message.role == 'assistant' %}
        {%- generation -%}
        {{- content + end }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- content + end + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

const CHATML_ORIGIN: &str = "<chatml>";

/// The names of the templates in an environment; the second is for conversations with tools.
const PLAIN: &str = "plain";
const TOOL_USE: &str = "tool_use";

/// A template in Jinja's language by which a conversation becomes a text for a model, applied as transformers
/// applies it (`apply_chat_template`).
///
/// ```
/// use burn_peft::tokenizer::{ChatTemplate, Conversation};
///
/// let template = ChatTemplate::chatml();
/// let rendered = template.render(&Conversation::ask("What is a tyre made of?"), true)?;
/// assert_eq!(
///     rendered.text,
///     "<|im_start|>user\nWhat is a tyre made of?<|im_end|>\n<|im_start|>assistant\n"
/// );
/// # Ok::<(), burn_peft::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Source,
    marks_answers: bool,
    special_tokens: Map<String, Json>,
    /// The names of special tokens, which messages may say but do not become.
    words: Option<Arc<Regex>>,
    /// The names of these and of other tokens that are no pieces.
    added: Option<Arc<Regex>>,
}

impl ChatTemplate {
    /// A template from memory; `origin` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] with the line if it is no template.
    pub fn new(text: &str, origin: impl AsRef<Path>) -> Result<Self> {
        let path = origin.as_ref().to_owned();
        Self::of_sources(
            Source {
                text: text.to_owned(),
                path,
            },
            None,
        )
    }

    /// Reads a template from a file of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be read, and those of [`ChatTemplate::new`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(&read_text(path.as_ref())?, path)
    }

    /// The template that came with a tokenizer, if one did: `chat_template.jinja`, that of
    /// `tokenizer_config.json` (the one for tools where a conversation has some and there are several), or a
    /// GGUF file's.
    ///
    /// # Errors
    ///
    /// Those of [`ChatTemplate::new`].
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let files = &tokenizer.chat;
        let Some(source) = &files.template else {
            return Ok(None);
        };
        let template = Self::of_sources(source.clone(), files.tool_use.as_ref())?;
        Ok(Some(template.for_tokenizer(tokenizer)))
    }

    /// The template that a setting names: a file, or `chatml`; without one the tokenizer's own, or ChatML if
    /// it has none.
    ///
    /// # Errors
    ///
    /// Those of [`ChatTemplate::of`] and [`ChatTemplate::from_file`].
    pub fn choose(setting: Option<&str>, tokenizer: &Tokenizer) -> Result<Self> {
        let chatml = || Self::chatml().for_tokenizer(tokenizer);
        match setting {
            None => Ok(Self::of(tokenizer)?.unwrap_or_else(chatml)),
            Some("chatml") => Ok(chatml()),
            Some(path) => Ok(Self::from_file(path)?.for_tokenizer(tokenizer)),
        }
    }

    /// ChatML: `<|im_start|>role`, a line break, the message and `<|im_end|>`; the assistant's messages with
    /// their ends are marked as its own. [For a tokenizer](Self::for_tokenizer) that puts BOS before every text it
    /// begins with that, and turns end with EOS if the tokenizer knows no `<|im_end|>`.
    pub fn chatml() -> Self {
        Self::chatml_of("", END)
    }

    fn chatml_of(begin: &str, end: &str) -> Self {
        let text = [begin, end, CHATML].concat();
        Self::new(&text, CHATML_ORIGIN).expect("the template is valid")
    }

    /// The same with the special tokens of a tokenizer: by name for the template (`bos_token` and so on), and
    /// as words that stay words where a message says them.
    pub fn for_tokenizer(mut self, tokenizer: &Tokenizer) -> Self {
        if self.is_chatml() {
            let added = tokenizer.inner.get_added_tokens_decoder();
            let is_special = |id: &u32| added.get(id).is_some_and(|token| token.special);
            let lacks_end = tokenizer.inner.token_to_id(IM_END).is_none();
            let eos = tokenizer.eos_id.filter(|id| lacks_end && is_special(id));
            let begin = tokenizer.bos_id.map_or("", |_| BOS);
            self = Self::chatml_of(begin, eos.map_or(END, |_| END_OF_TEXT));
        }
        let names = [
            ("bos_token", tokenizer.bos_id),
            ("eos_token", tokenizer.eos_id),
        ];
        let word = |id: Option<u32>| Some(Json::from(tokenizer.inner.id_to_token(id?)?));
        let own = names
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_owned(), word(id)?)));
        self.special_tokens = own.collect();
        self.special_tokens
            .extend(tokenizer.chat.special_tokens.clone());
        self.words = words(tokenizer, true).map(Arc::new);
        self.added = words(tokenizer, false).map(Arc::new);
        self
    }

    /// Whether the template says which text is the assistant's, by `{% generation %}`.
    pub fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// Whether it is [`ChatTemplate::chatml`].
    pub fn is_chatml(&self) -> bool {
        self.origin() == Path::new(CHATML_ORIGIN)
    }

    /// Writes it as a folder's `chat_template.jinja`, where transformers and vLLM look for it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        write_text(&dir.as_ref().join(source::FILE), &self.source.text)
    }

    /// The file that it is from, or what it was called.
    pub fn origin(&self) -> &Path {
        &self.source.path
    }

    /// The conversation as a text; with `add_generation_prompt` up to where the assistant's next answer
    /// begins.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] with the template's file and line: what the template refuses, what it uses and is
    /// not there, a template that does not come to its end, and one that changes special tokens' names within
    /// messages.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let inputs = Json::Object(conversation.for_template(add_generation_prompt));
        let marks = Marks::absent_from(&self.source.text, &inputs);
        let plain = self.run(conversation, &inputs, marks)?;
        match &self.words {
            Some(words) if has_any(&inputs, words) => {
                let quoted = self.run(conversation, &marks.quote(&inputs, words), marks)?;
                self.require_same(&plain.text, quoted)
            }
            _ => Ok(plain),
        }
    }

    /// The tokens of a conversation up to where the assistant's next answer begins: what a model is asked.
    ///
    /// # Errors
    ///
    /// Those of [`ChatTemplate::render`] and [`ChatEncoder::encode`].
    pub fn prompt(&self, conversation: &Conversation, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let rendered = self.render(conversation, true)?;
        let tokens = ChatEncoder::new(tokenizer).encode(&rendered)?;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    fn of_sources(source: Source, tool_use: Option<&Source>) -> Result<Self> {
        let mut environment = environment();
        let mut marks_answers = true;
        for (name, source) in [(PLAIN, Some(&source)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            let (text, found) = without_generation_tags(&source.text.replace("\r\n", "\n"));
            marks_answers &= found;
            environment
                .add_template_owned(name, text)
                .map_err(|error| at_fault(&error, &source.path))?;
        }
        Ok(Self {
            environment: Arc::new(environment),
            source,
            marks_answers,
            special_tokens: Map::new(),
            words: None,
            added: None,
        })
    }

    fn run(&self, conversation: &Conversation, inputs: &Json, marks: Marks) -> Result<Rendered> {
        let name = match conversation.tools.is_empty() {
            false if self.environment.get_template(TOOL_USE).is_ok() => TOOL_USE,
            _ => PLAIN,
        };
        let mut variables = self.special_tokens.clone();
        variables.extend(inputs.as_object().cloned().unwrap_or_default());
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name, python::of_json(value)));
        let variables: Value = variables.chain(marks.variables()).collect();
        let template = self.environment.get_template(name);
        let text = template.and_then(|template| template.render(variables));
        let text = text.map_err(|error| at_fault(&error, &self.source.path))?;
        Ok(marks.take_from(&text))
    }

    /// A template that looks at messages by their letters may write another text where some are marked.
    fn require_same(&self, plain: &str, quoted: Rendered) -> Result<Rendered> {
        match quoted.text == plain {
            true => Ok(quoted),
            false => {
                let message = "a message has the name of a special token in its text, which the template \
                               changes, so that it cannot be told from a special token; take it out of the \
                               message";
                Err(Error::format(&self.source.path, message))
            }
        }
    }
}

/// What is wrong, and where in the template.
fn at_fault(error: &minijinja::Error, path: &Path) -> Error {
    let mut error = error;
    // The innermost says what and where.
    while let Some(inner) = std::error::Error::source(error).and_then(|inner| inner.downcast_ref())
    {
        error = inner;
    }
    let line = error
        .line()
        .map(|line| format!("line {line} of the chat template: "));
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too long; is there a loop without an end?".into(),
        (ErrorKind::UndefinedError, None) => "a value is used that is not defined".into(),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    Error::format(
        path,
        line.unwrap_or_else(|| "chat template: ".into()) + &what,
    )
}

/// The names of a tokenizer's special tokens, or of all that are no pieces, the longest first.
fn words(tokenizer: &Tokenizer, only_special: bool) -> Option<Regex> {
    let added = tokenizer.inner.get_added_tokens_decoder();
    let named = added
        .values()
        .filter(|token| token.special || !only_special);
    let names = named.map(|token| token.content.as_str());
    let mut words: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    words.sort_unstable_by_key(|word| (std::cmp::Reverse(word.len()), *word));
    let words: Vec<_> = words.into_iter().map(fancy_regex::escape).collect();
    (!words.is_empty()).then(|| Regex::new(&words.join("|")).expect("words are a pattern"))
}
