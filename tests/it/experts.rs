//! Models with experts: their files, and the adapters of their experts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use burn_peft::Error;
use burn_peft::adapter::{
    Adapter, ParamCount, StateDict, adapter_state_dict, get_adapter_params, load_state_dict,
    state_dict,
};
use burn_peft::checkpoint::{
    MergedCheckpoint, SafetensorsFile, Serving, attach_peft, load_hf, load_hf_as, read_hf_config,
    read_peft_config, save_hf, save_mlx, save_peft_adapter, save_peft_for, save_peft_unconverted,
    save_state_dict,
};
use burn_peft::llama::{Block, Experts, LlamaConfig, QkNorm, TransformerDecoder};
use burn_peft::lora::{DEFAULT_ADAPTER, Init, LoRAConfig, Targets};
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use burn_peft::weight::{FrozenWeight, Quantization};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapters::{base, config as llama, random};
use crate::common::{assert_floats_close, batch, device, floats};

const EXPERTS: usize = 4;

/// A Qwen3 whose second layer has experts.
fn config() -> LlamaConfig {
    let experts = Experts::new(EXPERTS, 2, 24).with_layer_step(2);
    llama()
        .with_model_type("qwen3_moe")
        .with_qkv_bias(false)
        .with_block(Block::default().with_qk_norm(Some(QkNorm::Head)))
        .with_experts(Some(experts))
}

fn both() -> LoRAConfig {
    LoRAConfig::new(["q_proj", "moe.gate", "gate_up_proj", "w2"])
        .with_exclude(Targets::names(["layers.0.mlp.w2"]))
        .with_rank(3)
}

fn saved(model: &TransformerDecoder) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_hf(model, dir.path()).unwrap();
    dir
}

fn adapted(lora: &LoRAConfig) -> TransformerDecoder {
    random(base(&config()).with_adapters(lora).unwrap(), 3)
}

fn tensors(path: &Path) -> StateDict {
    let file = SafetensorsFile::open(path).unwrap();
    let names = file.shapes().into_keys();
    let read = |name: &String| file.read(name, file.dtype(name).unwrap()).unwrap();
    names.map(|name| (name.clone(), read(&name))).collect()
}

fn loaded(dir: &Path) -> TransformerDecoder {
    let mut model = read_hf_config(dir).unwrap().init(&device());
    load_hf(&mut model, dir).unwrap();
    model
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    let ids = burn::tensor::Tensor::from_ints([[1, 7, 3, 45, 9, 30, 2, 11]], &device());
    floats(&model.forward(ids, None).into_data())
}

#[test]
fn files_have_gate_and_up_of_each_expert() {
    let model = base(&config());
    let dir = saved(&model);
    let path = dir.path().join("model.safetensors");
    let files = tensors(&path);
    for (module, shape) in [
        ("gate_proj", [24, 32]),
        ("up_proj", [24, 32]),
        ("down_proj", [32, 24]),
    ] {
        let name = format!("model.layers.1.mlp.experts.3.{module}.weight");
        assert_eq!(files[&name].shape()[..], shape);
    }
    assert_eq!(
        files["model.layers.1.mlp.gate.weight"].shape()[..],
        [EXPERTS, 32]
    );
    assert_eq!(state_dict(&loaded(dir.path())), state_dict(&model));
}

/// The experts of a folder as one tensor for each of their weights.
fn stack(dir: &Path) {
    let path = dir.join("model.safetensors");
    let mut files = tensors(&path);
    let mut take = |expert: usize, module: &str| {
        let name = format!("model.layers.1.mlp.experts.{expert}.{module}_proj.weight");
        floats(&files.remove(&name).unwrap())
    };
    let mut stacked: [Vec<f32>; 2] = Default::default();
    for expert in 0..EXPERTS {
        stacked[0].extend(take(expert, "gate"));
        stacked[0].extend(take(expert, "up"));
        stacked[1].extend(take(expert, "down"));
    }
    let [gate_up, down] = stacked;
    let prefix = "model.layers.1.mlp.experts";
    files.insert(
        format!("{prefix}.gate_up_proj"),
        TensorData::new(gate_up, [EXPERTS, 48, 32]),
    );
    files.insert(
        format!("{prefix}.down_proj"),
        TensorData::new(down, [EXPERTS, 32, 24]),
    );
    save_state_dict(&files, path).unwrap();
}

#[test]
fn experts_may_be_one_tensor_in_files() {
    let model = base(&config());
    let dir = saved(&model);
    stack(dir.path());
    assert_eq!(state_dict(&loaded(dir.path())), state_dict(&model));
}

#[test]
fn a_checkpoint_is_merged_as_the_model_is() {
    let model = adapted(&both());
    let adapter = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, adapter.path()).unwrap();
    let expected = state_dict(&model.clone().merge_lora());
    let base = model.without_adapters();
    for is_stacked in [false, true] {
        let (from, to) = (saved(&base), tempfile::tempdir().unwrap());
        if is_stacked {
            stack(from.path());
        }
        let merged = MergedCheckpoint::open(from.path(), adapter.path()).unwrap();
        merged.save_hf(to.path()).unwrap();
        let found = state_dict(&loaded(to.path()));
        assert_eq!(found.len(), expected.len());
        for (key, value) in &found {
            assert_floats_close(key, &floats(value), &floats(&expected[key]), 1e-6);
        }
    }
}

#[test]
fn an_expert_that_files_lack_is_told() {
    let dir = saved(&base(&config()));
    let path = dir.path().join("model.safetensors");
    let mut files = tensors(&path);
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    files.remove(name).unwrap();
    save_state_dict(&files, &path).unwrap();
    let error = load_hf(&mut config().init(&device()), dir.path()).unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn an_expert_of_another_shape_is_told() {
    let dir = saved(&base(&config()));
    let path = dir.path().join("model.safetensors");
    let whole = tensors(&path);
    let name = |module: &str| format!("model.layers.1.mlp.experts.2.{module}_proj.weight");
    // As many rows together.
    let mut files = whole.clone();
    for (module, rows) in [("gate", 20), ("up", 28)] {
        files.insert(
            name(module),
            TensorData::new(vec![0f32; rows * 32], [rows, 32]),
        );
    }
    save_state_dict(&files, &path).unwrap();
    let error = load_hf(&mut config().init(&device()), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error:?}");
    assert!(error.to_string().contains(&name("gate")), "{error}");
}

/// The router stays dense.
#[test]
fn experts_are_packed() {
    let wide = config().with_embed_dim(64);
    let experts = Experts::new(EXPERTS, 2, 64).with_layer_step(2);
    let wide = wide.with_experts(Some(experts)).with_intermediate_dim(64);
    let wide = wide.with_head_dim(16);
    let dir = saved(&base(&wide));
    let mut model = wide.init(&device());
    load_hf_as(&mut model, dir.path(), Quantization::Nf4).unwrap();
    let moe = model.layers[1].moe.as_ref().unwrap();
    let is_packed = |weight: &FrozenWeight| matches!(weight, FrozenWeight::Packed(_));
    assert!(!is_packed(&moe.gate.base.weight));
    let gate_up = moe.experts[3].gate_up_proj.as_ref().unwrap();
    assert!(is_packed(&gate_up.base.weight) && is_packed(&moe.experts[3].w2.base.weight));
    let mut dense = wide.init(&device());
    load_state_dict(&mut dense, &state_dict(&model), true).unwrap();
    assert_floats_close("packed", &logits(&model), &logits(&dense), 1e-4);
}

/// The file of an adapter and its configuration.
fn folder(lora: &LoRAConfig) -> (TempDir, StateDict, Value) {
    let dir = tempfile::tempdir().unwrap();
    save_peft_adapter(&adapted(lora), DEFAULT_ADAPTER, None, dir.path()).unwrap();
    let config = fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let tensors = tensors(&dir.path().join("adapter_model.safetensors"));
    (dir, tensors, serde_json::from_str(&config).unwrap())
}

const PREFIX: &str = "base_model.model.model.layers.1.mlp";

#[test]
fn a_folder_has_a_tensor_for_all_experts() {
    let (dir, files, config) = folder(&both().with_dropout(0.1));
    let shapes = |name: &str| {
        ["A", "B"].map(|factor| {
            files[&format!("{PREFIX}.{name}.lora_{factor}.weight")]
                .shape()
                .to_vec()
        })
    };
    assert_eq!(shapes("gate"), [[3, 32], [EXPERTS, 3]]);
    assert_eq!(
        shapes("experts.base_layer"),
        [[3 * EXPERTS, 32], [48, 3 * EXPERTS]]
    );
    assert_eq!(shapes("experts"), [[3 * EXPERTS, 24], [32, 3 * EXPERTS]]);
    let names = ["gate.weight", "gate_up_proj", "down_proj"];
    assert_eq!(config["target_parameters"], json!(names));
    assert_eq!(config["lora_dropout"], 0.0);

    let model = adapted(&both());
    let mut again = model.clone().without_adapters();
    attach_peft(&mut again, dir.path()).unwrap();
    assert_eq!(adapter_state_dict(&again), adapter_state_dict(&model));
}

/// Rows of `A` are of one expert after the other, columns of `B` of one rank after the other.
#[test]
fn the_factors_of_experts_lie_as_in_peft() {
    let lora = LoRAConfig::new(["gate_up_proj"]).with_rank(2);
    let (_, files, config) = folder(&lora);
    assert_eq!(config["target_parameters"], json!(["gate_up_proj"]));
    assert_eq!(config["target_modules"], json!([]));
    // That of the only parameter is the module's, whichever it is.
    let [a, b] =
        ["A", "B"].map(|factor| floats(&files[&format!("{PREFIX}.experts.lora_{factor}.weight")]));
    let ours = adapter_state_dict(&adapted(&lora));
    for expert in 0..EXPERTS {
        let key = format!("layers.1.moe.experts.{expert}.gate_up_proj");
        let [own_a, own_b] =
            ["a", "b"].map(|factor| floats(&ours[&format!("{key}.lora_{factor}.weight")]));
        assert_eq!(a[expert * 64..(expert + 1) * 64], own_a[..]);
        for (row, own) in own_b.chunks(2).enumerate() {
            let row = &b[row * 2 * EXPERTS..];
            assert_eq!([row[expert], row[EXPERTS + expert]], own[..]);
        }
    }
}

/// The factors of single experts, as files of transformers 4 have them.
fn of_single_experts() -> StateDict {
    let numbers = |count: usize, salt: usize| {
        let numbers = (0..count).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 200.0 - 0.25);
        numbers.collect::<Vec<f32>>()
    };
    let modules = [
        ("gate_proj", [24, 32]),
        ("up_proj", [24, 32]),
        ("down_proj", [32, 24]),
    ];
    let mut files = StateDict::new();
    for (salt, (module, [rows, columns])) in (0..EXPERTS).flat_map(|_| modules).enumerate() {
        let name = |factor| single(salt / 3, module, factor);
        let [a, b] = [numbers(2 * columns, salt), numbers(2 * rows, salt + 50)];
        files.insert(name("A"), TensorData::new(a, [2, columns]));
        files.insert(name("B"), TensorData::new(b, [rows, 2]));
    }
    files
}

fn single(expert: usize, module: &str, factor: &str) -> String {
    format!("{PREFIX}.experts.{expert}.{module}.lora_{factor}.weight")
}

#[test]
fn adapters_of_single_experts_are_joined() {
    let (dir, files) = (tempfile::tempdir().unwrap(), of_single_experts());
    save_state_dict(&files, dir.path().join("adapter_model.safetensors")).unwrap();
    let modules = ["gate_proj", "up_proj", "down_proj"];
    let fields = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": modules });
    fs::write(dir.path().join("adapter_config.json"), fields.to_string()).unwrap();
    let before = base(&config());
    let mut model = before.clone();
    attach_peft(&mut model, dir.path()).unwrap();
    let (merged, before) = (state_dict(&model.merge_lora()), state_dict(&before));
    for expert in 0..EXPERTS {
        let key = format!("layers.1.moe.experts.{expert}.gate_up_proj.weight");
        let mut expected = floats(&before[&key]);
        for (half, module) in modules[..2].iter().enumerate() {
            let [a, b] = ["A", "B"].map(|factor| floats(&files[&single(expert, module, factor)]));
            for place in 0..24 * 32 {
                let (row, column) = (place / 32, place % 32);
                let update = b[2 * row] * a[column] + b[2 * row + 1] * a[32 + column];
                expected[half * 24 * 32 + place] += 3.0 * update;
            }
        }
        assert_floats_close(&key, &floats(&merged[&key]), &expected, 1e-5);
    }
}

#[test]
fn what_peft_does_not_have_of_experts_is_refused() {
    let gate_up = || LoRAConfig::new(["gate_up_proj"]).with_rank(2);
    for (lora, part) in [
        (gate_up().with_dora(true), "only plain LoRA"),
        (gate_up().with_lora_bias(true), "only plain LoRA"),
        (
            LoRAConfig::new(["layers.1.moe.experts.2.w2"]),
            "for all experts",
        ),
        (
            gate_up().with_rank_pattern([("experts.1.gate_up_proj", 4)]),
            "for all experts",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = save_peft_adapter(&adapted(&lora), DEFAULT_ADAPTER, None, dir.path());
        let message = error.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let model = adapted(&gate_up());
    for serving in [Serving::Vllm, Serving::LlamaCpp] {
        let error = save_peft_for(serving, &model, DEFAULT_ADAPTER, None, dir.path()).unwrap_err();
        assert!(error.to_string().contains("takes no adapter of"), "{error}");
    }
    let adapter = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let error = save_mlx(&adapter, 2, dir.path()).unwrap_err();
    assert!(error.to_string().contains("no place for"), "{error}");
}

#[test]
fn gate_without_up_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["gate_proj"] });
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = attach_peft(&mut base(&self::config()), dir.path()).unwrap_err();
    assert!(error.to_string().contains("name both"), "{error}");
}

#[test]
fn experts_that_begin_with_a_part_of_the_base_are_saved_as_plain_ones() {
    let lora = both().with_init(Init::Pissa);
    let model = base(&config()).with_adapters(&lora).unwrap();
    let mut values = adapter_state_dict(&model);
    for value in values.values_mut() {
        let numbers = floats(value).into_iter().enumerate();
        let moved = numbers.map(|(i, x)| x * 1.1 + (i % 7) as f32 * 1e-3);
        *value = TensorData::new(moved.collect::<Vec<_>>(), value.shape().clone());
    }
    values.retain(|key, _| key.contains("lora_"));
    let mut model = model;
    load_state_dict(&mut model, &values, false).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
    assert_eq!(read_peft_config(dir.path()).unwrap().rank, 6);
    let mut again = model.clone().without_adapters();
    attach_peft(&mut again, dir.path()).unwrap();
    assert_floats_close("converted", &logits(&again), &logits(&model), 1e-4);
    let error = save_peft_unconverted(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap_err();
    assert!(error.to_string().contains("weights of experts"), "{error}");
}

/// Names of a feed-forward block mean the experts in its place too.
#[test]
fn the_feed_forward_block_of_a_layer_may_be_experts() {
    let lora = LoRAConfig::new(["q_proj"]).with_mlp(true).with_rank(2);
    let params = |config: &LlamaConfig| {
        let model = config.init_lora(&lora, &device()).unwrap();
        ParamCount::of(&model).trainable
    };
    let q = 2 * (32 + 32);
    let expert = 2 * (32 + 48) + 2 * (24 + 32);
    let dense = 3 * 2 * (32 + 40);
    assert_eq!(params(&config()), 2 * q + dense + EXPERTS * expert);
    let all = config().with_experts(Some(Experts::new(EXPERTS, 2, 24)));
    assert_eq!(params(&all), 2 * (q + EXPERTS * expert));
    let error = all
        .init_lora(&LoRAConfig::new(["w1"]), &device())
        .unwrap_err();
    assert!(
        error.to_string().contains("part of `gate_up_proj`"),
        "{error}"
    );
    let parameters = LoRAConfig::default().with_target_parameters(["experts.down_prj"]);
    let error = all.init_lora(&parameters, &device()).unwrap_err();
    assert!(error.to_string().contains("experts.down_proj"), "{error}");
}

const LR: f64 = 0.01;
const DECAY: f64 = 0.1;

/// A parameter after the second step, in which it had no gradient, by what it and its moments were before.
fn decayed(value: f32, exp_avg: f32, exp_avg_sq: f32) -> f32 {
    let m = 0.9 * f64::from(exp_avg) / (1.0 - 0.9f64.powi(2));
    let v = 0.999 * f64::from(exp_avg_sq) / (1.0 - 0.999f64.powi(2));
    (f64::from(value) * (1.0 - LR * DECAY) - LR * m / (v.sqrt() + 1e-8)) as f32
}

/// Rows that have a one each, in the first columns in turn.
fn ones(rows: usize, columns: usize) -> TensorData {
    let one = |place: usize| f32::from(place % columns == place / columns % 8);
    let numbers = (0..rows * columns).map(one);
    TensorData::new(numbers.collect::<Vec<_>>(), [rows, columns])
}

/// A layer of 8 experts, of which each token takes one: that of the rest of its id by 8.
fn one_by_token() -> TransformerDecoder {
    let experts = Experts::new(8, 1, 24);
    let mut model = base(&config().with_num_layers(1).with_experts(Some(experts)));
    let nothing = TensorData::new(vec![0f32; 32 * 32], [32, 32]);
    let values = [
        ("tok_embeddings.weight", ones(48, 32)),
        ("layers.0.moe.gate.weight", ones(8, 32)),
        ("layers.0.attn.output_proj.weight", nothing),
    ];
    let values = values.map(|(key, value)| (key.to_owned(), value));
    load_state_dict(&mut model, &values.into(), false).unwrap();
    model
}

/// As in PyTorch, where the parameter is that of all experts: the gradient is zero of one that no token took.
#[test]
fn an_expert_without_tokens_decays() {
    let lora = LoRAConfig::default().with_targets(Targets::pattern(r".*experts\.\d+\.w2"));
    let mut model = random(one_by_token().with_adapters(&lora).unwrap(), 3);
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: LR,
        warmup_steps: 0,
        total_steps: 2,
    };
    let mut trainer = Trainer::new(AdamWConfig::default().with_weight_decay(DECAY), schedule);
    let (mut values, mut states) = (Vec::new(), Vec::new());
    // The last token of a row has no label.
    for ids in [vec![1, 5, 9], vec![40, 22, 13]] {
        (model, _) = trainer.step(model, &[batch(ids.clone(), ids, 1, 3)]);
        values.push(adapter_state_dict(&model));
        states.push(trainer.optimizer.state_dict(&model));
    }
    let params = get_adapter_params(&model).len();
    assert_eq!(trainer.optimizer.num_states(), params);
    let (mut never, mut only_first) = (0, 0);
    for (key, value) in &values[0] {
        let moment = |step: usize, name: &str| floats(&states[step][&format!("{key}.{name}")]);
        let [first, second] = [0, 1].map(|step| moment(step, "exp_avg"));
        let decays = |(m, next): (&f32, &f32)| (next - 0.9 * m).abs() <= 1e-6 * m.abs();
        if !first.iter().zip(&second).all(decays) {
            continue; // It had tokens in the second step.
        }
        match first.iter().any(|m| *m != 0.0) {
            true => only_first += 1,
            false => never += 1,
        }
        let squares = moment(0, "exp_avg_sq");
        let before = floats(value).into_iter().zip(first).zip(squares);
        let expected: Vec<f32> = before.map(|((p, m), v)| decayed(p, m, v)).collect();
        assert_floats_close(key, &floats(&values[1][key]), &expected, 1e-6);
    }
    // Two factors of each of the experts 2, 3, 4 and 7, and of 1 and 5.
    assert_eq!((never, only_first), (8, 4));
}

#[test]
fn what_a_configuration_says_of_experts_is_checked() {
    let dir = saved(&base(&config()));
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    for (field, value, part) in [
        ("output_router_logits", json!(true), "router_aux_loss_coef"),
        ("num_experts", json!(100_000), "above 100000"),
        ("num_experts_per_tok", json!(5), "5 of 4 experts"),
        ("decoder_sparse_step", json!(0), "at least 1"),
    ] {
        let mut fields: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        fields.insert(field.to_owned(), value);
        fs::write(&path, json!(fields).to_string()).unwrap();
        let error = read_hf_config(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
