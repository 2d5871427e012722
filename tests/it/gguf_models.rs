//! GGUF files of models, made by the `gguf` package, beside what transformers has of the same models:
//! `tests/python/make_gguf.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn_peft::Error;
use burn_peft::checkpoint::{read_gguf_config, read_hf_config};
use burn_peft::llama::{LlamaConfig, ModelType};
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Expected {
    config: Value,
    ids: Vec<(String, Vec<u32>)>,
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/gguf").join(name)
}

fn expected() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What is read of a `config.json`.
fn of_hugging_face(config: &Value) -> LlamaConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    read_hf_config(dir.path()).unwrap()
}

#[test]
fn configurations_are_those_of_the_hugging_face_folder() {
    for (name, case) in expected() {
        let mut expected = of_hugging_face(&case.config);
        if expected.model_type == ModelType::Mistral {
            // Which it is there.
            expected.model_type = ModelType::Llama;
        }
        let found = read_gguf_config(fixture(&format!("{name}.gguf"))).unwrap();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn tokenizers_give_the_ids_of_transformers() {
    for (name, case) in expected() {
        let tokenizer = Tokenizer::from_gguf(fixture(&format!("{name}.gguf"))).unwrap();
        for (text, ids) in case.ids {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn special_tokens_and_templates_are_the_files() {
    for (name, bos, template) in [
        ("llama", true, true),
        ("qwen2", false, true),
        ("mistral", true, false),
    ] {
        let path = fixture(&format!("{name}.gguf"));
        let config = read_gguf_config(&path).unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let expected = config.bos_token_id.filter(|_| bos);
        assert_eq!(tokenizer.bos_id(), expected, "{name}");
        assert_eq!(tokenizer.eos_id(), Some(config.eos_token_ids[0]), "{name}");
        assert_eq!(tokenizer.vocab_size(), config.vocab_size, "{name}");
        assert_eq!(tokenizer.chat_template().is_some(), template, "{name}");
    }
}

#[test]
fn a_file_that_has_no_tokenizer_files_to_copy() {
    let dir = tempfile::tempdir().unwrap();
    let error = copy_tokenizer(fixture("llama.gguf"), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Format { .. }));
    assert!(
        error.to_string().contains("llama.gguf: a GGUF file"),
        "{error}"
    );
}
