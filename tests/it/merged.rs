//! Adapters merged into checkpoints on the disk, tensor by tensor, and into packed bases.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{adapter_state_dict, load_state_dict, quantize_base, state_dict};
use burn_peft::checkpoint::{
    MergeOptions, MergedCheckpoint, SafetensorsFile, attach_peft, load_hf, load_hf_as, merge_files,
    read_hf_config, save_hf, save_merged_hf, save_peft_adapter, save_peft_unconverted,
    write_tensors,
};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{DEFAULT_ADAPTER, Init, LoRAConfig};
use burn_peft::quantization::{BlockFormat, PackedLayout, dequantize, quantize};
use burn_peft::weight::{FrozenWeight, Quantization};
use tempfile::TempDir;

use crate::adapters::{base, config, kinds, random, tied};
use crate::common::{device, floats};

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// A checkpoint of bf16 in two shards, with a tokenizer's files and fields of its own in `config.json`.
pub fn checkpoint(config: &LlamaConfig) -> TempDir {
    let single = tempfile::tempdir().unwrap();
    save_hf(&base(config), single.path()).unwrap();
    let mut model = config.init(&device());
    load_hf_as(&mut model, single.path(), half()).unwrap();
    save_hf(&model, single.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = tensors(single.path()).into_iter().collect();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut index = BTreeMap::new();
    for (file, shard) in SHARDS.into_iter().zip([first, second]) {
        index.extend(shard.iter().map(|(name, _)| (name, file)));
        let shard = shard.iter().map(|(name, data)| (name.clone(), data));
        write_tensors(shard, &dir.path().join(file)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let text = fs::read_to_string(single.path().join("config.json")).unwrap();
    let text = text.replacen('{', "{\n  \"of_its_own\": [1,   2],", 1);
    fs::write(dir.path().join("config.json"), text).unwrap();
    for (name, text) in [
        (
            "generation_config.json",
            "{\"eos_token_id\": [2, 5],\"top_p\":0.9}",
        ),
        ("tokenizer.json", "{}"),
        ("notes.bin", "not the model's"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A type of half precision, where the device has one.
fn half() -> DType {
    match device().supports_dtype(DType::BF16) {
        true => DType::BF16,
        false => DType::F32,
    }
}

/// All tensors of a folder.
fn tensors(dir: &Path) -> BTreeMap<String, TensorData> {
    let files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let mut found = BTreeMap::new();
    for file in files.map(|path| SafetensorsFile::open(path).unwrap()) {
        for name in file.shapes().into_keys() {
            let data = file.read(&name, file.dtype(&name).unwrap()).unwrap();
            assert!(found.insert(name, data).is_none());
        }
    }
    found
}

fn loaded(dir: &Path) -> TransformerDecoder {
    let mut model = read_hf_config(dir).unwrap().init(&device());
    load_hf(&mut model, dir).unwrap();
    model
}

/// What `merge_lora` and `save_hf` make of a folder and an adapter.
fn merged_whole(base: &Path, adapter: &Path) -> TempDir {
    let mut model = loaded(base);
    attach_peft(&mut model, adapter).unwrap();
    saved_merged(&model)
}

/// What `merge_lora` and `save_hf` make of a model, and so does `save_merged_hf`.
fn saved_merged(model: &TransformerDecoder) -> TempDir {
    let [whole, by_weight] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    save_hf(&model.clone().merge_lora(), whole.path()).unwrap();
    save_merged_hf(model, by_weight.path()).unwrap();
    assert_same_models(by_weight.path(), whole.path(), "weight by weight");
    whole
}

#[track_caller]
fn assert_same_models(found: &Path, expected: &Path, what: &str) {
    let [found_tensors, expected_tensors] = [found, expected].map(tensors);
    let keys = |tensors: &BTreeMap<String, TensorData>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&found_tensors), keys(&expected_tensors), "{what}");
    for (name, data) in &expected_tensors {
        assert_eq!(&found_tensors[name], data, "{what}: {name}");
    }
    let [found, expected] = [found, expected].map(|dir| read_hf_config(dir).unwrap());
    let found = found.with_eos_token_ids(expected.eos_token_ids.clone());
    assert_eq!(found, expected, "{what}");
}

fn adapter(model: &TransformerDecoder, lora: &LoRAConfig, salt: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = random(model.clone().with_adapters(lora).unwrap(), salt);
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path()).unwrap();
    dir
}

#[test]
fn every_kind_is_merged_as_in_memory() {
    for config in [config(), tied()] {
        let folder = checkpoint(&config);
        let model = loaded(folder.path());
        for (salt, lora) in (0..).zip(kinds()) {
            let adapter = adapter(&model, &lora, salt);
            let out = tempfile::tempdir().unwrap();
            let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
            merged.save_hf(out.path()).unwrap();
            let expected = merged_whole(folder.path(), adapter.path());
            assert_same_models(out.path(), expected.path(), &format!("{lora:?}"));
            assert_eq!(
                merged.config().tie_embeddings,
                read_hf_config(out.path()).unwrap().tie_embeddings
            );
        }
    }
}

#[test]
fn what_no_adapter_changes_is_copied() {
    let folder = checkpoint(&config());
    let adapter = adapter(&loaded(folder.path()), &LoRAConfig::new(["v_proj"]), 1);
    let out = tempfile::tempdir().unwrap();
    // What an earlier save left.
    fs::write(out.path().join("model.safetensors"), "old").unwrap();
    fs::write(out.path().join("model-00003-of-00003.safetensors"), "old").unwrap();
    let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
    merged.save_hf(out.path()).unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json"] {
        let [before, after] = [&folder, &out].map(|dir| fs::read(dir.path().join(name)).unwrap());
        assert_eq!(before, after, "{name}");
    }
    let names = fs::read_dir(out.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected = [
        "config.json",
        "generation_config.json",
        SHARDS[0],
        SHARDS[1],
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    for shard in SHARDS {
        let [before, after] = [&folder, &out].map(|dir| {
            SafetensorsFile::open(dir.path().join(shard))
                .unwrap()
                .shapes()
        });
        assert_eq!(before, after);
    }
    let [before, after] = [&folder, &out].map(|dir| tensors(dir.path()));
    for (name, data) in &after {
        assert_eq!(
            before[name] == *data,
            !name.contains("v_proj.weight"),
            "{name}"
        );
    }
}

/// An adapter that begins with a part of the base is read as PEFT reads it: the base is decomposed.
#[test]
fn what_an_adapter_began_with_is_taken_off_the_checkpoint() {
    let folder = checkpoint(&config());
    let model = loaded(folder.path());
    for init in [Init::Pissa, Init::Olora] {
        let lora = LoRAConfig::new(["q_proj", "w1"])
            .with_rank(4)
            .with_init(init);
        let adapted = random(model.clone().with_adapters(&lora).unwrap(), 3);
        let adapter = tempfile::tempdir().unwrap();
        save_peft_unconverted(&adapted, DEFAULT_ADAPTER, None, adapter.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
        merged.save_hf(out.path()).unwrap();
        let expected = merged_whole(folder.path(), adapter.path());
        assert_same_models(out.path(), expected.path(), &format!("{init}"));
    }
}

#[test]
fn a_vocabulary_of_another_size_is_merged() {
    for config in [config().with_qkv_bias(false), tied()] {
        let folder = checkpoint(&config);
        let model = loaded(folder.path());
        for lora in [
            LoRAConfig::new(["q_proj"]),
            LoRAConfig::new(["tok_embeddings", "output"]),
            LoRAConfig::new(["q_proj"]).with_modules_to_save(["tok_embeddings"]),
            LoRAConfig::new(["q_proj"]).with_trainable_tokens("tok_embeddings", [3, 48, 50]),
        ] {
            let adapter = adapter(&model, &lora.clone().with_vocab_size(51), 5);
            let out = tempfile::tempdir().unwrap();
            let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
            merged.save_hf(out.path()).unwrap();
            let expected = merged_whole(folder.path(), adapter.path());
            assert_same_models(out.path(), expected.path(), &format!("{lora:?}"));
        }
    }
}

/// What was trained on four bits is merged into the checkpoint that these were made from.
#[test]
fn a_model_with_a_packed_base_is_merged_into_the_dense_one() {
    let config = tied()
        .with_intermediate_dim(64)
        .with_embed_dim(64)
        .with_num_heads(8)
        .with_qkv_bias(false);
    let folder = checkpoint(&config);
    for lora in [
        LoRAConfig::new(["q_proj", "w2", "tok_embeddings"]).with_rank(4),
        LoRAConfig::new(["v_proj"]).with_dora(true),
    ] {
        let mut packed = config.init_lora(&lora, &device()).unwrap();
        load_hf_as(&mut packed, folder.path(), Quantization::Nf4).unwrap();
        let mut packed = random(packed, 2);
        // What it has learned to end a text with.
        packed.config.eos_token_ids.push(7);
        saved_merged(&packed);
        let adapter = tempfile::tempdir().unwrap();
        save_peft_adapter(&packed, DEFAULT_ADAPTER, None, adapter.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let merged = MergedCheckpoint::new(&packed, folder.path()).unwrap();
        merged.save_hf(out.path()).unwrap();
        let expected = merged_whole(folder.path(), adapter.path());
        assert_same_models(out.path(), expected.path(), &format!("{lora:?}"));
        let mut ends = read_hf_config(folder.path()).unwrap().eos_token_ids;
        ends.push(7);
        assert_eq!(read_hf_config(out.path()).unwrap().eos_token_ids, ends);
    }
}

#[test]
fn folders_that_are_not_the_models_are_refused() {
    let folder = checkpoint(&config());
    let model = loaded(folder.path());
    let adapter = adapter(&model, &LoRAConfig::new(["v_proj"]), 1);
    let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
    let error = merged.save_hf(folder.path()).unwrap_err().to_string();
    assert!(error.contains("folder of the base"), "{error}");
    let error = merged.save_hf(adapter.path()).unwrap_err().to_string();
    assert!(error.contains("an adapter lies in"), "{error}");

    let other = checkpoint(&config().with_intermediate_dim(56));
    let error = MergedCheckpoint::new(&model, other.path()).err().unwrap();
    assert!(matches!(error, Error::Shape { .. }), "{error}");

    let lora = LoRAConfig::new(["w1"]).with_lora_bias(true);
    let biased = model.with_adapters(&lora).unwrap();
    let error = MergedCheckpoint::new(&biased, folder.path()).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("`layers.0.mlp.w1.bias` has no place"),
        "{error}"
    );
}

/// Numbers that the files' type has no place for are refused, and what stood there stays.
#[test]
fn an_infinite_weight_leaves_the_model_before() {
    let folder = checkpoint(&config());
    let lora = LoRAConfig::new(["w1"]).with_rank(1);
    let model = config().init(&device()).with_adapters(&lora).unwrap();
    let mut model = random(model, 1);
    let large = adapter_state_dict(&model).into_iter();
    let large = large.map(|(key, value)| {
        let numbers: Vec<f32> = value.iter::<f32>().map(|number| number * 1e30).collect();
        (key, TensorData::new(numbers, value.shape()))
    });
    load_state_dict(&mut model, &large.collect(), false).unwrap();
    let adapter = tempfile::tempdir().unwrap();
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, adapter.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("model.safetensors"), "before").unwrap();
    let merged = MergedCheckpoint::open(folder.path(), adapter.path()).unwrap();
    let error = merged.save_hf(out.path()).unwrap_err().to_string();
    assert!(error.contains("NaN or infinite"), "{error}");
    assert_eq!(
        fs::read(out.path().join("model.safetensors")).unwrap(),
        b"before"
    );
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}

fn format_of(weight: &FrozenWeight) -> Option<BlockFormat> {
    match weight {
        FrozenWeight::Packed(packed) => Some(packed.layout().format()),
        _ => None,
    }
}

#[test]
fn a_packed_base_stays_packed_and_the_loss_is_told() {
    let config = tied()
        .with_embed_dim(64)
        .with_intermediate_dim(64)
        .with_num_heads(8);
    for quantization in [Quantization::Nf4, Quantization::Int8] {
        let lora = LoRAConfig::new(["q_proj", "w2"]).with_rank(4);
        let model = quantize_base(base(&config), quantization, |_| false).unwrap();
        let model = random(model.with_adapters(&lora).unwrap(), 4);
        let dense = state_dict(&model.clone().merge_lora());
        let (merged, loss) = model.merge_lora_requantized().unwrap();
        assert_eq!(loss.num_weights, 2 * config.num_layers);
        let attn = &merged.layers[0].attn;
        let expected = Some(quantization.block_format());
        for proj in [&attn.q_proj, &attn.k_proj] {
            assert_eq!(format_of(&proj.as_ref().unwrap().base.weight), expected);
        }

        let found = state_dict(&merged);
        let mut errors = Vec::new();
        for (key, data) in dense {
            let found = floats(&found[&key]);
            let values = floats(&data);
            let is_adapted = key.contains("q_proj.weight") || key.contains("w2.weight");
            if !is_adapted {
                assert_eq!(found, values, "{key}");
                continue;
            }
            let layout = PackedLayout::new(quantization.block_format(), data.shape().dims());
            let layout = layout.unwrap();
            let again = dequantize(layout, &quantize(&values, layout).unwrap());
            assert_eq!(found, again, "{key}");
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let lost = norm(&mut again.iter().zip(&values).map(|(a, b)| a - b));
            errors.push(lost / norm(&mut values.iter().copied()));
        }
        let max = errors.iter().copied().fold(0.0, f64::max);
        let mean: f64 = errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64;
        assert!((loss.max - max).abs() < 1e-4 * max, "{} {max}", loss.max);
        let root = mean.sqrt();
        assert!((loss.root_mean_square - root).abs() < 1e-4 * root);
        assert!(loss.to_string().contains(&loss.max_path), "{loss}");
    }
}

#[test]
fn what_is_packed_again_goes_into_a_file() {
    let (folder, out) = (checkpoint(&config()), tempfile::tempdir().unwrap());
    let options = MergeOptions::default().with_requantize(true);
    let error = merge_files(folder.path(), None, out.path(), &options).unwrap_err();
    assert!(error.to_string().contains("ends in `.gguf`"), "{error}");
}
