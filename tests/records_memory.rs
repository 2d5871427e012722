//! Records that are read as a stream are never in memory all at once. A program of its own: the allocator that counts is
//! the process's.

#[path = "support/counting.rs"]
mod counting;
#[allow(dead_code, reason = "shared with other tests, which use the rest")]
mod tiny_tokenizer;

use std::alloc::System;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::sync::{Mutex, PoisonError};

use burn_peft::data::{
    DataOrder, Dataset, Format, RecordEncoder, SampleStore, Split, Subset, fingerprint,
    load_records,
};
use burn_peft::tokenizer::Tokenizer;
use counting::{Counting, live_bytes, peak_bytes, reset_peak};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const RECORDS: usize = 60_000;
/// What encoding a part takes, with what grows with the number of records: where each ends, and its place in an epoch.
const ALLOWED: usize = (24 << 20) + RECORDS * 64;

/// What is counted is the process's.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_large_data_set_is_never_in_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    for number in 0..RECORDS {
        let answer = format!("{number} hello he! ").repeat(60);
        writeln!(
            file,
            r#"{{"instruction": "hello {number}", "output": "{answer}"}}"#
        )
        .unwrap();
    }
    drop(file);
    let size = path.metadata().unwrap().len() as usize;
    assert!(size > 50 << 20);
    let tokenizer = Tokenizer::from_json_bytes(tiny_tokenizer::json().as_bytes()).unwrap();
    let encoder = RecordEncoder::new(&tokenizer).with_max_seq_len(Some(512));

    let before = live_bytes();
    reset_peak();
    let mut store = SampleStore::new(dir.path()).with_memory(1 << 20);
    let counts = encoder
        .encode_files(&path, Split::Train, Format::Auto, &mut store)
        .unwrap();
    let taken = peak_bytes() - before;
    assert!(taken < ALLOWED, "{taken} bytes for encoding {size}");
    assert_eq!(
        (counts.read, counts.used, store.len()),
        (RECORDS, RECORDS, RECORDS)
    );

    // Nor while it is trained on.
    reset_peak();
    let dataset = Subset::new(&store, (0..RECORDS).collect());
    let first = fingerprint(&dataset).unwrap();
    let order = DataOrder::new(dataset.len(), 8);
    for step in [0, 1, order.steps_per_epoch() - 1] {
        for index in order.step(step).concat() {
            let expected = dataset.sample(index).unwrap();
            assert!(expected.len() <= 512 && expected.num_label_tokens() > 0);
        }
    }
    let taken = peak_bytes() - before;
    assert!(taken < ALLOWED, "{taken} bytes for reading {size}");

    // All at once, they are; and the samples are the same.
    drop(dataset);
    reset_peak();
    let records = load_records(&path, Format::Auto).unwrap();
    assert!(peak_bytes() - before > size);
    let (samples, all) = encoder.encode_all(&records).unwrap();
    assert_eq!((all, fingerprint(&samples).unwrap()), (counts, first));
}

/// However few tokens its letters make, so that there are not enough in any part of it.
#[test]
fn a_long_record_is_encoded_piece_by_piece() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut json: serde_json::Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
    json["model"]["byte_fallback"] = false.into();
    json["model"]["unk_token"] = serde_json::Value::Null;
    let tokenizer = Tokenizer::from_json_bytes(json.to_string().as_bytes()).unwrap();
    assert!(tokenizer.encode("\u{e9}").unwrap().len() < 2);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let text = "\u{e9}".repeat(5 << 20);
    fs::write(&path, serde_json::json!({ "text": text }).to_string()).unwrap();
    let size = path.metadata().unwrap().len() as usize;
    let encoder = RecordEncoder::new(&tokenizer).with_max_seq_len(Some(512));
    let before = live_bytes();
    reset_peak();
    let mut store = SampleStore::new(dir.path());
    let counts = encoder.encode_files(&path, Split::Train, Format::Auto, &mut store);
    let taken = peak_bytes() - before;
    assert_eq!(counts.unwrap().used, 1);
    assert!(taken < 16 * size, "{taken} bytes for encoding {size}");
}
