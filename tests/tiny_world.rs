//! The files of the embedded default are what their generator makes, and the claim that they carry
//! is true: what is asked afterwards was told in the corpus and never trained on.

#[path = "../examples/support/tiny_files.rs"]
mod tiny_files;
#[path = "../examples/support/tiny_world.rs"]
mod tiny_world;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use tiny_world::{DOCUMENTS, Record, SEED, documents, held_out_records, train_records, unstated};
use tokenizers::Tokenizer;

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/tiny")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(assets().join("tokenizer.json")).unwrap()
}

#[test]
fn committed_files_are_what_the_generator_makes() {
    let folder = tempfile::tempdir().unwrap();
    tiny_files::write(folder.path()).unwrap();
    for name in ["alpaca_train.json", "alpaca_heldout.json", "tokenizer.json"] {
        let made = fs::read_to_string(folder.path().join(name)).unwrap();
        let committed = fs::read_to_string(assets().join(name)).unwrap();
        assert!(made == committed, "{name}: run the example `pretrain_tiny`");
    }
    let corpus = fs::read_to_string(folder.path().join("corpus.txt")).unwrap();
    let ends = corpus.lines().filter(|line| *line == "</s>").count();
    assert_eq!(ends, DOCUMENTS);
}

#[test]
fn held_out_records_are_not_trained_on() {
    let (train, held_out) = (train_records(SEED), held_out_records(SEED));
    assert!(train.len() >= 300 && held_out.len() >= 100);

    let asked = |records: &[Record]| -> HashSet<(String, String)> {
        let pairs = records
            .iter()
            .map(|r| (r.instruction.clone(), r.input.clone()));
        pairs.collect()
    };
    let (trained, asked_later) = (asked(&train), asked(&held_out));
    assert_eq!(trained.len(), train.len(), "a training record occurs twice");
    assert_eq!(
        asked_later.len(),
        held_out.len(),
        "a held-out record occurs twice"
    );
    assert!(trained.is_disjoint(&asked_later));
}

/// Stronger than the test above: not even the same fact in other words is trained on.
#[test]
fn held_out_facts_are_not_trained_on() {
    let held_out = held_out_records(SEED);
    let facts: HashSet<&String> = held_out.iter().flat_map(|r| &r.stated_by).collect();
    assert!(facts.len() >= 200);
    for record in &train_records(SEED) {
        let told = record.stated_by.iter().find(|fact| facts.contains(fact));
        assert_eq!(told, None, "{record:?}");
    }
}

#[test]
fn the_split_depends_on_the_seed_alone() {
    assert_eq!(held_out_records(SEED), held_out_records(SEED));
    assert_ne!(held_out_records(SEED), held_out_records(SEED + 1));
    let first = |seed| documents(seed).take(50).collect::<Vec<_>>();
    assert_eq!(first(SEED), first(SEED));
    assert_ne!(first(SEED), first(SEED + 1));
}

#[test]
fn no_document_uses_the_alpaca_prompt() {
    for text in documents(SEED).take(DOCUMENTS) {
        for words in [
            "Below is an instruction",
            "###",
            "Instruction:",
            "Response:",
            "Input:",
        ] {
            assert!(!text.contains(words), "{text}");
        }
        assert!(!text.contains(['{', '}']), "an unfilled slot: {text}");
    }
}

#[test]
fn every_held_out_fact_is_stated_in_the_corpus() {
    let held_out = held_out_records(SEED);
    let sample: Vec<String> = documents(SEED).take(4000).collect();
    assert_eq!(unstated(&held_out, &sample), Vec::<&Record>::new());
    // The check can fail.
    assert!(unstated(&held_out, &sample[..1]).len() > 50);
}

#[test]
fn the_tokenizer_gives_every_text_back() {
    let tokenizer = tokenizer();
    let records = fs::read_to_string(assets().join("alpaca_train.json")).unwrap();
    let texts = documents(SEED)
        .take(200)
        .chain([records, "  Ärger\t\n\n 100 % — 猫 🙂 <end>".to_owned()]);
    for text in texts {
        let ids = tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), text);
    }
}

#[test]
fn the_tokenizer_fits_llama_and_the_prompt() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.get_vocab_size(true), 1024);
    for (id, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    let prompt = "Below is an instruction that describes a task. Write a response that \
                  appropriately completes the request.\n\n### Instruction:\nWhat is the capital \
                  of Norland?\n\n### Response:\n";
    let ids = tokenizer.encode(prompt, true).unwrap();
    assert_eq!(ids.get_ids()[0], 1, "begins with <s>");
    assert!(ids.len() <= 50, "{} tokens", ids.len());
}
