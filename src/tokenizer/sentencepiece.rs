//! Llama's SentencePiece `tokenizer.model`: its own way to join pieces, and the rest as a `tokenizer.json`.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::sentencepiece_proto::{
    ModelProto, ModelType, NormalizerSpec, SentencePiece, TrainerSpec, Type,
};
use crate::{Error, Result};

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Reads a model, if it is one of the kind that Llama uses.
///
/// # Errors
/// [`Error::Format`] if the bytes are no such model.
pub(super) fn parse(bytes: &[u8], origin: &Path) -> Result<ModelProto> {
    let model = ModelProto::decode(bytes).map_err(|e| {
        let message = format!(
            "neither JSON, nor words of tiktoken, nor a SentencePiece model ({e}); use the tokenizer.json of the same \
             release"
        );
        Error::format(origin, message)
    })?;
    supported(model, origin)
}

/// A model of pieces with their scores and types, by id, as a file of another format has it. Pieces of bytes stand for what
/// has none.
///
/// # Errors
/// [`Error::Format`] if it is not of the kind that Llama uses.
pub(super) fn of_pieces(
    pieces: impl Iterator<Item = (String, f32, Type)>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    origin: &Path,
) -> Result<ModelProto> {
    let piece = |(text, score, kind)| SentencePiece {
        piece: Some(text),
        score: Some(score),
        kind: Some(kind as i32),
    };
    let pieces: Vec<_> = pieces.map(piece).collect();
    let has_bytes = pieces.iter().any(|piece| piece.kind() == Type::Byte);
    let model = ModelProto {
        pieces,
        trainer_spec: Some(TrainerSpec {
            model_type: Some(ModelType::Bpe as i32),
            byte_fallback: Some(has_bytes),
            ..TrainerSpec::default()
        }),
        normalizer_spec: Some(NormalizerSpec {
            add_dummy_prefix: Some(add_dummy_prefix),
            remove_extra_whitespaces: Some(remove_extra_whitespaces),
            ..NormalizerSpec::default()
        }),
    };
    supported(model, origin)
}

fn supported(model: ModelProto, origin: &Path) -> Result<ModelProto> {
    match check_supported(&model) {
        Ok(()) => Ok(model),
        Err(what) => {
            let message = format!(
                "{what}; only Llama's kind of SentencePiece model is read (BPE with identity \
                 normalisation): use the model's tokenizer.json"
            );
            Err(Error::format(origin, message))
        }
    }
}

/// `Err` with what the model has that [`Encoder`] would get wrong.
fn check_supported(model: &ModelProto) -> Result<(), String> {
    let trainer = model.trainer_spec.clone().unwrap_or_default();
    let normalizer = model.normalizer_spec.clone().unwrap_or_default();
    let pieces = &model.pieces;
    let identity = normalizer.precompiled_charsmap().is_empty();
    let distinct: HashSet<&str> = pieces.iter().map(SentencePiece::piece).collect();
    let objections = [
        (pieces.is_empty(), "the vocabulary is empty"),
        (distinct.len() < pieces.len(), "two pieces have one text"),
        (unknown(model).is_none(), "no piece is the unknown one"),
        (trainer.model_type() != ModelType::Bpe, "not a BPE model"),
        (!identity, "it normalises characters"),
        (!normalizer.escape_whitespaces(), "it keeps spaces as such"),
        (
            trainer.treat_whitespace_as_suffix(),
            "it puts spaces behind words",
        ),
    ];
    match objections.into_iter().find(|(found, _)| *found) {
        Some((_, what)) => Err(what.to_owned()),
        None => Ok(()),
    }
}

/// The id of the piece that stands for what has none.
pub(super) fn unknown(model: &ModelProto) -> Option<usize> {
    let is_unknown = |piece: &SentencePiece| piece.kind() == Type::Unknown;
    model.pieces.iter().position(is_unknown)
}

/// The `tokenizer.json` that decodes as the model does, and knows its tokens. It encodes nothing: in a list of
/// merges no two have the same rank.
pub(super) fn to_json(model: &ModelProto) -> Vec<u8> {
    let normalizer = model.normalizer_spec.clone().unwrap_or_default();
    let mut vocab = serde_json::Map::new();
    let mut special = Vec::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        vocab.insert(piece.piece().to_owned(), id.into());
        if matches!(piece.kind(), Type::Unknown | Type::Control) {
            special.push(special_token(id, piece.piece()));
        }
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": special,
        "decoder": { "type": "Sequence", "decoders": decoders(normalizer.add_dummy_prefix()) },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    json.to_string().into_bytes()
}

/// A token that a text has only by its id.
pub(super) fn special_token(id: usize, content: &str) -> Value {
    added_token(id, content, true)
}

/// A token that is no piece: what the tokenizer does not join.
pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
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

/// Encodes as SentencePiece does: of all neighbours whose union is a piece, those of the best score are joined
/// first, and of equal scores the leftmost.
#[derive(Debug)]
pub(super) struct Encoder {
    pieces: HashMap<String, Piece>,
    /// Symbols that are one wherever a text has them, and are joined to nothing, by their first character and the longest
    /// first.
    user_defined: HashMap<char, Vec<String>>,
    unknown: u32,
    /// The pieces of single bytes, where the model writes what it does not know by them.
    bytes: Option<Vec<u32>>,
    remove_extra_whitespaces: bool,
    add_dummy_prefix: bool,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    id: u32,
    score: f32,
    /// Only a step to others: taken apart again where it is left over.
    is_unused: bool,
}

impl Encoder {
    /// That of a model which [`parse`] has read.
    pub(super) fn new(model: &ModelProto) -> Self {
        let trainer = model.trainer_spec.clone().unwrap_or_default();
        let normalizer = model.normalizer_spec.clone().unwrap_or_default();
        let all = || (0..).zip(&model.pieces);
        let is_joined = |kind| matches!(kind, Type::Normal | Type::Unused | Type::UserDefined);
        let joined = all().filter(|(_, piece)| is_joined(piece.kind()));
        let piece = |(id, piece): (u32, &SentencePiece)| {
            let value = Piece {
                id,
                score: piece.score(),
                is_unused: piece.kind() == Type::Unused,
            };
            (piece.piece().to_owned(), value)
        };
        let bytes = all().filter(|(_, piece)| piece.kind() == Type::Byte);
        let bytes: HashMap<&str, u32> = bytes.map(|(id, piece)| (piece.piece(), id)).collect();
        let of_byte = |byte: u8| bytes.get(format!("<0x{byte:02X}>").as_str()).copied();
        Self {
            pieces: joined.map(piece).collect(),
            user_defined: user_defined(model),
            unknown: unknown(model).unwrap_or_default() as u32,
            bytes: (0..=u8::MAX)
                .map(of_byte)
                .collect::<Option<_>>()
                .filter(|_| trainer.byte_fallback()),
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces(),
            add_dummy_prefix: normalizer.add_dummy_prefix(),
        }
    }

    /// The ids of a text.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normalized(text);
        let mut joining = Joining::new(self, &text);
        joining.run();
        let mut ids = Vec::new();
        for symbol in joining.symbols.iter().filter(|symbol| symbol.is_alive()) {
            self.push(&text[symbol.start..symbol.end], &joining.parts, &mut ids);
        }
        ids
    }

    /// The longest user-defined symbol that a text, which begins with `first`, begins with.
    fn user_defined_at(&self, text: &str, first: char) -> Option<&str> {
        let symbols = self.user_defined.get(&first)?.iter();
        let mut symbols = symbols.filter(|symbol| text.starts_with(symbol.as_str()));
        symbols.next().map(String::as_str)
    }

    /// Spaces at the ends and in rows go first, so that a text of spaces alone gets no prefix.
    fn normalized(&self, text: &str) -> String {
        let mut text = match self.remove_extra_whitespaces {
            true => {
                let words = text.split(' ').filter(|word| !word.is_empty());
                words.collect::<Vec<_>>().join(" ")
            }
            false => text.to_owned(),
        };
        if self.add_dummy_prefix && !text.is_empty() {
            text.insert(0, ' ');
        }
        let text = text.replace(' ', SPACE);
        match self.remove_extra_whitespaces {
            // What the text itself has of this character goes at its end, too.
            true => text.trim_end_matches(SPACE).to_owned(),
            false => text,
        }
    }

    /// Appends the ids of a symbol, of which `parts` tells how it was put together.
    fn push(&self, symbol: &str, parts: &HashMap<&str, usize>, ids: &mut Vec<u32>) {
        match (self.pieces.get(symbol), parts.get(symbol)) {
            (Some(piece), Some(middle)) if piece.is_unused => {
                let (left, right) = symbol.split_at(*middle);
                self.push(left, parts, ids);
                self.push(right, parts, ids);
            }
            (Some(piece), _) => ids.push(piece.id),
            (None, _) => match &self.bytes {
                Some(bytes) => ids.extend(symbol.bytes().map(|byte| bytes[usize::from(byte)])),
                // One token for all that is unknown in a row.
                None if ids.last() == Some(&self.unknown) => {}
                None => ids.push(self.unknown),
            },
        }
    }
}

/// See [`Encoder::user_defined`].
fn user_defined(model: &ModelProto) -> HashMap<char, Vec<String>> {
    let pieces = model.pieces.iter();
    let pieces = pieces.filter(|piece| piece.kind() == Type::UserDefined);
    let mut symbols: HashMap<char, Vec<String>> = HashMap::new();
    for text in pieces.map(SentencePiece::piece) {
        if let Some(first) = text.chars().next() {
            symbols.entry(first).or_default().push(text.to_owned());
        }
    }
    for alike in symbols.values_mut() {
        alike.sort_by_key(|text| Reverse(text.len()));
    }
    symbols
}

/// A text while its symbols, at first its characters, are joined.
struct Joining<'a> {
    encoder: &'a Encoder,
    text: &'a str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
    /// Where the unused pieces that were met can be split.
    parts: HashMap<&'a str, usize>,
}

/// A part of the text and the places of its neighbours. One that has been joined to its left neighbour is
/// empty.
#[derive(Debug)]
struct Symbol {
    start: usize,
    end: usize,
    is_user_defined: bool,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Symbol {
    fn is_alive(&self) -> bool {
        self.start < self.end
    }
}

/// Two neighbours whose union is a piece. It is out of date once either has been joined to another.
#[derive(Debug, PartialEq)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Where the union ends.
    end: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // -0 is below 0, as in SentencePiece 0.2.3; to 0.2.0 they were equal.
        let by_score = self.score.total_cmp(&other.score);
        by_score.then_with(|| Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl<'a> Joining<'a> {
    fn new(encoder: &'a Encoder, text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut start = 0;
        while let Some(char) = text[start..].chars().next() {
            let symbol = encoder.user_defined_at(&text[start..], char);
            let end = start + symbol.map_or(char.len_utf8(), str::len);
            let place = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                is_user_defined: symbol.is_some(),
                previous: place.checked_sub(1),
                next: (end < text.len()).then_some(place + 1),
            });
            start = end;
        }
        Self {
            encoder,
            text,
            symbols,
            candidates: BinaryHeap::new(),
            parts: HashMap::new(),
        }
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.consider(Some(right - 1), Some(right));
        }
        while let Some(best) = self.candidates.pop() {
            if self.is_current(&best) {
                self.join(&best);
            }
        }
    }

    /// Adds two neighbours to the candidates if their union is a piece.
    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let [first, second] = [left, right].map(|place| &self.symbols[place]);
        if first.is_user_defined || second.is_user_defined {
            return;
        }
        let (start, end) = (first.start, second.end);
        let union = &self.text[start..end];
        let Some(piece) = self.encoder.pieces.get(union) else {
            return;
        };
        if piece.is_unused {
            self.parts.insert(union, self.symbols[right].start - start);
        }
        self.candidates.push(Candidate {
            score: piece.score,
            left,
            right,
            end,
        });
    }

    fn is_current(&self, candidate: &Candidate) -> bool {
        let [left, right] = [candidate.left, candidate.right].map(|place| &self.symbols[place]);
        // Where a symbol begins does not change while it is alive.
        left.is_alive() && left.end == right.start && right.is_alive() && right.end == candidate.end
    }

    fn join(&mut self, &Candidate { left, right, .. }: &Candidate) {
        let Symbol { end, next, .. } = self.symbols[right];
        self.symbols[right].start = end;
        self.symbols[left].end = end;
        self.symbols[left].next = next;
        if let Some(next) = next {
            self.symbols[next].previous = Some(left);
        }
        self.consider(self.symbols[left].previous, Some(left));
        self.consider(Some(left), next);
    }
}
