//! A model of one's own: several adapters on it, and what a slip of the pen says.

use burn::module::Module;
use burn::nn;
use burn::nn::attention::MultiHeadAttentionConfig;
use burn::optim::GradientsParams;
use burn::tensor::{Distribution, Int, Tensor};
use burn_peft::adapter::{
    Adapter, ParamCount, adapter_layers, adapter_names, combine_adapters, get_adapter_params,
    get_params, initialize_loftq, initialize_params, load_state_dict, quantize_base,
    set_active_adapters, set_trainable_params, state_dict, validate_state_dict_for_lora,
    with_adapters, with_named_adapters,
};
use burn_peft::checkpoint::{load_adapter, save_adapter};
use burn_peft::llama::Context;
use burn_peft::lora::{
    AttentionInput, Combination, CombineOptions, DEFAULT_ADAPTER, Decomposition, Init, LoRAConfig,
    LoRAEmbedding, LoRALinear, MultiHeadAttention, Naming, Routes, Targets,
};
use burn_peft::training::{AdamW, AdamWConfig};
use burn_peft::weight::Quantization;

use crate::adapters::{base, config};
use crate::common::{device, floats};

#[derive(Module, Debug)]
struct Block {
    ffn_up: LoRALinear,
    down: LoRALinear,
}

#[derive(Module, Debug)]
struct Own {
    words: LoRAEmbedding,
    blocks: Vec<Block>,
    norm: nn::LayerNorm,
    output: LoRALinear,
}

fn own() -> Own {
    let device = device();
    let block = |_| Block {
        ffn_up: LoRALinear::plain(8, 12, true, &device),
        down: LoRALinear::plain(12, 8, true, &device),
    };
    let model = Own {
        words: LoRAEmbedding::new(20, 8, &device),
        blocks: (0..2).map(block).collect(),
        norm: nn::LayerNormConfig::new(8).init(&device),
        output: LoRALinear::plain(8, 3, true, &device),
    };
    initialize_params(&model);
    model
}

impl Own {
    fn forward(&self) -> Tensor<3> {
        let ids = Tensor::<2, Int>::from_ints([[1, 2, 3], [4, 5, 6]], &device());
        let x = self
            .blocks
            .iter()
            .fold(self.words.forward(ids), |x, block| {
                let inner = block.ffn_up.forward(x.clone()).tanh();
                x + block.down.forward(inner)
            });
        self.output.forward(self.norm.forward(x))
    }

    fn outputs(&self) -> Vec<f32> {
        floats(&self.forward().into_data())
    }
}

fn lora() -> LoRAConfig {
    LoRAConfig::new(["down"]).with_rank(2)
}

/// `B` with other values than zero, for all adapters.
fn varied(mut model: Own) -> Own {
    let mut values = state_dict(&model);
    values.retain(|key, _| key.ends_with("lora_b.weight"));
    for value in values.values_mut() {
        let numbers = (0..value.num_elements()).map(|n| (n as f32).sin());
        let numbers: Vec<f32> = numbers.collect();
        *value = burn::tensor::TensorData::new(numbers, value.shape().to_vec());
    }
    load_state_dict(&mut model, &values, false).unwrap();
    model
}

fn gradients(model: &Own) -> usize {
    GradientsParams::from_grads(model.forward().square().mean().backward(), model).len()
}

#[track_caller]
fn says(error: impl std::fmt::Display, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn adapters_of_a_name_give_way_on_every_layer() {
    let model = varied(with_adapters(own(), &lora()).unwrap());
    let model = with_adapters(model, &LoRAConfig::new(["output"]).with_rank(2)).unwrap();
    let layers = adapter_layers(&model, DEFAULT_ADAPTER);
    let paths: Vec<_> = layers.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["output"]);
    let model = varied(model);
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let mut again = own();
    load_state_dict(&mut again, &state_dict(&model), false).unwrap();
    let again = adapter.attach(again, "again").unwrap();
    assert_eq!(again.outputs(), model.outputs());
}

#[test]
fn what_acts_is_trained() {
    let model = with_named_adapters(own(), &lora(), "a").unwrap();
    let of_a = ParamCount::of(&model).trainable;
    let model = with_named_adapters(model, &LoRAConfig::new(["output"]), "b").unwrap();
    let of_b = ParamCount::of(&model).trainable;
    assert_eq!(adapter_names(&model), ["a", "b"]);
    assert_eq!(of_b, 8 * (8 + 3));
    for (names, trained, tensors) in [
        (&["a"][..], of_a, 4),
        (&["b"], of_b, 2),
        (&["a", "b"], of_a + of_b, 6),
    ] {
        let model = set_active_adapters(varied(model.clone()), names).unwrap();
        assert_eq!(ParamCount::of(&model).trainable, trained, "{names:?}");
        assert_eq!(gradients(&model), tensors, "{names:?}");
    }
    let none = set_active_adapters(model.clone(), &[]).unwrap();
    assert_eq!(ParamCount::of(&none).trainable, 0);

    // What is no adapter stays as it is, and what LoRA-FA keeps is not trained.
    let norm = get_params(&model).filter(|name, _| name.starts_with("norm."));
    let model = set_trainable_params(model, &norm);
    let model = set_active_adapters(model, &["b"]).unwrap();
    assert_eq!(ParamCount::of(&model).trainable, of_b + 2 * 8);
    let frozen = with_named_adapters(own(), &lora().with_frozen_a(true), "fa").unwrap();
    let before = ParamCount::of(&frozen);
    let frozen = set_active_adapters(frozen, &["fa"]).unwrap();
    assert_eq!(ParamCount::of(&frozen), before);
}

#[test]
fn an_adapter_has_a_name() {
    let error = with_named_adapters(own(), &lora(), "").unwrap_err();
    says(error, &["must not be empty"]);
    let model = with_adapters(own(), &lora()).unwrap();
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    says(adapter.attach(own(), "").unwrap_err(), &["not be empty"]);
    let (weights, options) = ([(DEFAULT_ADAPTER, 1.0)], CombineOptions::default());
    let combined = combine_adapters(model, &weights, Combination::Cat, &options, "");
    says(combined.unwrap_err(), &["must not be empty"]);
}

/// What an adapter keeps and does not train is no part of the base.
#[test]
fn every_kind_of_adapter_is_validated() {
    let values = state_dict(&own());
    for lora in [
        lora(),
        lora().with_frozen_a(true),
        lora().with_init(Init::Pissa),
        lora().with_init(Init::Olora).with_rank(8),
        lora().with_init(Init::Orthogonal).with_frozen_a(true),
        lora().with_dora(true),
        lora().with_trainable_tokens("words", [3, 19]),
        lora().with_modules_to_save(["output"]),
    ] {
        let mut model = with_adapters(own(), &lora).unwrap();
        let report = load_state_dict(&mut model, &values, false).unwrap();
        validate_state_dict_for_lora(&lora, &report).unwrap();
        validate_state_dict_for_lora(&get_adapter_params(&model), &report).unwrap();

        let mut keys: burn_peft::adapter::StateDictKeys = (&report).into();
        let own = get_params(&model).filter(|_, info| info.is_adapter());
        keys.lora = Some(own.names().map(Into::into).collect());
        validate_state_dict_for_lora(&lora, keys.clone()).unwrap();
        // And a base must not have it.
        let kept = own.names().next().unwrap().to_owned();
        keys.base.as_mut().unwrap().insert(kept.clone());
        let error = validate_state_dict_for_lora(&lora, keys).unwrap_err();
        says(error, &[&format!("adapter key in the base model: {kept}")]);
    }
}

#[test]
fn routes_are_those_of_the_batch() {
    let panics = |rows: usize, forward: &dyn Fn(&Routes)| {
        let routes = Routes::new((0..rows).map(|row| (row % 2 == 0).then_some("a")));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forward(&routes)));
        let Err(panic) = result else {
            return String::new();
        };
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    };
    let x = Tensor::<3>::ones([4, 5, 8], &device());
    let ids = Tensor::<2, Int>::zeros([4, 5], &device());
    let targets = LoRAConfig::new(["words", "ffn_up"]).with_rank(2);
    let own = with_named_adapters(own(), &targets, "a").unwrap();
    let llama = base(&config()).with_named_adapters(&LoRAConfig::new(["q_proj"]), "a");
    let llama = llama.unwrap();
    let linear =
        |routes: &Routes| drop(own.blocks[0].ffn_up.forward_routed(x.clone(), Some(routes)));
    let embedding = |routes: &Routes| drop(own.words.forward_routed(ids.clone(), Some(routes)));
    let decoder = |routes: &Routes| {
        let context = Context::causal(&llama.config, 0, 5, &device());
        llama.forward_in(ids.clone(), &context.with_routes(Some(routes.clone())));
    };
    for rows in [1, 2, 3, 6] {
        for forward in [&linear as &dyn Fn(&Routes), &embedding, &decoder] {
            says(panics(rows, forward), &["as many rows as its routes"]);
        }
    }
    for forward in [&linear as &dyn Fn(&Routes), &embedding, &decoder] {
        assert_eq!(panics(4, forward), "");
    }
}

#[test]
fn rows_of_an_attention_take_their_own_adapters() {
    let theirs = MultiHeadAttentionConfig::new(8, 2)
        .with_dropout(0.0)
        .init(&device());
    let model = MultiHeadAttention::from(theirs);
    let plain = model.clone();
    let lora = LoRAConfig::new(["query", "value", "output"]).with_rank(2);
    let mut model = with_named_adapters(model, &lora, "a").unwrap();
    for layer in [&mut model.query, &mut model.value, &mut model.output] {
        let adapter = layer.adapters.get_mut("a").unwrap();
        adapter.map_matrix("lora_b.weight", |b| b.ones_like());
    }
    let row = Tensor::<3>::random([1, 3, 8], Distribution::Default, &device());
    let x = Tensor::cat(vec![row.clone(), row.clone()], 0);
    let routes = Routes::new([None, Some("a")]);
    let mixed = model.forward_routed(AttentionInput::self_attn(x), Some(&routes));
    let alone = [&plain, &model].map(|m| m.forward(AttentionInput::self_attn(row.clone())).context);
    let expected = Tensor::cat(alone.to_vec(), 0);
    let difference: f32 = (mixed.context - expected).abs().max().into_scalar();
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn an_entry_that_means_nothing_names_the_nearest() {
    let names = |name: &str| Targets::names([name]);
    for (lora, parts) in [
        (
            LoRAConfig::new(["up"]),
            &["no module is called `up`", "did you mean `ffn_up`"][..],
        ),
        (
            lora().with_exclude(names("dwon")),
            &["exclude", "`dwon`", "`down`"],
        ),
        (
            lora().with_exclude(Targets::pattern("down")),
            &["exclude", "whole path"],
        ),
        (
            lora().with_layers([0, 99]),
            &["layers: the model has no layer 99; its layers are 0 to 1"],
        ),
        (
            lora().with_rank_pattern([("dwn", 1)]),
            &["rank_pattern", "`dwn`", "`down`"],
        ),
        (
            lora().with_alpha_pattern([("outptu", 1.0)]),
            &["alpha_pattern", "`output`"],
        ),
        (
            lora().with_modules_to_save(["outptu"]),
            &["modules_to_save", "did you mean `output`"],
        ),
        (
            lora().with_modules_to_save(["norm"]),
            &[
                "`norm` is none of this crate's layers",
                "`set_trainable_params`",
            ],
        ),
        (
            LoRAConfig::new(["norm"]),
            &["`norm` is none of this crate's layers"],
        ),
        (LoRAConfig::new(["blocks.0"]), &["`blocks.0` is none of"]),
        (
            lora().with_trainable_tokens("wrds", [1]),
            &["trainable_token_indices", "did you mean `words`"],
        ),
        (
            LoRAConfig::default().with_targets(Targets::pattern("ffn_up")),
            &[
                "whole path matches the pattern `ffn_up`",
                "blocks.0.ffn_up, ",
            ],
        ),
        (
            LoRAConfig::default()
                .with_targets(Targets::pattern(".*down"))
                .with_layers([0]),
            &["layers: a pattern selects modules by their whole paths"],
        ),
        (
            lora().with_exclude(names("down")),
            &["`exclude` and `layers` leave none"],
        ),
    ] {
        let error = with_adapters(own(), &lora).unwrap_err();
        assert!(matches!(error, burn_peft::Error::InvalidArgument { .. }));
        says(error, parts);
        // In the words of a folder that PEFT wrote, what else it names counts.
        if parts[0] != "targets" && lora.targets == Targets::names(["down"]) {
            let mut lora = lora;
            lora.naming = Naming::HuggingFace;
            let error = with_adapters(own(), &lora).unwrap_err();
            says(error, &["no module matches the targets"]);
        }
    }
    for lora in [
        lora()
            .with_exclude(names("blocks.0.down"))
            .with_layers([0, 1]),
        lora().with_rank_pattern([("output", 1), ("down", 4)]),
        lora().with_modules_to_save(["put"]), // by the end of the name, as in PEFT
    ] {
        with_adapters(own(), &lora).unwrap();
    }
}

#[test]
fn a_llamas_modules_are_found_by_both_names() {
    for (lora, near) in [
        (LoRAConfig::new(["down_prj"]), "`down_proj`"),
        (lora_of_q().with_modules_to_save(["lm_hed"]), "`lm_head`"),
        (
            lora_of_q().with_trainable_tokens("embed_tokns", [1]),
            "`embed_tokens`",
        ),
        (lora_of_q().with_rank_pattern([("q_prj", 1)]), "`q_proj`"),
        (
            lora_of_q().with_trainable_tokens("mlp_norm", [1]),
            "it is a norm",
        ),
        (
            LoRAConfig::new(["q_proj", "norm"]),
            "`lora` does not adapt `norm`",
        ),
    ] {
        says(base(&config()).with_adapters(&lora).unwrap_err(), &[near]);
    }
    let mut of_peft = lora_of_q()
        .with_rank_pattern([("q_prj", 1)])
        .with_layers([0, 99])
        .with_modules_to_save(["lm_hed"]);
    of_peft.naming = Naming::HuggingFace;
    base(&config()).with_adapters(&of_peft).unwrap();
}

fn lora_of_q() -> LoRAConfig {
    LoRAConfig::new(["q_proj"])
}

#[test]
#[should_panic = "no parameter is called `lora_B.weight`; did you mean `lora_b.weight`?"]
fn a_learning_rate_factor_is_of_a_parameter() {
    let model = with_adapters(own(), &lora()).unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default()).with_lr_factor("lora_B.weight", 16.0);
    let grads = GradientsParams::from_grads(model.forward().sum().backward(), &model);
    optimizer.step(1e-3, model, grads);
}

#[test]
fn keys_and_shapes_say_what_is_likely() {
    let model = with_adapters(own(), &lora()).unwrap();
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let mut misspelt = adapter.clone();
    let value = misspelt
        .tensors
        .remove("blocks.0.down.lora_a.weight")
        .unwrap();
    let bad = "blocks.0.down.lora_A.weight";
    misspelt.tensors.insert(bad.into(), value);
    let nearest = format!("{bad} (nearest key of the model: blocks.0.down.lora_a.weight)");
    says(misspelt.attach(own(), "x").unwrap_err(), &[&nearest]);

    let mut other = with_adapters(own(), &lora().with_rank(3)).unwrap();
    let error = load_state_dict(&mut other, &adapter.tensors, false).unwrap_err();
    says(error, &["is this an adapter of another rank?"]);
}

#[test]
fn a_folder_is_no_adapter_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = load_adapter(dir.path()).unwrap_err();
    says(
        error,
        &["a folder, not a file of `save_adapter`", "`attach_peft`"],
    );
    let model = with_adapters(own(), &lora()).unwrap();
    let path = dir.path().join("adapter.safetensors");
    save_adapter(&Adapter::of(&model, DEFAULT_ADAPTER).unwrap(), &path).unwrap();
    load_adapter(path).unwrap();
}

#[test]
fn loftq_begins_an_adapter_of_a_packed_layer() {
    let begun = |model| {
        let dense = state_dict(&model);
        initialize_loftq(model, 1, Decomposition::Exact, |key| Ok(dense[key].clone()))
    };
    let of_words = with_adapters(own(), &LoRAConfig::new(["words"])).unwrap();
    for model in [own(), of_words] {
        says(
            begun(model).unwrap_err(),
            &["no adapter acts on a linear layer"],
        );
    }
    let dense = with_adapters(own(), &lora()).unwrap();
    says(begun(dense.clone()).unwrap_err(), &["quantize the base"]);
    let packed = quantize_base(dense, Quantization::Int8, |_| false).unwrap();
    begun(packed).unwrap();
}

#[test]
fn burns_embedding_is_taken_over() {
    let theirs = nn::EmbeddingConfig::new(20, 8).init(&device());
    let ours = LoRAEmbedding::from(theirs.clone());
    let ids = Tensor::<2, Int>::from_ints([[1, 19], [0, 7]], &device());
    let found = floats(&ours.forward(ids.clone()).into_data());
    assert_eq!(found, floats(&theirs.forward(ids).into_data()));
    assert_eq!(state_dict(&ours), state_dict(&theirs));
}
