//! What a user can get wrong in files, flags and data: each gives a readable error, writes nothing
//! and leaves the model as it was.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::LoraAdapter;
use burn::tensor::{DType, Device, TensorData};
use burn_peft::adapter::{
    StateDict, adapter_state_dict, get_adapter_params, load_state_dict, state_dict,
};
use burn_peft::checkpoint::{
    LoadOptions, SafetensorsFile, attach_peft, base_fingerprint, load_hf, load_hf_as, load_model,
    load_peft, load_state_dict_file, read_hf_config, read_peft_config, save_hf, save_peft,
    save_peft_adapter, save_state_dict,
};
use burn_peft::data::{Sample, check_vocab, fingerprint, load_alpaca};
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig, LoRALinear, Targets};
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{MetricsLog, RunDir, Summary, Trainer};
use burn_peft::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::one_step::save_one_step;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";

fn device() -> Device {
    Device::default().autodiff()
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(path)
}

/// A copy of the files of a golden folder, for a test to break.
fn copy_of(path: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(path)).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            let to = copy.path().join(from.file_name().unwrap());
            fs::copy(&from, to).unwrap();
        }
    }
    copy
}

/// Every file and folder below `dir`, folders with a path that ends in a slash.
fn files_in(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_owned();
            if path.is_dir() {
                found.insert(name.join(""), Vec::new());
                folders.push(path);
            } else {
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn base_model() -> TransformerDecoder {
    let dir = golden("gqa");
    let mut model = read_hf_config(&dir).unwrap().init(&device());
    load_hf(&mut model, &dir).unwrap();
    model
}

/// The golden base model with the adapter of a folder; `lora` may differ from the folder's.
fn lora_model(lora: &LoRAConfig) -> TransformerDecoder {
    let dir = golden("gqa");
    let config = read_hf_config(&dir).unwrap();
    let mut model = config.init_lora(lora, &device()).unwrap();
    load_hf(&mut model, &dir).unwrap();
    model
}

fn qv_config() -> LoRAConfig {
    read_peft_config(golden("gqa/lora_qv_r8")).unwrap()
}

/// The error of `act`, which must change neither the model nor any file in `dir`.
#[track_caller]
fn refused<T: Debug>(
    model: &mut TransformerDecoder,
    dir: &Path,
    act: impl FnOnce(&mut TransformerDecoder) -> Result<T>,
) -> Error {
    let before = (state_dict(model), files_in(dir));
    let error = act(model).expect_err("this must be refused");
    assert!(
        (state_dict(model), files_in(dir)) == before,
        "something has changed"
    );
    error
}

#[track_caller]
fn assert_says(error: &Error, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// The message must name this file or folder.
#[track_caller]
fn assert_names(error: &Error, path: &Path) {
    assert_says(error, &[path.to_str().unwrap()]);
}

macro_rules! assert_variant {
    ($error:expr, $variant:ident) => {
        assert!(
            matches!($error, Error::$variant { .. }),
            "not {}: {:?}",
            stringify!($variant),
            $error
        )
    };
}

/// Headers and bytes of safetensors files.
mod tensors {
    use super::*;

    /// Changes the header and keeps the data.
    pub fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
        let bytes = fs::read(path).unwrap();
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let (header, data) = rest.split_at(length);
        let mut header: Value = serde_json::from_slice(header).unwrap();
        edit(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(path, [&length[..], &header, data].concat()).unwrap();
    }

    /// Reads all tensors, lets `edit` change them, and writes them back.
    pub fn edit_values(path: &Path, edit: impl FnOnce(&mut StateDict)) {
        let mut values = load_state_dict_file(path).unwrap();
        edit(&mut values);
        save_state_dict(&values, path).unwrap();
    }

    /// The error of loading a base model whose weights `spoil` has changed.
    #[track_caller]
    pub fn error_of_base(spoil: impl FnOnce(&Path)) -> (TempDir, Error) {
        let dir = copy_of("gqa");
        spoil(&dir.path().join(WEIGHTS));
        let error = refused(&mut base_model(), dir.path(), |m| load_hf(m, dir.path()));
        (dir, error)
    }

    /// The error of a base model whose file's header or length is wrong.
    #[track_caller]
    pub fn error_of_file(spoil: impl FnOnce(&Path)) -> Error {
        let (dir, error) = error_of_base(spoil);
        assert_variant!(error, Format);
        assert_names(&error, &dir.path().join(WEIGHTS));
        assert_says(&error, &["not a complete safetensors file", "cut short"]);
        error
    }

    /// The error of loading the golden adapter after `spoil` has changed its weights.
    #[track_caller]
    pub fn error_of_adapter(spoil: impl FnOnce(&Path)) -> (TempDir, Error) {
        let dir = copy_of("gqa/lora_qv_r8");
        spoil(&dir.path().join(ADAPTER));
        let mut model = lora_model(&qv_config());
        let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
        (dir, error)
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

// Safetensors files.

#[test]
fn truncated_weights() {
    tensors::error_of_file(|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

#[test]
fn weights_that_end_within_the_header() {
    tensors::error_of_file(|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..100]).unwrap();
    });
}

#[test]
fn an_empty_file_of_weights() {
    tensors::error_of_file(|path| fs::write(path, "").unwrap());
}

#[test]
fn a_header_that_is_longer_than_the_file() {
    for length in [50_000_000, u64::MAX] {
        tensors::error_of_file(|path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            fs::write(path, bytes).unwrap();
        });
    }
}

#[test]
fn a_header_that_is_not_json() {
    tensors::error_of_file(|path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[8] = b'?';
        fs::write(path, bytes).unwrap();
    });
}

#[test]
fn offsets_beyond_the_file() {
    tensors::error_of_file(|path| {
        tensors::edit_header(path, |header| {
            let norm = &mut header["model.norm.weight"];
            let start = norm["data_offsets"][0].as_u64().unwrap();
            norm["data_offsets"][1] = json!(start + 4_000_000_000);
            norm["shape"] = json!([1_000_000_000]);
        });
    });
}

#[test]
fn overlapping_tensors() {
    let error = tensors::error_of_file(|path| {
        tensors::edit_header(path, |header| {
            let first = header["model.layers.0.input_layernorm.weight"].clone();
            header["model.norm.weight"] = first;
        });
    });
    assert_says(&error, &["invalid offset for tensor `model."]);
}

#[test]
fn a_shape_that_does_not_match_the_bytes() {
    tensors::error_of_file(|path| {
        tensors::edit_header(path, |header| {
            header["model.norm.weight"]["shape"] = json!([63]);
        });
    });
}

#[test]
fn a_shape_whose_size_overflows() {
    tensors::error_of_file(|path| {
        tensors::edit_header(path, |header| {
            header["model.norm.weight"]["shape"] = json!([u64::MAX / 2, 8]);
        });
    });
}

// Hugging Face folders.

#[test]
fn a_folder_without_weights() {
    let dir = copy_of("gqa");
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let error = refused(&mut base_model(), dir.path(), |m| load_hf(m, dir.path()));
    assert_variant!(error, Format);
    assert_names(&error, dir.path());
    assert_says(&error, &[WEIGHTS, INDEX, "save_pretrained"]);
}

#[test]
fn a_missing_shard() {
    let dir = copy_of("gqa_sharded");
    let shard = "model-00003-of-00005.safetensors";
    fs::remove_file(dir.path().join(shard)).unwrap();
    let error = refused(&mut base_model(), dir.path(), |m| load_hf(m, dir.path()));
    assert_variant!(error, MissingShard);
    assert_names(&error, &dir.path().join(INDEX));
    assert_says(&error, &[shard, "download it, or copy it beside the index"]);
}

#[test]
fn a_shard_outside_of_the_folder() {
    let outside = copy_of("gqa");
    for shard in [
        "../x/model.safetensors",
        outside.path().join(WEIGHTS).to_str().unwrap(),
        "..",
        "",
    ] {
        let dir = copy_of("gqa_sharded");
        edit_json(&dir.path().join(INDEX), |index| {
            index["weight_map"]["lm_head.weight"] = json!(shard);
        });
        let error = refused(&mut base_model(), dir.path(), |m| load_hf(m, dir.path()));
        assert_variant!(error, Format);
        assert_names(&error, &dir.path().join(INDEX));
        assert_says(
            &error,
            &[
                &format!("`{shard}` is not a plain file name"),
                "beside the index",
            ],
        );
    }
}

#[test]
fn an_index_that_is_not_json() {
    let dir = copy_of("gqa_sharded");
    for (text, place) in [
        ("{\"weight_map\":\n {", "line 2"),
        ("{}", "`weight_map`"),
        (
            "{\"weight_map\": {\"lm_head.weight\": 3}}",
            "expected a string",
        ),
    ] {
        fs::write(dir.path().join(INDEX), text).unwrap();
        let error = refused(&mut base_model(), dir.path(), |m| load_hf(m, dir.path()));
        assert_variant!(error, Format);
        assert_names(&error, &dir.path().join(INDEX));
        assert_says(&error, &[place]);
    }
}

#[test]
fn a_weight_of_another_shape() {
    let key = "model.layers.1.self_attn.k_proj.weight";
    let (dir, error) = tensors::error_of_base(|path| {
        tensors::edit_header(path, |header| header[key]["shape"] = json!([64, 32]));
    });
    assert_variant!(error, Shape);
    assert_names(&error, &dir.path().join(WEIGHTS));
    assert_says(
        &error,
        &[key, "[64, 32]", "expects [32, 64]", "another model size?"],
    );
}

#[test]
fn a_weight_of_integers() {
    let (dir, error) = tensors::error_of_base(|path| {
        tensors::edit_header(path, |header| {
            header["model.norm.weight"]["dtype"] = json!("I64");
            header["model.norm.weight"]["shape"] = json!([32]);
        });
    });
    assert_variant!(error, DType);
    assert_names(&error, &dir.path().join(WEIGHTS));
    assert_says(
        &error,
        &["`model.norm.weight` holds I64", "must be F32, F16 or BF16"],
    );
}

#[test]
fn a_missing_key() {
    let key = "model.layers.3.mlp.up_proj.weight";
    let (dir, error) = tensors::error_of_base(|path| {
        tensors::edit_values(path, |values| assert!(values.remove(key).is_some()));
    });
    assert_variant!(error, Keys);
    assert_names(&error, dir.path());
    assert_says(&error, &[&format!("1 missing key(s): {key}")]);
}

#[test]
fn an_unexpected_key() {
    let key = "model.layers.4.mlp.up_proj.weight";
    let (dir, error) = tensors::error_of_base(|path| {
        tensors::edit_values(path, |values| {
            let last = values["model.layers.3.mlp.up_proj.weight"].clone();
            values.insert(key.into(), last);
        });
    });
    assert_variant!(error, Keys);
    assert_names(&error, dir.path());
    let nearest = format!("1 unexpected key(s): {key} (nearest key of the model: model.layers.");
    assert_says(&error, &[&nearest]);
}

/// The golden model with tied embeddings, and with an output in its file that `edit` makes of the embedding.
fn tied(edit: impl FnOnce(&mut StateDict, TensorData)) -> TempDir {
    let dir = copy_of("gqa");
    edit_json(&dir.path().join("config.json"), |config| {
        config["tie_word_embeddings"] = json!(true);
    });
    tensors::edit_values(&dir.path().join(WEIGHTS), |values| {
        let embedding = values["model.embed_tokens.weight"].clone();
        edit(values, embedding);
    });
    dir
}

#[test]
fn an_output_that_is_not_the_embedding_of_a_tied_model() {
    let dir = tied(|_, _| ());
    let mut model = read_hf_config(dir.path()).unwrap().init(&device());
    let error = refused(&mut model, dir.path(), |m| load_hf(m, dir.path()));
    assert_variant!(error, Format);
    assert_names(&error, &dir.path().join(WEIGHTS));
    assert_says(
        &error,
        &[
            "`lm_head.weight` differs from `model.embed_tokens.weight`",
            "set tie_word_embeddings to false",
        ],
    );
}

/// As in transformers: a model that reads images too is tied if nothing is said, unless its files have two.
#[test]
fn an_output_of_which_a_configuration_says_nothing() {
    for is_same in [false, true] {
        let dir = tied(|values, embedding| {
            if is_same {
                values.insert("lm_head.weight".into(), embedding);
            }
        });
        edit_json(&dir.path().join("config.json"), |config| {
            let mut text = config.take();
            text["model_type"] = json!("mistral");
            *config = json!({ "model_type": "mistral3", "text_config": text });
        });
        let config = read_hf_config(dir.path()).unwrap();
        assert_eq!(config.tie_embeddings, is_same);
        load_hf(&mut config.init(&device()), dir.path()).unwrap();
    }
}

#[test]
fn the_embedding_of_a_tied_model_may_stand_under_both_names_or_the_outputs() {
    let load = |dir: &TempDir| {
        let mut model = read_hf_config(dir.path()).unwrap().init(&device());
        load_hf(&mut model, dir.path()).unwrap();
        state_dict(&model)
    };
    let twice = tied(|values, embedding| {
        values.insert("lm_head.weight".into(), embedding);
    });
    let once = tied(|values, embedding| {
        values.remove("model.embed_tokens.weight");
        values.insert("lm_head.weight".into(), embedding);
    });
    let values = load(&twice);
    assert_eq!(
        values["tok_embeddings.weight"],
        state_dict(&base_model())["tok_embeddings.weight"]
    );
    assert_eq!(load(&once), values);
}

#[test]
fn tables_of_the_rotary_embedding_are_passed_over() {
    let dir = copy_of("gqa");
    tensors::edit_values(&dir.path().join(WEIGHTS), |values| {
        for table in ["inv_freq", "cos_cached", "sin_cached"] {
            let key = format!("model.layers.0.self_attn.rotary_emb.{table}");
            values.insert(key, TensorData::zeros::<f32, _>([8]));
        }
    });
    let mut model = base_model();
    let report = load_hf(&mut model, dir.path()).unwrap();
    assert!(report.unexpected.is_empty(), "{report:?}");
}

/// As `LlamaModel.save_pretrained` writes them, with the head that a whole model needs.
#[test]
fn weights_of_the_model_without_its_head_load() {
    let dir = copy_of("gqa");
    let rename = |values: &mut StateDict| {
        let bare = |key: String| key.strip_prefix("model.").unwrap_or(&key).to_owned();
        let old = std::mem::take(values);
        values.extend(old.into_iter().map(|(key, value)| (bare(key), value)));
    };
    tensors::edit_values(&dir.path().join(WEIGHTS), rename);
    let mut model = base_model();
    let expected = state_dict(&model);
    load_hf(&mut model, dir.path()).unwrap();
    assert_eq!(state_dict(&model), expected);

    tensors::edit_values(&dir.path().join(WEIGHTS), |values| {
        values.remove("lm_head.weight");
    });
    let error = refused(&mut model, dir.path(), |m| load_hf(m, dir.path()));
    assert_variant!(error, Keys);
    assert_says(&error, &["1 missing key(s): lm_head.weight"]);
}

#[test]
fn one_weight_under_two_names() {
    let (dir, error) = tensors::error_of_base(|path| {
        tensors::edit_values(path, |values| {
            let norm = TensorData::zeros::<f32, _>(values["model.norm.weight"].shape().to_vec());
            values.insert("norm.weight".into(), norm);
        });
    });
    assert_variant!(error, Format);
    assert_names(&error, dir.path());
    assert_says(
        &error,
        &["`model.norm.weight` and `norm.weight` are names of one weight"],
    );
}

#[test]
fn a_misspelt_key_names_the_one_that_is_missing() {
    let (good, bad) = (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_porj.weight",
    );
    let (_, error) = tensors::error_of_base(|path| {
        tensors::edit_values(path, |values| {
            let value = values.remove(good).unwrap();
            values.insert(bad.into(), value);
        });
    });
    assert_variant!(error, Keys);
    assert_says(
        &error,
        &[
            &format!("1 missing key(s): {good}"),
            &format!("{bad} (nearest key of the model: {good})"),
        ],
    );
}

#[test]
fn a_model_configuration_that_is_not_json() {
    let dir = copy_of("gqa");
    let path = dir.path().join("config.json");
    for (text, place) in [
        ("{\n\"hidden_size\": 64,,\n}", "line 2 column"),
        ("", "line 1"),
        ("{}", "there is no model_type"),
        ("[]", "is no JSON object"),
    ] {
        fs::write(&path, text).unwrap();
        let error = read_hf_config(dir.path()).unwrap_err();
        assert_variant!(error, Format);
        assert_names(&error, &path);
        assert_says(&error, &[place]);
    }
}

#[test]
fn a_model_configuration_that_is_no_model() {
    let dir = copy_of("gqa");
    let path = dir.path().join("config.json");
    for (key, value, parts) in [
        (
            "num_key_value_heads",
            json!(3),
            ["num_key_value_heads: ", "evenly"],
        ),
        (
            "num_hidden_layers",
            json!(0),
            ["num_hidden_layers: ", "at least 1"],
        ),
        ("hidden_size", json!(0), ["hidden_size: ", "at least 1"]),
        (
            "intermediate_size",
            json!(0),
            ["intermediate_size: ", "at least 1"],
        ),
        ("head_dim", json!(15), ["head_dim", "even width"]),
        ("hidden_size", json!(-1), ["integer `-1`", "usize"]),
    ] {
        fs::copy(golden("gqa/config.json"), &path).unwrap();
        edit_json(&path, |config| config[key] = value);
        let error = read_hf_config(dir.path()).unwrap_err();
        assert_variant!(error, Format);
        assert_names(&error, &path);
        assert_says(&error, &parts);
    }
}

#[test]
fn a_missing_model_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere");
    let error = read_hf_config(&path).unwrap_err();
    assert_variant!(error, Io);
    assert_names(&error, &path);
    assert_says(&error, &["config.json", "check the path"]);
    assert!(!error.to_string().contains("Hub"));
    // The name of a model, not of a folder.
    let error = read_hf_config("meta-llama/Llama-2-7b-hf").unwrap_err();
    assert_says(
        &error,
        &["check the path", "hf download meta-llama/Llama-2-7b-hf"],
    );
}

#[test]
fn a_type_of_number_that_the_device_does_not_have() {
    let device = device();
    let unsupported = [DType::F16, DType::BF16].into_iter();
    for dtype in unsupported.filter(|dtype| !device.supports_dtype(*dtype)) {
        let dir = copy_of("gqa");
        let error = refused(&mut base_model(), dir.path(), |m| {
            load_hf_as(m, dir.path(), dtype)
        });
        assert_variant!(error, InvalidArgument);
        assert_says(&error, &["dtype", &format!("{dtype:?}"), "choose f32"]);
    }
}

#[test]
fn a_type_of_number_that_weights_do_not_have() {
    let dir = copy_of("gqa");
    let error = refused(&mut base_model(), dir.path(), |m| {
        load_hf_as(m, dir.path(), DType::F64)
    });
    assert_variant!(error, InvalidArgument);
    assert_says(&error, &["f32, f16 or bf16", "F64"]);
}

#[test]
fn a_tensor_that_a_file_does_not_have() {
    let path = golden("gqa").join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    for error in [
        file.read("nowhere", DType::F32).unwrap_err(),
        file.read_ints("nowhere").unwrap_err(),
    ] {
        assert_variant!(error, Format);
        assert_names(&error, &path);
        assert_says(&error, &["no tensor `nowhere`"]);
    }
}

#[test]
fn dora_as_burns_adapter() {
    let adapted = |use_dora| {
        let lora = LoRAConfig::default().with_dropout(0.1).with_dora(use_dora);
        LoRALinear::new(4, 3, &lora, false, &device())
            .adapter()
            .unwrap()
            .clone()
    };
    assert!(LoraAdapter::try_from(adapted(false)).is_ok());
    let error = LoraAdapter::try_from(adapted(true)).unwrap_err();
    assert_variant!(error, InvalidArgument);
    assert_says(&error, &["magnitude", "merge"]);
}

// State dicts.

#[test]
fn a_state_dict_with_other_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = state_dict(&base_model());
    let norm = values.remove("norm.weight").unwrap();
    values.insert("nrom.weight".into(), norm);
    let error = refused(&mut base_model(), dir.path(), |m| {
        load_state_dict(m, &values, true)
    });
    assert_variant!(error, Keys);
    assert_says(
        &error,
        &[
            "1 missing key(s): norm.weight",
            "nrom.weight (nearest key of the model: norm.weight)",
        ],
    );
}

#[test]
fn a_state_dict_with_integers() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = state_dict(&base_model());
    values.insert("norm.weight".into(), TensorData::new(vec![1i32; 64], [64]));
    let error = refused(&mut base_model(), dir.path(), |m| {
        load_state_dict(m, &values, true)
    });
    assert_variant!(error, DType);
    assert_says(&error, &["`norm.weight` holds I32", "F32, F16 or BF16"]);
}

#[test]
fn a_state_dict_of_numbers_that_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(WEIGHTS);
    for (value, kind) in [
        (TensorData::new(vec![1i64], [1]), "I64"),
        (TensorData::new(vec![1f64], [1]), "F64"),
    ] {
        let values = StateDict::from([("norm.weight".into(), value)]);
        let error = refused(&mut base_model(), dir.path(), |_| {
            save_state_dict(&values, &path)
        });
        assert_variant!(error, Format);
        assert_names(&error, &path);
        let holds = format!("`norm.weight` holds {kind}");
        assert_says(&error, &[&holds, "F32, F16, BF16 or I32"]);
    }
}

#[test]
fn a_state_dict_with_another_shape() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = state_dict(&base_model());
    values.insert("norm.weight".into(), TensorData::new(vec![1f32; 32], [32]));
    for strict in [true, false] {
        let error = refused(&mut base_model(), dir.path(), |m| {
            load_state_dict(m, &values, strict)
        });
        assert_variant!(error, Shape);
        assert_says(&error, &["`norm.weight`", "[32]", "expects [64]"]);
    }
}

// Adapter folders.

#[test]
fn truncated_adapter() {
    let (dir, error) = tensors::error_of_adapter(|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert_variant!(error, Format);
    assert_names(&error, &dir.path().join(ADAPTER));
    assert_says(&error, &["cut short"]);
}

const LORA_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn an_adapter_of_integers() {
    let (dir, error) = tensors::error_of_adapter(|path| {
        tensors::edit_header(path, |header| {
            header[LORA_A]["dtype"] = json!("I64");
            header[LORA_A]["shape"] = json!([8, 32]);
        });
    });
    assert_variant!(error, DType);
    assert_names(&error, &dir.path().join(ADAPTER));
    assert_says(&error, &[&format!("`{LORA_A}` holds I64"), "F32"]);
}

#[test]
fn an_adapter_without_one_of_its_tensors() {
    let (dir, error) = tensors::error_of_adapter(|path| {
        tensors::edit_values(path, |values| assert!(values.remove(LORA_A).is_some()));
    });
    assert_variant!(error, Keys);
    assert_names(&error, &dir.path().join(ADAPTER));
    assert_says(&error, &[&format!("1 missing key(s): {LORA_A}")]);
}

#[test]
fn an_adapter_with_keys_of_another_prefix() {
    let (dir, error) = tensors::error_of_adapter(|path| {
        tensors::edit_values(path, |values| {
            let strip = |key: String| key.strip_prefix("base_model.").unwrap().to_owned();
            let renamed = std::mem::take(values).into_iter();
            *values = renamed.map(|(key, value)| (strip(key), value)).collect();
        });
    });
    assert_variant!(error, Keys);
    assert_names(&error, &dir.path().join(ADAPTER));
    assert_says(
        &error,
        &[
            "16 missing key(s)",
            "16 unexpected key(s)",
            "(nearest key of the model: base_model.model.",
        ],
    );
}

#[test]
fn an_adapter_for_another_model() {
    let dir = copy_of("mha/lora_qv_r8");
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Shape);
    assert_names(&error, &dir.path().join(ADAPTER));
    assert_says(
        &error,
        &["base_model.model.model.layers.", "another model size?"],
    );
}

/// Loads the golden adapter into a model whose adapters are made by another configuration.
#[track_caller]
fn assert_other_adapter(lora: LoRAConfig, parts: &[&str]) {
    let dir = copy_of("gqa/lora_qv_r8");
    let mut model = lora_model(&lora);
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Adapter);
    assert_names(&error, &dir.path().join(ADAPTER_CONFIG));
    assert_says(&error, parts);
    assert_says(&error, &["must have the same configuration"]);
}

#[test]
fn an_adapter_with_fewer_modules_than_the_model() {
    let lora = LoRAConfig::new([AttnModule::QProj, AttnModule::KProj, AttnModule::VProj]);
    assert_other_adapter(
        lora,
        &["the model adapts `layers.0.attn.k_proj`, the folder does not"],
    );
}

#[test]
fn an_adapter_with_more_modules_than_the_model() {
    let lora = LoRAConfig::new([AttnModule::QProj]);
    assert_other_adapter(
        lora,
        &["the folder adapts `layers.0.attn.v_proj`, the model does not"],
    );
}

#[test]
fn an_adapter_for_a_model_without_adapters() {
    let dir = copy_of("gqa/lora_qv_r8");
    let error = refused(&mut base_model(), dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Adapter);
    assert_says(
        &error,
        &["the folder adapts `layers.0.attn.q_proj`, the model does not"],
    );
}

#[test]
fn an_adapter_with_another_scale() {
    let lora = qv_config().with_alpha(32.0);
    assert_other_adapter(
        lora,
        &["the model scales by 4 on `layers.0.attn.q_proj`, the folder by 2"],
    );
}

#[test]
fn an_adapter_with_another_rank_at_the_same_scale() {
    let lora = qv_config().with_rank(4).with_alpha(8.0);
    assert_other_adapter(
        lora,
        &["the model has rank 4 on `layers.0.attn.q_proj`, the folder 8"],
    );
}

#[test]
fn an_adapter_without_the_models_dora() {
    let lora = qv_config().with_dora(true);
    assert_other_adapter(
        lora,
        &["the model uses dora on `layers.0.attn.q_proj`, the folder lora"],
    );
}

/// The error of an adapter configuration with one key changed, from reading it and from loading.
#[track_caller]
fn error_of_setting(key: &str, value: Value) -> Error {
    let dir = copy_of("gqa/lora_qv_r8");
    let path = dir.path().join(ADAPTER_CONFIG);
    edit_json(&path, |config| config[key] = value);
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Adapter);
    assert_names(&error, &path);
    let when_read = read_peft_config(dir.path()).unwrap_err();
    assert_eq!(when_read.to_string(), error.to_string());
    error
}

#[test]
fn adapter_settings_that_are_not_supported() {
    for (key, value) in [
        ("layer_replication", json!([[0, 2]])),
        ("arrow_config", json!({"top_k": 2})),
        ("a_setting_of_tomorrow", json!(0.5)),
    ] {
        let error = error_of_setting(key, value);
        assert_says(&error, &[&format!("`{key}` is set"), "merge it with PEFT"]);
        // Without it, this is another adapter.
        let may_be_deleted = error.to_string().contains("delete the key");
        assert_eq!(may_be_deleted, key == "a_setting_of_tomorrow", "{error}");
    }
}

/// Settings by which the golden file's tensors would be those of another adapter.
#[test]
fn adapter_settings_that_the_tensors_do_not_have() {
    for (key, value, part) in [
        ("rank_pattern", json!({"q_proj": 4}), "of another rank?"),
        (
            "modules_to_save",
            json!(["lm_head"]),
            "missing key(s): base_model.model.lm_head.weight",
        ),
        ("layers_to_transform", json!([0]), "12 unexpected key(s)"),
        ("lora_bias", json!(true), "lora_B.bias"),
        (
            "trainable_token_indices",
            json!([1]),
            "trainable_tokens_delta",
        ),
        ("use_dora", json!(true), "lora_magnitude_vector"),
    ] {
        let dir = copy_of("gqa/lora_qv_r8");
        edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
            config[key] = value
        });
        let mut model = base_model();
        let error = refused(&mut model, dir.path(), |m| attach_peft(m, dir.path()));
        assert_names(&error, &dir.path().join(ADAPTER));
        assert_says(&error, &[part]);
    }
}

/// What says nothing of a model like this.
#[test]
fn adapter_settings_that_change_nothing() {
    for (key, value) in [
        ("fan_in_fan_out", json!(true)),
        ("bias", json!("all")), // the model has none
        ("layers_to_transform", json!([])),
        ("exclude_modules", json!(["gate_proj"])),
        ("loraplus_lr_ratio", json!(16.0)),
    ] {
        let dir = copy_of("gqa/lora_qv_r8");
        edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
            config[key] = value
        });
        attach_peft(&mut base_model(), dir.path()).unwrap();
    }
}

#[test]
fn an_adapter_of_another_method() {
    let error = error_of_setting("peft_type", json!("LOHA"));
    assert_says(&error, &["`peft_type` is \"LOHA\"", "expected \"LORA\""]);
}

#[test]
fn an_adapter_that_shifts_the_base_weights() {
    for init in ["corda", "loftq", "lora_ga"] {
        let error = error_of_setting("init_lora_weights", json!(init));
        assert_says(
            &error,
            &["`init_lora_weights`", init, "convert the adapter"],
        );
    }
}

#[test]
fn an_adapter_for_no_layer_that_can_have_one() {
    for targets in [json!(3), json!([3])] {
        let error = error_of_setting("target_modules", targets.clone());
        assert_says(
            &error,
            &[
                "`target_modules` is",
                &targets.to_string(),
                "a list of names",
            ],
        );
    }
    for targets in [json!([]), json!(null)] {
        assert_says(
            &error_of_setting("target_modules", targets),
            &["no module has an adapter"],
        );
    }
    for targets in [json!(["q_porj"]), json!("("), json!(["mlp"])] {
        let dir = with_targets(targets);
        let mut model = base_model();
        let error = refused(&mut model, dir.path(), |m| attach_peft(m, dir.path()));
        assert_variant!(error, Adapter);
        assert_says(&error, &["`target_modules`"]);
    }
}

/// The golden adapter with these `target_modules`.
fn with_targets(targets: Value) -> TempDir {
    let dir = copy_of("gqa/lora_qv_r8");
    edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
        config["target_modules"] = targets;
    });
    dir
}

/// PEFT writes what it was told, though the model has no such layer.
#[test]
fn an_adapter_for_several_kinds_of_models() {
    let dir = with_targets(json!(["q_proj", "v_proj", "query_key_value", "c_attn"]));
    load_peft(&mut lora_model(&qv_config()), dir.path()).unwrap();
    attach_peft(&mut base_model(), dir.path()).unwrap();

    // What the model has, the file must have, and the other way round.
    let dir = with_targets(json!(["q_proj", "v_proj", "o_proj"]));
    let mut model = lora_model(&read_peft_config(dir.path()).unwrap());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Keys);
    assert_says(&error, &["8 missing", "self_attn.o_proj.lora_A.weight"]);
    let dir = with_targets(json!(["q_proj", "query_key_value"]));
    let mut model = lora_model(&read_peft_config(dir.path()).unwrap());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Keys);
    assert_says(&error, &["8 unexpected", "self_attn.v_proj.lora_A.weight"]);
}

#[test]
fn an_adapter_with_a_pattern_for_its_layers() {
    let dir = with_targets(json!(r".*\.(q|v)_proj"));
    load_peft(&mut lora_model(&qv_config()), dir.path()).unwrap();

    let dir = with_targets(json!("all-linear"));
    edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
        config["exclude_modules"] =
            json!(["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
        config["init_lora_weights"] = json!("Gaussian");
    });
    load_peft(&mut lora_model(&qv_config()), dir.path()).unwrap();
}

#[test]
fn an_adapter_that_names_single_layers() {
    let dir = copy_of("gqa/lora_qv_r8");
    let path = |layer, name| format!("model.layers.{layer}.self_attn.{name}");
    let of_layer = |layer| ["q_proj", "v_proj"].map(|name| path(layer, name));
    edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
        config["target_modules"] = (0..4).flat_map(of_layer).collect();
    });
    load_peft(&mut lora_model(&qv_config()), dir.path()).unwrap();

    // Of one layer there is none.
    tensors::edit_values(&dir.path().join(ADAPTER), |values| {
        values.retain(|key, _| !key.contains("layers.3."));
    });
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Keys);
    assert_says(
        &error,
        &["4 missing", "layers.3.self_attn.q_proj.lora_A.weight"],
    );
}

#[test]
fn an_adapter_of_pickled_tensors() {
    let dir = copy_of("gqa/lora_qv_r8");
    let pickle = dir.path().join("adapter_model.bin");
    fs::rename(dir.path().join(ADAPTER), &pickle).unwrap();
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Format);
    assert_names(&error, &pickle);
    assert_says(&error, &["adapter_model.safetensors"]);
}

/// As PEFT saves embeddings that it was told to.
#[test]
fn an_adapter_with_embeddings_brings_its_own() {
    let dir = copy_of("gqa/lora_qv_r8");
    let key = "base_model.model.model.embed_tokens.weight";
    tensors::edit_values(&dir.path().join(ADAPTER), |values| {
        values.insert(key.into(), TensorData::ones::<f32, _>([128, 64]));
    });
    let mut model = base_model();
    let before = state_dict(&model);
    attach_peft(&mut model, dir.path()).unwrap();
    let of_adapter = &state_dict(&model)["tok_embeddings.full.weight"];
    assert!(of_adapter.iter::<f32>().all(|number| number == 1.0));
    // They are kept, not trained.
    let trained = get_adapter_params(&model);
    assert!(!trained.contains("tok_embeddings.full.weight"));

    // They are saved with the adapter again, and go with it.
    let again = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, again.path()).unwrap();
    let mut other = base_model();
    attach_peft(&mut other, again.path()).unwrap();
    assert_eq!(state_dict(&other), state_dict(&model));
    assert_eq!(state_dict(&model.without_adapters()), before);
}

/// As PEFT saves the embeddings of a vocabulary that was made larger.
#[test]
fn an_adapter_with_resized_embeddings() {
    let dir = copy_of("gqa/lora_qv_r8");
    tensors::edit_values(&dir.path().join(ADAPTER), |values| {
        for name in ["model.embed_tokens", "lm_head"] {
            let key = format!("base_model.model.{name}.weight");
            values.insert(key, TensorData::zeros::<f32, _>([129, 64]));
        }
    });
    let mut model = base_model();
    attach_peft(&mut model, dir.path()).unwrap();
    assert_eq!(model.vocab_size(), 129);
    assert_eq!(model.merge_lora().config.vocab_size, 129);
}

/// A folder of an adapter on q and v with further tensors, and other settings.
fn folder_with(tensors: &[(&str, [usize; 2])], settings: &[(&str, Value)]) -> TempDir {
    let dir = copy_of("gqa/lora_qv_r8");
    edit_json(&dir.path().join(ADAPTER_CONFIG), |config| {
        for (key, value) in settings {
            config[*key] = value.clone();
        }
    });
    tensors::edit_values(&dir.path().join(ADAPTER), |values| {
        for (name, shape) in tensors {
            let ones = TensorData::ones::<f32, _>(*shape);
            values.insert(format!("base_model.model.{name}.weight"), ones);
        }
    });
    dir
}

/// Without an embedding of as many tokens nothing is known of the new ones.
#[test]
fn an_adapter_with_a_grown_head_alone() {
    let saved = ("modules_to_save", json!(["lm_head"]));
    for settings in [&[saved][..], &[]] {
        let dir = folder_with(&[("lm_head", [129, 64])], settings);
        let error = refused(&mut base_model(), dir.path(), |m| {
            attach_peft(m, dir.path())
        });
        assert_variant!(error, Shape);
        assert_says(&error, &["lm_head.weight", "[129, 64]", "[128, 64]"]);
    }
}

/// PEFT, too, makes nothing of them.
#[test]
fn base_weights_of_modules_without_an_adapter() {
    for name in ["base_layer", "original_module", "token_adapter.base_layer"] {
        for module in ["lm_head", "model.embed_tokens"] {
            let name = format!("{module}.{name}");
            let dir = folder_with(&[(&name, [128, 64])], &[]);
            let error = refused(&mut base_model(), dir.path(), |m| {
                attach_peft(m, dir.path())
            });
            assert_variant!(error, Keys);
            assert_says(&error, &["1 unexpected", &name]);
        }
    }
}

/// The copy is what acts.
#[test]
fn originals_beside_modules_that_are_trained_whole() {
    let saved = ("modules_to_save", json!(["lm_head", "model.norm"]));
    let tensors = [
        ("lm_head", [128, 64]),
        ("lm_head.original_module", [128, 64]),
    ];
    let dir = folder_with(&tensors, &[saved]);
    tensors::edit_values(&dir.path().join(ADAPTER), |values| {
        for name in ["weight", "original_module.weight"] {
            let ones = TensorData::ones::<f32, _>([64]);
            values.insert(format!("base_model.model.model.norm.{name}"), ones);
        }
    });
    let mut model = base_model();
    let before = state_dict(&model);
    attach_peft(&mut model, dir.path()).unwrap();
    assert_eq!(state_dict(&model.without_adapters()), before);
}

#[test]
fn an_adapter_of_targets_that_are_not_there() {
    for (key, value, expected) in [
        (
            "target_modules",
            json!("q_proj"),
            &[
                "`target_modules`",
                "`q_proj` must match a whole path",
                "self_attn",
                "give a list",
            ][..],
        ),
        (
            "target_modules",
            json!(["c_attn"]),
            &[
                "`target_modules`",
                "the model's layers are",
                "o_proj",
                "down_proj",
            ],
        ),
        (
            "layers_to_transform",
            json!([7]),
            &["`layers_to_transform`", "no layer of [7]"],
        ),
        (
            "modules_to_save",
            json!(["mlp"]),
            &["`modules_to_save`", "`mlp` is a block", "merge"],
        ),
        (
            "modules_to_save",
            json!(["layers.1"]),
            &["`layers.1` is a block"],
        ),
    ] {
        let dir = folder_with(&[], &[(key, value)]);
        let error = refused(&mut base_model(), dir.path(), |m| {
            attach_peft(m, dir.path())
        });
        assert_variant!(error, Adapter);
        assert_names(&error, &dir.path().join(ADAPTER_CONFIG));
        assert_says(&error, expected);
    }
}

#[test]
fn a_token_id_that_is_a_word() {
    let dir = copy_of("gqa");
    let path = dir.path().join("config.json");
    edit_json(&path, |config| config["eos_token_id"] = json!([1, "a"]));
    let error = read_hf_config(dir.path()).unwrap_err();
    assert_names(&error, &path);
    assert_says(&error, &["the id of a token or a list of them"]);
}

#[test]
fn an_adapter_in_the_folder_of_a_model() {
    let dir = copy_of("gqa");
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| {
        save_peft(m, &qv_config(), dir.path())
    });
    assert_variant!(error, Adapter);
    assert_says(&error, &["a model lies in this folder", "another"]);
}

#[test]
fn an_adapter_with_values_of_another_kind() {
    for (key, value, expected) in [
        ("r", json!(0), "`r`: the rank must be at least 1"),
        ("r", json!("eight"), "`r` is \"eight\", not a whole number"),
        ("r", json!(-1), "`r` is -1, not a whole number"),
        ("lora_alpha", json!(null), "`lora_alpha` is missing"),
        (
            "lora_alpha",
            json!(0),
            "`lora_alpha`: alpha must be a positive",
        ),
        ("lora_dropout", json!("no"), "`lora_dropout` is \"no\""),
        (
            "lora_dropout",
            json!(1.5),
            "`lora_dropout`: the dropout must lie",
        ),
        ("target_modules", json!([]), "`target_modules`: no module"),
        ("use_dora", json!("yes"), "`use_dora` is \"yes\""),
        (
            "use_rslora",
            json!(1),
            "`use_rslora` is 1, not true or false",
        ),
        (
            "target_modules",
            json!("("),
            "`target_modules`: `(` is no regular",
        ),
        (
            "exclude_modules",
            json!("["),
            "`exclude_modules`: `[` is no regular",
        ),
        (
            "rank_pattern",
            json!({ "*": 2 }),
            "`rank_pattern`: `(.*\\.)?(*)$` is no",
        ),
        (
            "rank_pattern",
            json!({ "q_proj": 0 }),
            "`rank_pattern`: the rank of `q_proj`",
        ),
        (
            "alpha_pattern",
            json!({ "\\p": 2 }),
            "`alpha_pattern`: `(.*\\.)?(\\p)$` is no",
        ),
        (
            "alpha_pattern",
            json!({ "q_proj": 0 }),
            "`alpha_pattern`: the alpha of `q_proj`",
        ),
        ("layers_pattern", json!("[a"), "`layers_pattern`"),
        (
            "task_type",
            json!("SEQ_CLS"),
            "the adapter is of a classifier",
        ),
    ] {
        assert_says(&error_of_setting(key, value), &[expected]);
    }
}

#[test]
fn an_adapter_configuration_that_is_not_json() {
    let dir = copy_of("gqa/lora_qv_r8");
    let path = dir.path().join(ADAPTER_CONFIG);
    for (text, place) in [
        ("{\n\n\"r\" 8}", "line 3"),
        ("[]", "line 1"),
        ("", "line 1"),
    ] {
        fs::write(&path, text).unwrap();
        let mut model = lora_model(&qv_config());
        let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
        assert_variant!(error, Format);
        assert_names(&error, &path);
        assert_says(&error, &[place]);
    }
}

#[test]
fn a_folder_without_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| load_peft(m, dir.path()));
    assert_variant!(error, Io);
    assert_names(&error, &dir.path().join(ADAPTER_CONFIG));
    assert_says(&error, &["check the path"]);
}

#[test]
fn saving_by_another_configuration_than_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapter");
    for other in [
        qv_config().with_rank(4).with_alpha(8.0),
        qv_config().with_alpha(8.0),
        qv_config().with_dora(true),
        qv_config().with_targets(Targets::names(["q_proj", "v_proj", "up_proj"])),
    ] {
        let mut model = lora_model(&qv_config());
        let error = refused(&mut model, dir.path(), |m| save_peft(m, &other, &out));
        assert_variant!(error, Adapter);
        assert_names(&error, &out);
        let parts = ["the model ", "the LoRAConfig given", "was built with"];
        assert_says(&error, &parts);
        assert!(!error.to_string().contains("folder"), "{error}");
        assert!(!error.to_string().contains(ADAPTER_CONFIG), "{error}");
    }
}

// Adapter configurations.

fn lora_error(config: &LlamaConfig, lora: LoRAConfig) -> Error {
    let error = config.init_lora(&lora, &device()).unwrap_err();
    assert_variant!(error, InvalidArgument);
    error
}

fn gqa_config() -> LlamaConfig {
    read_hf_config(golden("gqa")).unwrap()
}

#[test]
fn rank_zero() {
    let error = lora_error(&gqa_config(), qv_config().with_rank(0));
    assert_says(&error, &["rank: ", "at least 1"]);
}

#[test]
fn no_module_at_all() {
    let error = lora_error(&gqa_config(), LoRAConfig::default());
    assert_says(&error, &["targets: ", "such as q_proj"]);
    let overrides = ["lora_attn_modules=[]".to_owned()];
    let error = RecipeConfig::default()
        .with_overrides(&overrides)
        .unwrap_err();
    assert_variant!(error, Config);
    assert_says(
        &error,
        &[
            "command line",
            "no layer has an adapter",
            "apply_lora_to_mlp",
        ],
    );
}

#[test]
fn alpha_and_dropout_out_of_range() {
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = lora_error(&gqa_config(), qv_config().with_alpha(alpha));
        assert_says(&error, &["alpha: ", "positive number"]);
    }
    for dropout in [-0.1, 1.0, f64::NAN] {
        let error = lora_error(&gqa_config(), qv_config().with_dropout(dropout));
        assert_says(&error, &["dropout: ", "[0, 1)"]);
    }
}

#[test]
fn an_unknown_module_by_name() {
    let error = "q_porj".parse::<AttnModule>().unwrap_err();
    assert_variant!(error, Config);
    assert_says(
        &error,
        &["`q_porj`", "choose from q_proj", "did you mean `q_proj`"],
    );
}

#[test]
fn an_unknown_module_in_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yaml");
    fs::write(&path, "seed: 1\nlora_attn_modules: [q_proj, v_porj]\n").unwrap();
    let error = RecipeConfig::from_file(&path, &[]).unwrap_err();
    assert_variant!(error, Config);
    assert_names(&error, &path);
    let parts = ["line 2", "lora_attn_modules", "v_porj", "`v_proj`"];
    assert_says(&error, &parts);
}

#[test]
fn an_unknown_module_on_the_command_line() {
    let overrides = ["lora_attn_modules=[q_proj,v_porj]".to_owned()];
    let error = RecipeConfig::default()
        .with_overrides(&overrides)
        .unwrap_err();
    assert_variant!(error, Config);
    let parts = ["command line", "lora_attn_modules", "v_porj", "`v_proj`"];
    assert_says(&error, &parts);
}

#[test]
fn a_recipe_that_is_not_yaml() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yaml");
    fs::write(&path, "seed: 1\nlora_attn_modules: [q_proj\n").unwrap();
    let error = RecipeConfig::from_file(&path, &[]).unwrap_err();
    assert_variant!(error, Format);
    assert_names(&error, &path);
    assert_says(&error, &["line 2"]);
}

#[test]
fn a_recipe_that_is_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yaml");
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    let error = RecipeConfig::from_file(&path, &[]).unwrap_err();
    assert_variant!(error, Io);
    assert_names(&error, &path);
    assert_says(&error, &["another kind of file?"]);
}

// Data.

#[track_caller]
fn dataset_error(text: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.json");
    fs::write(&path, text).unwrap();
    let error = load_alpaca(&path).unwrap_err();
    assert_names(&error, &path);
    assert_eq!(files_in(dir.path()).len(), 1);
    error
}

#[test]
fn a_dataset_that_is_not_json() {
    let error = dataset_error("[\n{\"instruction\": \"a\", \"output\" \"b\"}\n]");
    assert_variant!(error, Format);
    assert_says(&error, &["malformed JSON at line 2", "expected `:`"]);
}

#[test]
fn an_empty_dataset() {
    for text in ["[]", "", "\n"] {
        let error = dataset_error(text);
        assert_variant!(error, Format);
        assert_says(&error, &["the data set is empty", "at least one record"]);
    }
}

#[test]
fn a_record_without_an_instruction() {
    let good = r#"{"instruction": "a", "output": "b"}"#;
    let error = dataset_error(&format!(r#"[{good}, {{"output": "b"}}]"#));
    assert_variant!(error, Record);
    assert_says(&error, &["record 2: `instruction` is missing", "needs"]);

    let error = dataset_error(&format!("{good}\n\n{{\"output\": \"b\"}}\n"));
    assert_variant!(error, Record);
    assert_says(&error, &["record 2 (line 3): `instruction` is missing"]);
}

#[test]
fn a_missing_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.json");
    let error = load_alpaca(&path).unwrap_err();
    assert_variant!(error, Io);
    assert_names(&error, &path);
    assert_says(&error, &["check the path"]);
}

#[test]
fn a_token_beyond_the_vocabulary() {
    let sample = |tokens: [u32; 2]| Sample {
        is_cut: false,
        tokens: tokens.to_vec(),
        labels: tokens.map(|token| token as i32).to_vec(),
    };
    let samples = [sample([1, 127]), sample([1, 128])];
    let error = check_vocab(&samples, 128).unwrap_err();
    assert_variant!(error, TokenOutOfRange);
    assert_says(&error, &["token id 128", "vocabulary of 128", "tokenizer"]);
    assert!(check_vocab(&samples[..1], 128).is_ok());
}

#[test]
fn a_prompt_beyond_the_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let options = GenerateOptions::greedy(4);
    let mut model = base_model();
    let error = refused(&mut model, dir.path(), |m| generate(m, &[1, 128], &options));
    assert_variant!(error, TokenOutOfRange);
    assert_says(&error, &["token id 128", "vocabulary of 128", "tokenizer"]);
}

#[test]
fn an_empty_prompt() {
    let error = generate(&base_model(), &[], &GenerateOptions::greedy(4)).unwrap_err();
    assert_variant!(error, InvalidArgument);
    assert_says(&error, &["prompt", "at least one token"]);
}

#[test]
fn a_prompt_as_long_as_the_context() {
    let options = GenerateOptions::greedy(4);
    let longest = gqa_config().max_seq_len;
    let error = generate(&base_model(), &vec![1; longest], &options).unwrap_err();
    assert_variant!(error, InvalidArgument);
    let parts = ["prompt", "256 tokens", "no room", "context of 256"];
    assert_says(&error, &parts);
    let one = generate(&base_model(), &vec![1; longest - 1], &options).unwrap();
    assert_eq!(one.len(), 1);
}

#[test]
fn generation_options_out_of_range() {
    let greedy = || GenerateOptions::greedy(4);
    for (options, name) in [
        (greedy().with_temperature(-1.0), "temperature"),
        (greedy().with_temperature(f64::NAN), "temperature"),
        (greedy().with_top_k(0), "top_k"),
        (greedy().with_top_p(0.0), "top_p"),
        (greedy().with_top_p(1.5), "top_p"),
        (greedy().with_min_p(0.0), "min_p"),
        (greedy().with_repetition_penalty(0.0), "repetition_penalty"),
        (greedy().with_stop_strings([""]), "stop_strings"),
        (greedy().with_answers(0), "answers"),
    ] {
        let error = generate(&base_model(), &[1], &options).unwrap_err();
        assert_variant!(error, InvalidArgument);
        assert_says(&error, &[name, "must"]);
    }
}

// Output folders.

/// A file, and a path below it, where even a privileged user cannot write.
fn unwritable() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    (dir, file.join("below"))
}

#[track_caller]
fn assert_not_writable(act: impl FnOnce(&mut TransformerDecoder, &Path) -> Result<()>) {
    let (dir, out) = unwritable();
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| act(m, &out));
    assert_variant!(error, Io);
    assert_names(&error, &out);
    assert_says(&error, &["where a folder is needed", "choose another path"]);
}

#[test]
fn an_adapter_folder_that_cannot_be_written() {
    assert_not_writable(|model, out| save_peft(model, &qv_config(), out));
}

#[test]
fn a_model_folder_that_cannot_be_written() {
    assert_not_writable(|model, out| save_hf(&model.clone().merge_lora(), out));
}

/// Both factors are finite, their product is not.
#[test]
fn a_merged_weight_that_is_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = lora_model(&qv_config());
    save_hf(&model.clone().without_adapters(), dir.path()).unwrap();
    let mut values = adapter_state_dict(&model);
    for (key, value) in &mut values {
        if key.starts_with("layers.1.attn.v_proj") {
            let numbers = vec![1e30f32; value.num_elements()];
            *value = TensorData::new(numbers, value.shape().clone());
        }
    }
    load_state_dict(&mut model, &values, false).unwrap();
    let error = refused(&mut model, dir.path(), |model| {
        save_hf(&model.clone().merge_lora(), dir.path())
    });
    assert_variant!(error, InvalidArgument);
    let advice = [
        "`model.layers.1.self_attn.v_proj.weight`",
        "NaN or infinite",
        "bf16 or f32",
    ];
    assert_says(&error, &advice);
}

#[test]
fn a_tensor_file_that_cannot_be_written() {
    assert_not_writable(|model, out| save_state_dict(&adapter_state_dict(model), out));
}

#[test]
fn a_log_that_cannot_be_written() {
    assert_not_writable(|_, out| MetricsLog::create(out).map(drop));
}

#[test]
fn a_run_folder_that_cannot_be_written() {
    assert_not_writable(|_, out| RunDir::create(&run_config(out, &[]), 1).map(drop));
}

#[test]
fn a_folder_that_is_a_file() {
    let (dir, out) = unwritable();
    let file = out.parent().unwrap();
    let mut model = lora_model(&qv_config());
    let error = refused(&mut model, dir.path(), |m| save_peft(m, &qv_config(), file));
    assert_variant!(error, Io);
    assert_names(&error, file);
    assert_says(&error, &["where a folder is needed", "choose another path"]);
}

// Run folders.

fn run_config(dir: &Path, overrides: &[&str]) -> RecipeConfig {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    let mut config = RecipeConfig::default();
    config.output_dir = dir.to_owned();
    config.with_overrides(&overrides).unwrap()
}

/// A run folder with the checkpoint of one step.
fn unfinished_run() -> (TempDir, RecipeConfig, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = run_config(&dir.path().join("run"), &[]);
    let run = save_one_step(&config, lora_model(&config.lora()));
    (dir, config, run)
}

#[test]
fn resuming_with_another_configuration() {
    let (dir, config, _) = unfinished_run();
    let other = config
        .with_overrides(&["lora_rank=4".into(), "optimizer.lr=1e-3".into()])
        .unwrap();
    let before = files_in(dir.path());
    let error = RunDir::resume(&other).unwrap_err();
    assert_variant!(error, Resume);
    assert_names(&error, &other.output_dir);
    assert_says(
        &error,
        &[
            "`lora_rank` was 8, now 4",
            "`optimizer.lr` was 0.0003, now 0.001",
            "choose another output_dir",
        ],
    );
    assert_eq!(files_in(dir.path()), before);
}

#[test]
fn resuming_where_there_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let config = run_config(&dir.path().join("none"), &[]);
    let error = RunDir::resume(&config).unwrap_err();
    assert_variant!(error, Resume);
    assert_names(&error, &config.output_dir);
    assert_says(
        &error,
        &[
            "no complete checkpoint to resume from",
            "resume_from_checkpoint=false",
        ],
    );
    assert!(files_in(dir.path()).is_empty());

    let run = RunDir::create(&config, 1).unwrap();
    let mut trainer = config.trainer(10);
    let mut model = lora_model(&config.lora());
    let error = refused(&mut model, dir.path(), |m| {
        run.load_checkpoint(m, &mut trainer)
    });
    assert_variant!(error, Resume);
    assert_says(&error, &["no complete checkpoint to resume from"]);
}

#[test]
fn beginning_a_run_over_an_unfinished_one() {
    let (dir, config, _) = unfinished_run();
    let before = files_in(dir.path());
    let other = run_config(&config.output_dir, &["lora_rank=4"]);
    let error = RunDir::create(&other, 1).unwrap_err();
    assert_variant!(error, Resume);
    assert_names(&error, &config.output_dir);
    assert_says(
        &error,
        &[
            "not finished",
            "resume_from_checkpoint=true",
            "another output_dir",
        ],
    );
    assert_eq!(files_in(dir.path()), before);
}

fn finished_run() -> (TempDir, RecipeConfig, RunDir) {
    let (dir, config, run) = unfinished_run();
    let summary = Summary {
        steps: 1,
        skipped_steps: 0,
        final_loss: 1.0,
        total_params: 1,
        trainable_params: 1,
        tokens_per_second: 1.0,
        peak_memory_bytes: None,
        val_loss: None,
        best_validation: None,
        exact_match: None,
    };
    run.finish(&summary).unwrap();
    for folder in [run.adapter_dir(), run.merged_dir()] {
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("old"), "").unwrap();
    }
    (dir, config, run)
}

/// Between the two a model is loaded, which may fail.
#[test]
fn claiming_a_folder_deletes_nothing() {
    let (dir, config, run) = finished_run();
    drop(run);
    let before = files_in(dir.path());
    let other = run_config(&config.output_dir, &["lora_rank=4", OVERWRITE]);
    let run = RunDir::claim(&other, 1).unwrap();
    assert_eq!(files_in(dir.path()), before);
    assert_says(&RunDir::claim(&config, 1).unwrap_err(), &["is going on"]);
    run.begin().unwrap();
    let left: Vec<_> = files_in(&config.output_dir).into_keys().collect();
    assert_eq!(left, [".lock", "config.yaml"].map(PathBuf::from));
}

#[test]
#[should_panic = "has claimed"]
fn beginning_a_run_without_a_claim() {
    let dir = tempfile::tempdir().unwrap();
    let config = run_config(dir.path(), &[]);
    RunDir::join(&config, 1).begin().unwrap();
}

const OVERWRITE: &str = "overwrite_output_dir=true";

/// What is left of another run must not be taken for the new one's.
#[test]
fn beginning_a_run_over_another_one() {
    for is_finished in [false, true] {
        for without_checkpoints in [false, true] {
            let (_dir, config, run) = match is_finished {
                true => finished_run(),
                false => unfinished_run(),
            };
            if without_checkpoints {
                fs::remove_dir_all(run.path().join("checkpoints")).unwrap();
            }
            drop(run);
            if is_finished {
                let error = RunDir::create(&config, 1).unwrap_err();
                assert_says(&error, &["holds a run that is finished", OVERWRITE]);
            }
            let config = run_config(&config.output_dir, &[OVERWRITE]);
            RunDir::create(&config, 1).unwrap();
            let left: Vec<_> = files_in(&config.output_dir).into_keys().collect();
            assert_eq!(left, [".lock", "config.yaml"].map(PathBuf::from));
        }
    }
}

#[test]
fn beginning_a_run_over_what_is_no_run() {
    for name in ["checkpoints/mine", "adapter/mine", "summary.json"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        let error = RunDir::create(&run_config(dir.path(), &[OVERWRITE]), 1).unwrap_err();
        assert_variant!(error, Resume);
        assert_says(&error, &["which no run has left", "another output_dir"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}

#[test]
fn beginning_a_run_with_what_it_would_delete() {
    let (dir, config, run) = finished_run();
    let merged = run.merged_dir();
    drop(run);
    // An adapter whose recipe goes on with it.
    for name in [ADAPTER, ADAPTER_CONFIG] {
        fs::copy(golden("gqa/lora_qv_r8").join(name), merged.join(name)).unwrap();
    }
    // By another way to the same folder.
    let detour = merged.join("../adapter/../merged");
    for (key, path) in [
        ("checkpoint_dir", detour.clone()),
        ("adapter_checkpoint", detour.clone()),
        ("tokenizer", merged.join("old")),
        ("dataset", merged.join("old")),
        ("validation_dataset", detour.join("old")),
    ] {
        let setting = format!("{key}={}", path.display());
        let config = run_config(&config.output_dir, &[&setting, OVERWRITE]);
        let before = files_in(dir.path());
        let error = RunDir::create(&config, 1).unwrap_err();
        assert_variant!(error, Resume);
        assert_names(&error, &config.output_dir);
        assert_says(&error, &[key, "merged", "another output_dir"]);
        assert_eq!(files_in(dir.path()), before);
    }
}

#[test]
fn beginning_a_run_where_one_is_going_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = run_config(&dir.path().join("run"), &[]);
    let run = RunDir::create(&config, 1).unwrap();
    let other = run_config(&config.output_dir, &["lora_rank=4"]);
    let before = files_in(dir.path());
    let error = RunDir::create(&other, 1).unwrap_err();
    assert_variant!(error, Resume);
    assert_says(&error, &["is going on", "another output_dir"]);
    assert_eq!(files_in(dir.path()), before);
    drop(run);
    RunDir::create(&other, 1).unwrap();

    // One that was resumed goes on too, in as many processes as it has.
    let (_dir, config, run) = unfinished_run();
    drop(run);
    let _first = RunDir::resume(&config).unwrap().locked().unwrap();
    let other = RunDir::resume(&config).unwrap();
    for error in [other.locked(), RunDir::create(&config, 1)] {
        assert_says(&error.unwrap_err(), &["is going on"]);
    }
}

#[test]
fn resuming_with_other_records() {
    let (dir, config, run) = unfinished_run();
    let mut trainer = config.trainer(11);
    let mut model = lora_model(&config.lora());
    let error = refused(&mut model, dir.path(), |m| {
        run.load_checkpoint(m, &mut trainer)
    });
    assert_variant!(error, Resume);
    assert_says(&error, &["has 10 steps", "would have 11", "records"]);
    assert_eq!(trainer.step, 0);
}

#[test]
fn resuming_with_as_many_other_records() {
    let sample = |tokens: &[u32]| Sample {
        is_cut: false,
        tokens: tokens.to_vec(),
        labels: tokens.iter().map(|token| *token as i32).collect(),
    };
    let samples = [sample(&[1, 5]), sample(&[1, 9, 2])];
    let (dir, config, run) = unfinished_run();
    let state = |model: &TransformerDecoder, step| {
        let mut trainer = config.trainer(10);
        trainer.step = step;
        let run = run.clone().on_data(fingerprint(&samples[..]).unwrap());
        run.save_checkpoint(model, &config.lora(), &trainer)
            .unwrap();
    };
    let mut model = lora_model(&config.lora());
    state(&model, 2);
    let mut unlabelled = samples.clone();
    unlabelled[0].labels[1] = -100;
    let [first, second] = samples.clone();
    for other in [
        vec![second.clone(), first.clone()],
        vec![first.clone()],
        vec![sample(&[1, 5, 1]), sample(&[9, 2])],
        unlabelled.to_vec(),
    ] {
        let run = run.clone().on_data(fingerprint(&other).unwrap());
        let mut trainer = config.trainer(10);
        let error = refused(&mut model, dir.path(), |m| {
            run.load_checkpoint(m, &mut trainer)
        });
        assert_variant!(error, Resume);
        assert_says(&error, &["other records", "another output_dir"]);
        assert_eq!(trainer.step, 0);
    }
    let mut trainer = config.trainer(10);
    let run = run.on_data(fingerprint(&samples[..]).unwrap());
    run.load_checkpoint(&mut model, &mut trainer).unwrap();
    assert_eq!(trainer.step, 2);
}

/// They decide how many samples a step has.
#[test]
fn a_run_remembers_how_many_processes_began_it() {
    let (_dir, config, run) = unfinished_run();
    assert_eq!(run.num_processes(), 1);
    drop(run);
    fs::remove_dir_all(config.output_dir.join("checkpoints")).unwrap();
    let run = RunDir::create(&config, 3).unwrap();
    let model = lora_model(&config.lora());
    let trainer = config.trainer(10);
    run.save_checkpoint(&model, &config.lora(), &trainer)
        .unwrap();
    assert_eq!(RunDir::resume(&config).unwrap().num_processes(), 3);
}

/// As the final adapter does, for those who load it alone.
#[test]
fn a_checkpoint_names_its_base() {
    let (_dir, mut config, run) = unfinished_run();
    drop(run);
    let trainer = config.trainer(10);
    let absolute = std::path::absolute("models/base").unwrap();
    for (dir, name, base) in [
        (None, None, None),
        (Some("models/base"), None, absolute.to_str()),
        (Some("models/base"), Some("me/base"), Some("me/base")),
    ] {
        config.checkpoint_dir = dir.map(PathBuf::from);
        config.base_model_name = name.map(str::to_owned);
        let run = RunDir::join(&config, 1);
        run.save_checkpoint(&lora_model(&config.lora()), &config.lora(), &trainer)
            .unwrap();
        let path = run.path().join("checkpoints/step_0").join(ADAPTER_CONFIG);
        let saved: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(saved["base_model_name_or_path"], json!(base));
    }
}

#[test]
fn the_last_checkpoints_are_kept() {
    let (_dir, config, run) = unfinished_run();
    let model = lora_model(&config.lora());
    for step in [2, 9, 10] {
        let mut trainer = config.trainer(10);
        trainer.step = step;
        run.save_checkpoint(&model, &config.lora(), &trainer)
            .unwrap();
    }
    // Not complete: nobody knows what it is.
    let torn = run.path().join("checkpoints/step_11");
    fs::create_dir(&torn).unwrap();
    // The user's own.
    let best = run.path().join("checkpoints/best");
    fs::create_dir(&best).unwrap();
    let trainer = "checkpoints/step_1/trainer.json";
    fs::copy(run.path().join(trainer), best.join("trainer.json")).unwrap();
    let left = |count| {
        run.keep_last_checkpoints(count).unwrap();
        let steps = [1, 2, 9, 10, 11];
        let exists = |step: &usize| run.path().join(format!("checkpoints/step_{step}")).exists();
        steps.into_iter().filter(exists).collect::<Vec<_>>()
    };
    assert_eq!(left(5), [1, 2, 9, 10, 11]);
    assert_eq!(left(2), [9, 10, 11]);
    assert_eq!(left(1), [10, 11]);
    assert!(best.join("trainer.json").exists());
}

#[test]
fn a_run_that_was_killed_leaves_nothing_half_written() {
    let (_dir, config, run) = unfinished_run();
    fs::create_dir(run.merged_dir()).unwrap();
    let checkpoint = run.path().join("checkpoints/step_1");
    let half = [
        run.merged_dir()
            .join(".model.safetensors.0123456789abcdef.tmp"),
        checkpoint.join(".trainer.json.0123456789abcdef.tmp"),
        // The safetensors crate's own.
        checkpoint.join(".tmpAb12Cd"),
        run.path().join(".summary.json.0123456789abcdef.tmp"),
    ];
    let others = [
        ".hidden",
        ".notes.tmp",
        "x.0123456789abcdef.tmp",
        ".tmp",
        ".tmp-notes",
    ];
    let others = others.map(|name| run.merged_dir().join(name));
    for file in half.iter().chain(&others) {
        fs::write(file, "x").unwrap();
    }
    drop(run);
    let _run = RunDir::resume(&config).unwrap().locked().unwrap();
    assert!(half.iter().all(|file| !file.exists()));
    assert!(others.iter().all(|file| file.exists()));
    assert!(checkpoint.join("trainer.json").exists());
}

#[test]
fn a_run_whose_configuration_is_broken() {
    let (dir, config, _) = unfinished_run();
    let path = config.output_dir.join("checkpoints/step_1/config.yaml");
    fs::write(&path, "lora_rank: [8\n").unwrap();
    let before = files_in(dir.path());
    let error = RunDir::resume(&config).unwrap_err();
    assert_variant!(error, Format);
    assert_names(&error, &path);
    assert_eq!(files_in(dir.path()), before);
}

/// The error of loading a checkpoint in which `spoil` has changed a file; the trainer must stay as
/// it was, too.
#[track_caller]
fn error_of_checkpoint(spoil: impl FnOnce(&Path)) -> (PathBuf, Error) {
    let (dir, config, run) = unfinished_run();
    let checkpoint = run.path().join("checkpoints/step_1");
    spoil(&checkpoint);
    let mut trainer: Trainer = config.trainer(10);
    let mut model = lora_model(&config.lora());
    let error = refused(&mut model, dir.path(), |m| {
        run.load_checkpoint(m, &mut trainer)
    });
    assert_eq!((trainer.step, trainer.optimizer.num_states()), (0, 0));
    (checkpoint, error)
}

#[test]
fn the_optimizer_state_of_another_model() {
    let key = "layers.9.attn.q_proj.lora_a.weight.exp_avg";
    let (dir, error) = error_of_checkpoint(|dir| {
        tensors::edit_values(&dir.join("optimizer.safetensors"), |values| {
            let name = "layers.3.attn.q_proj.lora_a.weight";
            for moment in ["exp_avg", "exp_avg_sq", "step"] {
                let value = values.remove(&format!("{name}.{moment}")).unwrap();
                values.insert(format!("{}.{moment}", name.replace('3', "9")), value);
            }
        });
    });
    assert_variant!(error, Keys);
    assert_names(&error, &dir.join("optimizer.safetensors"));
    assert_says(&error, &[key, "(nearest key of the model: layers."]);
}

#[test]
fn the_optimizer_state_of_another_rank() {
    let key = "layers.0.attn.q_proj.lora_a.weight.exp_avg_sq";
    let (dir, error) = error_of_checkpoint(|dir| {
        tensors::edit_values(&dir.join("optimizer.safetensors"), |values| {
            values.insert(key.into(), TensorData::new(vec![0f32; 256], [256]));
        });
    });
    assert_variant!(error, Shape);
    assert_names(&error, &dir.join("optimizer.safetensors"));
    assert_says(&error, &[key, "[256]", "expects [512]"]);
}

/// As PyTorch has them, and in no other shape of as many elements.
#[test]
fn moments_of_two_dimensions() {
    let name = "layers.0.attn.q_proj.lora_a.weight";
    let reshape = |dir: &Path, shape: [usize; 2]| {
        tensors::edit_values(&dir.join("optimizer.safetensors"), |values| {
            for moment in ["exp_avg", "exp_avg_sq"] {
                let value = values.get_mut(&format!("{name}.{moment}")).unwrap();
                let (bytes, _, dtype) = value.clone().into_parts();
                *value = TensorData::from_bytes(bytes, shape, dtype);
            }
        });
    };
    let (_, error) = error_of_checkpoint(|dir| reshape(dir, [64, 8]));
    assert_variant!(error, Shape);
    assert_says(&error, &[name, "[64, 8]", "expects [512]"]);
}

#[test]
fn a_step_that_is_no_count() {
    let key = "layers.0.attn.q_proj.lora_a.weight.step";
    let (dir, error) = error_of_checkpoint(|dir| {
        tensors::edit_values(&dir.join("optimizer.safetensors"), |values| {
            values.insert(key.into(), TensorData::new(vec![0.5f32], [1]));
        });
    });
    assert_variant!(error, Format);
    assert_names(&error, &dir.join("optimizer.safetensors"));
    assert_says(&error, &[key, "is 0.5, not the number"]);
}

#[test]
fn an_incomplete_optimizer_state() {
    let key = "layers.0.attn.q_proj.lora_a.weight.step";
    let (dir, error) = error_of_checkpoint(|dir| {
        tensors::edit_values(&dir.join("optimizer.safetensors"), |values| {
            assert!(values.remove(key).is_some());
        });
    });
    assert_variant!(error, Keys);
    assert_names(&error, &dir.join("optimizer.safetensors"));
    assert_says(&error, &["1 missing key(s)", key]);
}

#[test]
fn a_checkpoint_with_a_broken_adapter() {
    let (dir, error) = error_of_checkpoint(|dir| fs::write(dir.join(ADAPTER), "").unwrap());
    assert_variant!(error, Format);
    assert_names(&error, &dir.join(ADAPTER));
    assert_says(&error, &["cut short"]);
}

#[test]
fn a_pointer_in_the_place_of_a_file() {
    let read_tokenizer = |dir: &Path| Tokenizer::from_dir(dir).map(drop);
    let load = |dir: &Path| load_hf(&mut base_model(), dir).map(drop);
    type Read<'a> = &'a dyn Fn(&Path) -> Result<()>;
    let readers: [(&str, Read); 8] = [
        (WEIGHTS, &load),
        (INDEX, &load),
        ("config.json", &|dir| read_hf_config(dir).map(drop)),
        ("generation_config.json", &|dir| {
            fs::copy(golden("gqa/config.json"), dir.join("config.json")).unwrap();
            read_hf_config(dir).map(drop)
        }),
        ("tokenizer.json", &read_tokenizer),
        ("tokenizer.model", &read_tokenizer),
        (ADAPTER_CONFIG, &|dir| read_peft_config(dir).map(drop)),
        ("records.json", &|dir| {
            load_alpaca(dir.join("records.json")).map(drop)
        }),
    ];
    for (file, read) in readers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        fs::write(&path, pointer).unwrap();
        let error = read(dir.path()).unwrap_err();
        assert_variant!(error, Format);
        assert_names(&error, &path);
        assert_says(&error, &["pointer of Git LFS", "`git lfs pull`"]);
    }
}

/// A pipe would be waited for, for ever.
#[test]
#[cfg(unix)]
fn a_pipe_in_the_place_of_weights() {
    type Read<'a> = &'a dyn Fn(&Path) -> Result<()>;
    let readers: [(&str, Read); 4] = [
        (WEIGHTS, &|path| {
            load_hf(&mut base_model(), path.parent().unwrap()).map(drop)
        }),
        (ADAPTER, &|path| SafetensorsFile::open(path).map(drop)),
        ("model.gguf", &|path| {
            load_model(path, None, &LoadOptions::new(&device())).map(drop)
        }),
        ("base.gguf", &|path| base_fingerprint(path).map(drop)),
    ];
    for (file, read) in readers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = read(&path).unwrap_err();
        assert_names(&error, &path);
        assert_says(&error, &["a pipe or a device"]);
    }
}
