//! Data sets as streams: files of all kinds, several by weight, data of one's own.

#[allow(dead_code, reason = "shared with other tests, which use the rest")]
mod tiny_tokenizer;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn_peft::data::*;
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::{Error, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

const TEXT: &str = "{% for m in messages %}{{ m.content }}</s>{% endfor %}";

fn tiny() -> Tokenizer {
    Tokenizer::from_json_bytes(tiny_tokenizer::json().as_bytes()).unwrap()
}

fn encoder(tokenizer: &Tokenizer) -> RecordEncoder<'_> {
    let template = ChatTemplate::new(TEXT, "t.jinja").unwrap();
    RecordEncoder::new(tokenizer)
        .with_template(Some(template))
        .with_max_seq_len(Some(200))
}

/// What a stream of a file's records gives.
fn streamed(encoder: &RecordEncoder, path: &Path) -> Result<(Vec<Sample>, RecordCounts)> {
    let mut store = SampleStore::new(path.parent().unwrap()).with_memory(100);
    let counts = encoder.encode_files(path, Split::Train, Format::Auto, &mut store)?;
    let samples = (0..store.len()).map(|index| store.sample(index));
    Ok((samples.collect::<Result<_>>()?, counts))
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

const FILES: [(&str, &str); 6] = [
    (
        "text.jsonl",
        "{\"text\": \"hello\"}\n\n{\"text\": \"he\"}\r\n",
    ),
    (
        "array.json",
        "\u{feff} [{\"text\": \"hello\"},\n {\"text\": \"he \\\"[{\"}]\n",
    ),
    (
        "table.csv",
        "\u{feff}prompt,completion\nhe,\"hello,\n he\"\nhello,\n",
    ),
    ("table.tsv", "instruction\toutput\nhe\thello\n\the\n"),
    (
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"he\"}]}\n",
    ),
    // The last record makes conversations of all.
    (
        "turns.jsonl",
        "{\"instruction\": \"he\", \"output\": \"hello\"}\n\
         {\"instruction\": \"he\", \"output\": \"he\", \"history\": [[\"he\", \"hello\"]]}\n",
    ),
];

#[test]
fn a_stream_gives_what_a_file_gives_at_once() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let encoder = encoder(&tokenizer);
    for (name, text) in FILES {
        let path = file(dir.path(), name, text.as_bytes());
        let records = load_records(&path, Format::Auto).unwrap();
        let expected = encoder.encode_all(&records).unwrap();
        assert_eq!(streamed(&encoder, &path).unwrap(), expected, "{name}");
        assert_eq!(expected.1.read, records.len());
    }
    let path = dir.path().join("turns.jsonl");
    assert_eq!(streamed(&encoder, &path).unwrap().1.conversations, 2);
    // More than are encoded at a time, in their order.
    let lines = (0..10_000).map(|number| format!("{{\"text\": \"he {number}\"}}\n"));
    let path = file(
        dir.path(),
        "many.jsonl",
        lines.collect::<String>().as_bytes(),
    );
    let records = load_records(&path, Format::Auto).unwrap();
    let expected = encoder.encode_all(&records).unwrap();
    assert_eq!(streamed(&encoder, &path).unwrap(), expected);
}

#[test]
fn alpaca_by_the_template() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let path = file(
        dir.path(),
        "a.jsonl",
        b"{\"instruction\": \"he\", \"input\": \"he\", \"output\": \"hello\"}",
    );
    let records = load_records(&path, Format::Auto).unwrap();
    let (expected, _) = encoder(&tokenizer)
        .encode_all(&records.clone().into_conversations())
        .unwrap();
    let encoder = encoder(&tokenizer).with_as_conversations(true);
    let (found, counts) = streamed(&encoder, &path).unwrap();
    assert_eq!((&found, counts.conversations), (&expected, 1));
    assert_eq!(encoder.encode_all(&records).unwrap().0, expected);
}

#[test]
fn errors_of_a_stream_name_the_record() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let encoder = encoder(&tokenizer);
    let error = |name: &str, text: &str| {
        let path = file(dir.path(), name, text.as_bytes());
        let error = streamed(&encoder, &path).unwrap_err().to_string();
        assert_eq!(
            load_records(&path, Format::Auto).unwrap_err().to_string(),
            error
        );
        error
            .split_once(&format!("{name}: "))
            .expect("the file is named")
            .1
            .to_owned()
    };
    let line = "{\"text\": \"he\"}\n";
    assert_eq!(
        error("a.jsonl", &format!("{line}\n{line}{{\"text\": 3}}\n")),
        "record 3 (line 4): `text` is not a text"
    );
    assert_eq!(
        error("b.jsonl", &format!("{line}{{\"text\": ]\n")),
        "malformed JSON at line 2, column 10: expected value"
    );
    assert_eq!(
        error("c.json", "[{\"text\": \"he\"}, {\"text\": 1}]"),
        "record 2: `text` is not a text"
    );
    for (name, text, expected) in [
        (
            "d.json",
            "[{\"text\": \"he\"} {}]",
            "malformed JSON at line 1, column 17: expected `,` or `]`",
        ),
        (
            "e.json",
            "[{\"text\": \"he\"},]",
            "malformed JSON at line 1, column 17: trailing comma",
        ),
        (
            "f.json",
            "[{\"text\": \"he\"}",
            "malformed JSON at line 1, column 15: EOF while parsing a list",
        ),
        (
            "g.json",
            "[{\"text\": \"he\"}] x",
            "malformed JSON at line 1, column 18: trailing characters",
        ),
    ] {
        assert_eq!(error(name, text), expected);
    }
    assert!(error("h.json", "[]").starts_with("the data set is empty"));
    let foreign = "neither a JSON array of records nor JSON lines with a record a line";
    assert_eq!(
        error("i.json", "{\n \"data\": [\n {\"text\": \"he\"}]}"),
        foreign
    );
    assert_eq!(error("j.json", "{\"data\": [{\"text\": \"he\"}]}"), foreign);
    assert_eq!(error("k.json", "text\nhe\n"), foreign);
}

#[test]
fn files_that_are_compressed() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let encoder = encoder(&tokenizer);
    let gzip = |text: &str| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &str| {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(text.as_bytes(), level)
    };
    for (name, text) in FILES {
        let plain = file(dir.path(), name, text.as_bytes());
        let expected = streamed(&encoder, &plain).unwrap();
        for (end, bytes) in [("gz", gzip(text)), ("zst", zstd(text))] {
            let path = file(dir.path(), &format!("{name}.{end}"), &bytes);
            assert_eq!(streamed(&encoder, &path).unwrap(), expected, "{name}.{end}");
        }
    }
    // Several members or frames, one of which says nothing, and a name that does not tell.
    let lines = [
        "{\"text\": \"he\"}\n".repeat(3),
        "{\"text\": \"hello\"}\n".repeat(20_000),
    ];
    let skipped = [
        &0x184d_2a50_u32.to_le_bytes()[..],
        &3_u32.to_le_bytes(),
        b"abc",
    ]
    .concat();
    let members = [gzip(&lines[0]), gzip(&lines[1])].concat();
    let frames = [skipped.clone(), zstd(&lines[0]), skipped, zstd(&lines[1])].concat();
    let expected = streamed(
        &encoder,
        &file(dir.path(), "plain", lines.concat().as_bytes()),
    )
    .unwrap();
    assert_eq!(expected.0.len(), 20_003);
    for (name, bytes) in [
        ("members", &members),
        ("frames.zstd", &frames[11..].to_vec()),
    ] {
        let path = file(dir.path(), name, bytes);
        assert_eq!(streamed(&encoder, &path).unwrap(), expected, "{name}");
    }
    // Cut short, it is an error and not a smaller data set.
    for (name, bytes) in [("short.gz", &members), ("short.zst", &zstd(&lines[1]))] {
        let path = file(dir.path(), name, &bytes[..bytes.len() - 9]);
        let error = streamed(&encoder, &path).unwrap_err();
        assert!(
            matches!(&error, Error::Io { path: named, .. } if *named == path),
            "{error}"
        );
    }
    // In a folder as on the Hub.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    file(&folder, "train-00000-of-00001.jsonl.gz", &gzip(&lines[0]));
    assert_eq!(load_records(&folder, Format::Auto).unwrap().len(), 3);
}

#[test]
fn several_data_sets_by_weight() {
    let dir = tempfile::tempdir().unwrap();
    let there = file(dir.path(), "a@3", b"");
    let both = format!("{}, {}@0.25,b@x,c@2", there.display(), there.display());
    let expected = [
        (there.clone(), 1.0),
        (there.clone(), 0.25),
        ("b@x".into(), 1.0),
        ("c".into(), 2.0),
    ];
    assert_eq!(weighted_paths(&both).unwrap(), expected);
    assert_eq!(weighted_paths(&there).unwrap(), [(there, 1.0)]);
    for weight in ["0", "-1", "inf", "nan"] {
        let error = weighted_paths(format!("a@{weight}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("the weight of a is"), "{error}");
    }
}

proptest! {
    #[test]
    fn weights_say_how_often_a_sample_is_taken(len in 0usize..50, weight in 0.0f64..4.0, seed: u64) {
        let indices: Vec<usize> = (0..len).map(|index| index * 3).collect();
        let found = weighted_indices(&indices, weight, seed);
        prop_assert_eq!(&found, &weighted_indices(&indices, weight, seed));
        let times = |index: &usize| found.iter().filter(|found| *found == index).count();
        let times: Vec<usize> = indices.iter().map(times).collect();
        prop_assert_eq!(times.iter().sum::<usize>(), found.len());
        prop_assert!((found.len() as f64 - weight * len as f64).abs() <= 0.5 + 1e-9);
        prop_assert!(times.iter().all(|n| *n as f64 >= weight.floor() && *n as f64 <= weight.ceil()));
    }

    /// Batches by length have each sample once, whoever makes them, and less padding.
    #[test]
    fn batches_of_about_the_same_length(
        mut lengths in prop::collection::vec(1u32..500, 5..400), batch_size in 1usize..5,
    ) {
        // A smaller batch at the end may be worse off.
        lengths.truncate(lengths.len() / batch_size * batch_size);
        let order = DataOrder::new(lengths.len(), batch_size).with_seed(3);
        let grouped = order.clone().with_lengths(Some(lengths.clone().into()));
        let epoch = |order: &DataOrder| -> Vec<Vec<usize>> {
            (0..order.steps_per_epoch()).flat_map(|step| order.step(step)).collect()
        };
        let (plain, sorted) = (epoch(&order), epoch(&grouped));
        let mut seen = sorted.concat();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        let padded = |batches: &[Vec<usize>]| -> usize {
            let longest = |batch: &Vec<usize>| batch.iter().map(|index| lengths[*index]).max().unwrap();
            batches.iter().map(|batch| batch.len() * longest(batch) as usize).sum()
        };
        prop_assert!(padded(&sorted) <= padded(&plain));
    }
}

/// Samples of the same 50 steps are together, whatever was taken before.
#[test]
fn groups_follow_from_seed_epoch_and_step() {
    let lengths: Vec<u32> = (0..1000).map(|index| index * 37 % 101).collect();
    let order = DataOrder::new(1000, 4).with_lengths(Some(lengths.clone().into()));
    let plain = DataOrder::new(1000, 4);
    for epoch in 0..2 {
        let steps = epoch * 250..epoch * 250 + 50;
        let sorted = |order: &DataOrder| {
            let mut all: Vec<usize> = steps
                .clone()
                .flat_map(|step| order.step(step).concat())
                .collect();
            all.sort_unstable();
            all
        };
        assert_eq!(sorted(&order), sorted(&plain));
    }
    assert_ne!(order.step(0), order.step(250));
    let spread = |batch: &[usize]| {
        let lengths = batch.iter().map(|index| lengths[*index]);
        lengths.clone().max().unwrap() - lengths.min().unwrap()
    };
    assert!((0..500).all(|step| spread(&order.step(step)[0]) <= 10));
    // Long and short ones come in no order.
    let first = |step| lengths[order.step(step)[0][0]];
    assert!(!(0..50).map(first).is_sorted_by(|a, b| a >= b));
}

/// Samples that are made when they are asked for, each with its number of tokens.
struct Made(usize);

impl Dataset for Made {
    fn len(&self) -> usize {
        self.0
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        let tokens = vec![index as u32; index + 1];
        let labels = tokens.iter().map(|token| *token as i32).collect();
        Ok(Sample {
            tokens,
            labels,
            is_cut: false,
        })
    }
}

#[test]
fn data_of_ones_own() {
    let made = Made(5);
    let samples = (0..5).map(|index| made.sample(index));
    let in_memory: Vec<Sample> = samples.collect::<Result<_>>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut store = SampleStore::new(dir.path()).with_memory(0);
    store
        .extend((0..5).map(|index| made.sample(index)))
        .unwrap();
    let datasets: [&dyn Dataset; 4] = [&made, &in_memory, &&in_memory[..], &store];
    for dataset in datasets {
        assert_eq!(
            fingerprint(dataset).unwrap(),
            fingerprint(&in_memory).unwrap()
        );
        assert_eq!((dataset.len(), dataset.sample_len(3).unwrap()), (5, 4));
        let batch = Batch::of_dataset(dataset, &[4, 1], 9).unwrap();
        assert_eq!(batch, Batch::collate(&[&in_memory[4], &in_memory[1]], 9));
        let some = Subset::new(dataset, vec![4, 0, 4]);
        assert_eq!(some.len(), 3);
        assert_eq!(
            (some.sample(1).unwrap().len(), some.sample_len(2).unwrap()),
            (1, 5)
        );
        assert!(check_vocab(dataset, 5).is_ok());
        assert!(matches!(
            check_vocab(dataset, 4),
            Err(Error::TokenOutOfRange { id: 4, .. })
        ));
    }
    // An error on the way is told.
    let broken = [made.sample(0), Err(Error::PeerLost), made.sample(1)];
    assert!(matches!(store.extend(broken), Err(Error::PeerLost)));
    assert_eq!(store.len(), 6);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_gives_what_json_gives() {
    let (fixtures, tokenizer) = (
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet"),
        tiny(),
    );
    let encoder = encoder(&tokenizer);
    for codec in ["none", "snappy", "gzip", "zstd"] {
        let records =
            load_records(fixtures.join(format!("{codec}.parquet")), Format::Auto).unwrap();
        let expected = load_records(fixtures.join("records.jsonl"), Format::Auto).unwrap();
        assert_eq!(records.as_slice(), expected.as_slice(), "{codec}");
        let samples = streamed_from(&encoder, &fixtures.join(format!("{codec}.parquet")));
        assert_eq!(samples, encoder.encode_all(&expected).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let broken = file(dir.path(), "a.parquet", b"PAR1 and no more");
    let error = load_records(&broken, Format::Auto).unwrap_err().to_string();
    assert!(error.contains("a.parquet: malformed Parquet"), "{error}");
}

#[cfg(feature = "parquet")]
fn streamed_from(encoder: &RecordEncoder, path: &Path) -> (Vec<Sample>, RecordCounts) {
    let mut store = SampleStore::new(std::env::temp_dir());
    let counts = encoder
        .encode_files(path, Split::Train, Format::Auto, &mut store)
        .unwrap();
    let samples = (0..store.len()).map(|index| store.sample(index).unwrap());
    (samples.collect(), counts)
}
