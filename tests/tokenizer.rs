//! Tokenizers against the ids that SentencePiece and transformers give.
//!
//! The tokenizers of Llama 2 and of stories260K are not part of this repository. Tests that need
//! them look in the folder that `BURN_PEFT_SHARED` names and are skipped without it.

#[path = "support/at_hand.rs"]
mod at_hand;
#[path = "tiny_tokenizer/sentencepiece.rs"]
mod sentencepiece;
mod tiny_tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use at_hand::left_out;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use burn_peft::Error;
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use proptest::prelude::*;
use sentencepiece::Model;
use serde::Deserialize;
use serde_json::{Value, json};
use tiny_tokenizer::id;

#[derive(Deserialize)]
struct Golden {
    vocab: usize,
    bos: u32,
    eos: u32,
    unk: u32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn shared(path: &str) -> Option<PathBuf> {
    match std::env::var_os("BURN_PEFT_SHARED") {
        Some(root) => Some(Path::new(&root).join(path)),
        None => {
            let why = format!("BURN_PEFT_SHARED does not name the folder that has {path}");
            left_out("shared", &why);
            None
        }
    }
}

fn golden(name: &str) -> Golden {
    let path = format!(
        "{}/tests/fixtures/golden/tokenizer_{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_copied_tokenizer_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/tiny");
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["tokenizer_config.json", "model.safetensors"] {
        fs::write(model.join(name), "{}").unwrap();
    }
    for name in ["tokenizer.json", "of_another_name"] {
        fs::copy(assets.join("tokenizer.json"), model.join(name)).unwrap();
    }
    let for_tools = "additional_chat_templates";
    let all = [for_tools, "tokenizer.json", "tokenizer_config.json"];
    fs::create_dir(model.join(for_tools)).unwrap();
    fs::write(model.join(for_tools).join("tool_use.jinja"), "own").unwrap();
    // A file alone, a folder, a file with what lies beside it: no weights.
    for (from, expected) in [
        (assets.join("tokenizer.json"), &["tokenizer.json"][..]),
        (model.clone(), &all),
        (model.join("of_another_name"), &all),
    ] {
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(to.path().join(for_tools)).unwrap();
        // Another tokenizer gives way.
        let tool_use = to.path().join(for_tools).join("tool_use.jinja");
        fs::write(&tool_use, "another's").unwrap();
        for name in ["tokenizer.model", "chat_template.jinja"] {
            fs::write(to.path().join(name), "another's").unwrap();
        }
        copy_tokenizer(&from, to.path()).unwrap();
        copy_tokenizer(to.path(), to.path()).unwrap();
        let entries = fs::read_dir(to.path()).unwrap();
        let mut found: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, expected, "{}", from.display());
        if expected.contains(&for_tools) {
            assert_eq!(fs::read_to_string(tool_use).unwrap(), "own");
        }
        let text = "What is a tyre made of?";
        let encode = |path: &Path| Tokenizer::from_dir(path).unwrap().encode(text).unwrap();
        assert_eq!(encode(to.path()), encode(&assets));
    }
    let error = copy_tokenizer(dir.path().join("none.json"), dir.path()).unwrap_err();
    assert!(error.to_string().contains("none.json"), "{error}");
}

/// BOS and EOS of a tokenizer's file with others beside it.
fn special_ids(tokenizer: (&str, &[u8]), beside: &[(&str, &str)]) -> [Option<u32>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let beside = beside.iter().map(|(name, text)| (*name, text.as_bytes()));
    for (name, bytes) in beside.chain([tokenizer]) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    [tokenizer.bos_id(), tokenizer.eos_id()]
}

/// Those of the tiny `tokenizer.json` with this post-processor.
fn json_ids(post_processor: Value, config: &str) -> [Option<u32>; 2] {
    let mut json: Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
    json["post_processor"] = post_processor;
    let json = json.to_string();
    let file = ("tokenizer.json", json.as_bytes());
    special_ids(file, &[("tokenizer_config.json", config)])
}

/// A post-processor that puts these tokens before and behind a text.
fn template(before: &[(&str, u32)], behind: &[(&str, u32)]) -> Value {
    let part = |(token, _): &(&str, u32)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let before_text = before.iter().map(part).chain([text("A")]);
    let tokens = before.iter().chain(behind).map(|(token, id)| {
        let value = json!({ "id": token, "ids": [id], "tokens": [token] });
        ((*token).to_owned(), value)
    });
    json!({
        "type": "TemplateProcessing",
        "single": before_text.chain(behind.iter().map(part)).collect::<Vec<_>>(),
        "pair": [text("A"), text("B")],
        "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
    })
}

/// What reading a tokenizer says that is the tiny one but for a part.
fn complaint(edit: impl FnOnce(&mut Value)) -> String {
    let mut json: Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
    edit(&mut json);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let error = Tokenizer::from_file(&path).unwrap_err().to_string();
    let message = error.strip_prefix(&format!("{}: ", path.display()));
    message.expect("the file is named").to_owned()
}

/// The same of what is looked at before the library sees it. The file is of a version that the library refuses, so that it does
/// no harm to what does not look.
fn checked(edit: impl FnOnce(&mut Value)) -> String {
    complaint(|json| {
        json["version"] = json!("0");
        edit(json);
    })
}

#[test]
fn a_template_that_names_what_it_does_not_define() {
    let without_token = || {
        let mut template = template(&[("<s>", 1)], &[]);
        template["special_tokens"] = json!({});
        template
    };
    let expected =
        "`post_processor.single` names the token `<s>`, which is not in its `special_tokens`";
    assert_eq!(
        checked(|json| json["post_processor"] = without_token()),
        expected
    );
    let sequence = || json!({ "type": "Sequence", "processors": [without_token()] });
    assert_eq!(
        checked(|json| json["post_processor"] = sequence()),
        expected
    );

    let of_texts = |texts: &[&str]| {
        let text = |id: &&str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let mut template = template(&[], &[]);
        template["single"] = texts.iter().map(text).collect();
        template
    };
    for texts in [&["B"][..], &["A", "B"], &[]] {
        let message = checked(|json| json["post_processor"] = of_texts(texts));
        assert!(
            message.contains("must have the sequence `A` once"),
            "{message}"
        );
    }
    let twice = json!({ "type": "Sequence", "processors": [template(&[("<s>", 1)], &[]), of_texts(&["A"])] });
    let message = checked(|json| json["post_processor"] = twice);
    assert_eq!(
        message,
        "`post_processor` has 2 templates, one behind the other"
    );
    let message = complaint(|json| json["post_processor"] = template(&[("<s>", 999)], &[]));
    assert!(
        message.contains("puts `<s>` before a text, with the id 999, which no token has"),
        "{message}"
    );
}

#[test]
fn parts_of_a_tokenizer_that_none_can_have() {
    let strip = json!({ "type": "Strip", "content": " ", "start": 0, "stop": 1 });
    for (part, value, expected) in [
        (
            "pre_tokenizer",
            json!({ "type": "FixedLength", "length": 0 }),
            "parts of the length 0",
        ),
        ("decoder", strip.clone(), "strips the ends of tokens"),
        (
            "decoder",
            json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, strip] }),
            "strips the ends of tokens",
        ),
        (
            "normalizer",
            json!({ "type": "Precompiled" }),
            "`normalizer.precompiled_charsmap` is damaged",
        ),
        (
            "normalizer",
            charsmap(&[], ""),
            "`normalizer.precompiled_charsmap` is damaged",
        ),
        (
            "model",
            json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "cc": 2 }, "merges": ["a b"] }),
            "`model.merges` has `a b`, but `model.vocab` has no `ab`",
        ),
        (
            "model",
            json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "cc": 2 }, "merges": [["a", "b"]] }),
            "`model.merges` has `a b`, but `model.vocab` has no `ab`",
        ),
        (
            "model",
            json!({
                "type": "BPE", "continuing_subword_prefix": "##", "vocab": { "a": 0, "b": 1, "ab": 2 },
                "merges": [["a", "b"]]
            }),
            "`model.merges` has `a b`, whose second part does not begin with `##`",
        ),
    ] {
        let message = checked(|json| {
            json["added_tokens"] = json!([]);
            json[part] = value.clone();
        });
        assert!(message.contains(expected), "{part} {value}: {message}");
    }
}

#[test]
fn a_tokenizer_without_words() {
    for model in [
        json!({ "type": "BPE", "vocab": {}, "merges": [] }),
        json!({ "type": "Unigram", "unk_id": null, "vocab": [] }),
    ] {
        let message = complaint(|json| {
            json["added_tokens"] = json!([]);
            json["model"] = model;
        });
        assert!(message.contains("the vocabulary is empty"), "{message}");
    }
}

/// SentencePiece's map of letters: a trie, and the texts of its leaves.
fn charsmap(trie: &[u32], texts: &str) -> Value {
    let size = 4 * trie.len() as u32;
    let trie = [size]
        .into_iter()
        .chain(trie.iter().copied())
        .flat_map(u32::to_le_bytes);
    let bytes: Vec<u8> = trie.chain(texts.bytes()).collect();
    json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(bytes) })
}

#[test]
fn a_map_of_letters_leads_nowhere_else() {
    // "A" is a child of the root, whose children begin at 256; its leaf is the unit before it, and says where "a" stands.
    let mut trie = vec![0; 512];
    trie[0] = 256 << 10;
    trie[256 + 65] = 65 | (1 << 8) | (1 << 10);
    trie[256 + 64] = 1;
    let texts = "_a\0";
    let mut json: Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
    json["normalizer"] = charsmap(&trie, texts);
    let tokenizer = Tokenizer::from_json_bytes(json.to_string().as_bytes()).unwrap();
    assert_eq!(
        tokenizer.encode("A").unwrap(),
        tokenizer.encode("a").unwrap()
    );

    let damaged = |place: usize, unit: u32| {
        let mut trie = trie.clone();
        trie[place] = unit;
        charsmap(&trie, texts)
    };
    for map in [
        charsmap(&trie[..300], texts),
        charsmap(&trie, ""),
        damaged(0, 512 << 10),
        damaged(256 + 65, 65 | (1 << 8) | (999 << 10)),
        damaged(256 + 64, 4),
    ] {
        let message = checked(|json| {
            json["normalizer"] = json!({ "type": "Sequence", "normalizers": [map] })
        });
        assert_eq!(message, "`normalizer.precompiled_charsmap` is damaged");
    }
}

/// As in transformers 5, where `add_bos_token` says nothing beside a `tokenizer.json`.
#[test]
fn bos_is_what_a_tokenizer_json_puts_before_a_text() {
    let (bos, eos, unk) = (("<s>", 1), ("</s>", 2), ("<unk>", 0));
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true
    });
    for config in [
        "{}",
        r#"{"bos_token": "<s>"}"#,
        r#"{"bos_token": "<s>", "add_bos_token": true}"#,
        r#"{"bos_token": "</s>", "add_bos_token": false}"#,
    ] {
        for (post_processor, expected) in [
            (template(&[bos], &[]), Some(1)),
            (template(&[unk], &[eos]), Some(0)),
            (template(&[], &[eos]), None),
            (byte_level.clone(), None),
            (Value::Null, None),
        ] {
            let ids = json_ids(post_processor.clone(), config);
            assert_eq!(ids, [expected, Some(2)], "{post_processor} {config}");
        }
    }
}

#[test]
fn eos_is_what_a_tokenizer_config_names() {
    for (config, eos) in [
        // The end of a chat's turn in place of that of a document.
        (r#"{"eos_token": "<unk>"}"#, 0),
        (r#"{"eos_token": {"content": "<unk>", "lstrip": false}}"#, 0),
        (r#"{"eos_token": null}"#, 2),
        (r#"{"eos_token": ""}"#, 2),
        (r#"{"eos_token": {"content": ""}}"#, 2),
        ("{}", 2),
    ] {
        let ids = json_ids(Value::Null, config);
        assert_eq!(ids, [None, Some(eos)], "{config}");
    }
}

/// It does not tell itself what stands before a text.
#[test]
fn special_tokens_of_a_sentencepiece_model() {
    let model = Model::default().bytes();
    for (config, bos) in [
        ("{}", Some(1)),
        (r#"{"bos_token": null, "add_bos_token": null}"#, Some(1)),
        (r#"{"bos_token": "", "add_bos_token": true}"#, Some(1)),
        (r#"{"bos_token": "</s>", "add_bos_token": true}"#, Some(2)),
        (r#"{"bos_token": {"content": "</s>"}}"#, Some(2)),
        (r#"{"bos_token": "<s>", "add_bos_token": false}"#, None),
    ] {
        let beside = [("tokenizer_config.json", config)];
        let ids = special_ids(("tokenizer.model", &model), &beside);
        assert_eq!(ids, [bos, Some(2)], "{config}");
    }
}

/// As in transformers 5: the older file holds, unless the other has what makes it needless.
#[test]
fn special_tokens_that_a_map_names() {
    let model = Model::default().bytes();
    let map = r#"{"bos_token": {"content": "</s>"}, "eos_token": "<unk>"}"#;
    let complete = r#"{"eos_token": "<s>", "added_tokens_decoder": {}}"#;
    for (config, expected) in [
        (None, [2, 0]),
        (Some("{}"), [2, 0]),
        (Some(r#"{"bos_token": "<s>", "eos_token": "<s>"}"#), [2, 0]),
        (Some(complete), [2, 1]),
        (Some(r#"{"added_tokens_decoder": {}}"#), [2, 0]),
    ] {
        let config = config.map(|config| ("tokenizer_config.json", config));
        let beside = Vec::from_iter(config.into_iter().chain([("special_tokens_map.json", map)]));
        let ids = special_ids(("tokenizer.model", &model), &beside);
        assert_eq!(ids, expected.map(Some), "{config:?}");
        let json = tiny_tokenizer::json();
        let ids = special_ids(("tokenizer.json", json.as_bytes()), &beside);
        assert_eq!(ids, [Some(1), Some(expected[1])], "{config:?}");
    }
}

/// As in transformers 5: the file of its own, else the default one of `tokenizer_config.json`.
#[test]
fn the_chat_template_that_lies_beside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tiny_tokenizer::json()).unwrap();
    let template = || {
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        tokenizer.chat_template().map(str::to_owned)
    };
    assert_eq!(template(), None);
    for (config, expected) in [
        ("{}", None),
        (r#"{"chat_template": null}"#, None),
        (r#"{"chat_template": "{{ a }}"}"#, Some("{{ a }}")),
        (
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
            Some("d"),
        ),
        (r#"{"chat_template": []}"#, None),
    ] {
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(template().as_deref(), expected, "{config}");
    }
    fs::write(dir.path().join("chat_template.jinja"), "{{ b }}").unwrap();
    assert_eq!(template().as_deref(), Some("{{ b }}"));
}

#[test]
fn names_that_are_malformed_or_of_another_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.model"), Model::default().bytes()).unwrap();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.path().join(name);
        fs::write(&path, "{").unwrap();
        assert!(message(Tokenizer::from_dir(&dir)).contains(name));
        for config in [
            r#"{"eos_token": "<|im_end|>"}"#,
            r#"{"bos_token": "<|im_end|>", "add_bos_token": true}"#,
        ] {
            fs::write(&path, config).unwrap();
            let message = message(Tokenizer::from_dir(&dir));
            for expected in [name, "`<|im_end|>` is not in", "tokenizer.model"] {
                assert!(message.contains(expected), "{message}");
            }
        }
        fs::remove_file(path).unwrap();
    }
}

fn check_golden(name: &str, folder: &str) {
    let Some(folder) = shared(folder) else { return };
    let golden = golden(name);
    for file in ["tokenizer.json", "tokenizer.model"] {
        let tokenizer = Tokenizer::from_file(folder.join(file)).unwrap();
        assert_eq!(tokenizer.vocab_size(), golden.vocab, "{file}");
        assert_eq!(tokenizer.bos_id(), Some(golden.bos), "{file}");
        assert_eq!(tokenizer.eos_id(), Some(golden.eos), "{file}");
        assert_eq!(tokenizer.pad_id(golden.vocab), golden.unk, "{file}");
        for Case { text, ids, decoded } in &golden.cases {
            assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{file}: {text:?}");
            assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{file}: {text:?}");
        }
    }
}

/// Texts beyond the golden ones: both files of a tokenizer are the same tokenizer.
fn check_files_agree(folder: &str) {
    let (Some(folder), Some(alpaca)) = (shared(folder), shared("assets/alpaca")) else {
        return;
    };
    let json = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let model = Tokenizer::from_file(folder.join("tokenizer.model")).unwrap();
    let records = burn_peft::data::load_alpaca(alpaca.join("alpaca_en_demo.json")).unwrap();
    for record in &records {
        for text in [&record.prompt(), &record.output] {
            assert_eq!(
                model.encode(text).unwrap(),
                json.encode(text).unwrap(),
                "{text:?}"
            );
        }
    }
    for id in 0..json.vocab_size() as u32 {
        assert_eq!(
            model.decode(&[id]).unwrap(),
            json.decode(&[id]).unwrap(),
            "{id}"
        );
    }
}

#[test]
fn llama2_golden() {
    check_golden("llama2", "assets/llama2_tokenizer");
}

#[test]
fn tok512_golden() {
    check_golden("tok512", "reference/stories260k/hf");
}

#[test]
fn llama2_files_agree() {
    check_files_agree("assets/llama2_tokenizer");
}

#[test]
fn tok512_files_agree() {
    check_files_agree("reference/stories260k/hf");
}

/// The id of a byte's own token.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

fn tiny() -> Tokenizer {
    Tokenizer::from_json_bytes(tiny_tokenizer::json().as_bytes()).unwrap()
}

fn from_model(model: &Model) -> burn_peft::Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    fs::write(&path, model.bytes()).unwrap();
    Tokenizer::from_file(path)
}

#[test]
fn merges_and_falls_back_to_bytes() {
    for tokenizer in [tiny(), from_model(&Model::default()).unwrap()] {
        let encode = |text| tokenizer.encode(text).unwrap();
        assert_eq!(encode("hello"), [id("\u{2581}hello")]);
        assert_eq!(
            encode(" hell!"),
            [id("\u{2581}"), id("\u{2581}he"), id("ll"), id("!")]
        );
        assert_eq!(encode("é"), [id("\u{2581}"), byte(0xC3), byte(0xA9)]);
        assert!(encode("").is_empty());
        assert_eq!(tokenizer.vocab_size(), 271);
    }
}

#[test]
fn special_tokens_in_a_text_are_text() {
    for tokenizer in [tiny(), from_model(&Model::default()).unwrap()] {
        let bytes = "</s>".bytes().map(byte);
        let expected: Vec<u32> = [id("\u{2581}")].into_iter().chain(bytes).collect();
        assert_eq!(tokenizer.encode("</s>").unwrap(), expected);
        assert_eq!(tokenizer.decode(&expected).unwrap(), "</s>");
    }
}

#[test]
fn decoding_skips_special_and_unknown_ids() {
    let ids = [1, id("\u{2581}hello"), 0, byte(0xFF), id("!"), 2, 9999];
    assert_eq!(tiny().decode(&ids).unwrap(), "hello\u{FFFD}!");
}

#[test]
fn extra_spaces_go_where_the_model_says_so() {
    let model = Model {
        remove_extra_whitespaces: true,
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    assert!(tokenizer.encode("  ").unwrap().is_empty());
    assert!(tokenizer.encode("\u{2581}").unwrap().is_empty());
    assert_eq!(
        tokenizer.encode("  hello   hello ").unwrap(),
        [id("\u{2581}hello"), id("\u{2581}hello")]
    );
}

#[test]
fn no_prefix_where_the_model_has_none() {
    let model = Model {
        add_dummy_prefix: false,
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    assert_eq!(tokenizer.encode("he").unwrap(), [id("he")]);
    assert_eq!(tokenizer.decode(&[id("\u{2581}he")]).unwrap(), " he");
}

/// Pieces of which many texts can be made in several ways.
const TIED: [(&str, u64); 10] = [
    ("ab", 1),
    ("bc", 1),
    ("abc", 1),
    ("aa", 1),
    ("aaa", 1),
    ("\u{2581}", 1),
    ("a", 1),
    ("b", 1),
    ("c", 1),
    ("\u{2581}a", 1),
];

/// The ids are those of the sentencepiece package, version 0.2.3.
#[test]
fn of_equal_scores_the_leftmost_is_joined_first() {
    let model = Model {
        pieces: &TIED,
        score: |_| 0.0,
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    let expected: [(&str, &[u32]); 8] = [
        ("abc", &[268, 260]),
        ("aaa", &[268, 262]),
        ("aaaaa", &[268, 263, 265]),
        ("bcabc", &[264, 260, 261]),
        (" a", &[264, 268]),
        (" ", &[264, 264]),
        ("aé", &[268, 198, 172]),
        ("", &[]),
    ];
    for (text, ids) in expected {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
    // The first has a lower score by its sign alone.
    let model = Model {
        pieces: &[
            ("ab", 1),
            ("bc", 1),
            ("a", 1),
            ("b", 1),
            ("c", 1),
            ("\u{2581}", 1),
        ],
        score: |place| if place == 0 { -0.0 } else { 0.0 },
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    assert_eq!(tokenizer.encode("abc").unwrap(), [264, 261, 260]);
}

/// As in the sentencepiece package, version 0.2.3.
#[test]
fn pieces_that_are_only_steps_to_others_are_taken_apart() {
    let model = Model {
        pieces: &[
            ("ab", 5),
            ("abc", 1),
            ("a", 1),
            ("b", 1),
            ("c", 1),
            ("\u{2581}", 1),
        ],
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    let encode = |text| tokenizer.encode(text).unwrap();
    assert_eq!(encode("abc"), [264, 260]);
    assert_eq!(encode("abb"), [264, 261, 262, 262]);
}

#[test]
fn what_is_unknown_in_a_row_is_one_token() {
    let model = Model {
        byte_fallback: false,
        ..Model::default()
    };
    let tokenizer = from_model(&model).unwrap();
    assert_eq!(
        tokenizer.encode("hexyheé").unwrap(),
        [id("\u{2581}he"), 0, id("he"), 0]
    );
}

#[test]
fn special_ids_can_be_given() {
    let tokenizer = tiny().with_special_ids(None, Some(7));
    assert_eq!(tokenizer.bos_id(), Some(1));
    assert_eq!(tokenizer.eos_id(), Some(7));
    assert_eq!(tokenizer.with_special_ids(Some(5), None).bos_id(), Some(5));
}

#[test]
fn a_folder_prefers_the_json() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.model"), Model::default().bytes()).unwrap();
    assert_eq!(Tokenizer::from_dir(&dir).unwrap().vocab_size(), 271);
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(message(Tokenizer::from_dir(&dir)).contains("tokenizer.json"));
}

#[test]
fn missing_files_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        message(Tokenizer::from_dir(&dir)).contains("no tokenizer.json and no tokenizer.model")
    );
    let gone = dir.path().join("gone");
    assert!(matches!(Tokenizer::from_dir(&gone), Err(Error::Io { path, .. }) if path == gone));
    assert!(matches!(Tokenizer::from_file(&gone), Err(Error::Io { path, .. }) if path == gone));
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let model = Model::default().bytes();
    let json = tiny_tokenizer::json();
    let damaged: [&[u8]; 6] = [
        b"",
        b"IQ== 0\nIg== 1\n",
        b"{\"model\": ",
        b"{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}",
        &model[..model.len() / 2],
        &json.as_bytes()[..json.len() / 2],
    ];
    for bytes in damaged {
        fs::write(&path, bytes).unwrap();
        assert!(message(Tokenizer::from_file(&path)).contains("tokenizer.model: "));
    }
}

#[test]
fn other_kinds_of_sentencepiece_are_refused() {
    let llama = Model::default();
    let cases = [
        (
            Model {
                model_type: 1,
                ..llama
            },
            "not a BPE model",
        ),
        (
            Model {
                charsmap: b"nfkc",
                ..llama
            },
            "normalises",
        ),
        (
            Model {
                whitespace_as_suffix: true,
                ..llama
            },
            "behind words",
        ),
        (
            Model {
                pieces: &[("h", 1), ("h", 1)],
                ..llama
            },
            "two pieces",
        ),
    ];
    for (model, what) in cases {
        let message = message(from_model(&model));
        assert!(message.contains(what), "{message}");
        assert!(
            message.contains("use the model's tokenizer.json"),
            "{message}"
        );
    }
}

fn message(result: burn_peft::Result<Tokenizer>) -> String {
    match result {
        Err(error @ Error::Format { .. }) => error.to_string(),
        other => panic!("a format error was expected, not {other:?}"),
    }
}

proptest! {
    /// With a byte for whatever has no piece, no text is lost.
    #[test]
    fn decoding_undoes_encoding(text in "[hel o!é\\n<s>/🦙]{0,40}") {
        for tokenizer in [tiny(), from_model(&Model::default()).unwrap()] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.clone());
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        }
    }

    /// No bytes make the reader panic.
    #[test]
    fn any_bytes_are_read_or_refused(cut in 0usize..4000, flip in 0usize..4000, to: u8) {
        let mut bytes = Model::default().bytes();
        let place = flip % bytes.len();
        bytes[place] = to;
        bytes.truncate(cut);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.model");
        fs::write(&path, bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_file(&path) {
            tokenizer.encode("hello!").unwrap();
        }
    }
}
