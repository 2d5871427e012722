//! One record of each format, from the object that a file has.

use serde_json::{Map, Value, json};

use super::alpaca;
use super::records::{Format, Record};
use crate::error::nearest;
use crate::tokenizer::{Conversation, Message};

type Fields = Map<String, Value>;

/// Whose words ShareGPT's `from` means, as a role.
const ROLES: [(&str, &str); 15] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("function", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("function_call", CALL),
];
/// Keys of an Alpaca record beyond one question and its answer.
pub(super) const TURNS: [&str; 2] = ["system", "history"];
/// The role of an assistant's message that is a call in JSON.
const CALL: &str = "function_call";

/// The format whose keys an object has.
pub(super) fn detect(object: &Fields) -> Option<Format> {
    let mut formats = Format::KEYS.into_iter();
    let found = formats.find(|(_, keys)| keys.iter().all(|key| object.contains_key(*key)));
    found.map(|(format, _)| format)
}

/// The format of a record, or what its keys are instead.
pub(super) fn of_record(record: &Value) -> Result<Format, String> {
    let Some(object) = record.as_object() else {
        return Err("the first record is not an object".into());
    };
    detect(object).ok_or_else(|| {
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        let known = Format::KEYS.iter().flat_map(|(_, keys)| *keys).copied();
        let known: Vec<&str> = known.collect();
        let near = keys.iter().flat_map(|key| nearest(key, known.iter().copied(), 1)).next();
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        format!(
            "the first record has the keys {}; records are known by `messages` (role, content), \
             `conversations` (from, value), `prompt` and `completion`, `instruction` and `output`, or `text`{near}",
            keys.join(", ")
        )
    })
}

/// Whether a record of Alpaca's keys has more than one exchange, or a system message.
pub(super) fn has_turns(record: &Value) -> bool {
    let is_filled = |value: &Value| match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(turns) => !turns.is_empty(),
        _ => false,
    };
    TURNS.iter().any(|key| is_filled(&record[*key]))
}

/// The record, or what is wrong with it; `is_chat` makes conversations of Alpaca's.
pub(super) fn record(value: Value, format: Format, is_chat: bool) -> Result<Record, String> {
    let Value::Object(fields) = value else {
        return Err("not an object".into());
    };
    match format {
        Format::Alpaca if is_chat => alpaca_chat(fields).map(Record::Chat),
        Format::Alpaca | Format::Auto => alpaca::record(fields.into()).map(Record::Alpaca),
        Format::Messages => chat(fields, "messages").map(Record::Chat),
        Format::Sharegpt => chat(fields, "conversations").map(Record::Chat),
        Format::PromptCompletion => completion(fields),
        Format::Text => text(&fields, "text").map(Record::Text),
    }
}

fn text(fields: &Fields, key: &str) -> Result<String, String> {
    match fields.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        None | Some(Value::Null) => Err(format!("`{key}` is missing")),
        Some(_) => Err(format!("`{key}` is not a text")),
    }
}

fn chat(mut fields: Fields, key: &str) -> Result<Conversation, String> {
    let messages = messages(
        list(&fields, key)?.ok_or(format!("`{key}` is missing"))?,
        key,
    )?;
    let says_system = messages
        .first()
        .is_some_and(|message| message.role() == "system");
    let system = match fields.get("system") {
        Some(Value::String(system)) if !system.is_empty() && !says_system => {
            Some(Message::new("system", system))
        }
        _ => None,
    };
    let conversation = Conversation::new(system.into_iter().chain(messages));
    with_surroundings(conversation, &mut fields)
}

/// Tools, and variables for the template.
fn with_surroundings(
    conversation: Conversation,
    fields: &mut Fields,
) -> Result<Conversation, String> {
    let tools = list(fields, "tools")?.unwrap_or_default();
    let conversation = conversation.with_tools(tools);
    match fields.remove("chat_template_kwargs") {
        None | Some(Value::Null) => Ok(conversation),
        Some(Value::Object(variables)) => {
            let variables = variables.into_iter();
            Ok(variables.fold(conversation, |all, (name, value)| {
                all.with_variable(&name, value)
            }))
        }
        Some(_) => Err("`chat_template_kwargs` is not an object".into()),
    }
}

/// A list, or one that is written as a text.
fn list(fields: &Fields, key: &str) -> Result<Option<Vec<Value>>, String> {
    let wrong = || format!("`{key}` is not a list");
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items.clone())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text).map(Some).map_err(|_| wrong()),
        Some(_) => Err(wrong()),
    }
}

fn messages(items: Vec<Value>, key: &str) -> Result<Vec<Message>, String> {
    if items.is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    let number = |place: usize, what: String| format!("`{key}`, message {}: {what}", place + 1);
    let items = items.into_iter().enumerate();
    items
        .map(|(place, item)| message(item).map_err(|what| number(place, what)))
        .collect()
}

/// A message with `role` and `content`, or with ShareGPT's `from` and `value`.
fn message(mut item: Value) -> Result<Message, String> {
    let Some(fields) = item
        .as_object_mut()
        .filter(|fields| fields.contains_key("from"))
    else {
        let mut message = Message::from_json(item)?;
        read_arguments(message.fields_mut());
        return Ok(message);
    };
    let (from, value) = (text(fields, "from")?, text(fields, "value")?);
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
        let known: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "`from` is {from:?}; known are {}",
            known.join(", ")
        ));
    };
    let message = match *role {
        CALL => call(&value),
        role => Message::new(role, &value),
    };
    let says = Message::SAYS_WHETHER_LEARNED.map(|key| (key, fields.get(key)));
    let said = says
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    Ok(said.fold(message, |message, (key, value)| {
        message.with(key, value.clone())
    }))
}

/// An assistant's message that calls a tool, or several; what is no JSON is said as it is.
fn call(value: &str) -> Message {
    let calls = match serde_json::from_str(value) {
        Ok(Value::Array(calls)) => calls,
        Ok(Value::Object(call)) => vec![call.into()],
        _ => return Message::new("assistant", value),
    };
    let calls = calls
        .into_iter()
        .map(|call| json!({ "type": "function", "function": call }));
    let mut message = Message::new("assistant", "").with("tool_calls", calls.collect::<Value>());
    read_arguments(message.fields_mut());
    message
}

/// OpenAI writes a call's arguments as a text in JSON; templates want the object.
fn read_arguments(message: &mut Fields) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = match call.get("function") {
            Some(_) => call.pointer_mut("/function/arguments"),
            None => call.get_mut("arguments"),
        };
        let Some(arguments) = arguments else { continue };
        let parsed = arguments
            .as_str()
            .and_then(|text| serde_json::from_str::<Fields>(text).ok());
        if let Some(parsed) = parsed {
            *arguments = parsed.into();
        }
    }
}

fn completion(mut fields: Fields) -> Result<Record, String> {
    let is_list = |value: Option<&Value>| match value {
        Some(Value::Array(_)) => true,
        // In a cell of a table.
        Some(Value::String(text)) => serde_json::from_str::<Vec<Fields>>(text).is_ok(),
        _ => false,
    };
    if !is_list(fields.get("prompt")) {
        let (prompt, completion) = (text(&fields, "prompt")?, text(&fields, "completion")?);
        return Ok(Record::Completion { prompt, completion });
    }
    let of = |key: &str| {
        messages(
            list(&fields, key)?.ok_or(format!("`{key}` is missing"))?,
            key,
        )
    };
    let (prompt, completion) = (of("prompt")?, of("completion")?);
    let given = prompt.len();
    let conversation =
        Conversation::new(prompt.into_iter().chain(completion)).with_num_given(given);
    with_surroundings(conversation, &mut fields).map(Record::Chat)
}

/// An instruction after what was said before it: `history` is a list of questions with their answers.
fn alpaca_chat(mut fields: Fields) -> Result<Conversation, String> {
    let mut said = Vec::new();
    match fields.remove("system") {
        Some(Value::String(system)) if !system.trim().is_empty() => {
            said.push(Message::new("system", &system))
        }
        None | Some(Value::Null | Value::String(_)) => {}
        Some(_) => return Err("`system` is not a text".into()),
    }
    for turn in list(&fields, "history")?.unwrap_or_default() {
        let texts = turn
            .as_array()
            .map(|pair| pair.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        match texts.as_deref() {
            Some([question, answer]) => {
                said.extend([
                    Message::new("user", question),
                    Message::new("assistant", answer),
                ]);
            }
            _ => {
                return Err(
                    "`history` is not a list of questions with their answers, two texts each"
                        .into(),
                );
            }
        }
    }
    let last = Conversation::from(&alpaca::record(fields.into())?);
    Ok(Conversation::new(said.into_iter().chain(last.messages)))
}
