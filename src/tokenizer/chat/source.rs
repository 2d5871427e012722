//! Where templates come from: files beside a tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::files::read_text;
use crate::tokenizer::{CONFIG_FILE, MAP_FILE};
use crate::{Error, Result};

pub(super) const FILE: &str = "chat_template.jinja";
/// The one of several that is for plain conversations.
const DEFAULT: &str = "default";
/// The one that is for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// A template's text and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tokenizer) struct Source {
    pub(in crate::tokenizer) text: String,
    pub(in crate::tokenizer) path: PathBuf,
}

/// What a tokenizer's files tell about conversations.
#[derive(Debug, Clone, Default)]
pub(in crate::tokenizer) struct ChatFiles {
    pub(in crate::tokenizer) template: Option<Source>,
    pub(in crate::tokenizer) tool_use: Option<Source>,
    /// Special tokens by the names that templates know: `bos_token` and so on.
    pub(in crate::tokenizer) special_tokens: Map<String, Value>,
}

impl ChatFiles {
    /// What lies beside a tokenizer's file: a template of its own, as in transformers 5, else that of
    /// `tokenizer_config.json`.
    pub(in crate::tokenizer) fn beside(tokenizer: &Path) -> Result<Self> {
        let read = |name| {
            let path = tokenizer.with_file_name(name);
            let config = path.exists().then(|| read_config(&path)).transpose()?;
            config.map_or_else(
                || Ok(Self::default()),
                |config| Self::of_config(config, &path),
            )
        };
        let (config, map) = (read(CONFIG_FILE)?, read(MAP_FILE)?);
        let own = own_file(&tokenizer.with_file_name(FILE))?;
        let folder = tokenizer.with_file_name("additional_chat_templates");
        let own_tool_use = own_file(&folder.join(format!("{TOOL_USE}.jinja")))?;
        let mut special_tokens = map.special_tokens;
        special_tokens.extend(config.special_tokens);
        Ok(Self {
            tool_use: own_tool_use
                .or(config.tool_use)
                .filter(|_| own.is_none() || folder.exists()),
            template: own.or(config.template),
            special_tokens,
        })
    }

    /// What a `tokenizer_config.json` tells.
    pub(in crate::tokenizer) fn of_config(config: Value, path: &Path) -> Result<Self> {
        let source = |text: &Value| {
            let text = text.as_str()?.to_owned();
            Some(Source {
                text,
                path: path.to_owned(),
            })
        };
        let named = |name: &str| {
            let list = config["chat_template"].as_array()?;
            let named = list.iter().find(|named| named["name"] == name)?;
            source(&named["template"])
        };
        match &config["chat_template"] {
            Value::Null | Value::String(_) | Value::Array(_) => Ok(Self {
                template: source(&config["chat_template"]).or_else(|| named(DEFAULT)),
                tool_use: named(TOOL_USE),
                special_tokens: special_tokens(&config),
            }),
            _ => {
                let message = "`chat_template` is neither a text nor a list of named texts";
                Err(Error::format(path, message))
            }
        }
    }
}

fn own_file(path: &Path) -> Result<Option<Source>> {
    let read = |path: &Path| {
        let text = read_text(path)?;
        Ok(Source {
            text,
            path: path.to_owned(),
        })
    };
    path.exists().then(|| read(path)).transpose()
}

fn read_config(path: &Path) -> Result<Value> {
    let config = serde_json::from_str(&read_text(path)?);
    config.map_err(|error| Error::format(path, error))
}

/// The fields `..._token`, each a text or an object with it.
fn special_tokens(config: &Value) -> Map<String, Value> {
    let fields = config.as_object().into_iter().flatten();
    let content = |value: &Value| {
        value
            .as_str()
            .or(value["content"].as_str())
            .map(Value::from)
    };
    let tokens = fields.filter(|(name, _)| name.ends_with("_token"));
    let tokens = tokens.filter_map(|(name, value)| Some((name.clone(), content(value)?)));
    tokens.collect()
}
