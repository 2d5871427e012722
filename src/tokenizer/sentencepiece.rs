//! Llama's SentencePiece `tokenizer.model` as a `tokenizer.json`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use sentencepiece_model::{ModelType, SentencePiece, SentencePieceModel, Type};
use serde_json::{Value, json};

use crate::{Error, Result};

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// The `tokenizer.json` that does what the SentencePiece model in `bytes` does.
///
/// # Errors
/// [`Error::Format`] if the bytes are no such model, or one of a kind that Llama does not use.
pub(super) fn to_json(bytes: &[u8], origin: &Path) -> Result<Vec<u8>> {
    let model = SentencePieceModel::from_slice(bytes).map_err(|e| {
        let message = format!(
            "neither JSON nor a SentencePiece model ({e}); Llama 3's tokenizer.model is of \
             another kind: use the tokenizer.json of the same release"
        );
        Error::format(origin, message)
    })?;
    check_supported(&model).map_err(|what| {
        let message = format!(
            "{what}; only Llama's kind of SentencePiece model is read (BPE with identity \
             normalisation): use the model's tokenizer.json"
        );
        Error::format(origin, message)
    })?;
    Ok(converted(&model).to_string().into_bytes())
}

/// `Err` with what the model has that [`converted`] would get wrong.
fn check_supported(model: &SentencePieceModel) -> Result<(), String> {
    let trainer = model.trainer().cloned().unwrap_or_default();
    let normalizer = model.normalizer().cloned().unwrap_or_default();
    let pieces = model.pieces();
    let identity = normalizer.precompiled_charsmap().is_empty();
    let distinct: HashSet<&str> = pieces.iter().map(SentencePiece::piece).collect();
    let objections = [
        (pieces.is_empty(), "the vocabulary is empty"),
        (distinct.len() < pieces.len(), "two pieces have one text"),
        (trainer.model_type() != ModelType::Bpe, "not a BPE model"),
        (!identity, "it normalises characters"),
        (!normalizer.escape_whitespaces(), "it keeps spaces as such"),
        (
            trainer.treat_whitespace_as_suffix(),
            "it puts spaces behind words",
        ),
        (
            pieces.iter().any(|p| p.r#type() == Type::UserDefined),
            "it has user-defined symbols",
        ),
    ];
    match objections.into_iter().find(|(found, _)| *found) {
        Some((_, what)) => Err(what.to_owned()),
        None => Ok(()),
    }
}

fn converted(model: &SentencePieceModel) -> Value {
    let trainer = model.trainer().cloned().unwrap_or_default();
    let normalizer = model.normalizer().cloned().unwrap_or_default();
    let mut vocab = serde_json::Map::new();
    let mut special = Vec::new();
    let mut unk = None;
    for (id, piece) in model.pieces().iter().enumerate() {
        vocab.insert(piece.piece().to_owned(), id.into());
        if piece.r#type() == Type::Unknown {
            unk = Some(piece.piece());
        }
        if matches!(piece.r#type(), Type::Unknown | Type::Control) {
            special.push(special_token(id, piece.piece()));
        }
    }
    json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": normalizers(
                normalizer.remove_extra_whitespaces(),
                normalizer.add_dummy_prefix(),
            ),
        },
        "decoder": { "type": "Sequence", "decoders": decoders(normalizer.add_dummy_prefix()) },
        "model": {
            "type": "BPE",
            "unk_token": unk,
            "fuse_unk": true,
            "byte_fallback": trainer.byte_fallback(),
            "vocab": vocab,
            "merges": merges(model),
        },
    })
}

fn special_token(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// Spaces at the ends and in rows go first, so that a text of spaces alone gets no prefix.
fn normalizers(remove_extra_whitespaces: bool, add_dummy_prefix: bool) -> Vec<Value> {
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let mut steps = Vec::new();
    if remove_extra_whitespaces {
        steps.push(replace(json!({ "Regex": r"\A +| +\z" }), ""));
        steps.push(replace(json!({ "Regex": " +" }), " "));
    }
    if add_dummy_prefix {
        steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    steps.push(replace(json!({ "String": " " }), SPACE));
    steps
}

fn decoders(add_dummy_prefix: bool) -> Vec<Value> {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if add_dummy_prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    steps
}

/// Every way to put a piece together from two others, the best score first.
///
/// SentencePiece joins the neighbours whose union scores best; a merge list says the same by its
/// order. Two ways to the same piece have the same score and are ordered by the ids of their parts.
fn merges(model: &SentencePieceModel) -> Vec<(&str, &str)> {
    let mut pieces: Vec<(usize, &SentencePiece)> = model
        .pieces()
        .iter()
        .enumerate()
        .filter(|(_, piece)| piece.r#type() == Type::Normal)
        .collect();
    let ids: HashMap<&str, usize> = pieces.iter().map(|(id, p)| (p.piece(), *id)).collect();
    pieces.sort_by(|(_, a), (_, b)| b.score().total_cmp(&a.score()));
    pieces
        .into_iter()
        .flat_map(|(_, piece)| halves(piece.piece(), &ids))
        .collect()
}

/// The cuts of `piece` into two known pieces.
fn halves<'a>(piece: &'a str, ids: &HashMap<&str, usize>) -> Vec<(&'a str, &'a str)> {
    let cuts = piece.char_indices().skip(1).map(|(i, _)| piece.split_at(i));
    let mut known: Vec<_> = cuts
        .filter_map(|(l, r)| Some(((ids.get(l)?, ids.get(r)?), (l, r))))
        .collect();
    known.sort_by_key(|(ids, _)| *ids);
    known.into_iter().map(|(_, cut)| cut).collect()
}
