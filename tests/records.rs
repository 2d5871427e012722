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

/// The tokens that a sample begins with, before the answer.
#[test]
fn what_a_record_asks() {
    let tokenizer = tiny();
    let encoder = encoder(&tokenizer);
    let chat = concat!(
        r#"{"messages": [{"role": "user", "content": "he"}, {"role": "assistant", "content": "hello"}, "#,
        r#"{"role": "user", "content": "hello"}, {"role": "assistant", "content": "he"}, {"role": "user", "content": "he"}]}"#
    );
    let lines = [
        r#"{"instruction": "hello", "output": "he"}"#,
        r#"{"prompt": "hello", "completion": "he"}"#,
        chat,
    ];
    for line in lines {
        let records = parse_records(line, "one", Format::Auto).unwrap();
        let record = &records.as_slice()[0];
        let (prompt, answer) = encoder.question(record).unwrap().unwrap();
        assert_eq!(answer, "he");
        let sample = encoder.encode(record).unwrap();
        assert!(sample.tokens.starts_with(&prompt), "{line}");
        let rest = &sample.tokens[prompt.len()..];
        // Behind a special token this tokenizer begins anew.
        let goes_on = tokenizer.encode_continuation(&answer).unwrap();
        let begins = tokenizer.encode(&answer).unwrap();
        assert!(
            rest.starts_with(&goes_on) || rest.starts_with(&begins),
            "{line}"
        );
    }
    for line in [
        r#"{"text": "hello"}"#,
        r#"{"instruction": "hello", "output": " "}"#,
        r#"{"prompt": "", "completion": "he"}"#,
        r#"{"messages": [{"role": "user", "content": "he"}]}"#,
        r#"{"messages": [{"role": "assistant", "content": "he"}, {"role": "user", "content": "he"}]}"#,
    ] {
        let records = parse_records(line, "one", Format::Auto).unwrap();
        let asked = encoder.question(&records.as_slice()[0]).unwrap();
        assert_eq!(asked, None);
    }
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

/// So many records of texts of different lengths.
fn texts(count: usize) -> String {
    let line = |number: usize| format!("{{\"text\": \"{}\"}}\n", "he ".repeat(1 + number * 7 % 11));
    (0..count).map(line).collect()
}

fn sft_options(folder: &Path, tokenizer: &Tokenizer) -> SftOptions {
    SftOptions::new(64, tokenizer.vocab_size()).with_folder(folder.to_owned())
}

/// What comes of files step by step is what their parts give by hand.
#[test]
fn from_files_to_the_batches_of_steps() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let first = file(dir.path(), "first.jsonl", texts(30).as_bytes());
    let second = file(dir.path(), "second.jsonl", texts(10).as_bytes());
    let options = sft_options(dir.path(), &tokenizer)
        .with_accumulation_steps(2)
        .with_validation_split(0.2)
        .with_seed(5);
    let both = format!("{},{}@0.5", first.display(), second.display());
    let data = SftData::load(both, RecordEncoder::new(&tokenizer), &options).unwrap();

    let encoder = RecordEncoder::new(&tokenizer);
    let encoded = [&first, &second].map(|path| {
        let records = load_records(path, Format::Auto).unwrap();
        encoder.encode_all(&records).unwrap().0
    });
    let samples = encoded.concat();
    let (train, held_out) = split_validation(40, 8, 5).unwrap();
    let (of_first, of_second): (Vec<usize>, Vec<usize>) =
        train.iter().partition(|index| **index < 30);
    let taken = [
        weighted_indices(&of_first, 1.0, 5),
        weighted_indices(&of_second, 0.5, 5),
    ]
    .concat();
    let collate = |indices: &[usize]| {
        let rows: Vec<&Sample> = indices.iter().map(|index| &samples[*index]).collect();
        Batch::collate(&rows, tokenizer.pad_id(tokenizer.vocab_size()))
    };
    let order = DataOrder::new(taken.len(), 2)
        .with_accumulation_steps(2)
        .with_seed(5);
    assert_eq!(data.order, order);
    for step in 0..2 * order.steps_per_epoch() {
        let by_hand = order.step(step).into_iter().map(|rows| {
            let indices: Vec<usize> = rows.iter().map(|row| taken[*row]).collect();
            collate(&indices)
        });
        let by_hand: Vec<Batch> = by_hand.collect();
        assert_eq!(data.step(step).unwrap(), by_hand, "{step}");
    }
    let validation: Vec<Batch> = held_out.chunks(2).map(collate).collect();
    assert_eq!((&data.validation, data.num_validation()), (&validation, 8));
    let longest = taken.iter().map(|index| samples[*index].len()).max();
    assert_eq!(Some(data.longest_row().unwrap()), longest);
    let seen: Vec<Sample> = data.first_samples().collect::<Result<_>>().unwrap();
    let first_epoch = (0..order.steps_per_epoch()).flat_map(|step| order.step(step).concat());
    let expected: Vec<Sample> = first_epoch.map(|row| samples[taken[row]].clone()).collect();
    assert_eq!(seen, expected);
    let counts: Vec<(&Path, usize)> = data
        .counts
        .iter()
        .map(|(p, c)| (p.as_path(), c.used))
        .collect();
    assert_eq!(counts, [(first.as_path(), 30), (second.as_path(), 10)]);
    assert!(data.notes.is_empty() && data.template.is_none());
}

/// A file of validation records is no part of the training, and the processes of a run share each step.
#[test]
fn validation_records_of_their_own_and_steps_in_parts() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let path = file(dir.path(), "a.jsonl", texts(9).as_bytes());
    let held_out = file(dir.path(), "b.jsonl", texts(3).as_bytes());
    let options = sft_options(dir.path(), &tokenizer).with_validation(Some(held_out));
    let mut data = SftData::load(path, RecordEncoder::new(&tokenizer), &options).unwrap();
    assert_eq!((data.num_rows(), data.num_validation()), (9, 3));
    data.order.num_processes = 2;
    let rows = |batches: Vec<Batch>| batches.iter().map(|batch| batch.batch_size).sum::<usize>();
    let of_rank = |step, rank| rows(data.shard(step, rank, 2).unwrap());
    let shared: Vec<_> = (0..3)
        .map(|step| (of_rank(step, 0), of_rank(step, 1)))
        .collect();
    assert_eq!(shared, [(2, 2), (2, 2), (0, 1)]);
}

#[test]
fn records_that_share_rows_or_come_by_length() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let path = file(dir.path(), "a.jsonl", texts(40).as_bytes());
    let options = sft_options(dir.path(), &tokenizer);
    let load = |options: &SftOptions| {
        SftData::load(&path, RecordEncoder::new(&tokenizer), options).unwrap()
    };
    let packed = load(&options.clone().with_packed(true));
    assert!(packed.num_rows() < 40 && packed.longest_row().unwrap() <= 64);
    let steps = 0..packed.order.steps_per_epoch();
    let batches: Vec<Batch> = steps.flat_map(|step| packed.step(step).unwrap()).collect();
    let mut lengths: Vec<usize> = batches.iter().flat_map(|b| b.segments.concat()).collect();
    let all = (0..40).map(|index| packed.samples.sample_len(index).unwrap());
    let mut all: Vec<usize> = all.collect();
    lengths.sort_unstable();
    all.sort_unstable();
    assert_eq!(lengths, all);

    let grouped = load(&options.with_group_by_length(true));
    let expected = (0..40).map(|index| grouped.samples.sample_len(index).unwrap() as u32);
    let expected: Vec<u32> = expected.collect();
    assert_eq!(grouped.order.lengths.as_deref(), Some(&expected[..]));
}

#[test]
fn what_records_do_not_give_is_told() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let path = file(dir.path(), "a.jsonl", texts(4).as_bytes());
    let options = sft_options(dir.path(), &tokenizer).with_validation_split(0.1);
    let encoder = || RecordEncoder::new(&tokenizer);
    let data = SftData::load(&path, encoder().with_max_seq_len(Some(100)), &options).unwrap();
    let expected = [
        "records are cut to the model's context of 64 tokens; max_seq_len is 100",
        "nothing is validated: 0.1 of 4 records is less than one",
    ];
    assert_eq!(data.notes, expected);

    let short = encoder()
        .with_max_seq_len(Some(3))
        .with_too_long(TooLong::Drop);
    let error = SftData::load(&path, short, &options)
        .unwrap_err()
        .to_string();
    let told = "no record is left to train on: 4 of 4 records of";
    assert!(
        error.contains(told) && error.contains("(too_long)"),
        "{error}"
    );
    let small = SftOptions::new(64, 3);
    let error = SftData::load(&path, encoder(), &small).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { .. }), "{error}");
}

#[test]
fn files_whose_records_are_not_trained_on() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let [many, few] = [("many.jsonl", 8), ("few.jsonl", 4)]
        .map(|(name, count)| file(dir.path(), name, texts(count).as_bytes()));
    let options = sft_options(dir.path(), &tokenizer);
    let load = |path: String| SftData::load(path, RecordEncoder::new(&tokenizer), &options);
    let weighted = format!("{}@0.01", few.display());
    let told = format!(
        "of 4 records of {} none is trained on: its weight is 0.01",
        few.display()
    );
    let data = load(format!("{},{weighted}", many.display())).unwrap();
    assert_eq!((data.notes, data.samples.len()), (vec![told.clone()], 8));
    let error = load(weighted).unwrap_err().to_string();
    assert!(error.contains("no record is left to train on"), "{error}");
    assert!(error.contains(&told), "{error}");
}

#[test]
fn which_files_of_a_folder_are_read() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let load = || {
        let options = sft_options(dir.path(), &tokenizer);
        SftData::load(dir.path(), RecordEncoder::new(&tokenizer), &options).unwrap()
    };
    file(dir.path(), "train.jsonl", texts(4).as_bytes());
    assert!(load().notes.is_empty());
    file(dir.path(), "train_more.jsonl", texts(2).as_bytes());
    let read = format!(
        "the records of {} are those of train.jsonl, train_more.jsonl",
        dir.path().display()
    );
    assert_eq!(load().notes, [read]);
}

#[test]
fn folders_as_the_hub_lays_them_out() {
    let dir = tempfile::tempdir().unwrap();
    let counted =
        |split| load_split(dir.path(), split, Format::Auto).map(|all| all.as_slice().len());
    let only = file(dir.path(), "alpaca_cleaned.jsonl", texts(3).as_bytes());
    assert_eq!(counted(Split::Train).unwrap(), 3);
    assert!(counted(Split::Validation).is_err());
    // Of two none is known to be the one.
    file(dir.path(), "other.jsonl", texts(2).as_bytes());
    let error = counted(Split::Train).unwrap_err().to_string();
    assert!(error.contains("name a file of records"), "{error}");
    fs::rename(only, dir.path().join("test.jsonl")).unwrap();
    fs::remove_file(dir.path().join("other.jsonl")).unwrap();
    assert!(counted(Split::Train).is_err());
    assert_eq!(counted(Split::Validation).unwrap(), 3);
    let folders = [("train", 5), ("data/train", 7), ("data/validation", 1)];
    for (name, count) in folders {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        file(&folder, "0000.jsonl", texts(count).as_bytes());
    }
    assert_eq!(counted(Split::Train).unwrap(), 12);
    assert_eq!(counted(Split::Validation).unwrap(), 1);
}

#[test]
fn special_tokens_that_records_name_are_told() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tiny());
    let load = |text: &str| {
        let path = file(dir.path(), "records.jsonl", text.as_bytes());
        let options = sft_options(dir.path(), &tokenizer);
        SftData::load(&path, RecordEncoder::new(&tokenizer), &options).unwrap()
    };
    let without = load(&texts(3));
    assert_eq!(without.counts[0].1.special_as_text, 0);
    assert!(without.notes.is_empty());
    let named = [
        r#"{"prompt": "he", "completion": "hello</s>"}"#,
        r#"{"prompt": "he <", "completion": "</s"}"#,
        r#"{"prompt": "<s>he", "completion": "hello"}"#,
        r#"{"prompt": "he</s>he", "completion": "hello</s>"}"#,
        r#"{"prompt": "he", "completion": "hello"}"#,
    ];
    let data = load(&named.join("\n"));
    let counts = data.counts[0].1;
    assert_eq!((counts.read, counts.special_as_text), (5, 3));
    assert_eq!(counts.first_special, tokenizer.eos_id());
    let told = "3 of 5 records of ";
    let so =
        |note: &&String| note.starts_with(told) && note.contains("such as </s>, which is text");
    assert_eq!(data.notes.iter().filter(so).count(), 1, "{:?}", data.notes);
    // Which it is: no record has the token itself anywhere but at its end.
    let ids = (0..5).map(|index| data.samples.sample(index).unwrap().tokens);
    let eos = tokenizer.eos_id().unwrap();
    assert!(
        ids.into_iter()
            .all(|ids| ids.iter().filter(|id| **id == eos).count() == 1)
    );
}

/// The one that is not found beside the base is kept.
#[test]
fn by_which_template_conversations_were_written() {
    let dir = tempfile::tempdir().unwrap();
    file(
        dir.path(),
        "tokenizer.json",
        tiny_tokenizer::json().as_bytes(),
    );
    let chat = file(dir.path(), FILES[4].0, br#"{"messages": [{"role": "user", "content": "he"}, {"role": "assistant", "content": "he"}]}"#);
    let text = file(dir.path(), "text.jsonl", texts(2).as_bytes());
    let ends = std::cell::RefCell::default();
    let origin = |tokenizer: &Tokenizer, template: Option<ChatTemplate>, path: &Path| {
        let encoder = RecordEncoder::new(tokenizer).with_template(template);
        let mut options = sft_options(dir.path(), tokenizer);
        options.context_len = 400;
        let data = SftData::load(path, encoder, &options)?;
        let origin = data.template.map(|template| template.origin().to_owned());
        ends.replace(data.ends);
        Ok::<_, Error>(origin)
    };
    let without = Tokenizer::load(dir.path()).unwrap();
    let found = origin(&without, None, &chat).unwrap();
    assert_eq!(found.as_deref(), Some(Path::new("<chatml>")));
    assert_eq!(origin(&without, None, &text).unwrap(), None);
    let eos = Vec::from_iter(without.eos_id());
    assert_eq!(ends.take(), eos);
    let own = ChatTemplate::new(TEXT, "t.jinja").unwrap();
    let found = origin(&without, Some(own), &chat).unwrap();
    assert_eq!(found.as_deref(), Some(Path::new("t.jinja")));
    // Where the turns of a template end that has a token of its own for it; beside texts, at the end of these too.
    let other = || {
        let text = TEXT.replace("</s>", "<s>");
        let template = ChatTemplate::new(&text, "t.jinja").unwrap();
        Some(template.for_tokenizer(&without))
    };
    let bos = without.bos_id().unwrap();
    origin(&without, other(), &chat).unwrap();
    assert_eq!(ends.take(), [bos]);
    let both = format!("{},{}", chat.display(), text.display());
    origin(&without, other(), Path::new(&both)).unwrap();
    assert_eq!(ends.take(), [&[bos], &eos[..]].concat());

    let beside = file(dir.path(), "chat_template.jinja", TEXT.as_bytes());
    let with = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(origin(&with, None, &chat).unwrap(), None);
    // One that cannot be read is an error where it is needed, which says why.
    fs::write(&beside, "{% if %}").unwrap();
    let broken = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(origin(&broken, None, &text).unwrap(), None);
    let error = origin(&broken, None, &chat).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
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
