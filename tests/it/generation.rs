//! Generation: batches against one by one, sampling against transformers, what ends an answer.

use burn::tensor::{Bool, Int, Tensor, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{adapter_state_dict, load_state_dict};
use burn_peft::checkpoint::{load_hf, read_hf_config};
use burn_peft::data::AlpacaRecord;
use burn_peft::generate::{
    Chat, End, GenerateOptions, Generation, Prompt, TextGeneration, answer, generate,
    generate_batch, generate_text, token_probabilities,
};
use burn_peft::llama::{
    Experts, KvCache, LayerAttention, LlamaConfig, RopeScaling, Span, TransformerDecoder,
};
use burn_peft::lora::Routes;
use burn_peft::tokenizer::{ChatEncoder, ChatTemplate, Conversation, Message, Tokenizer};

use crate::adapters::{base, config};
use crate::common::{assert_close, device, floats};
use crate::golden_cases::with_adapter;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");

fn tiny() -> (TransformerDecoder, Tokenizer) {
    let mut model = read_hf_config(TINY).unwrap().init(&device());
    load_hf(&mut model, TINY).unwrap();
    (model, Tokenizer::from_dir(TINY).unwrap())
}

/// Prompts of lengths 1 to 9.
fn prompts() -> Vec<Vec<u32>> {
    let length = |row: u32| 1 + row * 2;
    let prompt = |row| {
        (0..length(row))
            .map(|i| 3 + (i * 7 + row * 11) % 45)
            .collect()
    };
    (0..5).map(prompt).collect()
}

fn spans(pattern: &[Span]) -> LlamaConfig {
    let layer = |span: &Span| LayerAttention {
        span: *span,
        ..Default::default()
    };
    config().with_layer_attention(pattern.iter().map(layer).collect())
}

fn scaled(scaling: RopeScaling) -> LlamaConfig {
    config().with_rope_scaling(Some(scaling))
}

/// Models whose caches differ: a window, chunks, angles that follow from the length, experts.
fn models() -> Vec<TransformerDecoder> {
    let factors = |factor: f64| (0..4).map(|pair| factor + f64::from(pair)).collect();
    let longrope = RopeScaling::LongRope {
        short_factor: factors(1.0),
        long_factor: factors(2.0),
        attention_factor: 1.1,
        original_max_seq_len: 12,
    };
    let dynamic = RopeScaling::Dynamic {
        factor: 2.0,
        original_max_seq_len: 12,
    };
    let configs = [
        config(),
        spans(&[Span::Window(4), Span::Full]),
        spans(&[Span::Chunk(3), Span::Window(2)]),
        scaled(longrope),
        scaled(dynamic),
        config().with_experts(Some(Experts::new(8, 2, 24))),
    ];
    configs.iter().map(base).collect()
}

/// What a text begins with that was read or said before is not read again, and the answer is the same.
#[test]
fn a_generation_goes_on_where_another_ended() {
    let options = GenerateOptions::greedy(5).with_stop_tokens([]);
    let start = [3, 17, 9, 4, 30, 8, 21];
    let mut continued = Vec::new();
    for model in models() {
        let ended = |prompt: &[u32]| {
            let mut generation = Generation::new(&model, &[prompt], &options).unwrap();
            generation.by_ref().for_each(|tokens| drop(tokens.unwrap()));
            generation
        };
        let first = ended(&start);
        let said = &first.answers()[0].tokens;
        let whole = [&start[..], said, &[5, 6]].concat();
        let other = [&start[..5], &[11, 12]].concat();
        let mut shared = Vec::new();
        for prompt in [&whole[..], &other, &start[..], &[40, 3]] {
            let mut next = Generation::new(&model, &[prompt], &options).unwrap();
            next = next.after(ended(&start));
            shared.push(next.cache().len());
            next.by_ref().for_each(|tokens| drop(tokens.unwrap()));
            assert_eq!(
                next.answers(),
                ended(prompt).answers(),
                "{:?}",
                model.config
            );
        }
        continued.push(shared);
    }
    // The last token that was said has not been read, nor is a prompt's last one left out.
    let (all, windows, turned) = ([11, 5, 6, 0], [11, 0, 0, 0], [0, 5, 6, 0]);
    assert_eq!(continued, [all, windows, windows, turned, turned, all]);
}

#[test]
fn a_batch_is_answered_as_each_prompt_alone() {
    for model in models() {
        let options = GenerateOptions::greedy(20).with_stop_tokens([]);
        let alone = |prompt: &Vec<u32>| generate(&model, prompt, &options).unwrap();
        let expected: Vec<_> = prompts().iter().map(alone).collect();
        let got = generate_batch(&model, &prompts(), &options).unwrap();
        assert_eq!(got, expected, "{:?}", model.config);

        // Rows that end leave the others as they are.
        let ends = [expected[0][2], expected[3][7]];
        let options = options.with_stop_tokens(ends);
        let until_end = |ids: &Vec<u32>| {
            let ids = ids.iter().take_while(|id| !ends.contains(id));
            ids.copied().collect::<Vec<_>>()
        };
        let got = generate_batch(&model, &prompts(), &options).unwrap();
        assert!(got.iter().any(|answer| answer.len() < 20));
        let expected: Vec<_> = expected.iter().map(until_end).collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn answers_to_a_prompt_do_not_depend_on_the_others() {
    for model in models() {
        let options = GenerateOptions::greedy(12)
            .with_temperature(1.0)
            .with_answers(3)
            .with_stop_tokens([]);
        let together = generate_batch(&model, &prompts(), &options).unwrap();
        for (prompt, answers) in prompts().iter().zip(together.chunks(3)) {
            assert_ne!(answers[0], answers[1]);
            let alone = generate_batch(&model, &[prompt], &options).unwrap();
            assert_eq!(answers, alone);
            let first = generate(&model, prompt, &options.clone().with_answers(1)).unwrap();
            assert_eq!(answers[0], first);
        }
    }
}

#[test]
fn rows_with_adapters_of_their_own() {
    let (model, _) = with_adapter("gqa", "lora_qv_r8");
    let options = GenerateOptions::greedy(12).with_stop_tokens([]);
    let base = model.clone().without_adapters();
    let prompts = [vec![5, 9, 2], vec![5, 9, 2], vec![7]];
    let routes = Routes::new([None, Some("default"), None]);
    let generation = Generation::new(&model, &prompts, &options).unwrap();
    let mut generation = generation.with_routes(routes);
    assert!(generation.by_ref().all(|tokens| tokens.is_ok()));
    let answers = generation.into_answers();
    for (answer, model) in answers.iter().zip([&base, &model, &base]) {
        let alone = generate(model, &prompts[answer.prompt], &options).unwrap();
        assert_eq!(answer.tokens, alone);
        assert_eq!(answer.end, Some(End::Length));
    }
    assert_ne!(answers[0].tokens, answers[1].tokens);
}

/// Rows in three passes, of these tokens each, with padding on the side that is asked for.
fn last_logits(model: &TransformerDecoder, left: impl Fn(usize) -> usize) -> Tensor<2> {
    let passes: [[&[i32]; 2]; 3] = [
        [&[1, 7, 3, 20], &[4]],
        [&[9], &[11, 30, 2]],
        [&[5, 6], &[8, 40]],
    ];
    let mut cache = KvCache::new(model.config.num_layers);
    let mut last = None;
    for rows in passes {
        let seq = 1 + rows.iter().map(|row| row.len()).max().unwrap();
        let (mut ids, mut is_token) = (vec![0; 2 * seq], vec![false; 2 * seq]);
        for (index, row) in rows.iter().enumerate() {
            let start = index * seq + left(seq - row.len());
            ids[start..start + row.len()].copy_from_slice(row);
            is_token[start..start + row.len()].fill(true);
        }
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, seq]), &device());
        let is_token = TensorData::new(is_token, [2, seq]);
        let is_token = Tensor::<2, Bool>::from_data(is_token, &device());
        last = Some(model.forward_cached_padded(ids, is_token, &mut cache, None));
    }
    assert_eq!(cache.lengths(), [7, 6]);
    last.unwrap()
}

#[test]
fn padding_on_either_side_leaves_no_trace_in_a_cache() {
    // The two whose angles follow from the length are left out: their cache has to be made anew.
    for model in models()
        .into_iter()
        .filter(|model| model.config.rope_scaling.is_none())
    {
        let rows = [vec![1, 7, 3, 20, 9, 5, 6], vec![4, 11, 30, 2, 8, 40]];
        let whole = rows.map(|row| {
            let ids = Tensor::<1, Int>::from_ints(&row[..], &device()).unsqueeze();
            model.forward(ids, None).narrow(1, row.len() - 1, 1)
        });
        let expected = floats(&Tensor::cat(whole.to_vec(), 0).into_data());
        for left in [|_| 0, |padding| padding, |padding: usize| padding / 2] {
            assert_close("logits", last_logits(&model, left), &expected, 1e-4);
        }
    }
}

/// Such an adapter once answered with an empty line.
#[test]
fn an_adapter_of_no_numbers_is_an_error() {
    let (mut model, _) = with_adapter("gqa", "lora_qv_r8");
    let mut values = adapter_state_dict(&model);
    let value = values.values_mut().next().unwrap();
    *value = TensorData::full(value.shape().clone(), f32::NAN);
    load_state_dict(&mut model, &values, false).unwrap();
    let mut generation = Generation::new(&model, &[[1, 2]], &GenerateOptions::greedy(4)).unwrap();
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    assert!(
        error.to_string().contains("is NaN: look for weights"),
        "{error}"
    );
    assert!(generation.next().is_none());
}

#[test]
fn tokens_come_one_by_one() {
    let (model, _) = tiny();
    let options = GenerateOptions::greedy(6).with_stop_tokens([]);
    let mut generation = Generation::new(&model, &[vec![1, 30], vec![1]], &options).unwrap();
    let first = generation.next().unwrap().unwrap();
    assert_eq!(
        first.iter().map(|token| token.answer).collect::<Vec<_>>(),
        [0, 1]
    );
    generation.end(0);
    let second = generation.next().unwrap().unwrap();
    assert_eq!(
        second.iter().map(|token| token.answer).collect::<Vec<_>>(),
        [1]
    );
    assert_eq!(generation.by_ref().count(), 4);
    let [stopped, whole] = generation.answers() else {
        panic!("two answers");
    };
    assert_eq!((stopped.tokens.len(), stopped.end), (1, Some(End::Stopped)));
    assert_eq!((whole.tokens.len(), whole.end), (6, Some(End::Length)));
    assert_eq!(whole.tokens, generate(&model, &[1], &options).unwrap());
    assert_eq!(whole.tokens[1], second[0].id);
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let (model, tokenizer) = tiny();
    let prompts = ["A tyre is", "The"].map(|text| tokenizer.encode_with_bos(text).unwrap());
    let options = GenerateOptions::greedy(24);
    let whole = generate_text(&model, &tokenizer, &prompts, &options).unwrap();
    for (prompt, text) in prompts.iter().zip(&whole) {
        let ids = generate(&model, prompt, &options).unwrap();
        assert_eq!(*text, tokenizer.decode_continuation(&ids).unwrap());
    }
    // A stop string inside of a text, which begins in the middle of a token.
    let middle = whole[0].char_indices().nth(7).unwrap().0;
    let stop = &whole[0][middle..middle + 5];
    let options = options.with_stop_strings([stop]);
    let expected = whole.iter().map(|text| match text.split_once(stop) {
        Some((before, _)) => before.to_owned(),
        None => text.clone(),
    });
    let expected: Vec<_> = expected.collect();
    let got = generate_text(&model, &tokenizer, &prompts, &options).unwrap();
    assert_eq!(got, expected);
    // In pieces, none of which is taken back.
    let mut generation = TextGeneration::new(&model, &tokenizer, &prompts[..1], &options).unwrap();
    let mut text = String::new();
    for pieces in &mut generation {
        pieces.unwrap().iter().for_each(|piece| text += &piece.text);
        assert!(expected[0].starts_with(&text), "{text:?}");
    }
    assert_eq!(text, expected[0]);
    let answer = &generation.generation().answers()[0];
    assert_eq!(answer.end, Some(End::Stopped));
    assert!(
        generate(&model, &prompts[0], &options).is_err(),
        "no tokenizer"
    );
}

/// What transformers' logits processors leave, by `tests/python/make_sampling.py`.
#[test]
fn sampling_is_that_of_transformers() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/generate/sampling.json"
    );
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    for case in cases {
        let number = |key: &str| case["options"][key].as_f64();
        let mut options = GenerateOptions::greedy(1)
            .with_temperature(number("temperature").unwrap_or(1.0))
            .with_repetition_penalty(number("repetition_penalty").unwrap_or(1.0));
        options.top_k = number("top_k").map(|k| k as usize);
        (options.top_p, options.min_p) = (number("top_p"), number("min_p"));
        let list = |key: &str| case[key].as_array().unwrap().iter();
        let floats = |key: &str| list(key).map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let logits: Vec<f32> = floats("logits").iter().map(|x| *x as f32).collect();
        let sequence: Vec<u32> = list("sequence")
            .map(|x| x.as_u64().unwrap() as u32)
            .collect();
        let mut got = vec![0.0; logits.len()];
        for token in token_probabilities(&logits, &sequence, &options).unwrap() {
            got[token.id as usize] = token.probability;
        }
        let mut expected = floats("probabilities");
        // Of tokens that are as likely as each other, transformers keeps others where top-p parts them.
        let parts_equals = logits[0] == logits[1] && options.top_p.is_some();
        if parts_equals {
            got.sort_by(f64::total_cmp);
            expected.sort_by(f64::total_cmp);
        }
        for (got, expected) in got.iter().zip(&expected) {
            assert!(
                (got - expected).abs() < 1e-6,
                "{case}: {got} for {expected}"
            );
        }
    }
    assert_eq!(cases.len(), 20);
}

#[test]
fn an_answer_is_the_text_behind_its_prompt() {
    let (model, tokenizer) = tiny();
    let record = AlpacaRecord::new("What is a tyre made of?");
    let ids = tokenizer.encode_with_bos(&record.prompt()).unwrap();
    let options = GenerateOptions::greedy(24);
    let expected = generate(&model, &ids, &options).unwrap();
    let expected = tokenizer.decode_continuation(&expected).unwrap();
    assert!(!expected.is_empty());
    for prompt in [
        Prompt::from(&record),
        Prompt::from(record.prompt()),
        Prompt::from(record.prompt().as_str()),
        Prompt::from(ids),
    ] {
        let found = answer(&model, &tokenizer, prompt, &options).unwrap();
        assert_eq!(found, expected);
    }
    let question = Conversation::ask("What is a tyre made of?");
    let rendered = ChatTemplate::chatml().for_tokenizer(&tokenizer);
    let rendered = rendered.render(&question, true).unwrap();
    let ids = ChatEncoder::new(&tokenizer).encode(&rendered).unwrap();
    let ids: Vec<u32> = ids.iter().map(|token| token.id).collect();
    assert_eq!(Prompt::from(question).encode(&tokenizer).unwrap(), ids);

    let error = answer(&model, &tokenizer, "The", &options.with_answers(2)).unwrap_err();
    assert!(matches!(
        error,
        Error::InvalidArgument {
            name: "answers",
            ..
        }
    ));
}

#[test]
fn the_tokenizers_end_of_a_text_ends_one_too() {
    let (model, tokenizer) = tiny();
    let prompt = tokenizer.encode_with_bos("A tyre is made of").unwrap();
    let options = GenerateOptions::greedy(12);
    let ids = generate(&model, &prompt, &options.clone().with_stop_tokens([])).unwrap();
    let end = ids[3];
    let cut = ids.iter().position(|id| *id == end).unwrap();
    let other = tokenizer.clone().with_special_ids(None, Some(end));
    let text = |tokenizer: &Tokenizer, options: &GenerateOptions| {
        let mut texts = generate_text(&model, tokenizer, &[&prompt], options).unwrap();
        texts.remove(0)
    };
    let decoded = |ids: &[u32]| tokenizer.decode_continuation(ids).unwrap();
    assert_eq!(text(&other, &options), decoded(&ids[..cut]));
    // Whoever says where to stop means just that.
    assert_eq!(text(&other, &options.with_stop_tokens([])), decoded(&ids));
}

/// Whatever ends the model's texts.
#[test]
fn an_answer_ends_where_the_template_ends_a_turn() {
    let (mut model, tokenizer) = tiny();
    let end = tokenizer.eos_id().unwrap();
    model.config.eos_token_ids.clear();
    let prompt = tokenizer.encode_with_bos("A tyre is made of").unwrap();
    let record = AlpacaRecord::new("What is a tyre made of?");
    let question = Prompt::from(&record).encode(&tokenizer).unwrap();
    let name = tokenizer.show(&[end]).unwrap();
    let other = tokenizer.with_special_ids(None, Some(prompt[1]));
    let text = "{% for m in messages %}{{ m.content }}END{% endfor %}".replace("END", &name);
    let template = ChatTemplate::new(&text, "t.jinja").unwrap();
    let template = template.for_tokenizer(&other);
    let options = GenerateOptions::greedy(16);
    let ends = |options: &GenerateOptions| {
        let options = options.clone();
        options.with_end_of_turn(&template, &other, &model.config)
    };
    assert_eq!(ends(&options).stop_tokens, Some(vec![prompt[1], end]));
    let told = options.clone().with_stop_tokens([7]);
    assert_eq!(ends(&told).stop_tokens, Some(vec![7]));
    let text = |options: &GenerateOptions| {
        let mut texts = generate_text(&model, &other, &[&question], options).unwrap();
        texts.remove(0)
    };
    let (ended, endless) = (text(&ends(&options)), text(&options));
    assert!(
        endless.starts_with(&ended) && endless.len() > ended.len(),
        "{ended:?}, {endless:?}"
    );
}

/// Each answer is that to the conversation so far; what no longer fits is forgotten, the oldest first.
#[test]
fn a_conversation_forgets_what_no_longer_fits() {
    let (model, tokenizer) = tiny();
    let options = GenerateOptions::greedy(8);
    let mut chat = Chat::new(&model, &tokenizer, options.clone())
        .unwrap()
        .with_system("Be brief.");
    let mut expected = Conversation::new([Message::new("system", "Be brief.")]);
    let mut forgotten = 0;
    for number in 0..8 {
        let question = format!("What is a tyre number {number} made of?");
        let mut told = String::new();
        let reply = chat.ask(&question, |piece| told += piece).unwrap();
        assert_eq!(told, reply.text);
        expected.messages.push(Message::new("user", &question));
        assert_eq!(reply.forgotten % 2, 0, "a question goes with its answer");
        expected.messages.drain(1..1 + reply.forgotten);
        let by_hand = answer(&model, &tokenizer, expected.clone(), &options).unwrap();
        assert_eq!(reply.text, by_hand, "{number}");
        expected
            .messages
            .push(Message::new("assistant", &reply.text));
        assert_eq!(chat.conversation(), &expected);
        forgotten += reply.forgotten;
    }
    assert!(forgotten > 0);
    // A question that never fits is no part of it.
    let error = chat.ask(&"tyre ".repeat(300), |_| {}).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidArgument {
                name: "question",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(chat.conversation(), &expected);
    chat.reset();
    assert_eq!(chat.conversation().messages.len(), 1);
    assert!(Chat::new(&model, &tokenizer, options.with_answers(2)).is_err());
}
