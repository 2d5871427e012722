//! Records, samples and batches.
//!
//! The data set and the tokenizer of the reference finetuning run are not part of this repository:
//! the test that reproduces its batches looks in the folder that `BURN_PEFT_SHARED` names and is
//! skipped without it.

#[path = "support/at_hand.rs"]
mod at_hand;
mod tiny_tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use at_hand::left_out;
use burn::prelude::*;
use burn_peft::Error;
use burn_peft::data::*;
use burn_peft::tokenizer::Tokenizer;
use proptest::prelude::*;
use safetensors::SafeTensors;
use tiny_tokenizer::id;

fn tiny() -> Tokenizer {
    Tokenizer::from_json_bytes(tiny_tokenizer::json().as_bytes()).unwrap()
}

fn record(instruction: &str, input: &str, output: &str) -> AlpacaRecord {
    AlpacaRecord {
        instruction: instruction.into(),
        input: input.into(),
        output: output.into(),
    }
}

mod alpaca {
    use super::*;

    #[test]
    fn prompt_with_and_without_input() {
        assert_eq!(
            record("Add.", "1 and 2", "3").prompt(),
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
        );
        assert_eq!(
            record("Say hi.", "", "Hi!").prompt(),
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:\n"
        );
    }

    #[test]
    fn array_and_lines_hold_the_same_records() {
        let array = "\u{feff}[{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\", \"id\": 1},\n\
                     {\"instruction\": \"d\", \"input\": null, \"output\": \"\"}]";
        let lines = "{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\"}\n\n\
                     {\"instruction\": \"d\", \"output\": \"\"}\r\n";
        let expected = [record("a", "b", "c"), record("d", "", "")];
        assert_eq!(parse_alpaca(array, "x").unwrap(), expected);
        assert_eq!(parse_alpaca(lines, "x").unwrap(), expected);
    }

    #[test]
    fn reads_a_file_and_names_it_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        assert!(matches!(load_alpaca(&path), Err(Error::Io { path: p, .. }) if p == path));
        fs::write(&path, r#"[{"instruction": "a", "output": "b"}]"#).unwrap();
        assert_eq!(load_alpaca(&path).unwrap(), [record("a", "", "b")]);
        fs::write(&path, [b'"', 0xFF]).unwrap();
        assert!(matches!(load_alpaca(&path), Err(Error::Io { path: p, .. }) if p == path));
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = parse_alpaca(text, "data.json").unwrap_err();
        assert_eq!(error.to_string(), expected);
        let is_record = expected.contains("record ") && expected.contains("`");
        assert_eq!(matches!(error, Error::Record { .. }), is_record);
        assert_eq!(matches!(error, Error::Format { .. }), !is_record);
    }

    #[test]
    fn malformed_json_is_located() {
        refused(
            "[{\"instruction\": \"a\",\n  \"output\" \"b\"}]",
            "data.json: malformed JSON at line 2, column 12: expected `:`",
        );
        refused(
            "{\"instruction\": \"a\", \"output\": \"b\"}\n\n{\"instruction\": ]}",
            "data.json: malformed JSON at line 3, column 17: expected value",
        );
        refused(
            "{\"instruction\": \"a\", \"output\": \"b\"}\n{\n  \"instruction\": \"a\"\n}",
            "data.json: line 2 is not a whole record; JSON lines have a record a line, and records \
             over several lines must stand in a list",
        );
    }

    #[test]
    fn incomplete_records_are_located() {
        refused(
            r#"[{"instruction": "a", "output": "b"}, {"output": "b"}]"#,
            "data.json: record 2: `instruction` is missing; \
             a record needs `instruction` and `output`",
        );
        refused(
            "{\"instruction\": \"a\", \"output\": \"b\"}\n\n{\"instruction\": \"a\"}",
            "data.json: record 2 (line 3): `output` is missing; \
             a record needs `instruction` and `output`",
        );
        refused(
            r#"[{"instruction": " ", "output": "b"}]"#,
            "data.json: record 1: `instruction` is empty; \
             write the task there, or drop the record",
        );
        refused(
            r#"[{"instruction": "a", "input": 3, "output": "b"}]"#,
            "data.json: record 1: `input` is not a text",
        );
    }

    #[test]
    fn a_record_must_be_an_object() {
        let error = parse_alpaca(r#"[["a", "b", "c"]]"#, "data.json").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Record {
                    record: 1,
                    line: None,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn empty_and_foreign_files_are_refused() {
        let empty = "data.json: the data set is empty; it must hold at least one record";
        refused("", empty);
        refused(" \n", empty);
        refused("[]", empty);
        let foreign =
            "data.json: neither a JSON array of records nor JSON lines with a record a line";
        refused("instruction,output\na,b\n", foreign);
        refused("{\n  \"data\": [\n  ]\n}\n", foreign);
        let line = r#"{"instruction": "a", "output": "b", "history": []}"#;
        assert_eq!(parse_alpaca(line, "x").unwrap(), [record("a", "", "b")]);
    }

    proptest! {
        /// Writing records as an array or as lines and reading them gives them back.
        #[test]
        fn reading_undoes_writing(texts in prop::collection::vec(("\\PC{1,8}x", ".{0,8}", ".{0,8}"), 1..5)) {
            let records: Vec<_> = texts.iter().map(|(a, b, c)| record(a, b, c)).collect();
            let array = serde_json::to_string_pretty(&records).unwrap();
            prop_assert_eq!(&parse_alpaca(&array, "x").unwrap(), &records);
            let lines: Vec<_> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
            prop_assert_eq!(&parse_alpaca(&lines.join("\n"), "x").unwrap(), &records);
        }
    }
}

mod samples {
    use super::*;

    fn sample(prompt: &str, answer: &str, train_on_input: bool, max: Option<usize>) -> Sample {
        Sample::from_prompt(prompt, answer, &tiny(), train_on_input, max).unwrap()
    }

    #[test]
    fn tokens_and_labels() {
        let tokens = vec![1, id("\u{2581}hello"), id("he"), id("!"), 2];
        let labels: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
        let all = sample("hello", "he!", true, None);
        assert_eq!(all.tokens, tokens);
        assert_eq!(all.labels, labels);
        assert_eq!((all.len(), all.num_label_tokens()), (5, 4));

        let answer = sample("hello", "he!", false, None);
        assert_eq!(answer.tokens, tokens);
        assert_eq!(answer.labels, [&[IGNORE_INDEX; 2], &labels[2..]].concat());
        assert_eq!(answer.num_label_tokens(), 3);
    }

    #[test]
    fn a_record_is_its_prompt_and_its_output() {
        let record = record("hello", "he", "hello!");
        let expected = sample(&record.prompt(), "hello!", false, Some(400));
        let tokenizer = tiny();
        let made = Sample::from_record(&record, &tokenizer, false, Some(400)).unwrap();
        assert_eq!(made, expected);
        let set = tokenize_records(&[record.clone(), record], &tokenizer, false, Some(400));
        assert_eq!(set.unwrap(), [expected.clone(), expected]);
    }

    /// An answer's tokens are those that it has in one text with its prompt, not those of a text of its
    /// own, which SentencePiece begins with a space.
    #[test]
    fn prompt_and_answer_are_one_text() {
        let prompt = record("Say hi.", "", "").prompt();
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/tiny");
        let shared = shared().into_iter().flat_map(|root| {
            ["assets/llama2_tokenizer", "reference/stories260k/hf"].map(|dir| root.join(dir))
        });
        let byte_level = Tokenizer::from_dir(assets).unwrap();
        let real = shared.map(|dir| Tokenizer::from_dir(dir).unwrap());
        for tokenizer in [tiny(), byte_level].into_iter().chain(real) {
            for answer in [
                "hello he",
                "Hello!",
                " hello",
                "\u{2581}he",
                "1 + 1 = 2\n\nhe",
                "",
            ] {
                let sample = Sample::from_prompt(&prompt, answer, &tokenizer, false, None).unwrap();
                let text = tokenizer.encode(&format!("{prompt}{answer}")).unwrap();
                let (bos, eos) = (tokenizer.bos_id(), tokenizer.eos_id());
                let expected: Vec<u32> = bos.into_iter().chain(text).chain(eos).collect();
                assert_eq!(sample.tokens, expected, "{answer:?} with {tokenizer:?}");
            }
            for text in ["he", " he", "    return x", "\n\nhe", "", "\u{e9}"] {
                // Some tokenizers make one space of several.
                let whole = tokenizer.encode(&format!("he\n{text}")).unwrap();
                let whole = tokenizer.decode(&whole).unwrap();
                let ids = tokenizer.encode_continuation(text).unwrap();
                let found = tokenizer.decode_continuation(&ids).unwrap();
                assert_eq!(format!("he\n{found}"), whole, "{tokenizer:?}");
            }
            // Where an answer begins with a line break, pieces may go over the end of the prompt.
            let sample = Sample::from_prompt(&prompt, "\nhe", &tokenizer, false, None).unwrap();
            let text = tokenizer.decode(&sample.tokens).unwrap();
            assert_eq!(text, format!("{prompt}\nhe"));
        }
    }

    /// The first tokens of a long text are those of the whole, though only a part of it is encoded.
    #[test]
    fn long_records_are_cut_where_the_whole_would_be() {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/tiny");
        let tokenizers = [tiny(), Tokenizer::from_dir(assets).unwrap()];
        let words = "hello he, what is a tyre made of?\n  It is \u{e9}\u{4e16} ".repeat(400);
        let one_word = "helo\u{e9}".repeat(3000);
        for (tokenizer, text) in tokenizers
            .iter()
            .flat_map(|tokenizer| [(tokenizer, &words), (tokenizer, &one_word)])
        {
            let whole = tokenizer.encode(text).unwrap();
            let behind = tokenizer.encode_continuation(text).unwrap();
            for count in [0, 1, 100, 700, whole.len(), usize::MAX] {
                let first = &whole[..count.min(whole.len())];
                assert_eq!(tokenizer.encode_first(text, count).unwrap(), first);
                let first = &behind[..count.min(behind.len())];
                assert_eq!(
                    tokenizer.encode_continuation_first(text, count).unwrap(),
                    first
                );
            }
            let long = Sample::from_prompt("he", text, tokenizer, false, Some(300)).unwrap();
            let whole = Sample::from_prompt("he", text, tokenizer, false, None).unwrap();
            assert_eq!(long.tokens, whole.tokens[..300]);
            assert!(long.is_cut);
        }
    }

    #[test]
    fn without_bos_the_prompt_comes_first() {
        let mut json: serde_json::Value = serde_json::from_str(&tiny_tokenizer::json()).unwrap();
        json["post_processor"] = serde_json::Value::Null;
        let tokenizer = Tokenizer::from_json_bytes(json.to_string().as_bytes()).unwrap();
        let sample = Sample::from_prompt("he", "!", &tokenizer, false, None).unwrap();
        assert_eq!(sample.tokens, [id("\u{2581}he"), id("!"), 2]);
        assert_eq!(sample.num_label_tokens(), 2);
    }

    #[test]
    fn the_first_label_does_not_count() {
        let sample = Sample {
            is_cut: false,
            tokens: vec![7],
            labels: vec![7],
        };
        assert_eq!(sample.num_label_tokens(), 0);
        let empty = Sample {
            is_cut: false,
            tokens: vec![],
            labels: vec![],
        };
        assert!(empty.is_empty());
        assert_eq!(empty.num_label_tokens(), 0);
    }

    /// What is cut does not end with EOS, or it would teach to stop in the middle of an answer.
    #[test]
    fn what_is_cut_does_not_end() {
        let (prompt, he, bang) = (id("\u{2581}he"), id("he"), id("!"));
        let cut = |max| sample("he", "he!!!", false, Some(max));
        assert_eq!(cut(7).tokens, [1, prompt, he, bang, bang, bang, 2]);
        assert_eq!(cut(6).tokens, [1, prompt, he, bang, bang, bang]);
        assert_eq!(cut(4).tokens, [1, prompt, he, bang]);
        assert_eq!(cut(4).num_label_tokens(), 2);
        // Nothing of the answer is left.
        assert_eq!(cut(2).tokens, [1, prompt]);
        assert_eq!(cut(2).num_label_tokens(), 0);
        assert_eq!(cut(1).tokens, [1]);
        assert_eq!(cut(1).labels, [IGNORE_INDEX]);
        // An answer that is empty fits.
        let empty = sample("he", "", false, Some(3));
        assert_eq!(empty.labels, [IGNORE_INDEX, IGNORE_INDEX, 2]);
        assert_eq!(
            [cut(6).is_cut, cut(7).is_cut, empty.is_cut],
            [true, false, false]
        );
    }

    #[test]
    fn spans_are_what_the_loss_counts() {
        let spans = sample("he", "he!", false, None).spans();
        assert_eq!(spans, [(0..2, false), (2..5, true)]);
        // The first token is predicted by nothing.
        let spans = sample("he", "he!", true, None).spans();
        assert_eq!(spans, [(0..1, false), (1..5, true)]);
        let nothing = Sample {
            is_cut: false,
            tokens: vec![],
            labels: vec![],
        };
        assert!(nothing.spans().is_empty());
    }

    #[test]
    fn bad_arguments_are_errors() {
        let error = Sample::from_prompt("he", "he", &tiny(), true, Some(0)).unwrap_err();
        assert!(matches!(
            error,
            Error::InvalidArgument {
                name: "max_seq_len",
                ..
            }
        ));

        let json = tiny_tokenizer::json().replace("</s>", "[X]");
        let mute = Tokenizer::from_json_bytes(json.as_bytes()).unwrap();
        let error = Sample::from_prompt("he", "he", &mute, true, None).unwrap_err();
        assert!(error.to_string().contains("with_special_ids"));
        let given = mute.with_special_ids(None, Some(2));
        assert!(Sample::from_prompt("he", "he", &given, true, None).is_ok());

        let huge = given.with_special_ids(Some(u32::MAX), None);
        let error = Sample::from_prompt("he", "he", &huge, true, None).unwrap_err();
        assert!(matches!(error, Error::TokenOutOfRange { id: u32::MAX, .. }));
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_found() {
        let samples = [sample("he", "he", true, None), sample("h", "!", true, None)];
        let largest = id("!");
        check_vocab(&samples, largest as usize + 1).unwrap();
        let error = check_vocab(&samples, largest as usize).unwrap_err();
        assert!(matches!(
            error,
            Error::TokenOutOfRange { id, vocab_size } if id == largest && vocab_size == id as usize
        ));
    }

    proptest! {
        /// The truncated sample is the start of the whole one.
        #[test]
        fn truncation_law(
            prompt in "[helo !]{0,12}",
            answer in "[helo !]{0,12}",
            train_on_input: bool,
            max in 1usize..40,
        ) {
            let whole = sample(&prompt, &answer, train_on_input, None);
            let cut = sample(&prompt, &answer, train_on_input, Some(max));
            let left = whole.len().min(max);
            prop_assert_eq!(&cut.tokens, &whole.tokens[..left]);
            prop_assert_eq!(&cut.labels, &whole.labels[..left]);
            prop_assert_eq!(cut.is_cut, whole.len() > max);
        }

        /// Spans go over all tokens, and tell what the loss counts.
        #[test]
        fn span_law(prompt in "[helo !]{0,12}", answer in "[helo !]{0,12}", train_on_input: bool) {
            let sample = sample(&prompt, &answer, train_on_input, None);
            let spans = sample.spans();
            let counted = spans.iter().filter(|(_, is_counted)| *is_counted);
            let counted: usize = counted.map(|(span, _)| span.len()).sum();
            prop_assert_eq!(counted, sample.num_label_tokens());
            let places: Vec<usize> = spans.into_iter().flat_map(|(span, _)| span).collect();
            prop_assert_eq!(places, (0..sample.len()).collect::<Vec<_>>());
        }

        /// Masking the prompt takes labels away and changes none.
        #[test]
        fn mask_law(prompt in "[helo !]{0,12}", answer in "[helo !]{0,12}") {
            let all = sample(&prompt, &answer, true, None);
            let masked = sample(&prompt, &answer, false, None);
            prop_assert_eq!(&all.tokens, &masked.tokens);
            let prompt_len = 1 + tiny().encode(&prompt).unwrap().len();
            prop_assert!(masked.labels[..prompt_len].iter().all(|&l| l == IGNORE_INDEX));
            prop_assert_eq!(&masked.labels[prompt_len..], &all.labels[prompt_len..]);
            prop_assert!(!all.labels.contains(&IGNORE_INDEX));
        }
    }
}

mod batches {
    use super::*;

    fn sample(tokens: &[u32], unlabelled: usize) -> Sample {
        let mut labels: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
        labels[..unlabelled].fill(IGNORE_INDEX);
        Sample {
            is_cut: false,
            tokens: tokens.to_vec(),
            labels,
        }
    }

    fn two() -> [Sample; 2] {
        [sample(&[1, 5, 6, 2], 2), sample(&[1, 2], 0)]
    }

    #[test]
    fn pads_on_the_right() {
        let [a, b] = two();
        let batch = Batch::collate(&[&a, &b], 9);
        let expected = Batch {
            input_ids: vec![1, 5, 6, 2, 1, 2, 9, 9],
            labels: vec![-100, -100, 6, 2, 1, 2, -100, -100],
            segments: vec![vec![4], vec![2]],
            batch_size: 2,
            seq_len: 4,
            adapters: None,
        };
        assert_eq!(batch, expected);
        assert_eq!((batch.num_tokens(), batch.num_label_tokens()), (6, 3));
    }

    #[test]
    fn pads_to_other_lengths() {
        let [a, b] = two();
        let length = |padding| Batch::collate_to(&[&a, &b], 0, padding).seq_len;
        assert_eq!(length(Padding::default()), 4);
        assert_eq!(length(Padding::MultipleOf(4)), 4);
        assert_eq!(length(Padding::MultipleOf(3)), 6);
        assert_eq!(length(Padding::Fixed(10)), 10);
    }

    #[test]
    fn tensors() {
        let device = Device::default();
        let [a, b] = two();
        let batch = Batch::collate(&[&a, &b], 0);
        let ids = batch.input_tensor(&device);
        assert_eq!(ids.dims(), [2, 4]);
        let ids: Vec<i32> = ids.into_data().iter::<i32>().collect();
        assert_eq!(ids, batch.input_ids);

        let mask = batch.attention_mask(&device).unwrap();
        assert_eq!(mask.dims(), [2, 4]);
        let mask: Vec<bool> = mask.into_data().iter::<bool>().collect();
        assert_eq!(mask, [true, true, true, true, true, true, false, false]);
        assert!(
            Batch::collate(&[&a, &a], 0)
                .attention_mask(&device)
                .is_none()
        );
        assert!(
            Batch::collate_to(&[&a], 0, Padding::Fixed(5))
                .attention_mask(&device)
                .is_some()
        );
    }

    #[test]
    #[should_panic(expected = "a batch needs a sample")]
    fn an_empty_batch_is_a_bug() {
        Batch::collate(&[], 0);
    }

    #[test]
    #[should_panic(expected = "4 tokens does not fit in rows of 3")]
    fn too_short_rows_are_a_bug() {
        Batch::collate_to(&[&two()[0]], 0, Padding::Fixed(3));
    }

    #[test]
    #[should_panic(expected = "a sample needs one label for each token")]
    fn uneven_samples_are_a_bug() {
        let [mut a, _] = two();
        a.labels.pop();
        Batch::collate(&[&a], 0);
    }

    prop_compose! {
        fn any_sample()(tokens in prop::collection::vec(0u32..50, 1..12))(
            unlabelled in 0..=tokens.len(), tokens in Just(tokens),
        ) -> Sample {
            sample(&tokens, unlabelled)
        }
    }

    proptest! {
        /// Every sample is in one group, no group is too long, no two groups fit into one, and all is in order.
        #[test]
        fn packing_law(lengths in prop::collection::vec(1usize..50, 0..60), extra in 0usize..60) {
            let capacity = 50 + extra;
            let groups = pack(&lengths, capacity);
            let mut seen: Vec<usize> = groups.concat();
            seen.sort();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let totals = groups.iter().map(|group| group.iter().map(|i| lengths[*i]).sum());
            let mut totals: Vec<usize> = totals.collect();
            totals.sort();
            prop_assert!(totals.iter().all(|total| *total <= capacity));
            if let [first, second, ..] = totals[..] {
                prop_assert!(first + second > capacity);
            }
            // In the samples' order.
            prop_assert!(groups.is_sorted());
            prop_assert!(groups.iter().all(|group| group.is_sorted()));
        }
    }

    proptest! {
        /// However a batch is padded, it holds the same tokens and counts the same labels.
        #[test]
        fn padding_law(samples in prop::collection::vec(any_sample(), 1..5), extra in 0usize..9, pad in 0u32..50) {
            let rows: Vec<&Sample> = samples.iter().collect();
            let longest = samples.iter().map(Sample::len).max().unwrap();
            for padding in [Padding::Longest, Padding::MultipleOf(extra + 1), Padding::Fixed(longest + extra)] {
                let batch = Batch::collate_to(&rows, pad, padding);
                let labels: usize = samples.iter().map(Sample::num_label_tokens).sum();
                let tokens: usize = samples.iter().map(Sample::len).sum();
                prop_assert_eq!(batch.num_label_tokens(), labels);
                prop_assert_eq!(batch.num_tokens(), tokens);
                for (row, sample) in samples.iter().enumerate() {
                    let start = row * batch.seq_len;
                    let (real, end) = (start + sample.len(), start + batch.seq_len);
                    prop_assert_eq!(&batch.labels[start..real], &sample.labels);
                    prop_assert!(batch.labels[real..end].iter().all(|&l| l == IGNORE_INDEX));
                    prop_assert!(batch.input_ids[real..end].iter().all(|&t| t == pad as i32));
                    let tokens: Vec<u32> = batch.input_ids[start..real].iter().map(|&t| t as u32).collect();
                    prop_assert_eq!(&tokens, &sample.tokens);
                }
            }
        }
    }
}

mod order {
    use super::*;

    /// Made by a separate implementation of ChaCha8 in Python: a change here changes everybody's
    /// runs.
    #[test]
    fn the_order_is_stable() {
        let first = [
            0, 19, 5, 13, 11, 3, 10, 18, 6, 8, 17, 7, 4, 16, 12, 2, 15, 14, 1, 9,
        ];
        let second = [
            9, 8, 6, 15, 7, 1, 2, 3, 10, 5, 16, 12, 11, 14, 4, 0, 19, 17, 13, 18,
        ];
        assert_eq!(shuffled_indices(20, 42, 0, true), first);
        assert_eq!(shuffled_indices(20, 42, 1, true), second);
        assert_eq!(
            split_validation(10, 3, 7).unwrap(),
            (vec![0, 2, 4, 5, 7, 8, 9], vec![1, 3, 6])
        );
    }

    #[test]
    fn unshuffled_is_in_order() {
        assert_eq!(shuffled_indices(4, 42, 3, false), [0, 1, 2, 3]);
        assert!(shuffled_indices(0, 42, 3, true).is_empty());
    }

    #[test]
    fn a_split_leaves_something_to_train_on() {
        for validation in [3, 4] {
            let error = split_validation(3, validation, 0).unwrap_err();
            assert!(matches!(
                error,
                Error::InvalidArgument {
                    name: "validation",
                    ..
                }
            ));
        }
        assert_eq!(split_validation(3, 0, 0).unwrap(), (vec![0, 1, 2], vec![]));
    }

    proptest! {
        #[test]
        fn a_shuffle_is_a_permutation(len in 0usize..200, seed: u64, epoch: u64) {
            let mut order = shuffled_indices(len, seed, epoch, true);
            prop_assert_eq!(&order, &shuffled_indices(len, seed, epoch, true));
            order.sort_unstable();
            prop_assert_eq!(order, (0..len).collect::<Vec<_>>());
        }

        #[test]
        fn seeds_and_epochs_differ(seed: u64, epoch in 0u64..1000) {
            let order = shuffled_indices(100, seed, epoch, true);
            prop_assert_ne!(&order, &shuffled_indices(100, seed, epoch + 1, true));
            prop_assert_ne!(&order, &shuffled_indices(100, seed ^ 1, epoch, true));
        }

        #[test]
        fn a_split_is_a_partition(len in 1usize..100, part in 0usize..100, seed: u64) {
            let part = part % len;
            let (train, held_out) = split_validation(len, part, seed).unwrap();
            prop_assert_eq!(held_out.len(), part);
            let mut all = [train, held_out].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}

/// The batches of the reference finetuning run, from the records and the tokenizer it used. It encodes
/// an answer like a text of its own, with SentencePiece's space before it: so do the samples here, whose prompts
/// and batches are the crate's.
#[test]
fn reference_run_is_reproduced() {
    let Some(root) = shared() else { return };
    let run = root.join("reference/stories260k");
    let tokenizer = Tokenizer::from_dir(run.join("hf")).unwrap();
    let records = load_alpaca(root.join("assets/alpaca/alpaca_en_demo.json")).unwrap();
    let bytes = fs::read(run.join("finetune/data.safetensors")).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap();
    for part in ["train", "eval"] {
        let tensor = |name: &str| i32s(&data, &format!("{part}_{name}"));
        let rows: Vec<_> = tensor("alpaca_row")
            .into_iter()
            .map(|row| records[row as usize].clone())
            .collect();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        let as_there = rows.iter().map(|record| {
            let mut sample = Sample::from_record(record, &tokenizer, false, None).unwrap();
            let prompt = 1 + encode(&record.prompt()).len();
            let answer = [encode(&record.output), vec![2]].concat();
            sample.tokens.splice(prompt.., answer);
            sample.labels.truncate(prompt);
            let labels = sample.tokens[prompt..].iter().map(|id| *id as i32);
            sample.labels.extend(labels);
            sample
        });
        let samples: Vec<Sample> = as_there.collect();
        check_vocab(&samples, 512).unwrap();
        let batch = Batch::collate_to(
            &samples.iter().collect::<Vec<_>>(),
            tokenizer.pad_id(512),
            Padding::Fixed(256),
        );
        let lengths: Vec<i32> = batch.segments.iter().map(|row| row[0] as i32).collect();
        assert_eq!(lengths, tensor("len"), "{part}");
        assert_eq!(batch.input_ids, tensor("input_ids"), "{part}");
        assert_eq!(batch.labels, tensor("labels"), "{part}");
    }
}

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("BURN_PEFT_SHARED");
    if root.is_none() {
        left_out(
            "shared",
            "BURN_PEFT_SHARED does not name the folder of the reference run",
        );
    }
    root.map(|root| Path::new(&root).to_owned())
}

fn i32s(data: &SafeTensors<'_>, name: &str) -> Vec<i32> {
    let bytes = data.tensor(name).unwrap().data();
    bytes
        .chunks_exact(4)
        .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}
