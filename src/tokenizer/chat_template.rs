//! The chat template of a model folder.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::CONFIG_FILE;
use crate::files::read_text;
use crate::{Error, Result};

const FILE: &str = "chat_template.jinja";
/// The one of several that is for plain conversations.
const DEFAULT: &str = "default";

/// What is read of `tokenizer_config.json`.
#[derive(Deserialize)]
struct Config {
    chat_template: Option<Templates>,
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// The template beside a tokenizer's file: a file of its own, as in transformers 5, else that of `tokenizer_config.json`.
pub(super) fn beside(tokenizer: &Path) -> Result<Option<Arc<str>>> {
    let path = tokenizer.with_file_name(FILE);
    if path.exists() {
        return Ok(Some(read_text(&path)?.into()));
    }
    let path = tokenizer.with_file_name(CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let config = serde_json::from_str(&read_text(&path)?);
    let config: Config = config.map_err(|error| Error::format(&path, error))?;
    let template = match config.chat_template {
        None => None,
        Some(Templates::One(template)) => Some(template),
        Some(Templates::Named(named)) => {
            let default = named.into_iter().find(|named| named.name == DEFAULT);
            default.map(|named| named.template)
        }
    };
    Ok(template.map(Arc::from))
}
