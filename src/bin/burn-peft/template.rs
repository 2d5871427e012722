//! The chat template of a model, as a program's arguments name it.

use std::path::Path;

use burn_peft::Result;
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};

/// A file that is asked for, or `chatml`; else that of a training which wrote conversations by another than the base's, beside
/// the adapter; else the tokenizer's own, or ChatML.
pub fn chat_template(
    asked: Option<&str>,
    adapter: Option<&Path>,
    tokenizer: &Tokenizer,
) -> Result<ChatTemplate> {
    let beside = adapter.map(|adapter| adapter.join("chat_template.jinja"));
    let beside = beside.filter(|file| file.exists());
    let chosen = asked.or(beside.as_deref().and_then(Path::to_str));
    ChatTemplate::choose(chosen, tokenizer)
}
