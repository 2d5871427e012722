//! A conversation, as chat templates take it.

use serde_json::{Map, Value, json};

/// One message of a [`Conversation`]: a JSON object with a `role` and whatever else the template reads of it,
/// `content` (a text, or a list of parts), `name`, `tool_calls`, `tool_call_id`, `reasoning_content` and so
/// on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of text.
    ///
    /// ```
    /// use burn_peft::tokenizer::Message;
    ///
    /// let message = Message::new("user", "What is a tyre made of?");
    /// assert_eq!(message.role(), "user");
    /// assert_eq!(message.text(), "What is a tyre made of?");
    /// ```
    pub fn new(role: &str, content: &str) -> Self {
        let fields = [("role", role), ("content", content)];
        Self(
            fields
                .map(|(key, text)| (key.into(), text.into()))
                .into_iter()
                .collect(),
        )
    }

    /// A message as JSON has it. Keys that are `null` are left out, as transformers does before a template
    /// sees them.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words: it is no object, or `role` is not a text of letters, digits, `_`, `-`
    /// and `.` (a template may write it without looking at it), or `content` is neither a text nor a list of
    /// parts.
    pub fn from_json(value: Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err("a message is not an object with `role` and `content`".into());
        };
        let fields: Map<_, _> = fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect();
        let is_plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        match fields.get("role") {
            Some(Value::String(role)) if !role.is_empty() && role.chars().all(is_plain) => {}
            Some(Value::String(role)) => return Err(format!("`role` is {role:?}; write a word")),
            Some(_) => return Err("`role` is not a text".into()),
            None => return Err("a message has no `role`".into()),
        }
        let is_part = |part: &Value| part.is_object() || part.is_string();
        match fields.get("content") {
            None | Some(Value::String(_)) => Ok(Self(fields)),
            Some(Value::Array(parts)) if parts.iter().all(is_part) => Ok(Self(fields)),
            Some(_) => Err("`content` is neither a text nor a list of parts".into()),
        }
    }

    /// Who says it: `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub fn role(&self) -> &str {
        self.0["role"].as_str().unwrap_or_default()
    }

    /// Its text; of a list of parts, those that are text, one after the other.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let text =
                    |part: &'_ Value| part.as_str().or(part["text"].as_str()).map(str::to_owned);
                parts.iter().filter_map(text).collect()
            }
            _ => String::new(),
        }
    }

    /// The same with another field.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// All fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    pub(crate) fn fields_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// Whether it says nothing, shows nothing and calls no tool.
    pub fn is_empty(&self) -> bool {
        let list = |key| self.0.get(key).and_then(Value::as_array);
        let is_text = |part: &Value| part.is_string() || part["text"].is_string();
        self.text().trim().is_empty()
            && list("tool_calls").is_none_or(Vec::is_empty)
            && list("content").is_none_or(|parts| parts.iter().all(is_text))
    }

    /// The fields by which a message says whether it is to be learned: OpenAI's and axolotl's.
    pub(crate) const SAYS_WHETHER_LEARNED: [&str; 2] = ["weight", "train"];

    /// Whether it is the assistant's and to be learned: not if its `weight` is 0 or `train` is `false`.
    pub fn is_learned(&self) -> bool {
        let is_no = |value: &Value| value.as_f64() == Some(0.0) || value.as_bool() == Some(false);
        let mut said = Self::SAYS_WHETHER_LEARNED.iter();
        let is_left_out = said.any(|key| self.0.get(*key).is_some_and(is_no));
        self.role() == "assistant" && !is_left_out
    }

    /// What a template sees: a message's thoughts by the names that templates know, as transformers gives
    /// them.
    pub(super) fn for_template(&self) -> Value {
        const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
        let mut fields = self.0.clone();
        if let Some(thoughts) = NAMES.iter().find_map(|name| self.0.get(*name)) {
            fields.entry("thinking").or_insert_with(|| thoughts.clone());
            fields.insert(NAMES[0].into(), thoughts.clone());
        }
        fields.into()
    }
}

/// Messages in their order, with the tools that the assistant may call.
///
/// ```
/// use burn_peft::tokenizer::{Conversation, Message};
///
/// let conversation = Conversation::new([
///     Message::new("user", "What is a tyre made of?"),
///     Message::new("assistant", "Rubber."),
/// ]);
/// assert_eq!(conversation.messages[1].role(), "assistant");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conversation {
    /// What is said.
    pub messages: Vec<Message>,
    /// The tools, each a JSON schema.
    pub tools: Vec<Value>,
    /// Further variables for the template, `enable_thinking` say.
    pub variables: Map<String, Value>,
    /// How many messages at the beginning are a prompt, of which nothing is to be learned whoever says it.
    pub num_given: usize,
}

impl Conversation {
    /// These messages, without tools.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self {
            messages: messages.into_iter().collect(),
            ..Self::default()
        }
    }

    /// A conversation of one question.
    pub fn ask(text: &str) -> Self {
        Self::new([Message::new("user", text)])
    }

    /// The same with other [`tools`](Self::tools).
    pub fn with_tools(mut self, tools: Vec<Value>) -> Self {
        self.tools = tools;
        self
    }

    /// The same with a variable for the template.
    pub fn with_variable(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The same with another [`num_given`](Self::num_given).
    pub fn with_num_given(mut self, num_given: usize) -> Self {
        self.num_given = num_given;
        self
    }

    /// What the assistant says that is to be learned, and which messages these are.
    pub fn learned(&self) -> impl DoubleEndedIterator<Item = (usize, &Message)> {
        let messages = self.messages.iter().enumerate().skip(self.num_given);
        messages.filter(|(_, message)| message.is_learned())
    }

    /// Its first messages alone.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn up_to(&self, count: usize) -> Self {
        Self {
            messages: self.messages[..count].to_vec(),
            tools: self.tools.clone(),
            variables: self.variables.clone(),
            num_given: self.num_given.min(count),
        }
    }

    /// Everything that a template is given.
    pub(super) fn for_template(&self, add_generation_prompt: bool) -> Map<String, Value> {
        let messages = self.messages.iter().map(Message::for_template);
        let tools = match self.tools.is_empty() {
            true => Value::Null,
            false => self.tools.clone().into(),
        };
        let mut all: Map<_, _> = [("documents".to_owned(), Value::Null)]
            .into_iter()
            .collect();
        all.extend(self.variables.clone());
        all.insert("messages".into(), messages.collect());
        all.insert("tools".into(), tools);
        all.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        all
    }
}
