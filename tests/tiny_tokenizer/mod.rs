//! A tokenizer of a few pieces, as a `tokenizer.json` and as a SentencePiece model.

/// The pieces after `<unk>`, `<s>`, `</s>` and the 256 bytes, from the best score to the worst.
const PIECES: [&str; 12] = [
    "he",
    "ll",
    "\u{2581}he",
    "llo",
    "\u{2581}hello",
    "\u{2581}",
    "h",
    "e",
    "l",
    "o",
    "\u{2581}\u{2581}",
    "!",
];

/// The id of a piece of [`PIECES`].
pub fn id(piece: &str) -> u32 {
    let place = PIECES.iter().position(|p| *p == piece);
    259 + u32::try_from(place.expect("a piece of the tiny tokenizer")).unwrap()
}

/// A `tokenizer.json` that puts `<s>` before a text, with a length limit and padding left over from another use, which an
/// encoding must not obey.
pub fn json() -> String {
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let names = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let pieces = names.chain(bytes).chain(PIECES.map(str::to_owned));
    let vocab: serde_json::Map<_, _> = pieces.zip((0..).map(serde_json::Value::from)).collect();
    let special = |id: u32, content: &str| {
        serde_json::json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    serde_json::json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 20 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
        },
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        ] },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab,
            "merges": [
                ["h", "e"], ["l", "l"], ["\u{2581}", "he"], ["ll", "o"], ["\u{2581}he", "llo"],
                ["\u{2581}", "\u{2581}"],
            ],
        },
    })
    .to_string()
}
