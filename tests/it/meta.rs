//! Folders as Meta releases Llamas, made by `torch.save`, beside what transformers and tiktoken have of the same models:
//! `tests/python/make_meta.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{
    get_adapter_params, initialize_adapters, state_dict, validate_state_dict_for_lora,
};
use burn_peft::checkpoint::{
    GgufFormat, initialize_loftq_from, load_any_base, load_any_base_as, load_hf, load_meta,
    load_meta_as, read_base_config, read_base_packing, read_hf_config, read_meta_config, save_gguf,
    save_hf,
};
use burn_peft::llama::{LlamaConfig, RopeScaling, TransformerDecoder};
use burn_peft::lora::{Decomposition, LoRAConfig};
use burn_peft::quantization::BlockFormat;
use burn_peft::tokenizer::{Tokenizer, copy_tokenizer};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::weight::{FrozenWeight, Quantization};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Tensors, device, floats, max_abs_diff};

const NAMES: [&str; 6] = [
    "llama1",
    "llama2",
    "llama2_sharded",
    "tied",
    "llama3_2",
    "llama3_sharded",
];
const FIRST: &str = "consolidated.00.pth";
const SECOND: &str = "consolidated.01.pth";

#[derive(Deserialize)]
struct Expected {
    config: Value,
    ids: Vec<(String, Vec<u32>)>,
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/meta").join(name)
}

fn expected() -> BTreeMap<String, Expected> {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A copy of a folder, for a test to change.
fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    copy
}

/// Changes fields of `params.json`; null removes one.
fn set_params(dir: &TempDir, fields: &[(&str, Value)]) {
    let path = dir.path().join("params.json");
    let mut params: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value) in fields {
        params[*field] = value.clone();
    }
    params
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    fs::write(path, params.to_string()).unwrap();
}

fn loaded(dir: &Path) -> TransformerDecoder {
    let mut model = read_meta_config(dir).unwrap().init(&Device::default());
    let report = load_meta_as(&mut model, dir, DType::F32).unwrap();
    assert!(report.missing.is_empty() && report.unexpected.is_empty());
    model
}

/// Those of the last two of the positions that the expected ones are for.
fn logits(model: &TransformerDecoder) -> Vec<f32> {
    const LENGTH: i32 = 96;
    let vocab_size = model.config.vocab_size as i32;
    let ids: Vec<i32> = (0..LENGTH).map(|id| 7 * id % vocab_size).collect();
    let ids = Tensor::from_data(
        TensorData::new(ids, [1, LENGTH as usize]),
        &model.devices()[0],
    );
    let logits = floats(&model.forward(ids, None).cast(DType::F32).into_data());
    logits[logits.len() - 2 * vocab_size as usize..].to_vec()
}

#[test]
fn configurations_are_those_of_the_hugging_face_folder() {
    for (name, case) in expected() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), case.config.to_string()).unwrap();
        let expected = read_hf_config(dir.path()).unwrap();
        assert_eq!(
            read_meta_config(fixture(&name)).unwrap(),
            expected,
            "{name}"
        );
    }
}

#[test]
fn logits_are_those_of_transformers() {
    let expected = Tensors::open(fixture("expected.safetensors"));
    for name in NAMES {
        let difference = max_abs_diff(&logits(&loaded(&fixture(name))), &expected.floats(name));
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn tokenizers_give_the_ids_of_sentencepiece_and_tiktoken() {
    for (name, case) in expected() {
        let tokenizer = Tokenizer::from_dir(fixture(&name)).unwrap();
        let config = read_meta_config(fixture(&name)).unwrap();
        for (text, ids) in case.ids {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        }
        assert_eq!(tokenizer.bos_id(), config.bos_token_id, "{name}");
        assert_eq!(tokenizer.eos_id(), Some(config.eos_token_ids[0]), "{name}");
        assert_eq!(tokenizer.vocab_size(), config.vocab_size, "{name}");
    }
}

#[test]
fn words_of_tiktoken_are_read_back_from_their_ids() {
    let tokenizer = Tokenizer::from_file(fixture("llama3_sharded/tokenizer.model")).unwrap();
    let text = "hello, wörld 🦙\n\n  <|eot_id|> 12345";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    // What a text says is no special token.
    let begin = tokenizer.bos_id().unwrap();
    assert!(ids.iter().all(|id| *id < begin));
    assert_eq!(tokenizer.decode(&[begin, begin + 9]).unwrap(), "");
    assert_eq!(tokenizer.pad_id(600), begin + 4);
}

/// What a merged model gets beside its weights; and what llama.cpp runs.
#[test]
fn a_tokenizer_of_words_is_copied_as_a_tokenizer_json() {
    let name = "llama3_sharded";
    let case = expected().remove(name).unwrap();
    let (from, dir) = (fixture(name), tempfile::tempdir().unwrap());
    let own = Tokenizer::from_dir(&from).unwrap();
    for from in [from.clone(), from.join("tokenizer.model")] {
        let to = dir.path().join("model");
        copy_tokenizer(&from, &to).unwrap();
        assert!(!to.join("tokenizer.model").exists());
        let copied = Tokenizer::from_dir(&to).unwrap();
        assert_eq!(
            [copied.bos_id(), copied.eos_id()],
            [own.bos_id(), own.eos_id()]
        );
        for (text, ids) in &case.ids {
            assert_eq!(&copied.encode(text).unwrap(), ids, "{text:?}");
        }
    }
    let gguf = dir.path().join("model.gguf");
    save_gguf(&loaded(&from), &from, GgufFormat::F16, &gguf).unwrap();
    let written = Tokenizer::from_file(&gguf).unwrap();
    for (text, ids) in &case.ids {
        assert_eq!(&written.encode(text).unwrap(), ids, "{text:?}");
    }
    assert_eq!(written.bos_id(), own.bos_id());
}

/// A `tokenizer_config.json` that lies beside the words names other tokens.
#[test]
fn a_configuration_beside_the_words_is_kept() {
    let dir = copy_of("llama3_sharded");
    let path = dir.path().join("tokenizer_config.json");
    fs::write(&path, json!({"eos_token": "<|eot_id|>"}).to_string()).unwrap();
    let to = tempfile::tempdir().unwrap();
    copy_tokenizer(dir.path(), to.path()).unwrap();
    let begin = Tokenizer::from_dir(fixture("llama3_sharded"))
        .unwrap()
        .bos_id()
        .unwrap();
    for dir in [dir.path(), to.path()] {
        let tokenizer = Tokenizer::from_dir(dir).unwrap();
        assert_eq!(tokenizer.eos_id(), Some(begin + 9));
        assert_eq!(tokenizer.bos_id(), Some(begin));
    }
}

#[test]
fn weights_have_the_type_of_the_files_or_another() {
    for (name, stored) in [("llama2", DType::BF16), ("llama2_sharded", DType::F16)] {
        let dir = fixture(name);
        let new = || read_meta_config(&dir).unwrap().init(&Device::default());
        let supported = Device::default().supports_dtype(stored);
        let (mut model, mut cast) = (new(), new());
        load_meta(&mut model, &dir).unwrap();
        load_meta_as(&mut cast, &dir, DType::F32).unwrap();
        let kept = if supported { stored } else { DType::F32 };
        let (own, f32s) = (state_dict(&model), state_dict(&cast));
        for (key, value) in &own {
            assert_eq!(
                [value.dtype(), f32s[key].dtype()],
                [kept, DType::F32],
                "{name}: {key}"
            );
            let value = value.clone().convert::<f32>();
            assert_eq!(floats(&value), floats(&f32s[key]), "{name}: {key}");
        }
    }
    let int16 = load_meta_as(
        &mut loaded(&fixture("llama2")),
        fixture("llama2"),
        DType::I16,
    );
    assert!(matches!(int16, Err(Error::InvalidArgument { .. })));
}

#[test]
fn linear_layers_are_packed_as_they_are_read() {
    let dir = fixture("llama2");
    let mut model = read_base_config(&dir).unwrap().init(&Device::default());
    load_any_base_as(&mut model, &dir, Quantization::Nf4).unwrap();
    let FrozenWeight::Packed(packed) = &model.layers[0].attn.q_proj.as_ref().unwrap().base.weight
    else {
        panic!("a packed weight");
    };
    assert!(packed.layout().format() != BlockFormat::Int8);
    let [own, dense] = [&model, &loaded(&dir)].map(logits);
    let difference = max_abs_diff(&own, &dense);
    assert!(difference > 0.0 && difference < 3.0, "{difference}");
    // The same numbers as of a folder of Hugging Face's.
    let folder = tempfile::tempdir().unwrap();
    save_hf(&loaded(&dir), folder.path()).unwrap();
    let mut converted = read_hf_config(folder.path())
        .unwrap()
        .init(&Device::default());
    load_any_base_as(&mut converted, folder.path(), Quantization::Nf4).unwrap();
    assert_eq!(logits(&converted), own);
}

#[test]
fn adapters_begin_beside_the_weights() {
    let dir = fixture("llama3_sharded");
    let lora = LoRAConfig::new(["q_proj", "w2"]).with_rank(2);
    let mut model = read_base_config(&dir)
        .unwrap()
        .init_lora(&lora, &device())
        .unwrap();
    let report = load_any_base(&mut model, &dir).unwrap();
    assert_eq!(report.missing.len(), 2 * 2 * 2);
    assert!(report.missing.iter().all(|key| key.contains("lora_")));
    validate_state_dict_for_lora(&get_adapter_params(&model), &report).unwrap();
    load_any_base_as(&mut model, &dir, DType::F32).unwrap();
    let model = initialize_adapters(model, 0);
    assert_eq!(max_abs_diff(&logits(&model), &logits(&loaded(&dir))), 0.0);
}

#[test]
fn loftq_begins_with_the_folder_that_was_packed() {
    let dir = fixture("llama2_sharded");
    let lora = LoRAConfig::new(["q_proj", "w2"]).with_rank(4);
    let packed = || {
        let mut model = read_base_config(&dir)
            .unwrap()
            .init_lora(&lora, &device())
            .unwrap();
        load_any_base_as(&mut model, &dir, Quantization::Int8).unwrap();
        model
    };
    let dense = logits(&loaded(&dir));
    let error = |model: &TransformerDecoder| max_abs_diff(&logits(model), &dense);
    let plain = error(&initialize_adapters(packed(), 0));
    let begun = initialize_loftq_from(packed(), &dir, 1, Decomposition::Exact).unwrap();
    assert!(error(&begun) < plain, "{} {plain}", error(&begun));
}

/// The recipe's parts, from the configuration to the merged folder.
#[test]
fn the_recipe_takes_such_a_folder() {
    for name in NAMES {
        let dir = fixture(name);
        let config = RecipeConfig::default();
        let llama = config.llama(&dir).unwrap();
        assert_eq!(llama, read_meta_config(&dir).unwrap());
        assert!(read_base_packing(&dir).unwrap().is_empty());
        let model = config.load_model(&dir, &config.lora(), &device()).unwrap();
        let merged = tempfile::tempdir().unwrap();
        save_hf(&model.merge_lora(), merged.path()).unwrap();
        let mut again = read_base_config(merged.path())
            .unwrap()
            .init(&Device::default());
        load_hf(&mut again, merged.path()).unwrap();
        assert_eq!(logits(&again), logits(&loaded(&dir)), "{name}");
    }
    let named = RecipeConfig::default().with_overrides(&["model=llama2_7b".to_owned()]);
    let error = named
        .unwrap()
        .llama(&fixture("llama2"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("hidden_size is 64, not 4096"), "{error}");
}

#[test]
fn what_params_json_does_not_say_follows_from_the_release() {
    let read = |fields: &[(&str, Value)]| {
        let dir = copy_of("llama2");
        set_params(&dir, fields);
        read_meta_config(dir.path()).unwrap()
    };
    let length = |fields: &[(&str, Value)]| read(fields).max_seq_len;
    assert_eq!(length(&[]), 4096);
    assert_eq!(length(&[("norm_eps", json!(1e-6))]), 2048);
    assert_eq!(length(&[("rope_theta", json!(5e5))]), 8192);
    assert_eq!(length(&[("rope_theta", json!(1_000_000))]), 16_384);
    assert_eq!(length(&[("max_seq_len", json!(300))]), 300);
    let scaled = ("use_scaled_rope", json!(true));
    assert_eq!(length(std::slice::from_ref(&scaled)), 131_072);
    let scaling = |fields: &[(&str, Value)]| read(fields).rope_scaling;
    assert_eq!(scaling(&[]), None);
    // As narrow as those of 3.2.
    assert_eq!(
        scaling(std::slice::from_ref(&scaled)),
        Some(RopeScaling::llama3(32.0))
    );
    let factor = ("rope_scaling_factor", json!(8));
    assert_eq!(scaling(&[scaled, factor]), Some(RopeScaling::llama3(8.0)));
    // What Meta's code takes where the file says nothing.
    let plain = [
        ("norm_eps", Value::Null),
        ("vocab_size", Value::Null),
        ("multiple_of", Value::Null),
    ];
    assert_eq!(read(&plain), read(&[]));
}

#[test]
fn no_tokenizer_leaves_special_tokens_open() {
    let dir = copy_of("llama3_sharded");
    fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    let config = read_meta_config(dir.path()).unwrap();
    assert_eq!(
        (config.bos_token_id, config.eos_token_ids),
        (None, Vec::new())
    );
}

/// As in Llama 3.2. By the file's size it could be told wrong, were it another view of the same storage.
#[test]
fn an_output_that_is_stored_as_the_embedding_is_tied() {
    let dir = copy_of("llama3_2");
    assert!(read_meta_config(dir.path()).unwrap().tie_embeddings);
    let other = fixture("refused/other_output.pth");
    fs::copy(other, dir.path().join(FIRST)).unwrap();
    let mut model = read_meta_config(dir.path())
        .unwrap()
        .init(&Device::default());
    let error = load_meta(&mut model, dir.path()).unwrap_err().to_string();
    assert_says(
        &error,
        &[FIRST, "`output.weight` is not `tok_embeddings.weight`"],
    );
}

/// Gives a tensor in the index of a file another name of the same length. A zip archive whose directory has no checksum
/// of an entry is read without.
fn rename_tensor(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|part| part == what);
    let place = find(&bytes, from.as_bytes()).expect("a tensor of this name");
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    let entry = find(&bytes, b"PK\x01\x02").expect("a directory");
    let name = String::from_utf8_lossy(&bytes[entry + 46..entry + 80]).into_owned();
    assert!(name.contains("data.pkl"), "{name}");
    bytes[entry + 16..entry + 20].fill(0);
    fs::write(path, bytes).unwrap();
}

/// What is told of a folder, by which no model changes.
fn refused(dir: &Path) -> String {
    let name = match dir.join(SECOND).exists() {
        true => "llama2_sharded",
        false => "llama2",
    };
    let mut model = loaded(&fixture(name));
    let before = state_dict(&model);
    let error = load_meta(&mut model, dir).unwrap_err();
    for (key, value) in state_dict(&model) {
        assert_eq!(before[&key], value, "{key}");
    }
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in `{message}`");
    }
}

#[test]
fn files_of_other_kinds_are_told() {
    let whole = fs::read(fixture("llama2").join(FIRST)).unwrap();
    let safetensors = fs::read(fixture("expected.safetensors")).unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    for (bytes, says) in [
        (
            whole[..whole.len() / 2].to_vec(),
            "was the download or copy cut short?",
        ),
        (whole[..100].to_vec(), "was the download or copy cut short?"),
        (safetensors, "not a zip archive"),
        (b"hello".to_vec(), "not a zip archive"),
        (Vec::new(), "not a zip archive"),
        (pointer, "a pointer of Git LFS"),
    ] {
        let dir = copy_of("llama2");
        fs::write(dir.path().join(FIRST), bytes).unwrap();
        assert_says(&refused(dir.path()), &[FIRST, says]);
    }
}

#[test]
fn files_without_plain_tensors_are_told_and_nothing_of_them_is_run() {
    for (name, says) in [
        ("class", "`__main__.Holder`"),
        ("class_inside", "`__main__.Holder`"),
        ("list", "found list"),
        ("integers", "`norm.weight` holds I8"),
        ("repeated", "`norm.weight` has the shape [4096]"),
        ("empty", "`norm.weight` has the shape [0, 1099511627776]"),
    ] {
        let dir = copy_of("llama2");
        let from = fixture("refused").join(format!("{name}.pth"));
        fs::copy(from, dir.path().join(FIRST)).unwrap();
        assert_says(&refused(dir.path()), &[FIRST, says]);
    }
}

#[test]
fn files_that_are_missing_or_of_other_models_are_told() {
    let dir = copy_of("llama2_sharded");
    fs::remove_file(dir.path().join(FIRST)).unwrap();
    let error = load_any_base(&mut loaded(&fixture("llama2_sharded")), dir.path());
    assert_says(
        &error.unwrap_err().to_string(),
        &[FIRST, SECOND, "copy it beside"],
    );
    fs::remove_file(dir.path().join(SECOND)).unwrap();
    assert_says(
        &refused(dir.path()),
        &["params.json is in this folder", FIRST],
    );

    for (name, says) in [
        ("llama2_sharded", "`dim` is 16, but 8 by the tensors"),
        ("llama3_sharded", "`vocab_size` is 556"),
    ] {
        let dir = copy_of(name);
        fs::remove_file(dir.path().join(SECOND)).unwrap();
        let error = read_base_config(dir.path()).unwrap_err().to_string();
        assert_says(&error, &[says, "are all files there"]);
    }

    let dir = copy_of("llama2_sharded");
    let third = dir.path().join("consolidated.02.pth");
    fs::copy(fixture("llama2_sharded").join(FIRST), third).unwrap();
    assert_says(
        &refused(dir.path()),
        &["in each of 3 files", "a `dim` of 16"],
    );
    let dir = copy_of("llama2_sharded");
    fs::copy(fixture("llama2").join(FIRST), dir.path().join(SECOND)).unwrap();
    assert_says(&refused(dir.path()), &[SECOND, FIRST, "layers.1."]);
    fs::copy(
        fixture("llama3_sharded").join(FIRST),
        dir.path().join(SECOND),
    )
    .unwrap();
    let message = refused(dir.path());
    assert_says(&message, &[SECOND, FIRST, "are they of one model?"]);

    let dir = copy_of("llama2");
    fs::remove_file(dir.path().join("params.json")).unwrap();
    assert_says(&refused(dir.path()), &["params.json", "check the path"]);
    let other = read_meta_config(fixture("llama2"))
        .unwrap()
        .with_intermediate_dim(128);
    let error = load_meta(&mut other.init(&Device::default()), fixture("llama2")).unwrap_err();
    assert_says(&error.to_string(), &["llama2", "`layers.0.feed_forward.w"]);
}

#[test]
fn tensors_that_are_missing_or_too_many_are_told_by_their_names() {
    let wq = "layers.0.attention.wq.weight";
    let other = "layers.0.attention.wz.weight";
    let dir = copy_of("llama2");
    rename_tensor(&dir.path().join(FIRST), wq, other);
    assert_says(&refused(dir.path()), &["unexpected key(s)", other]);
    // Of several files in one of them.
    let dir = copy_of("llama2_sharded");
    rename_tensor(&dir.path().join(SECOND), wq, other);
    assert_says(
        &refused(dir.path()),
        &["`layers.0.attention.w", "is not in this file, but in"],
    );
    // A name of this crate's is none of Meta's, and says nothing of the order of rows.
    let dir = copy_of("llama2");
    let (theirs, own) = ("layers.0.ffn_norm.weight", "layers.0.mlp_norm.weight");
    rename_tensor(&dir.path().join(FIRST), theirs, own);
    assert_says(&refused(dir.path()), &["unexpected key(s)", own]);

    let dir = copy_of("llama2");
    fs::copy(fixture("refused/norm_alone.pth"), dir.path().join(FIRST)).unwrap();
    assert_says(
        &refused(dir.path()),
        &["missing key(s)", wq, "tok_embeddings.weight"],
    );
    let error = read_meta_config(dir.path()).unwrap_err().to_string();
    assert_says(&error, &["1 missing key(s): tok_embeddings.weight"]);
}

#[test]
fn sizes_that_disagree_are_told_by_their_fields() {
    for (field, value, says) in [
        (
            "n_heads",
            json!(0),
            "`n_heads` of 0 does not divide `dim` of 64",
        ),
        (
            "n_heads",
            json!(5),
            "`n_heads` of 5 does not divide `dim` of 64",
        ),
        (
            "n_heads",
            json!(64),
            "`dim`: rotary embedding needs an even width",
        ),
        ("n_heads", json!(-1), "n_heads: invalid value"),
        ("n_kv_heads", json!(0), "`n_kv_heads`: must be at least 1"),
        (
            "n_kv_heads",
            json!(3),
            "`n_kv_heads`: 4 query heads cannot share 3",
        ),
        ("dim", json!(u64::MAX), "dim: invalid value"),
        ("dim", Value::Null, "there is no dim"),
        (
            "n_layers",
            json!(3),
            "`n_layers` is 3, but 1 by the tensors",
        ),
        (
            "n_layers",
            json!(u32::MAX),
            "`n_layers` is 4294967295, but 1",
        ),
        (
            "vocab_size",
            json!(65),
            "`vocab_size` is 65, but 64 by the tensors",
        ),
        (
            "multiple_of",
            json!(100),
            "`ffn_dim_multiplier` make is 100, but 64",
        ),
        ("multiple_of", json!(0), "make is 0, but 64"),
        ("ffn_dim_multiplier", json!(1e300), "make is 0, but 64"),
        (
            "rope_theta",
            json!(0),
            "`rope_theta` is 0, but must be above 0",
        ),
        ("norm_eps", json!("small"), "norm_eps: invalid type"),
        ("max_seq_len", json!(0), "max_seq_len"),
        ("moe", json!({"num_experts": 8}), "`moe` is set"),
        (
            "quantization_args",
            json!({"scheme": "int4"}),
            "`quantization_args` is set",
        ),
    ] {
        let dir = copy_of("llama2");
        set_params(&dir, &[(field, value)]);
        let error = read_meta_config(dir.path()).unwrap_err().to_string();
        assert_says(&error, &["params.json", says]);
    }
    let dir = copy_of("llama2");
    fs::write(dir.path().join("params.json"), "{\"dim\": ").unwrap();
    assert_says(&refused(dir.path()), &["params.json", "EOF"]);
    // Heads of another width than the tensors are of.
    set_heads(&dir, 1);
    assert_says(
        &refused(dir.path()),
        &["attention.wk.weight", "no whole number of heads of 64"],
    );
}

fn set_heads(dir: &TempDir, heads: usize) {
    fs::copy(
        fixture("llama2").join("params.json"),
        dir.path().join("params.json"),
    )
    .unwrap();
    set_params(dir, &[("n_heads", json!(heads))]);
}

#[test]
fn folders_of_other_forms_are_what_they_were() {
    let dir = copy_of("llama2");
    let config = LlamaConfig::llama2_7b().with_num_layers(1);
    // With a config.json it is a folder of Hugging Face's.
    let hf = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 64,
                    "intermediate_size": 64, "num_hidden_layers": 1});
    fs::write(dir.path().join("config.json"), hf.to_string()).unwrap();
    assert_eq!(read_base_config(dir.path()).unwrap().max_seq_len, 2048);
    let model = &mut config.init(&Device::default());
    let error = load_any_base(model, dir.path()).unwrap_err().to_string();
    assert_says(&error, &["model.safetensors", "must be converted first"]);
    // One that has Meta's folder inside of it, as the Hub has them beside a model of Hugging Face's.
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("original");
    fs::rename(copy_of("llama2").keep(), &inner).unwrap();
    let error = read_base_config(outer.path()).unwrap_err().to_string();
    assert_says(&error, &["no config.json", "name that: ", "original"]);
    // A file of weights is no base of its own.
    let error = read_base_config(inner.join(FIRST)).unwrap_err();
    assert_says(&error.to_string(), &[FIRST, "named by its folder"]);
    // And one with nothing names what is looked for.
    let empty = tempfile::tempdir().unwrap();
    let error = read_base_config(empty.path()).unwrap_err().to_string();
    assert_says(&error, &["config.json", "check the path"]);
}

#[test]
fn damaged_numbers_are_told_when_they_are_read() {
    let dir = copy_of("llama2");
    let path = dir.path().join(FIRST);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut model = read_meta_config(dir.path())
        .unwrap()
        .init(&Device::default());
    let error = load_meta(&mut model, dir.path()).unwrap_err().to_string();
    assert_says(
        &error,
        &[FIRST, "checksum", "was the download or copy cut short?"],
    );
}

/// Any byte of a file may be another one: that is an error, or other numbers.
#[test]
fn no_damage_panics() {
    let whole = fs::read(fixture("llama2_sharded").join(FIRST)).unwrap();
    let dir = copy_of("llama2_sharded");
    let path = dir.path().join(FIRST);
    let places = (0..whole.len()).step_by(3);
    for (index, place) in places.enumerate() {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (index % 8);
        fs::write(&path, &damaged).unwrap();
        let _ = read_meta_config(dir.path());
    }
    for length in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(read_meta_config(dir.path()).is_err(), "{length}");
    }
}
