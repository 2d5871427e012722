//! Joint projections: a model that has them computes as one that has their rows apart, and tells them apart by name.

use burn::tensor::{Int, Tensor, TensorData};
use burn_peft::adapter::{StateDict, adapter_layers, load_state_dict, state_dict};
use burn_peft::checkpoint::save_gguf_adapter;
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{Block, LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig, Targets};

use crate::adapters::{base, config};
use crate::common::{assert_close, device, floats};

/// The joint projections and what they are made of.
const JOINT: [(&str, &[&str]); 2] = [
    (
        "attn.qkv_proj",
        &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    ),
    ("mlp.gate_up_proj", &["mlp.w1", "mlp.w3"]),
];

fn joint(config: LlamaConfig) -> LlamaConfig {
    config.with_block(Block::default().with_joint_projections(true))
}

/// The rows of some tensors, one after the other.
fn rows(tensors: impl Iterator<Item = TensorData>) -> TensorData {
    let tensors: Vec<_> = tensors.collect();
    let numbers: Vec<f32> = tensors.iter().flat_map(floats).collect();
    let mut shape = tensors[0].shape().to_vec();
    shape[0] = tensors.iter().map(|tensor| tensor.shape()[0]).sum();
    TensorData::new(numbers, shape)
}

/// The same weights with the parts of joint projections put together.
fn joined(mut values: StateDict, config: &LlamaConfig) -> StateDict {
    for layer in 0..config.num_layers {
        for (joint, parts) in JOINT {
            for parameter in ["weight", "bias"] {
                let key = |module: &str| format!("layers.{layer}.{module}.{parameter}");
                let parts = parts.iter().map(|part| values.remove(&key(part)).unwrap());
                let whole = rows(parts);
                values.insert(key(joint), whole);
            }
        }
    }
    values
}

fn ids() -> Tensor<2, Int> {
    Tensor::from_ints([[1, 7, 3, 45, 9], [2, 4, 4, 11, 30]], &device())
}

#[test]
fn a_joint_projection_gives_what_its_parts_give() {
    let config = config().with_mlp_bias(true);
    let apart = base(&config);
    let config = joint(config);
    let mut together = base(&config);
    let report = load_state_dict(&mut together, &joined(state_dict(&apart), &config), true);
    assert!(report.unwrap().missing.is_empty());
    let expected = floats(&apart.forward(ids(), None).into_data());
    assert_close("logits", together.forward(ids(), None), &expected, 1e-5);
    let greedy = |model: &TransformerDecoder| {
        let options = GenerateOptions::greedy(12).with_stop_tokens([]);
        generate(model, &[1, 7, 3], &options).unwrap()
    };
    assert_eq!(greedy(&together), greedy(&apart));
}

#[test]
fn a_part_is_no_target_of_its_own() {
    let config = joint(config());
    for (lora, part, whole) in [
        (LoRAConfig::new([AttnModule::VProj]), "v_proj", "qkv_proj"),
        (
            LoRAConfig::new(["layers.0.attn.q_proj"]),
            "layers.0.attn.q_proj",
            "qkv_proj",
        ),
        (LoRAConfig::default().with_mlp(true), "w1", "gate_up_proj"),
        (LoRAConfig::new(["up_proj"]), "up_proj", "gate_up_proj"),
        (
            LoRAConfig::new(["qkv_proj"]).with_rank_pattern([("k_proj", 2)]),
            "k_proj",
            "qkv_proj",
        ),
    ] {
        let error = config.init_lora(&lora, &device()).unwrap_err().to_string();
        let told = format!("no module is called `{part}`; it is a part of `{whole}`");
        assert!(error.contains(&told), "{error}");
    }
    let lora = LoRAConfig::default().with_targets(Targets::AllLinear);
    let model = config.init_lora(&lora, &device()).unwrap();
    let layers = adapter_layers(&model, DEFAULT_ADAPTER);
    let of_first = layers
        .iter()
        .filter_map(|(path, _)| path.strip_prefix("layers.0."));
    let expected = [
        "attn.qkv_proj",
        "attn.output_proj",
        "mlp.w2",
        "mlp.gate_up_proj",
    ];
    assert_eq!(of_first.collect::<Vec<_>>(), expected);
}

#[test]
fn a_gguf_file_has_a_joint_projection_as_one() {
    let config = joint(config().with_qkv_bias(false)).with_model_type("phi3");
    let model = base(&config);
    let model = model.with_adapters(&LoRAConfig::new(["qkv_proj"])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    save_gguf_adapter(&model, DEFAULT_ADAPTER, &path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let has = |name: &str| {
        bytes
            .windows(name.len())
            .any(|window| window == name.as_bytes())
    };
    assert!(has("phi3") && has("blk.0.attn_qkv.weight.lora_a"));
    assert!(!has("attn_q.weight"));
}
