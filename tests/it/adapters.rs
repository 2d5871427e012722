//! Adapters on a model that is there already: the laws of putting on, taking off, switching, mixing and merging.

use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use burn::tensor::{Distribution, Int, Tensor, s};
use burn_peft::Error;
use burn_peft::adapter::{
    Adapter, ParamCount, ParamInfo, StateDict, adapter_config, adapter_names, adapter_state_dict,
    combine_adapters, detach, disabled, get_adapter_params, get_params, initialize_adapters,
    initialize_eva, initialize_params, load_state_dict, merge_adapters, set_active_adapters,
    state_dict, with_adapters, without_adapters,
};
use burn_peft::checkpoint::{
    Serving, attach_peft, attach_peft_as, load_adapter, load_any_adapter, load_hf, load_peft,
    read_adapter_config, read_peft_config, save_adapter, save_hf, save_mlx, save_peft,
    save_peft_adapter, save_peft_for, save_peft_unconverted, save_state_dict, save_torchtune,
};
use burn_peft::data::Batch;
use burn_peft::llama::{Context, Experts, LlamaConfig, Output, TransformerDecoder};
use burn_peft::lora::{
    AttnModule, BIAS, Combination, CombineOptions, DEFAULT_ADAPTER, FULL, Init, LoRAConfig,
    LoRALinear, MethodRef, Routes, Targets, TrainedBias,
};
use burn_peft::training::{GradientOptions, accumulate_gradients};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{device, floats};

pub fn config() -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(48)
        .with_num_layers(2)
        .with_num_heads(4)
        .with_num_kv_heads(2)
        .with_head_dim(8)
        .with_embed_dim(32)
        .with_intermediate_dim(40)
        .with_max_seq_len(64)
        .with_qkv_bias(true)
}

pub fn tied() -> LlamaConfig {
    config().with_tie_embeddings(true)
}

/// Some of the experts of the second layer get no token.
fn experts() -> LlamaConfig {
    let experts = Experts::new(8, 2, 24).with_normalized(true);
    config().with_experts(Some(experts.with_dense_layers(vec![0])))
}

/// Always the same numbers, of a size at which losses and gradients are near 1: what rounding leaves of them goes by it.
pub fn base(config: &LlamaConfig) -> TransformerDecoder {
    let mut model = config.init(&device());
    initialize_params(&model);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let bound = 1.0 / (config.embed_dim as f32).sqrt();
    let mut values = StateDict::new();
    // Norms are ones.
    let is_random = |name: &str, info: &ParamInfo| info.shape.len() == 2 || name.ends_with("bias");
    for (name, info) in get_params(&model).filter(is_random).iter() {
        let numbers =
            Vec::from_iter((0..info.num_elements()).map(|_| rng.random_range(-bound..bound)));
        values.insert(name.into(), TensorData::new(numbers, info.shape.clone()));
    }
    load_state_dict(&mut model, &values, false).unwrap();
    model
}

/// Other values for all of an adapter's tensors.
pub fn random(model: TransformerDecoder, salt: u64) -> TransformerDecoder {
    let mut model = initialize_adapters(model, salt);
    let mut values = StateDict::new();
    for (index, (name, info)) in get_adapter_params(&model).iter().enumerate() {
        let at = |n: usize| ((n as f32 + 1.7 * index as f32 + salt as f32) * 0.61).sin() * 0.3;
        let numbers: Vec<f32> = (0..info.num_elements()).map(at).collect();
        values.insert(name.into(), TensorData::new(numbers, info.shape.clone()));
    }
    load_state_dict(&mut model, &values, false).unwrap();
    model
}

fn ids() -> Tensor<2, Int> {
    Tensor::from_ints([[1, 7, 3, 45, 9], [2, 4, 4, 11, 30]], &device())
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    floats(&model.forward(ids(), None).into_data())
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest <= tolerance, "{largest} above {tolerance}");
}

/// One of each kind of adapter.
pub fn kinds() -> Vec<LoRAConfig> {
    let qv = || LoRAConfig::new(["q_proj", "v_proj"]).with_rank(4);
    vec![
        qv(),
        qv().with_dora(true),
        qv().with_rslora(true).with_rank_pattern([("v_proj", 2)]),
        qv().with_lora_bias(true),
        qv().with_bias(TrainedBias::LoraOnly),
        qv().with_bias(TrainedBias::All),
        qv().with_modules_to_save(["norm", "tok_embeddings"]),
        qv().with_modules_to_save(["output"]),
        qv().with_trainable_tokens("tok_embeddings", [3, 45]),
        LoRAConfig::new(["tok_embeddings", "output", "w2"]).with_rank(4),
        LoRAConfig::new(["tok_embeddings", "output"]).with_dora(true),
        LoRAConfig::default().with_targets(Targets::AllLinear),
    ]
}

#[test]
fn attaching_and_detaching_is_the_identity() {
    for config in [config(), tied(), experts()] {
        for lora in kinds() {
            let model = base(&config);
            let (before, expected) = (state_dict(&model), logits(&model));
            let model = random(model.with_adapters(&lora).unwrap(), 1);
            assert_ne!(logits(&model), expected, "{lora:?}");
            assert_eq!(logits(&disabled(&model)), expected, "{lora:?}");
            let (model, adapter) = detach(model, DEFAULT_ADAPTER).unwrap();
            assert_eq!(state_dict(&model), before);
            assert_eq!(logits(&model), expected);
            assert_eq!(adapter.config, lora);
            assert_eq!(state_dict(&without_adapters(model)), before);
        }
    }
}

#[test]
fn what_was_detached_attaches_again() {
    for lora in kinds() {
        let model = random(base(&config()).with_adapters(&lora).unwrap(), 1);
        let (values, expected) = (adapter_state_dict(&model), logits(&model));
        let (model, adapter) = detach(model, DEFAULT_ADAPTER).unwrap();
        let again = model.attach(&adapter, "again").unwrap();
        assert_eq!(logits(&again), expected, "{lora:?}");
        assert_eq!(adapter_names(&again), ["again"]);
        let copy = Adapter::of(&again, "again").unwrap();
        assert_eq!(copy, adapter);
        assert_eq!(copy.tensors, values);
    }
}

#[test]
fn a_new_adapter_changes_nothing() {
    for config in [config(), tied()] {
        for lora in kinds() {
            let model = base(&config);
            let expected = logits(&model);
            let model = initialize_adapters(model.with_adapters(&lora).unwrap(), 3);
            assert_near(&logits(&model), &expected, 1e-5);
        }
    }
}

#[test]
fn merging_equals_the_forward_pass() {
    for config in [config(), tied(), experts()] {
        for lora in kinds() {
            let model = random(base(&config).with_adapters(&lora).unwrap(), 2);
            let expected = logits(&model);
            let merged = model.merge_lora();
            assert!(adapter_names(&merged).is_empty());
            assert_near(&logits(&merged), &expected, 1e-4);
        }
    }
}

#[test]
fn everything_that_is_trained_gets_a_gradient() {
    for config in [config(), tied(), experts()] {
        for lora in kinds() {
            let model = random(base(&config).with_adapters(&lora).unwrap(), 1);
            let (_, grads) =
                accumulate_gradients(&model, &[batch(None)], GradientOptions::default());
            let expected = get_adapter_params(&model).len();
            assert_eq!(grads.len(), expected, "{lora:?}");
            assert_eq!(
                ParamCount::of(&model).trainable,
                get_adapter_params(&model).num_elements()
            );
        }
    }
}

#[test]
fn folders_give_back_every_kind() {
    for config in [config(), tied(), experts()] {
        for lora in kinds() {
            let dir = tempfile::tempdir().unwrap();
            let model = random(base(&config).with_adapters(&lora).unwrap(), 1);
            save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
            let mut again = without_adapters(model.clone());
            attach_peft(&mut again, dir.path()).unwrap();
            assert_eq!(
                adapter_state_dict(&again),
                adapter_state_dict(&model),
                "{lora:?}"
            );
            assert_eq!(logits(&again), logits(&model));
            // And what was read is written again.
            let second = tempfile::tempdir().unwrap();
            save_peft_adapter(&again, DEFAULT_ADAPTER, None, second.path()).unwrap();
            let read = |dir: &tempfile::TempDir| read_peft_config(dir.path()).unwrap();
            assert_eq!(read(&second), read(&dir));
        }
    }
}

#[test]
fn several_adapters_are_switched_by_name() {
    let small = LoRAConfig::new(["q_proj"]).with_rank(2);
    let large = LoRAConfig::new(["v_proj", "w1"])
        .with_rank(8)
        .with_dora(true);
    let model = base(&config());
    let expected = logits(&model);
    let model = random(model.with_named_adapters(&small, "small").unwrap(), 1);
    let with_small = logits(&model);
    let model = model.with_named_adapters(&large, "large").unwrap();
    // Only the new one is trained.
    let trained = ParamCount::of(&model).trainable;
    let large_alone = ParamCount::of(&base(&config()).with_adapters(&large).unwrap());
    assert_eq!(trained, large_alone.trainable);
    let model = random(model, 2);
    assert_eq!(adapter_names(&model), ["small", "large"]);
    assert_eq!(adapter_config(&model, "small").unwrap().rank, 2);

    let small_acts = set_active_adapters(model.clone(), &["small"]).unwrap();
    assert_ne!(logits(&small_acts), with_small); // `random` has changed it since
    assert_ne!(logits(&small_acts), logits(&model));
    let none = set_active_adapters(model.clone(), &[]).unwrap();
    assert_eq!(logits(&none), expected);
    let both = set_active_adapters(model.clone(), &["small", "large"]).unwrap();
    assert_near(&logits(&both.clone().merge_lora()), &logits(&both), 1e-4);

    let error = set_active_adapters(model.clone(), &["smal"]).unwrap_err();
    assert!(
        error.to_string().contains("there are small, large"),
        "{error}"
    );
    let (model, _) = detach(model, "large").unwrap();
    assert_eq!(adapter_names(&model), ["small"]);
}

/// Another rank under the same name: PEFT's hot swap.
#[test]
fn an_adapter_gives_way_to_one_of_another_rank() {
    let model = base(&config());
    let [first, second] = [2, 6].map(|rank| {
        let lora = LoRAConfig::new(["q_proj", "w2"]).with_rank(rank);
        let model = random(model.clone().with_adapters(&lora).unwrap(), rank as u64);
        (
            Adapter::of(&model, DEFAULT_ADAPTER).unwrap(),
            logits(&model),
        )
    });
    let swapped = first.0.attach(model, "x").unwrap();
    assert_eq!(logits(&swapped), first.1);
    let swapped = second.0.attach(swapped, "x").unwrap();
    assert_eq!(logits(&swapped), second.1);
    assert_eq!(adapter_names(&swapped), ["x"]);
}

fn batch(adapters: Option<[Option<&str>; 4]>) -> Batch {
    let input_ids: Vec<i32> = (0..24).map(|n| (n * 7 + 3) % 48).collect();
    let mut batch = Batch {
        labels: input_ids.clone(),
        input_ids,
        segments: vec![vec![6]; 4],
        batch_size: 4,
        seq_len: 6,
        adapters: None,
    };
    batch.labels[8] = -100;
    match adapters {
        Some(names) => batch.with_adapters(names),
        None => batch,
    }
}

/// A model with two adapters that reach every place, embedding and output too.
fn with_two(config: &LlamaConfig) -> TransformerDecoder {
    let first = LoRAConfig::new(["q_proj", "tok_embeddings", "output"])
        .with_rank(3)
        .with_modules_to_save(["sa_norm"]);
    let second = LoRAConfig::new(["v_proj", "w2", "output"])
        .with_rank(2)
        .with_dora(true);
    let model = base(config).with_named_adapters(&first, "a").unwrap();
    random(model.with_named_adapters(&second, "b").unwrap(), 5)
}

#[test]
fn rows_of_a_batch_take_adapters_of_their_own() {
    for config in [config(), tied(), experts()] {
        let model = with_two(&config);
        for names in [
            [Some("a"), Some("b")],
            [None, Some("b")],
            [Some("b"), Some("a")],
        ] {
            let context = Context::causal(&model.config, 0, 5, &device());
            let context = context.with_routes(Some(Routes::new(names)));
            let mixed = model.forward_in(ids(), &context);
            let alone = names.map(|name| {
                let active: Vec<&str> = name.into_iter().collect();
                set_active_adapters(model.clone(), &active).unwrap()
            });
            for (row, alone) in alone.iter().enumerate() {
                let expected = alone.forward(ids(), None).narrow(0, row, 1).into_data();
                let found = mixed.clone().narrow(0, row, 1).into_data();
                assert_near(&floats(&found), &floats(&expected), 1e-5);
            }
        }
    }
}

#[test]
fn gradients_of_mixed_rows_are_those_of_the_rows_alone() {
    let names = [Some("a"), Some("b"), None, Some("a")];
    for config in [config(), tied(), experts()] {
        let model = with_two(&config);
        let model = burn_peft::adapter::train_adapters(model);
        let gradients = |model: &TransformerDecoder, batch: Batch| {
            let options = GradientOptions::default();
            let (loss, grads) = accumulate_gradients(model, &[batch], options);
            let mut values = std::collections::BTreeMap::new();
            for (name, info) in get_params(model).iter() {
                let flat = match info.shape.len() {
                    1 => grads.get::<1>(info.id).map(|g| g.into_data()),
                    _ => grads.get::<2>(info.id).map(|g| g.into_data()),
                };
                if let Some(grad) = flat {
                    values.insert(name.to_owned(), floats(&grad));
                }
            }
            (loss, values)
        };
        let (loss, mixed) = gradients(&model, batch(Some(names)));
        // Each row with its own adapter as the one that acts, weighted by its labels.
        let mut sum: std::collections::BTreeMap<String, Vec<f32>> = Default::default();
        let mut total = 0.0;
        for (row, name) in names.iter().enumerate() {
            let active: Vec<&str> = name.iter().copied().collect();
            let alone = set_active_adapters(model.clone(), &active).unwrap();
            let all = batch(None);
            let rows = |values: &[i32]| values[row * 6..(row + 1) * 6].to_vec();
            let one = Batch {
                input_ids: rows(&all.input_ids),
                labels: rows(&all.labels),
                segments: vec![vec![6]],
                batch_size: 1,
                seq_len: 6,
                adapters: None,
            };
            let share = one.num_label_tokens() as f32 / all.num_label_tokens() as f32;
            let (loss, grads) = gradients(&alone, one);
            total += loss * f64::from(share);
            for (key, grad) in grads {
                let entry = sum.entry(key).or_insert_with(|| vec![0.0; grad.len()]);
                entry
                    .iter_mut()
                    .zip(&grad)
                    .for_each(|(s, g)| *s += share * g);
            }
        }
        assert!((loss - total).abs() < 1e-6 * loss, "{loss} and {total}");
        assert_eq!(mixed.len(), sum.len());
        for (key, grad) in &mixed {
            assert_near(grad, &sum[key], 1e-5);
        }
    }
}

/// A model that is not a Llama.
#[derive(Module, Debug)]
struct Classifier {
    hidden: LoRALinear,
    layers: Vec<LoRALinear>,
    output: LoRALinear,
}

impl Classifier {
    fn new() -> Self {
        Self {
            hidden: LoRALinear::plain(4, 8, true, &device()),
            layers: (0..3)
                .map(|_| LoRALinear::plain(8, 8, true, &device()))
                .collect(),
            output: LoRALinear::plain(8, 3, false, &device()),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.hidden.forward(x);
        let x = self
            .layers
            .iter()
            .fold(x, |x, layer| layer.forward(x).tanh());
        self.output.forward(x)
    }
}

fn adapted_paths(model: &Classifier) -> Vec<String> {
    let names = get_adapter_params(model);
    let names = names
        .names()
        .filter_map(|name| name.strip_suffix(".lora_a.weight"));
    names.map(str::to_owned).collect()
}

#[test]
fn any_module_takes_adapters_by_path() {
    let paths = |lora: LoRAConfig| adapted_paths(&with_adapters(Classifier::new(), &lora).unwrap());
    assert_eq!(paths(LoRAConfig::new(["hidden"])), ["hidden"]);
    assert_eq!(
        paths(LoRAConfig::new(["layers.1", "output"])),
        ["layers.1", "output"]
    );
    let pattern = LoRAConfig::default().with_targets(Targets::pattern(r"layers\.[02]"));
    assert_eq!(paths(pattern), ["layers.0", "layers.2"]);
    let all = LoRAConfig::default().with_targets(Targets::AllLinear);
    assert_eq!(paths(all.clone()).len(), 5);
    let but_one = all.with_exclude(Targets::names(["layers.1"]));
    assert_eq!(paths(but_one).len(), 4);

    for (names, word) in [(["hiden"], "did you mean `hidden`"), (["q_proj"], "q_proj")] {
        let error = with_adapters(Classifier::new(), &LoRAConfig::new(names)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }));
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn any_module_merges_and_disables() {
    let lora = LoRAConfig::default()
        .with_targets(Targets::AllLinear)
        .with_rank(2);
    let model = Classifier::new();
    let x = Tensor::<2>::random([5, 4], Distribution::Default, &device());
    let outputs = |model: &Classifier| floats(&model.forward(x.clone()).into_data());
    let expected = outputs(&model);
    let model = with_adapters(model, &lora).unwrap();
    let mut model = initialize_adapters(model, 1);
    for layer in &mut model.layers {
        let adapter = layer.adapters.get_mut(DEFAULT_ADAPTER).unwrap();
        adapter.map_matrix("lora_b.weight", |b| b.ones_like() * 0.3);
    }
    let adapted = outputs(&model);
    assert_ne!(adapted, expected);
    assert_eq!(outputs(&disabled(&model)), expected);
    assert_eq!(outputs(&model), adapted);
    assert_near(&outputs(&merge_adapters(model.clone())), &adapted, 1e-5);
    assert_eq!(outputs(&without_adapters(model)), expected);
}

#[test]
fn an_adapter_of_another_model_is_an_error() {
    let lora = LoRAConfig::new(["hidden"]).with_rank(2);
    let model = with_adapters(Classifier::new(), &lora).unwrap();
    let good = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();

    let mut renamed = good.clone();
    let value = renamed.tensors.remove("hidden.lora_a.weight").unwrap();
    renamed.tensors.insert("hiden.lora_a.weight".into(), value);
    let error = renamed
        .attach(Classifier::new(), DEFAULT_ADAPTER)
        .unwrap_err();
    assert!(matches!(error, Error::Keys { .. }), "{error}");
    assert!(error.to_string().contains("hiden.lora_a.weight"), "{error}");

    let mut wider = good.clone();
    wider.config = wider.config.with_rank(3);
    let error = wider
        .attach(Classifier::new(), DEFAULT_ADAPTER)
        .unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

#[test]
fn two_folders_are_on_one_model() {
    let model = base(&config());
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut expected = Vec::new();
    for (salt, dir) in (1u64..).zip(&dirs) {
        let lora = LoRAConfig::new(["q_proj", "w1"]).with_rank(salt as usize + 1);
        let adapted = random(model.clone().with_adapters(&lora).unwrap(), salt);
        save_peft_adapter(&adapted, DEFAULT_ADAPTER, None, dir.path()).unwrap();
        expected.push(logits(&adapted));
    }
    let mut both = model;
    attach_peft_as(&mut both, dirs[0].path(), "first").unwrap();
    attach_peft_as(&mut both, dirs[1].path(), "second").unwrap();
    for (name, expected) in ["first", "second"].into_iter().zip(&expected) {
        let one = set_active_adapters(both.clone(), &[name]).unwrap();
        assert_eq!(&logits(&one), expected);
    }
}

#[test]
fn a_vocabulary_grows_and_shrinks() {
    for config in [config(), tied()] {
        for size in [40, 56] {
            let lora =
                LoRAConfig::new(["q_proj"]).with_modules_to_save(["tok_embeddings", "output"]);
            let lora = lora.with_vocab_size(size);
            let model = base(&config).with_adapters(&lora).unwrap();
            let model = initialize_adapters(model, 1);
            assert_eq!(model.vocab_size(), size);
            let ids = Tensor::<2, Int>::from_ints([[1, 39, 2]], &device());
            let adapted = model.forward(ids.clone(), None);
            assert_eq!(adapted.dims(), [1, 3, size]);
            let dir = tempfile::tempdir().unwrap();
            save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
            let mut again = without_adapters(model.clone());
            attach_peft(&mut again, dir.path()).unwrap();
            assert_eq!(again.vocab_size(), size);
            let merged = model.merge_lora();
            assert_eq!(merged.config.vocab_size, size);
            let found = merged.forward(ids, None).into_data();
            assert_near(&floats(&found), &floats(&adapted.into_data()), 1e-5);
        }
    }
}

#[test]
fn an_untouched_part_has_no_adapter() {
    let lora = LoRAConfig::new(["q_proj"]).with_bias(TrainedBias::All);
    let model = base(&config()).with_adapters(&lora).unwrap();
    let method = |layer: &LoRALinear| layer.adapter().map(|a| a.method());
    let attn = &model.layers[0].attn;
    assert_eq!(
        attn.k_proj.as_ref().and_then(method),
        Some(MethodRef(&BIAS))
    );
    assert_eq!(method(&attn.output_proj), None);
    let lora = LoRAConfig::new(AttnModule::ALL).with_modules_to_save(["k_proj"]);
    let model = base(&config()).with_adapters(&lora).unwrap();
    let k_proj = model.layers[1].attn.k_proj.as_ref().unwrap();
    assert_eq!(method(k_proj), Some(MethodRef(&FULL)));
    let weight = k_proj.base.weight.val();
    assert!(!weight.is_require_grad());
}

#[test]
fn an_adapter_and_its_configuration_are_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    let lora = LoRAConfig::new(["hidden", "layers.1"])
        .with_rank(2)
        .with_dora(true);
    let model = with_adapters(Classifier::new(), &lora).unwrap();
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    save_adapter(&adapter, &path).unwrap();
    assert_eq!(load_adapter(&path).unwrap(), adapter);

    // As torchtune's adapters, whose names are these and whose rows are in another order.
    save_state_dict(&adapter.tensors, &path).unwrap();
    let error = load_adapter(&path).unwrap_err();
    assert!(error.to_string().contains("names no LoRAConfig"), "{error}");
}

/// With one scale `alpha / r` for all layers, as serving programs have it.
#[test]
fn what_a_serving_program_passes_over_is_in_the_tensors() {
    let qv = || LoRAConfig::new(["q_proj", "v_proj", "output"]).with_rank(4);
    for lora in [
        qv(),
        qv().with_rslora(true),
        qv().with_rank_pattern([("v_proj", 2)])
            .with_alpha_pattern([("q_proj", 3.0)]),
        qv().with_rslora(true).with_rank_pattern([("q_proj", 6)]),
        qv().with_init(Init::Pissa),
    ] {
        for serving in [Serving::Vllm, Serving::LlamaCpp] {
            let model = random(base(&config()).with_adapters(&lora).unwrap(), 1);
            let dir = tempfile::tempdir().unwrap();
            save_peft_for(serving, &model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
            let read = read_peft_config(dir.path()).unwrap();
            assert!(
                !read.use_rslora && read.rank_pattern.is_empty() && read.alpha_pattern.is_empty()
            );
            let mut again = without_adapters(model.clone());
            attach_peft(&mut again, dir.path()).unwrap();
            assert_near(&logits(&again), &logits(&model), 1e-4);
        }
    }
    for (lora, word) in [
        (qv().with_dora(true), "magnitude"),
        (qv().with_lora_bias(true), "lora_b.bias"),
        (qv().with_bias(TrainedBias::All), "full.bias"),
        (qv().with_modules_to_save(["norm"]), "norm"),
        (LoRAConfig::new(["tok_embeddings"]), "tok_embeddings"),
    ] {
        let model = base(&config()).with_adapters(&lora).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let saved = save_peft_for(Serving::Vllm, &model, DEFAULT_ADAPTER, None, dir.path());
        let error = saved.unwrap_err().to_string();
        assert!(
            error.contains("vLLM") && error.contains(word) && error.contains("merge"),
            "{error}"
        );
    }
}

/// llama.cpp adapts an embedding of its own, vLLM none.
#[test]
fn a_serving_program_may_take_an_embedding() {
    let lora = LoRAConfig::new(["tok_embeddings", "q_proj"])
        .with_rank(4)
        .with_rank_pattern([("tok_embeddings", 2)]);
    let saved = |serving, config: &LlamaConfig| {
        let model = random(base(config).with_adapters(&lora).unwrap(), 1);
        let dir = tempfile::tempdir().unwrap();
        save_peft_for(serving, &model, DEFAULT_ADAPTER, None, dir.path())?;
        let mut again = without_adapters(model.clone());
        attach_peft(&mut again, dir.path())?;
        assert_near(&logits(&again), &logits(&model), 1e-4);
        Ok(())
    };
    let said = |saved: burn_peft::Result<()>| saved.unwrap_err().to_string();
    saved(Serving::LlamaCpp, &config()).unwrap();
    let error = said(saved(Serving::LlamaCpp, &tied()));
    assert!(error.contains("share one weight"), "{error}");
    let error = said(saved(Serving::Vllm, &config()));
    assert!(error.contains("tok_embeddings"), "{error}");
}

/// Where an adapter does not bring both, embedding and output of the base grow by the mean of their rows.
#[test]
fn a_base_grows_with_its_vocabulary() {
    let config = config().with_qkv_bias(false);
    let folder = tempfile::tempdir().unwrap();
    save_hf(&base(&config), folder.path()).unwrap();
    let read = |mut model: TransformerDecoder| {
        load_hf(&mut model, folder.path()).unwrap();
        model
    };
    for lora in [
        LoRAConfig::new(["q_proj"]),
        LoRAConfig::new(["tok_embeddings", "output"]),
        LoRAConfig::new(["q_proj"]).with_modules_to_save(["tok_embeddings"]),
        LoRAConfig::new(["q_proj"]).with_trainable_tokens("tok_embeddings", [3, 48, 50]),
    ] {
        let lora = lora.with_vocab_size(51);
        let before = read(config.init(&device())).with_adapters(&lora).unwrap();
        let after = read(config.init_lora(&lora, &device()).unwrap());
        let [before, after] = [before, after].map(|model| random(model, 5));
        assert_eq!((before.vocab_size(), before.config.vocab_size), (51, 51));
        let [old, new] = [&before, &after].map(logits);
        assert_near(&old, &new, 1e-6);
        let Output::Own(output) = &before.output else {
            panic!("the output has a weight of its own");
        };
        let weight = output.base.weight.val();
        let mean = weight.clone().narrow(0, 0, 48).mean_dim(0).into_data();
        let last = weight.narrow(0, 50, 1).into_data();
        assert_near(&floats(&last), &floats(&mean), 1e-6);

        let dir = tempfile::tempdir().unwrap();
        save_peft_adapter(&before, DEFAULT_ADAPTER, None, dir.path()).unwrap();
        let mut again = read(config.init(&device()));
        attach_peft(&mut again, dir.path()).unwrap();
        assert_near(&logits(&again), &old, 1e-6);
        let built = config.init_lora(&read_peft_config(dir.path()).unwrap(), &device());
        let mut built = read(built.unwrap());
        load_peft(&mut built, dir.path()).unwrap();
        assert_near(&logits(&built), &old, 1e-6);
        let served = save_peft_for(Serving::Vllm, &before, DEFAULT_ADAPTER, None, dir.path());
        assert!(served.unwrap_err().to_string().contains("vocabulary"));
    }
    let first = LoRAConfig::new(["tok_embeddings"]);
    let model = base(&config).with_named_adapters(&first, "first").unwrap();
    let error = model.with_adapters(&first.with_vocab_size(51)).unwrap_err();
    assert!(error.to_string().contains("before it"), "{error}");
}

/// One adapter for embedding and output of one weight: the same on both.
#[test]
fn one_adapter_is_the_embeddings_and_the_outputs() {
    let mut lora = LoRAConfig::new(["output", "q_proj"]);
    lora.ensure_weight_tying = true;
    let base = base(&tied());
    let model = random(base.clone().with_adapters(&lora).unwrap(), 3);
    assert!(model.output.adapters().is_empty());
    let merged = model.clone().merge_lora();
    assert!(merged.config.tie_embeddings);
    assert_near(&logits(&merged), &logits(&model), 1e-4);
    let dir = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
    let mut again = base.clone();
    attach_peft(&mut again, dir.path()).unwrap();
    assert_eq!(logits(&again), logits(&model));

    for bad in [
        lora.clone().with_dora(true),
        lora.clone().with_init(Init::Olora),
        lora.clone().with_alpha_pattern([("output", 3.0)]),
    ] {
        let error = base.clone().with_adapters(&bad).unwrap_err().to_string();
        assert!(error.contains("ensure_weight_tying"), "{error}");
    }
    // Each has its own where the weights differ.
    let untied = self::base(&config())
        .with_adapters(&lora.with_dora(true))
        .unwrap();
    assert!(untied.tok_embeddings.adapters.is_empty());
}

/// PEFT would take what a tied output begins with off the embedding too.
#[test]
fn a_tied_output_that_begins_with_a_part_of_the_base_is_converted() {
    let lora = LoRAConfig::new(["output"])
        .with_rank(4)
        .with_init(Init::Olora);
    let model = base(&tied());
    let expected = logits(&model);
    let model = initialize_adapters(model.with_adapters(&lora).unwrap(), 0);
    let dir = tempfile::tempdir().unwrap();
    let error = save_peft_unconverted(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap_err();
    assert!(error.to_string().contains("the embedding's too"), "{error}");
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
    let mut again = without_adapters(model);
    attach_peft(&mut again, dir.path()).unwrap();
    assert_near(&logits(&again), &expected, 1e-5);
}

#[test]
fn adapters_that_begin_with_a_part_of_the_base_are_saved_both_ways() {
    for (init, rslora) in [(Init::Pissa, false), (Init::Olora, true)] {
        let lora = LoRAConfig::new(["q_proj", "w2"])
            .with_rank(4)
            .with_init(init);
        let model = base(&config());
        let expected = logits(&model);
        let model = model.with_adapters(&lora.with_rslora(rslora)).unwrap();
        let model = initialize_adapters(model, 0);
        assert_near(&logits(&model), &expected, 1e-5);
        let model = random_trained(model);
        let [plain, shifted] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        save_peft_adapter(&model, DEFAULT_ADAPTER, None, plain.path()).unwrap();
        save_peft_unconverted(&model, DEFAULT_ADAPTER, None, shifted.path()).unwrap();
        for (dir, rank) in [(&plain, 8), (&shifted, 4)] {
            let mut again = without_adapters(model.clone());
            attach_peft(&mut again, dir.path()).unwrap();
            assert_eq!(read_peft_config(dir.path()).unwrap().rank, rank);
            assert_near(&logits(&again), &logits(&model), 1e-4);
        }
    }
    let random = LoRAConfig::new(["q_proj"]).with_init(Init::PissaRandomized { iterations: 4 });
    let model = base(&config()).with_adapters(&random).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
    let error = save_peft_unconverted(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap_err();
    assert!(error.to_string().contains("random"), "{error}");
}

/// Other factors, but what the adapter began with is still that.
fn random_trained(mut model: TransformerDecoder) -> TransformerDecoder {
    for layer in &mut model.layers {
        let mlp = layer.mlp.as_mut().unwrap();
        let q_proj = layer.attn.q_proj.as_mut().unwrap();
        for linear in [q_proj, &mut mlp.w2] {
            let adapter = linear.adapters.get_mut(DEFAULT_ADAPTER).unwrap();
            adapter.map_matrix("lora_a.weight", |a| a * 1.1);
            adapter.map_matrix("lora_b.weight", |b| b * 0.7 + 0.01);
        }
    }
    model
}

#[test]
fn one_adapter_combined_with_itself_alone_is_that_adapter() {
    let lora = LoRAConfig::new(["q_proj", "w1", "tok_embeddings"])
        .with_rank(4)
        .with_rslora(true)
        .with_rank_pattern([("w1", 2)]);
    let model = random(base(&config()).with_adapters(&lora).unwrap(), 1);
    let expected = logits(&model);
    let options = CombineOptions::default().with_density(1.0);
    for kind in Combination::ALL {
        let weights = [(DEFAULT_ADAPTER, 1.0)];
        let one = combine_adapters(model.clone(), &weights, kind, &options, "one").unwrap();
        assert_eq!(adapter_names(&one), [DEFAULT_ADAPTER, "one"]);
        assert_near(&logits(&one), &expected, 1e-4);
    }
    let error = combine_adapters(model, &[("other", 1.0)], Combination::Cat, &options, "one");
    assert!(error.unwrap_err().to_string().contains("`other`"));
}

/// Inputs that vary along two directions only: those are the rows of `A`.
#[test]
fn eva_begins_with_the_directions_of_the_inputs() {
    let lora = LoRAConfig::new(["hidden", "layers.1"]).with_rank(2);
    let model = with_adapters(Classifier::new(), &lora).unwrap();
    let directions =
        Tensor::<2>::from_floats([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], &device());
    let inputs = || {
        let along = Tensor::<2>::random([64, 2], Distribution::Normal(0.0, 1.0), &device());
        along.matmul(directions.clone())
    };
    let x = inputs();
    let expected = floats(&model.forward(x.clone()).into_data());
    let model = initialize_eva(model, 1.0, |model| {
        for _ in 0..4 {
            model.forward(inputs().inner());
        }
    })
    .unwrap();
    let a = model.hidden.adapter().unwrap().matrix("lora_a.weight");
    assert_eq!(model.hidden.adapter().unwrap().params().count(), 2);
    assert!(a.is_require_grad());
    // Of length 1, and nothing of them lies outside.
    let inside = a.clone().matmul(directions.clone().transpose());
    for norm in floats(&inside.square().sum_dim(1).into_data()) {
        approx::assert_relative_eq!(norm, 1.0, epsilon = 1e-4);
    }
    assert_eq!(floats(&model.forward(x).into_data()), expected);
    assert!(get_adapter_params(&model).len() == 4);

    let error = initialize_eva(model, 1.0, |_| {}).unwrap_err().to_string();
    assert!(error.contains("hidden"), "{error}");
}

/// Of each layer's inputs as many directions vary as the list says, all alike, so that each explains the same share.
#[test]
fn eva_gives_ranks_to_the_directions_that_explain_most() {
    let layers = |count| -> Vec<LoRALinear> {
        let layer = || LoRALinear::plain(4, 6, true, &device());
        (0..count).map(|_| layer()).collect()
    };
    let along = |count: usize| -> Tensor<2> {
        let directions = Tensor::<2>::eye(4, &device().inner());
        let directions = directions.slice_fill(s![count..4, ..], 0.0);
        Tensor::cat(vec![directions.clone(), -directions], 0)
    };
    let begun = |lora: &LoRAConfig, directions: [usize; 3]| {
        let model = with_adapters(layers(3), lora).unwrap();
        let pass = |model: &Vec<LoRALinear>| {
            for (layer, count) in model.iter().zip(directions) {
                layer.forward(along(count));
            }
        };
        initialize_eva(model, 2.0, pass).unwrap()
    };
    let ranks = |model: &[LoRALinear]| -> Vec<usize> {
        let rank = |layer: &LoRALinear| layer.adapter().map_or(0, |adapter| adapter.rank());
        model.iter().map(rank).collect()
    };
    let lora = LoRAConfig::new(["0", "1", "2"])
        .with_rank(2)
        .with_alpha(3.0);
    // The shares are 1, 1/2 twice and 1/4 four times; six are taken.
    let model = begun(&lora, [1, 2, 4]);
    assert_eq!(ranks(&model), [1, 2, 3]);
    for layer in &model {
        let adapter = layer.adapter().unwrap();
        assert_eq!(adapter.scale(), 1.5);
        assert_eq!(adapter.matrix("lora_a.weight").dims(), [adapter.rank(), 4]);
    }
    assert_eq!(get_adapter_params(&model).len(), 6);
    let config = adapter_config(&model, DEFAULT_ADAPTER).unwrap();
    assert!(
        config
            .rank_pattern
            .iter()
            .eq([(&"0".into(), &1), (&"2".into(), &3)])
    );
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let again = adapter.attach(layers(3), DEFAULT_ADAPTER).unwrap();
    assert_eq!(ranks(&again), [1, 2, 3]);
    assert_eq!(adapter_state_dict(&again), adapter.tensors);

    // Of three the first two layers have all, and the last loses its adapter, but not what it trains of its own.
    let lora = lora.with_rank(1);
    let model = begun(&lora, [1, 2, 4]);
    assert_eq!(ranks(&model), [1, 2, 0]);
    let trained = |model: &Vec<LoRALinear>| get_adapter_params(model).names().count();
    assert_eq!(trained(&model), 4);
    let config = adapter_config(&model, DEFAULT_ADAPTER).unwrap();
    assert_eq!(config.targets, Targets::names(["0", "1"]));
    let model = begun(&lora.with_bias(TrainedBias::All), [1, 2, 4]);
    assert_eq!(trained(&model), 4 + 3);
    let of_bias = model[2].adapter().unwrap().method();
    assert_eq!(of_bias, MethodRef(&BIAS));
}

/// PiSSA's part of the base is the base's again, and a folder carries the ranks.
#[test]
fn eva_redistributes_the_ranks_of_a_llama() {
    let lora = LoRAConfig::new(["tok_embeddings", "q_proj", "v_proj", "w2", "output"])
        .with_rank(4)
        .with_rank_pattern([("w2", 2)])
        .with_init(Init::Pissa);
    let model = base(&config());
    let expected = logits(&model);
    let model = initialize_adapters(model.with_adapters(&lora).unwrap(), 3);
    let model = initialize_eva(model, 2.0, |model| {
        let ids = Tensor::from_ints([[1, 7, 3, 45, 9, 2, 4, 4, 11, 30]], &device().inner());
        model.forward(ids, None);
    })
    .unwrap();
    assert_eq!(logits(&model), expected);
    let linear = |key: &&str| key.ends_with("lora_b.weight") && !key.starts_with("tok");
    let trained = get_adapter_params(&model);
    let ranks = trained.iter().filter(|(key, _)| linear(key));
    let ranks: Vec<usize> = ranks.map(|(_, info)| info.shape[1]).collect();
    assert_eq!(ranks.iter().sum::<usize>(), 4 * 5 + 2 * 2);
    assert!(ranks.iter().any(|rank| *rank != 4), "{ranks:?}");

    let model = random(model, 2);
    let dir = tempfile::tempdir().unwrap();
    let config = adapter_config(&model, DEFAULT_ADAPTER).unwrap();
    save_peft(&model, &config, dir.path()).unwrap();
    assert_eq!(read_peft_config(dir.path()).unwrap().init, Init::Eva);
    let mut again = without_adapters(model.clone());
    attach_peft(&mut again, dir.path()).unwrap();
    assert_eq!(adapter_state_dict(&again), adapter_state_dict(&model));
    assert_eq!(logits(&again), logits(&model));
}

#[test]
fn eva_says_what_it_cannot_do() {
    let lora = LoRAConfig::new(["0"]).with_rank(3);
    let model = vec![LoRALinear::plain(4, 6, true, &device())];
    let pass =
        |model: &Vec<LoRALinear>| drop(model[0].forward(Tensor::<2>::eye(4, &device().inner())));
    for (rho, word) in [
        (0.5, "rho"),
        (f64::NAN, "rho"),
        (2.0, "`0`: rank: 6 components"),
    ] {
        let model = with_adapters(model.clone(), &lora).unwrap();
        let error = initialize_eva(model, rho, pass).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let error = initialize_eva(model, 1.0, pass).unwrap_err().to_string();
    assert!(error.contains("with_adapters"), "{error}");
}

/// Loads an adapter into a model that is built by what its files say.
fn loaded(path: &Path, lora: &LoRAConfig) -> burn_peft::Result<TransformerDecoder> {
    let described = read_adapter_config(path)?;
    let lora = described.unwrap_or_else(|| lora.clone());
    let mut model = seeded().with_adapters(&lora)?;
    load_any_adapter(&mut model, path)?;
    Ok(model)
}

/// The same base each time.
fn seeded() -> TransformerDecoder {
    with_values(|n, index| ((n as f32 + 2.3 * index as f32) * 0.37).sin() * 0.2)
}

/// A base whose numbers are a function of their places and of their parameter's index.
fn with_values(at: impl Fn(usize, usize) -> f32) -> TransformerDecoder {
    let mut model = base(&config());
    let values = state_dict(&model).into_iter().enumerate();
    let values = values.map(|(index, (key, value))| {
        let numbers = (0..value.num_elements()).map(|n| at(n, index));
        let numbers: Vec<f32> = numbers.collect();
        (key, TensorData::new(numbers, value.shape().to_vec()))
    });
    load_state_dict(&mut model, &values.collect(), true).unwrap();
    model
}

#[test]
fn an_adapter_of_any_form_is_loaded_as_its_files_describe_it() {
    let dir = tempfile::tempdir().unwrap();
    let [folder, file] = ["folder", "file.safetensors"].map(|name| dir.path().join(name));
    for lora in kinds() {
        let model = random(seeded().with_adapters(&lora).unwrap(), 1);
        let expected = logits(&model);
        let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
        save_peft_adapter(&model, DEFAULT_ADAPTER, None, &folder).unwrap();
        save_adapter(&adapter, &file).unwrap();
        for path in [&folder, &file] {
            let again = loaded(path, &lora).unwrap();
            assert_eq!(logits(&again), expected, "{lora:?}");
        }
        save_torchtune(&adapter, &config(), &file).unwrap();
        let mut again = seeded().with_adapters(&lora).unwrap();
        load_any_adapter(&mut again, &file).unwrap();
        assert_eq!(logits(&again), expected, "{lora:?}");
    }
    let mlx = dir.path().join("mlx");
    let lora = LoRAConfig::new(["q_proj", "w2"])
        .with_rank(4)
        .with_dora(true);
    let model = random(seeded().with_adapters(&lora).unwrap(), 1);
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    save_mlx(&adapter, 2, &mlx).unwrap();
    assert_near(
        &logits(&loaded(&mlx, &lora).unwrap()),
        &logits(&model),
        1e-6,
    );
}

#[test]
fn an_adapter_of_another_kind_than_the_models_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lora = LoRAConfig::new(["q_proj"]).with_rank(4);
    let model = seeded().with_adapters(&lora).unwrap();
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let [own, torchtune] = ["own", "torchtune"].map(|name| dir.path().join(name));
    save_adapter(&adapter, &own).unwrap();
    save_torchtune(&adapter, &config(), &torchtune).unwrap();
    for (path, other, word) in [
        (&own, lora.clone().with_alpha(3.0), "scales by"),
        (&own, lora.clone().with_rank(2), "rank 2"),
        (&torchtune, lora.clone().with_rank(2), "shape"),
        (&torchtune, lora.clone().with_dora(true), "magnitude"),
        (
            &torchtune,
            LoRAConfig::new(["v_proj"]).with_rank(4),
            "v_proj",
        ),
    ] {
        let mut model = seeded().with_adapters(&other).unwrap();
        let before = state_dict(&model);
        let error = load_any_adapter(&mut model, path).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(state_dict(&model), before);
    }
    let error = load_any_adapter(&mut seeded(), &torchtune).unwrap_err();
    assert!(error.to_string().contains("no adapter"), "{error}");
}
