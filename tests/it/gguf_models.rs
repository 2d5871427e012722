//! GGUF files of models, made by the `gguf` package, beside what transformers has of the same models:
//! `tests/python/make_gguf.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{
    get_adapter_params, initialize_adapters, state_dict, validate_state_dict_for_lora,
};
use burn_peft::checkpoint::{
    load_any_base, load_any_base_as, load_gguf, read_base_config, read_gguf_config, read_hf_config,
};
use burn_peft::llama::{LlamaConfig, ModelType, TransformerDecoder};
use burn_peft::lora::LoRAConfig;
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use burn_peft::weight::FrozenWeight;
use serde::Deserialize;
use serde_json::Value;

use crate::common::{batch, device, floats, max_abs_diff};

#[derive(Deserialize)]
struct Expected {
    config: Value,
    ids: Vec<(String, Vec<u32>)>,
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/gguf").join(name)
}

fn expected() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(fixture("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What is read of a `config.json`.
fn of_hugging_face(config: &Value) -> LlamaConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    read_hf_config(dir.path()).unwrap()
}

#[test]
fn configurations_are_those_of_the_hugging_face_folder() {
    for (name, case) in expected() {
        let mut expected = of_hugging_face(&case.config);
        if expected.model_type == ModelType::Mistral {
            // Which it is there.
            expected.model_type = ModelType::Llama;
        }
        let found = read_gguf_config(fixture(&format!("{name}.gguf"))).unwrap();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn tokenizers_give_the_ids_of_transformers() {
    for (name, case) in expected() {
        let tokenizer = Tokenizer::from_gguf(fixture(&format!("{name}.gguf"))).unwrap();
        for (text, ids) in case.ids {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn special_tokens_and_templates_are_the_files() {
    for (name, bos, template) in [
        ("llama", true, true),
        ("qwen2", false, true),
        ("mistral", true, false),
    ] {
        let path = fixture(&format!("{name}.gguf"));
        let config = read_gguf_config(&path).unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let expected = config.bos_token_id.filter(|_| bos);
        assert_eq!(tokenizer.bos_id(), expected, "{name}");
        assert_eq!(tokenizer.eos_id(), Some(config.eos_token_ids[0]), "{name}");
        assert_eq!(tokenizer.vocab_size(), config.vocab_size, "{name}");
        assert_eq!(tokenizer.chat_template().is_some(), template, "{name}");
    }
}

#[test]
fn a_file_that_has_no_tokenizer_files_to_copy() {
    let dir = tempfile::tempdir().unwrap();
    let error = copy_tokenizer(fixture("llama.gguf"), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Format { .. }));
    assert!(
        error.to_string().contains("llama.gguf: a GGUF file"),
        "{error}"
    );
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    let ids: Vec<i32> = (0..12).map(|id| 5 * id % 60).collect();
    let ids = Tensor::from_data(TensorData::new(ids, [2, 6]), &model.devices()[0]);
    floats(&model.forward(ids, None).cast(DType::F32).into_data())
}

#[test]
fn weights_stay_packed_and_compute_what_they_stand_for() {
    for (name, _) in expected() {
        let path = fixture(&format!("{name}.gguf"));
        let new = || read_base_config(&path).unwrap().init(&Device::default());
        let [mut packed, mut dense] = [new(), new()];
        let report = load_any_base(&mut packed, &path).unwrap();
        assert!(report.missing.is_empty() && report.unexpected.is_empty());
        load_any_base_as(&mut dense, &path, DType::F32).unwrap();
        let is_packed = |model: &TransformerDecoder| {
            let weight = &model.layers[0].attn.q_proj.base.weight;
            matches!(weight, FrozenWeight::Packed(_))
        };
        assert_eq!([&packed, &dense].map(is_packed), [true, false], "{name}");
        let [own, decoded] = [&packed, &dense].map(state_dict);
        for (key, value) in &decoded {
            let own = own[key].clone().convert::<f32>();
            assert_eq!(floats(&own), floats(value), "{name}: {key}");
        }
        let difference = max_abs_diff(&logits(&packed), &logits(&dense));
        assert!(difference < 2e-3, "{name}: {difference}");
    }
}

#[test]
fn adapters_train_on_a_gguf_file() {
    let path = fixture("qwen2.gguf");
    let device = device();
    let lora = LoRAConfig::new(["q_proj", "w1"]).with_rank(2);
    let mut model = read_base_config(&path)
        .unwrap()
        .init_lora(&lora, &device)
        .unwrap();
    let report = load_gguf(&mut model, &path).unwrap();
    validate_state_dict_for_lora(&get_adapter_params(&model), &report).unwrap();
    let model = initialize_adapters(model, 0);
    let ids: Vec<i32> = (0..16).map(|id| 3 * id % 60).collect();
    let batch = batch(ids.clone(), ids, 2, 8);
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-2,
        warmup_steps: 0,
        total_steps: 5,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let (mut model, mut losses) = (model, Vec::new());
    for _ in 0..5 {
        let output;
        (model, output) = trainer.step(model, std::slice::from_ref(&batch));
        losses.push(output.loss);
    }
    assert!(losses[4] < losses[0], "{losses:?}");
}

#[test]
fn a_model_of_other_sizes_is_told_by_the_files_names() {
    let path = fixture("qwen2.gguf");
    let config = read_base_config(&path).unwrap().with_intermediate_dim(128);
    let error = load_gguf(&mut config.init(&Device::default()), &path).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("qwen2.gguf") && message.contains("blk.0.ffn_"),
        "{message}"
    );
}
