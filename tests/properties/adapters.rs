//! Laws of adapters of every kind, on one base and several at a time.

use burn_peft::adapter::{
    combine_adapters, detach, disabled, initialize_adapters, set_active_adapters, without_adapters,
};
use burn_peft::checkpoint::{attach_peft, save_peft_adapter};
use burn_peft::llama::Context;
use burn_peft::lora::{Combination, CombineOptions, Init, Routes, TrainedBias};

use super::*;

/// What a configuration may have beside low-rank factors on linear layers.
#[derive(Debug, Clone)]
enum Beside {
    Nothing,
    LoraBias,
    TrainedBias(TrainedBias),
    Modules(Vec<&'static str>),
    Tokens(Vec<usize>),
    Embedding,
    RankPattern(usize),
    FrozenA,
}

fn beside() -> impl Strategy<Value = Beside> {
    let modules = vec!["norm", "tok_embeddings", "sa_norm"];
    prop_oneof![
        Just(Beside::Nothing),
        Just(Beside::LoraBias),
        Just(Beside::TrainedBias(TrainedBias::LoraOnly)),
        Just(Beside::TrainedBias(TrainedBias::All)),
        proptest::sample::subsequence(modules, 1..=3).prop_map(Beside::Modules),
        proptest::collection::btree_set(0usize..8, 1..4)
            .prop_map(|rows| Beside::Tokens(rows.into_iter().collect())),
        Just(Beside::Embedding),
        (1usize..6).prop_map(Beside::RankPattern),
        Just(Beside::FrozenA),
    ]
}

fn with(lora: LoRAConfig, beside: Beside) -> LoRAConfig {
    let first = names_of(&lora).next().expect("a target").to_owned();
    match beside {
        Beside::Nothing => lora,
        Beside::LoraBias => lora.with_dora(false).with_lora_bias(true),
        Beside::TrainedBias(bias) => lora.with_bias(bias),
        Beside::Modules(modules) => lora.with_modules_to_save(modules),
        Beside::Tokens(rows) => lora.with_trainable_tokens("tok_embeddings", rows),
        Beside::Embedding => lora.with_targets(Targets::names([&first, "tok_embeddings"])),
        Beside::RankPattern(rank) => lora.with_rank_pattern([(first, rank)]),
        Beside::FrozenA => lora.with_frozen_a(true),
    }
}

prop_compose! {
    /// A base and adapters of any kind that it can have.
    fn adapted()(
        (llama, lora) in configs(),
        beside in beside(),
    ) -> (LlamaConfig, LoRAConfig) {
        (llama, with(lora, beside))
    }
}

/// Other values for an adapter's trained parameters.
fn randomize_adapters(mut model: TransformerDecoder, seed: u64) -> TransformerDecoder {
    model = initialize_adapters(model, seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let params = get_adapter_params(&model);
    let random = params.iter().map(|(name, info)| {
        let count = info.num_elements();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-0.5..0.5)).collect();
        (name.to_owned(), TensorData::new(values, info.shape.clone()))
    });
    load_state_dict(&mut model, &random.collect(), false).unwrap();
    model
}

fn ids(rows: [[i32; 5]; 2]) -> Tensor<2, Int> {
    Tensor::from_ints(rows, &device())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn attaching_and_detaching_is_the_identity((llama, lora) in adapted(), seed: u64) {
        let model = random_base(&llama, seed);
        let (before, expected) = (state_dict(&model), logits(&model));
        let model = randomize_adapters(model.with_adapters(&lora).unwrap(), seed);
        prop_assert_ne!(logits(&model), expected.clone());
        prop_assert_eq!(logits(&disabled(&model)), expected.clone());
        let (model, adapter) = detach(model, DEFAULT_ADAPTER).unwrap();
        prop_assert_eq!(state_dict(&model), before);
        prop_assert_eq!(logits(&model), expected);
        prop_assert_eq!(adapter.config, lora);
    }

    #[test]
    fn merging_equals_the_forward_pass((llama, lora) in adapted(), seed: u64) {
        let model = random_base(&llama, seed).with_adapters(&lora).unwrap();
        let model = randomize_adapters(model, seed);
        let expected = logits(&model);
        assert_same(&logits(&model.merge_lora()), &expected);
    }

    #[test]
    fn folders_give_back_every_kind((llama, lora) in adapted(), seed: u64) {
        let model = random_base(&llama, seed).with_adapters(&lora).unwrap();
        let model = randomize_adapters(model, seed);
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        save_peft_adapter(&model, DEFAULT_ADAPTER, None, first.path()).unwrap();
        let mut again = without_adapters(model.clone());
        attach_peft(&mut again, first.path()).unwrap();
        prop_assert_eq!(adapter_state_dict(&again), adapter_state_dict(&model));
        prop_assert_eq!(logits(&again), logits(&model));
        save_peft_adapter(&again, DEFAULT_ADAPTER, None, second.path()).unwrap();
        let [first, second] = [first, second].map(|dir| read_peft_config(dir.path()).unwrap());
        prop_assert_eq!(first, second);
    }

    #[test]
    fn a_mixed_batch_equals_its_rows_alone(
        (llama, first) in adapted(),
        (second, beside) in (lora_config(), beside()),
        names in [0usize..3, 0usize..3],
        seed: u64,
    ) {
        let names = names.map(|index| [None, Some("a"), Some("b")][index]);
        let second = with(second, beside);
        let model = random_base(&llama, seed).with_named_adapters(&first, "a").unwrap();
        let model = model.with_named_adapters(&second, "b").unwrap();
        let model = randomize_adapters(model, seed);
        let batch = || ids([[1, 4, 2, 7, 3], [5, 0, 6, 6, 1]]);
        let context = Context::causal(&model.config, 0, 5, &device());
        let mixed = model.forward_in(batch(), &context.with_routes(Some(Routes::new(names))));
        for (row, name) in names.into_iter().enumerate() {
            let active: Vec<&str> = name.into_iter().collect();
            let alone = set_active_adapters(model.clone(), &active).unwrap();
            let expected = floats(alone.forward(batch(), None).narrow(0, row, 1));
            assert_same(&floats(mixed.clone().narrow(0, row, 1)), &expected);
        }
    }

    #[test]
    fn one_adapter_combined_alone_is_that_adapter(
        (llama, lora) in configs(),
        rank in 1usize..6,
        kind in proptest::sample::select(Combination::ALL.to_vec()),
        seed: u64,
    ) {
        let lora = with(lora.with_dora(false), Beside::RankPattern(rank));
        let model = random_base(&llama, seed).with_adapters(&lora).unwrap();
        let model = randomize_adapters(model, seed);
        let expected = logits(&model);
        let options = CombineOptions::default().with_density(1.0);
        let weights = [(DEFAULT_ADAPTER, 1.0)];
        let one = combine_adapters(model, &weights, kind, &options, "one").unwrap();
        assert_same(&logits(&one), &expected);
    }

    #[test]
    fn an_adapter_that_takes_a_part_of_the_base_begins_as_the_base(
        (llama, lora) in configs(),
        // Up to the narrowest layer's width.
        rank in 1usize..5,
        init in proptest::sample::select(vec![
            Init::Pissa,
            Init::PissaRandomized { iterations: 4 },
            Init::Olora,
        ]),
        seed: u64,
    ) {
        let model = random_base(&llama, seed);
        let expected = logits(&model);
        let lora = lora.with_dora(false).with_rank(rank).with_init(init);
        let model = initialize_adapters(model.with_adapters(&lora).unwrap(), seed);
        let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
        for (got, expected) in logits(&model).iter().zip(&expected) {
            prop_assert!((got - expected).abs() <= 1e-5 * largest, "{} and {}", got, expected);
        }
    }
}
