//! Laws: counts follow a formula, merging equals the forward pass, saving and loading is the
//! identity, exactly what was asked for is trained.

mod adapters;

use std::collections::BTreeSet;

use approx::assert_relative_eq;
use burn::module::{Lora, LoraAdapter, Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_peft::adapter::{
    ParamCount, ParamSet, StateDict, adapter_names, adapter_state_dict, get_adapter_params,
    get_params, initialize_params, load_state_dict, set_trainable_params, state_dict,
};
use burn_peft::checkpoint::{
    load_hf, load_hf_as, load_peft, load_state_dict_file, read_hf_config, read_peft_config,
    save_hf, save_peft, save_state_dict,
};
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{
    AttnModule, DEFAULT_ADAPTER, LoRAAdapter, LoRAConfig, LoRALinear, MlpModule, Targets,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn device() -> Device {
    Device::default().autodiff()
}

// What is random.

prop_compose! {
    fn llama_config()(
        (vocab_size, num_layers) in (8usize..50, 1usize..3),
        (num_kv_heads, group, half_head) in (1usize..3, 1usize..3, 2usize..4),
        (embed_dim, intermediate_dim) in (6usize..20, 6usize..24),
        (tie_embeddings, qkv_bias, output_proj_bias) in any::<(bool, bool, bool)>(),
    ) -> LlamaConfig {
        LlamaConfig::llama2_7b().with_vocab_size(vocab_size).with_num_layers(num_layers).with_num_heads(num_kv_heads * group).with_num_kv_heads(num_kv_heads).with_head_dim(2 * half_head).with_embed_dim(embed_dim).with_intermediate_dim(intermediate_dim).with_max_seq_len(32).with_tie_embeddings(tie_embeddings).with_qkv_bias(qkv_bias).with_output_proj_bias(output_proj_bias)
    }
}

prop_compose! {
    fn lora_config()(
        attn_modules in proptest::sample::subsequence(AttnModule::ALL.to_vec(), 1..=4),
        mlp_modules in proptest::sample::subsequence(MlpModule::ALL.to_vec(), 0..=3),
        // Above the width of some layers, too.
        (rank, alpha) in (1usize..12, 0.5f64..16.0),
        (apply_to_output, use_dora, use_rslora) in any::<(bool, bool, bool)>(),
    ) -> LoRAConfig {
        let mlp = mlp_modules.into_iter().map(MlpModule::name);
        let names = attn_modules.into_iter().map(AttnModule::name).chain(mlp);
        LoRAConfig::new(names)
            .with_output(apply_to_output)
            .with_rank(rank)
            .with_alpha(alpha)
            .with_dora(use_dora)
            .with_rslora(use_rslora)
    }
}

prop_compose! {
    /// A model's configuration and that of adapters which it can have.
    fn configs()(llama in llama_config(), lora in lora_config()) -> (LlamaConfig, LoRAConfig) {
        (llama, lora)
    }
}

fn names_of(lora: &LoRAConfig) -> impl Iterator<Item = &str> {
    let Targets::Names(names) = &lora.targets else {
        panic!("the targets are names");
    };
    names.iter().map(String::as_str)
}

fn adapts(lora: &LoRAConfig, module: &str) -> bool {
    names_of(lora).any(|name| name == module)
}

/// Gives every parameter of a module random values, DoRA's magnitudes and `B` too.
fn randomize<M: Module>(model: &mut M, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let params = get_params(model);
    let random = params.iter().map(|(name, info)| {
        let count = info.num_elements();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-0.5..0.5)).collect();
        (name.to_owned(), TensorData::new(values, info.shape.clone()))
    });
    load_state_dict(model, &random.collect(), true).unwrap();
}

fn random_lora_model(llama: &LlamaConfig, lora: &LoRAConfig, seed: u64) -> TransformerDecoder {
    let mut model = llama.init_lora(lora, &device()).unwrap();
    randomize(&mut model, seed);
    model
}

fn random_base(llama: &LlamaConfig, seed: u64) -> TransformerDecoder {
    let mut model = llama.init(&device());
    randomize(&mut model, seed);
    model
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    let ids = [[1, 4, 2, 7, 3], [5, 0, 6, 6, 1]];
    let ids = Tensor::<2, Int>::from_ints(ids, &device());
    floats(model.forward(ids, None))
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    data.as_slice::<f32>().unwrap().to_vec()
}

fn matrix<const D: usize>(values: [[f32; D]; 2]) -> Tensor<2> {
    Tensor::from_data(values, &device())
}

/// Differences of up to 1e-4 of the largest number.
#[track_caller]
fn assert_same(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (got, expected) in got.iter().zip(expected) {
        let difference = (got - expected).abs();
        assert!(
            difference <= 1e-4 * largest,
            "{got} instead of {expected}, among numbers of up to {largest}"
        );
    }
}

// Counts.

/// The elements of a model without adapters.
fn base_elements(c: &LlamaConfig) -> usize {
    let (dim, ffn) = (c.embed_dim, c.intermediate_dim);
    let queries = c.num_heads * c.head_dim;
    let keys = c.num_kv_heads * c.head_dim;
    let qkv_bias = if c.qkv_bias { queries + 2 * keys } else { 0 };
    let output_bias = if c.output_proj_bias { dim } else { 0 };
    let attention = 2 * dim * queries + 2 * dim * keys + qkv_bias + output_bias;
    let layer = attention + 3 * dim * ffn + 2 * dim;
    let tables = if c.tie_embeddings { 1 } else { 2 };
    tables * c.vocab_size * dim + c.num_layers * layer + dim
}

/// The elements of all adapters: `r (in + out)` a layer, and `out` more with DoRA.
fn adapter_elements(c: &LlamaConfig, lora: &LoRAConfig) -> usize {
    let (dim, ffn) = (c.embed_dim, c.intermediate_dim);
    let queries = c.num_heads * c.head_dim;
    let keys = c.num_kv_heads * c.head_dim;
    let one = |in_dim: usize, out_dim: usize| {
        lora.rank * (in_dim + out_dim) + if lora.uses_dora() { out_dim } else { 0 }
    };
    names_of(lora)
        .map(|name| match name {
            "q_proj" => c.num_layers * one(dim, queries),
            "k_proj" | "v_proj" => c.num_layers * one(dim, keys),
            "output_proj" => c.num_layers * one(queries, dim),
            "w1" | "w3" => c.num_layers * one(dim, ffn),
            "w2" => c.num_layers * one(ffn, dim),
            _ => one(dim, c.vocab_size),
        })
        .sum()
}

proptest! {
    #[test]
    fn counts_follow_the_formula((llama, lora) in configs()) {
        let base = base_elements(&llama);
        let adapter = adapter_elements(&llama, &lora);
        let count = ParamCount::of(&llama.init(&device()));
        prop_assert_eq!(count, ParamCount { total: base, trainable: base });
        let model = llama.init_lora(&lora, &device()).unwrap();
        let count = ParamCount::of(&model);
        prop_assert_eq!(count, ParamCount { total: base + adapter, trainable: adapter });
        prop_assert_eq!(get_params(&model).num_elements(), base + adapter);
        prop_assert_eq!(get_adapter_params(&model).num_elements(), adapter);
    }
}

// Merging.

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_merged_layer_equals_the_adapted_one(
        (in_dim, out_dim, bias, seed) in (4usize..10, 4usize..10, any::<bool>(), any::<u64>()),
        lora in lora_config(),
    ) {
        let mut layer = LoRALinear::new(in_dim, out_dim, &lora, bias, &device());
        randomize(&mut layer, seed);
        let x = Tensor::<3>::random([2, 3, in_dim], Distribution::Default, &device());
        let adapted = floats(layer.forward(x.clone()));
        let base = floats(layer.clone().without_adapter().forward(x.clone()));
        prop_assert_ne!(&adapted, &base);
        let merged = layer.merge();
        prop_assert!(merged.adapters.is_empty());
        assert_same(&floats(merged.forward(x)), &adapted);
    }

    #[test]
    fn a_merged_decoder_equals_the_adapted_one((llama, lora) in configs(), seed: u64) {
        let model = random_lora_model(&llama, &lora, seed);
        let adapted = logits(&model);
        let merged = model.merge_lora();
        prop_assert!(adapter_names(&merged).is_empty());
        assert_same(&logits(&merged), &adapted);
        // An output with an adapter of its own is not the embedding any more.
        let tie_embeddings = llama.tie_embeddings && !adapts(&lora, "output");
        prop_assert_eq!(merged.config.tie_embeddings, tie_embeddings);
        let total = base_elements(&llama.with_tie_embeddings(tie_embeddings));
        prop_assert_eq!(ParamCount::of(&merged), ParamCount { total, trainable: 0 });
    }

    /// What was trained before merging still is, and the merged weights are leaves of their own.
    #[test]
    fn a_merged_decoder_can_be_trained((llama, lora) in configs(), seed: u64, before: bool) {
        let mut model = random_lora_model(&llama, &lora, seed);
        if before {
            let all = get_params(&model);
            model = set_trainable_params(model, &all);
        }
        let mut merged = model.merge_lora();
        let all = get_params(&merged);
        if !before {
            merged = set_trainable_params(merged, &all);
        }
        let tie_embeddings = merged.config.tie_embeddings;
        let total = base_elements(&llama.with_tie_embeddings(tie_embeddings));
        prop_assert_eq!(ParamCount::of(&merged).trainable, total);
        let ids = Tensor::<2, Int>::from_ints([[1, 4, 2, 7, 3]], &device());
        let loss = merged.forward(ids, None).square().sum();
        prop_assert_eq!(trained_by(&merged, loss), names(&all));
    }

    /// Removing the adapters gives the base model back, bit for bit.
    #[test]
    fn a_decoder_without_its_adapters_is_the_base((llama, lora) in configs(), seed: u64) {
        let base = random_base(&llama, seed);
        let mut model = random_lora_model(&llama, &lora, seed.wrapping_add(1));
        let report = load_state_dict(&mut model, &state_dict(&base), false).unwrap();
        prop_assert!(report.unexpected.is_empty());
        let adapters = get_adapter_params(&model);
        prop_assert!(report.missing.iter().all(|key| adapters.contains(key)));
        let removed = model.without_adapters();
        prop_assert_eq!(state_dict(&removed), state_dict(&base));
        prop_assert_eq!(logits(&removed), logits(&base));
    }

    /// A new adapter changes nothing: `B` is zero and the magnitude is the weight's row norm.
    #[test]
    fn a_new_adapter_changes_nothing((llama, lora) in configs(), seed: u64) {
        let base = random_base(&llama, seed);
        let mut model = llama.init_lora(&lora, &device()).unwrap();
        load_state_dict(&mut model, &state_dict(&base), false).unwrap();
        assert_same(&logits(&model), &logits(&base));
    }
}

/// The layer of the closed-form cases: `W = 3`, `A = [[1, 2, 3, 4], [5, 6, 7, 8]]`, `B` the
/// numbers from 1 to 12 row by row, rank 2, alpha 1.
fn closed_form_layer(use_dora: bool) -> LoRALinear {
    let lora = LoRAConfig::default()
        .with_rank(2)
        .with_alpha(1.0)
        .with_dora(use_dora);
    let mut layer = LoRALinear::new(4, 6, &lora, false, &device());
    let counting = |shape: [usize; 2]| {
        let numbers: Vec<f32> = (1..=shape[0] * shape[1]).map(|n| n as f32).collect();
        TensorData::new(numbers, shape)
    };
    let mut values = StateDict::from([
        ("weight".into(), TensorData::new(vec![3f32; 24], [6, 4])),
        ("lora_a.weight".into(), counting([2, 4])),
        ("lora_b.weight".into(), counting([6, 2])),
    ]);
    if use_dora {
        let magnitude: Vec<f32> = (1..=6).map(|n| n as f32).collect();
        values.insert("magnitude".into(), TensorData::new(magnitude, [6]));
    }
    load_state_dict(&mut layer, &values, true).unwrap();
    layer
}

/// The values of a LoRA layer in one with DoRA: `W = 3` in rows of four has the norm 6.
#[test]
fn a_magnitude_that_is_not_stored_is_the_norm_of_the_loaded_weight() {
    let lora = LoRAConfig::default().with_rank(2).with_alpha(1.0);
    let values = state_dict(&closed_form_layer(false));
    let new = || LoRALinear::new(4, 6, &lora.clone().with_dora(true), false, &device());
    let initialized = new();
    initialize_params(&initialized);
    for mut layer in [new(), initialized] {
        let report = load_state_dict(&mut layer, &values, false).unwrap();
        assert_eq!(report.missing, ["magnitude"]);
        let magnitude = layer.adapter().unwrap().vector("magnitude").unwrap();
        assert_eq!(floats(magnitude), [6.0; 6]);
    }
}

#[track_caller]
fn assert_first_and_last_row(weight: Tensor<2>, first: [f32; 4], last: [f32; 4], epsilon: f32) {
    let weight = floats(weight);
    assert_eq!(weight.len(), 24);
    for (got, expected) in weight[..4].iter().zip(first) {
        assert_relative_eq!(*got, expected, epsilon = epsilon);
    }
    for (got, expected) in weight[20..].iter().zip(last) {
        assert_relative_eq!(*got, expected, epsilon = epsilon);
    }
}

#[test]
fn lora_merges_in_closed_form() {
    let merged = closed_form_layer(false).merge();
    assert_first_and_last_row(
        merged.base.weight.val(),
        [8.5, 10.0, 11.5, 13.0],
        [38.5, 50.0, 61.5, 73.0],
        1e-5,
    );
}

#[test]
fn dora_merges_in_closed_form() {
    let merged = closed_form_layer(true).merge();
    assert_first_and_last_row(
        merged.base.weight.val(),
        [0.3906, 0.4596, 0.5285, 0.5974],
        [2.0188, 2.6218, 3.2248, 3.8278],
        1e-3,
    );
}

// Saving and loading.

/// Hugging Face has no model with a bias on the output projection alone, and Qwen2 for one on the others.
fn of_a_family(llama: LlamaConfig) -> LlamaConfig {
    let qkv_bias = llama.qkv_bias || llama.output_proj_bias;
    let model_type = match qkv_bias && !llama.output_proj_bias {
        true => "qwen2",
        false => "llama",
    };
    llama.with_model_type(model_type).with_qkv_bias(qkv_bias)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn hf_folders_give_back_the_model(llama in llama_config(), seed: u64) {
        let llama = of_a_family(llama);
        let dir = tempfile::tempdir().unwrap();
        let model = random_base(&llama, seed);
        save_hf(&model, dir.path()).unwrap();
        let config = read_hf_config(dir.path()).unwrap();
        prop_assert_eq!(&config, &llama);
        let mut again = config.init(&device());
        let report = load_hf(&mut again, dir.path()).unwrap();
        prop_assert!(report.missing.is_empty() && report.unexpected.is_empty());
        prop_assert_eq!(state_dict(&again), state_dict(&model));
    }

    #[test]
    fn half_precision_folders_give_back_the_model(llama in llama_config(), seed: u64) {
        let llama = of_a_family(llama);
        let supported = [DType::BF16, DType::F16].into_iter();
        for dtype in supported.filter(|dtype| device().supports_dtype(*dtype)) {
            let dir = tempfile::tempdir().unwrap();
            save_hf(&random_base(&llama, seed), dir.path()).unwrap();
            let mut model = llama.init(&device());
            load_hf_as(&mut model, dir.path(), dtype).unwrap();
            let values = state_dict(&model);
            prop_assert!(values.values().all(|value| value.dtype() == dtype));
            save_hf(&model, dir.path()).unwrap();
            let mut again = llama.init(&device());
            load_hf(&mut again, dir.path()).unwrap();
            prop_assert_eq!(state_dict(&again), values);
        }
    }

    #[test]
    fn adapter_folders_give_back_the_adapter((llama, lora) in configs(), seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let lora = lora.with_dropout(0.25);
        let model = random_lora_model(&llama, &lora, seed);
        save_peft(&model, &lora, dir.path()).unwrap();
        let read = read_peft_config(dir.path()).unwrap();
        prop_assert_eq!(
            (read.rank, read.dropout, read.uses_dora(), read.use_rslora),
            (lora.rank, lora.dropout, lora.uses_dora(), lora.use_rslora)
        );
        // serde_json reads seventeen digits to the last bit but one.
        assert_relative_eq!(read.alpha, lora.alpha, max_relative = 1e-15);
        for config in [read, lora] {
            let mut again = random_lora_model(&llama, &config, seed.wrapping_add(1));
            load_peft(&mut again, dir.path()).unwrap();
            prop_assert_eq!(adapter_state_dict(&again), adapter_state_dict(&model));
        }
    }

    #[test]
    fn state_dicts_give_back_the_model((llama, lora) in configs(), seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let values = state_dict(&random_lora_model(&llama, &lora, seed));
        save_state_dict(&values, &path).unwrap();
        let read = load_state_dict_file(&path).unwrap();
        prop_assert_eq!(&read, &values);
        let mut again = llama.init_lora(&lora, &device()).unwrap();
        let report = load_state_dict(&mut again, &read, true).unwrap();
        prop_assert_eq!(report.loaded.len(), values.len());
        prop_assert_eq!(state_dict(&again), values);
    }
}

// What is trained.

/// The names of the parameters that have a gradient.
struct WithGradient<'a> {
    grads: &'a GradientsParams,
    params: &'a ParamSet,
    names: BTreeSet<String>,
}

impl ModuleVisitor for WithGradient<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.grads.get::<D>(param.id).is_some() {
            let found = self.params.iter().find(|(_, info)| info.id == param.id);
            let (name, _) = found.unwrap();
            self.names.insert(name.to_owned());
        }
    }
}

fn trained_by<M: Module>(model: &M, loss: Tensor<1>) -> BTreeSet<String> {
    let grads = GradientsParams::from_grads(loss.backward(), model);
    let params = get_params(model);
    let mut visitor = WithGradient {
        grads: &grads,
        params: &params,
        names: BTreeSet::new(),
    };
    model.visit(&mut visitor);
    visitor.names
}

fn names(params: &ParamSet) -> BTreeSet<String> {
    params.names().map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any sequence of choices exactly the last one is trained, whether or not the
    /// parameters had values before.
    #[test]
    fn the_last_choice_is_trained(
        (llama, lora) in configs(),
        choices in prop::collection::vec(any::<u64>(), 1..5),
        initialize_at in 0usize..5,
    ) {
        let mut model = llama.init_lora(&lora, &device()).unwrap();
        let mut chosen = get_adapter_params(&model);
        for (index, choice) in choices.into_iter().enumerate() {
            if index == initialize_at {
                initialize_params(&model);
            }
            let mut rng = ChaCha8Rng::seed_from_u64(choice);
            chosen = get_params(&model).filter(|_, _| rng.random_range(0.0..1.0) < 0.3);
            model = set_trainable_params(model, &chosen);
            let count = ParamCount::of(&model);
            prop_assert_eq!(count.trainable, chosen.num_elements());
            prop_assert_eq!(count.total, get_params(&model).num_elements());
        }
        if !chosen.is_empty() {
            let ids = Tensor::<2, Int>::from_ints([[1, 4, 2, 7, 3]], &device());
            let loss = model.forward(ids, None).square().sum();
            prop_assert_eq!(trained_by(&model, loss), names(&chosen));
        }
        prop_assert_eq!(ParamCount::of(&model).trainable, chosen.num_elements());
    }

    /// The base of a layer with an adapter gets no gradient, its adapter does.
    #[test]
    fn a_frozen_weight_gets_no_gradient(lora in lora_config(), bias: bool) {
        let layer = LoRALinear::new(6, 5, &lora, bias, &device());
        let x = Tensor::<2>::random([3, 6], Distribution::Default, &device());
        let loss = layer.forward(x).square().sum();
        let adapter = get_adapter_params(&layer);
        prop_assert_eq!(adapter.len(), if lora.uses_dora() { 3 } else { 2 });
        prop_assert_eq!(trained_by(&layer, loss), names(&adapter));
    }
}

#[test]
#[should_panic(expected = "the model has no parameter `output.weight`")]
fn a_parameter_of_another_model_cannot_be_trained() {
    let params = get_params(&LoRALinear::plain(4, 4, false, &device()));
    let tied = LlamaConfig::llama2_7b()
        .with_vocab_size(8)
        .with_num_layers(1)
        .with_embed_dim(8)
        .with_tie_embeddings(true);
    let untied = tied.clone().with_tie_embeddings(false);
    assert_eq!(params.len(), 1);
    let output = get_params(&untied.init(&device())).filter(|name, _| name == "output.weight");
    assert_eq!(output.len(), 1);
    set_trainable_params(tied.init(&device()), &output);
}

// Burn's own layers.

/// Shifts every parameter, Burn's adapters included, so that none is zero.
struct Shift;

impl ModuleMapper for Shift {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let require_grad = value.is_require_grad();
        let shifted = (value.set_require_grad(false) + 0.25).set_require_grad(require_grad);
        Param::from_mapped_value(id, shifted, mapper)
    }
}

/// Where Burn's own layers are asked: on some GPUs it rounds f32 to the eleven bits of TF32 before it
/// multiplies, which this crate does not.
fn on_cpu<M: Module>(module: M) -> M {
    module.to_device(&Device::flex().autodiff())
}

fn burn_linear(in_dim: usize, out_dim: usize, bias: bool) -> nn::Linear {
    linear_config(in_dim, out_dim, bias)
        .init(&device())
        .map(&mut Shift)
}

fn linear_config(in_dim: usize, out_dim: usize, bias: bool) -> nn::LinearConfig {
    nn::LinearConfig::new(in_dim, out_dim).with_bias(bias)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_converted_linear_keeps_its_outputs(
        (in_dim, out_dim, bias) in (2usize..9, 2usize..9, any::<bool>()),
        lora in lora_config(),
    ) {
        let theirs = burn_linear(in_dim, out_dim, bias);
        let x = Tensor::<2>::random([3, in_dim], Distribution::Default, &device());
        let expected = floats(on_cpu(theirs.clone()).forward(on_cpu(x.clone())));
        let plain = burn_peft::lora::PlainLinear::from(theirs.clone());
        prop_assert_eq!(plain.shape(), [out_dim, in_dim]);
        assert_same(&floats(plain.forward(x.clone())), &expected);
        let without = LoRALinear::from(theirs.clone());
        prop_assert!(without.adapters.is_empty());
        assert_same(&floats(without.forward(x.clone())), &expected);
        let with = LoRALinear::from_linear(theirs, &lora);
        assert_same(&floats(with.forward(x.clone())), &expected);
        let adapter = names(&get_adapter_params(&with));
        prop_assert_eq!(trained_by(&with, with.forward(x).square().sum()), adapter);
    }

    #[test]
    fn burns_layouts_survive_a_state_dict(
        (in_dim, out_dim, is_column) in (2usize..5, 2usize..5, any::<bool>()),
    ) {
        let layout = match is_column {
            true => nn::LinearLayout::Col,
            false => nn::LinearLayout::Row,
        };
        let config = linear_config(in_dim, out_dim, true).with_layout(layout);
        let new = || config.init(&device());
        let x = Tensor::<2>::random([3, in_dim], Distribution::Default, &device());
        let theirs = new();
        let expected = floats(on_cpu(theirs.clone()).forward(on_cpu(x.clone())));

        let values = state_dict(&theirs);
        let initialized = new();
        initialize_params(&initialized);
        for mut other in [new(), initialized] {
            load_state_dict(&mut other, &values, true).unwrap();
            assert_same(&floats(on_cpu(other).forward(on_cpu(x.clone()))), &expected);
        }

        let ours = LoRALinear::from(theirs);
        assert_same(&floats(ours.forward(x.clone())), &expected);
        let mut other = LoRALinear::from(new());
        load_state_dict(&mut other, &state_dict(&ours), true).unwrap();
        assert_same(&floats(other.forward(x)), &expected);
    }

    #[test]
    fn burns_adapter_converts_with_its_outputs(
        (in_dim, out_dim, rank, bias) in (2usize..9, 2usize..9, 1usize..3, any::<bool>()),
        alpha in 0.5f64..8.0,
    ) {
        let theirs = burn_linear(in_dim, out_dim, bias)
            .apply_lora(Lora::new(rank, alpha))
            .map(&mut Shift);
        let x = Tensor::<2>::random([3, in_dim], Distribution::Default, &device());
        let expected = floats(on_cpu(theirs.clone()).forward(on_cpu(x.clone())));
        let ours = LoRALinear::from(theirs);
        assert_same(&floats(ours.forward(x.clone())), &expected);
        prop_assert_eq!(ours.adapter().map(|adapter| adapter.rank()), Some(rank));
        let adapter = names(&get_adapter_params(&ours));
        prop_assert_eq!(trained_by(&ours, ours.forward(x).square().sum()), adapter);
    }

    #[test]
    fn our_adapter_converts_with_its_update(
        (in_dim, out_dim, seed) in (4usize..9, 4usize..9, any::<u64>()),
        lora in lora_config(),
    ) {
        let lora = lora.with_dora(false);
        let mut layer = LoRALinear::new(in_dim, out_dim, &lora, false, &device());
        randomize(&mut layer, seed);
        let x = Tensor::<2>::random([3, in_dim], Distribution::Default, &device());
        let update = layer.forward(x.clone())
            - layer.clone().without_adapter().forward(x.clone());
        let theirs = LoraAdapter::try_from(layer.adapter().unwrap().clone()).unwrap();
        let expected = on_cpu(x.clone()).matmul(on_cpu(theirs.clone()).delta());
        assert_same(&floats(update.clone()), &floats(expected));
        let mut again = LoRALinear::plain(in_dim, out_dim, false, &device());
        again.base.weight = again.base.weight.map(|weight| weight.zeros_like());
        again.adapters.insert(DEFAULT_ADAPTER, LoRAAdapter::from(&theirs));
        assert_same(&floats(again.forward(x)), &floats(update));
    }
}

// Dropout.

/// A layer of one number, with `W = 10`, `A = 1` and `B = 2`: without a magnitude, `y = W x + 2·dropout(x)`.
fn layer_of_one_number(dropout: f64, magnitude: Option<f32>, device: &Device) -> LoRALinear {
    let lora = LoRAConfig::default()
        .with_rank(1)
        .with_alpha(1.0)
        .with_dropout(dropout)
        .with_dora(magnitude.is_some());
    let mut layer = LoRALinear::new(1, 1, &lora, false, device);
    let number = |value: f32| TensorData::new(vec![value], [1, 1]);
    let mut values = StateDict::from([
        ("weight".into(), number(10.0)),
        ("lora_a.weight".into(), number(1.0)),
        ("lora_b.weight".into(), number(2.0)),
    ]);
    let magnitude = magnitude.map(|value| TensorData::new(vec![value], [1]));
    values.extend(magnitude.map(|value| ("magnitude".into(), value)));
    load_state_dict(&mut layer, &values, true).unwrap();
    layer
}

/// A quarter of the outputs are `dropped`, the others `kept`.
fn assert_drops_a_quarter(layer: &LoRALinear, dropped: f32, kept: f32) {
    let y = floats(layer.forward(Tensor::<2>::ones([4000, 1], &device())));
    let is_close = |y: f32, expected: f32| (y - expected).abs() < 1e-4;
    assert!(
        y.iter()
            .all(|y| is_close(*y, dropped) || is_close(*y, kept))
    );
    let share = y.iter().filter(|y| is_close(**y, dropped)).count() as f64 / 4000.0;
    assert_relative_eq!(share, 0.25, epsilon = 0.05);
}

#[test]
fn dropout_drops_the_adapters_input_alone() {
    let layer = layer_of_one_number(0.25, None, &device());
    assert_drops_a_quarter(&layer, 10.0, 10.0 + 2.0 / 0.75);
}

#[test]
fn dropout_is_for_training_only() {
    let plain = Device::default();
    let x = Tensor::<2>::ones([100, 1], &plain);
    let without_autodiff = layer_of_one_number(0.9, None, &plain).forward(x.clone());
    assert_eq!(floats(without_autodiff), [12.0; 100]);
    let valid = layer_of_one_number(0.9, None, &device()).valid();
    assert_eq!(floats(valid.forward(x)), [12.0; 100]);
    let training = layer_of_one_number(0.9, None, &device());
    let y = floats(training.forward(Tensor::<2>::ones([100, 1], &device())));
    assert_ne!(y, [12.0; 100]);
}

/// With a magnitude of 24, `‖W + B·A‖ = 12`, so the ratio is 2: what is kept gives `10 + (2 - 1)·10 / 0.75 +
/// 2·2 / 0.75`, what is dropped the base's 10.
#[test]
fn doras_magnitude_acts_on_what_dropout_keeps() {
    let layer = layer_of_one_number(0.25, Some(24.0), &device());
    assert_drops_a_quarter(&layer, 10.0, 10.0 + (10.0 + 2.0 * 2.0) / 0.75);
}

#[test]
fn dropout_leaves_doras_base_whole() {
    let lora = LoRAConfig::default()
        .with_rank(1)
        .with_dropout(0.5)
        .with_dora(true);
    let layer = LoRALinear::new(3, 2, &lora, true, &device());
    let x = matrix([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    // B is zero and the magnitude is the row norm: nothing is left for the dropout to act on.
    let base = layer.clone().without_adapter();
    assert_same(&floats(layer.forward(x.clone())), &floats(base.forward(x)));
}

// Generation.

fn likeliest(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).reduce(|best, id| match logits[id] > logits[best] {
        true => id,
        false => best,
    });
    best.unwrap() as u32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn generation_with_the_cache_equals_whole_passes(
        (llama, lora) in configs(),
        seed: u64,
        prompt in prop::collection::vec(0u32..8, 1..6),
    ) {
        let model = random_lora_model(&llama, &lora, seed);
        let options = GenerateOptions::greedy(8).with_stop_tokens([]);
        let got = generate(&model, &prompt, &options).unwrap();
        let mut all: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
        let mut expected = Vec::new();
        for _ in 0..8 {
            let ids = Tensor::<1, Int>::from_ints(&all[..], &device()).unsqueeze();
            let logits = floats(model.forward(ids, None));
            let next = likeliest(&logits[logits.len() - llama.vocab_size..]);
            expected.push(next);
            all.push(next as i32);
        }
        prop_assert_eq!(got, expected);
    }
}
