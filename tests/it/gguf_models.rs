//! GGUF files of models, made by the `gguf` package, beside what transformers has of the same models:
//! `tests/python/make_gguf.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_peft::adapter::{
    get_adapter_params, initialize_adapters, state_dict, validate_state_dict_for_lora,
};
use burn_peft::checkpoint::{
    LoadOptions, load_any_base, load_any_base_as, load_gguf, load_model, read_base_config,
    read_base_packing, read_gguf_config, read_hf_config,
};
use burn_peft::llama::{LlamaConfig, Output, TransformerDecoder};
use burn_peft::lora::LoRAConfig;
use burn_peft::quantization::BlockFormat;
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};
use burn_peft::weight::{BaseFormat, FrozenWeight, Quantization};
use serde::Deserialize;
use serde_json::Value;

use crate::common::{batch, device, floats, max_abs_diff};
use crate::zero_gguf::write_zero_gguf;

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
        if expected.model_type == "mistral" {
            // Which it is there.
            expected.model_type = "llama".to_owned();
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

/// What a model that was made from such a file has beside its weights.
#[test]
fn a_tokenizer_is_copied_as_files_of_the_same_ids() {
    for (name, case) in expected() {
        let path = fixture(&format!("{name}.gguf"));
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        copy_tokenizer(&path, &folder).unwrap();
        let own = Tokenizer::from_gguf(&path).unwrap();
        let copied = Tokenizer::from_dir(&folder).unwrap();
        for (text, ids) in case.ids {
            assert_eq!(copied.encode(&text).unwrap(), ids, "{name}: {text:?}");
            let decoded = own.decode(&ids).unwrap();
            assert_eq!(copied.decode(&ids).unwrap(), decoded, "{name}");
        }
        assert_eq!(copied.bos_id(), own.bos_id(), "{name}");
        assert_eq!(copied.eos_id(), own.eos_id(), "{name}");
        assert_eq!(copied.chat_template(), own.chat_template(), "{name}");
        assert_eq!(copied.vocab_size(), own.vocab_size(), "{name}");
    }
}

#[test]
fn headers_tell_how_weights_are_packed() {
    for name in expected().keys() {
        let path = fixture(&format!("{name}.gguf"));
        let mut model = read_base_config(&path).unwrap().init(&Device::default());
        load_any_base(&mut model, &path).unwrap();
        let packed = read_base_packing(&path).unwrap();
        let of = |key: &str| packed.get(key).copied();
        let layer = &model.layers[0];
        let mlp = layer.mlp.as_ref().unwrap();
        let [q_proj, v_proj] =
            [&layer.attn.q_proj, &layer.attn.v_proj].map(|proj| proj.as_ref().unwrap());
        for (key, weight) in [
            ("tok_embeddings.weight", &model.tok_embeddings.weight),
            ("layers.0.attn.q_proj.weight", &q_proj.base.weight),
            ("layers.0.attn.v_proj.weight", &v_proj.base.weight),
            ("layers.0.mlp.w2.weight", &mlp.w2.base.weight),
        ] {
            let found = match weight {
                FrozenWeight::Packed(packed) => Some(packed.layout().format()),
                _ => None,
            };
            assert_eq!(of(key), found, "{name}: {key}");
        }
        assert_eq!(of("layers.0.attn.q_proj.weight"), Some(BlockFormat::Q4_1));
        assert_eq!(of("layers.0.attn.v_proj.weight"), None);
    }
}

/// What is packed stays so; numbers become those that are asked for.
#[test]
fn what_is_not_packed_is_brought_to_a_type_or_packed_too() {
    let path = fixture("mistral.gguf");
    let loaded = |format: BaseFormat| {
        let mut model = read_base_config(&path).unwrap().init(&Device::default());
        load_any_base_as(&mut model, &path, format).unwrap();
        let attn = &model.layers[0].attn;
        [&attn.q_proj, &attn.v_proj].map(|layer| match &layer.as_ref().unwrap().base.weight {
            FrozenWeight::Dense(value) => Err(value.val().dtype()),
            FrozenWeight::Packed(packed) => Ok(packed.layout().format()),
            other => panic!("{other:?}"),
        })
    };
    let kept = BaseFormat::from(DType::F32).with_kept_packing(true);
    assert_eq!(loaded(kept), [Ok(BlockFormat::Q4_1), Err(DType::F32)]);
    assert_eq!(loaded(RecipeConfig::default().base_format()), loaded(kept));
    let decoded = BaseFormat::from(DType::F32);
    assert_eq!(loaded(decoded), [Err(DType::F32), Err(DType::F32)]);
    let int8 = BaseFormat::from(Quantization::Int8);
    assert_eq!(loaded(int8), [Ok(BlockFormat::Q4_1), Ok(BlockFormat::Int8)]);
}

#[test]
fn a_base_is_a_folder_or_a_file_of_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| read_base_config(path).unwrap_err().to_string();
    let missing = dir.path().join("moved.gguf");
    assert!(
        message(&missing).contains("moved.gguf"),
        "{}",
        message(&missing)
    );
    let other = dir.path().join("other.bin");
    std::fs::write(&other, "not GGUF").unwrap();
    assert!(message(&other).contains("does not begin with `GGUF`"));
    // As Ollama keeps them.
    let blob = dir.path().join("sha256-0123");
    std::fs::copy(fixture("mistral.gguf"), &blob).unwrap();
    let expected = read_gguf_config(fixture("mistral.gguf")).unwrap();
    assert_eq!(read_base_config(&blob).unwrap(), expected);
    std::fs::rename(&blob, dir.path().join("model.gguf")).unwrap();
    let named = message(dir.path());
    assert!(named.contains("name the one to load, such as"), "{named}");
    assert!(named.contains("model.gguf"), "{named}");
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
            let weight = &model.layers[0].attn.q_proj.as_ref().unwrap().base.weight;
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

/// Rows that an adapter adds are no blocks, and blocks of most kinds are only read.
#[test]
fn a_packed_vocabulary_of_another_size_is_dense() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llama.gguf");
    let sizes = crate::quantized::config(false).with_embed_dim(256);
    for format in [BlockFormat::Q6K, BlockFormat::Q8_0] {
        let is_packed = |key: &str| !key.contains("layers.") || key.contains("q_proj");
        write_zero_gguf(&sizes, &path, |key| is_packed(key).then_some(format));
        let rows = sizes.vocab_size + 3;
        for keeps in [true, false] {
            let lora = LoRAConfig::new(["q_proj"]).with_vocab_size(rows);
            let options = LoadOptions::new(&device());
            let options = match keeps {
                true => options,
                false => options.with_format(BaseFormat::from(Quantization::Nf4)),
            };
            let model = load_model(&path, &lora, &options).unwrap();
            let Output::Own(output) = &model.output else {
                panic!("the output is no weight of its own");
            };
            for weight in [&model.tok_embeddings.weight, &output.base.weight] {
                assert!(matches!(weight, FrozenWeight::Dense(_)), "{format}");
                assert_eq!(weight.shape(), [rows, 256], "{format}");
            }
            let q = model.layers[0].attn.q_proj.as_ref().unwrap();
            assert!(matches!(q.base.weight, FrozenWeight::Packed(_)));
        }
    }
}
