//! Folders that bitsandbytes quantized: read as they are, read as numbers, and refused where they are broken. That the
//! logits are those of transformers, `tests/python/check_models.py` shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use burn_peft::adapter::{LoadReport, StateDict, load_state_dict, state_dict};
use burn_peft::checkpoint::{load_hf, load_hf_as, read_base_packing, read_hf_config, save_hf};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRALinear;
use burn_peft::quantization::{
    BlockFormat, FourBit, FourBitTable, PackedLayout, dequantize, nested_table, quantize,
};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::weight::{BaseFormat, FrozenWeight, Quantization};
use burn_peft::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{device, floats};
use crate::quantized::config;

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DENSE: &str = "layers.1.mlp.w2.weight";
const STATE: &str = "quant_state.bitsandbytes__";

/// The tensors of a folder: types, shapes and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn formats() -> [BlockFormat; 5] {
    let nf4 = FourBit::new(FourBitTable::Nf4);
    let fp4 = FourBit::new(FourBitTable::Fp4);
    [
        BlockFormat::FourBit(nf4),
        BlockFormat::FourBit(nf4.with_nested(true)),
        BlockFormat::FourBit(fp4.with_block_len(32).with_nested(true)),
        BlockFormat::FourBit(fp4),
        BlockFormat::Int8,
    ]
}

const NESTED: usize = 1;
const INT8: usize = 4;

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The name that a weight has in a Hugging Face folder.
fn hf_name(key: &str) -> String {
    let names = [
        ("attn.", "self_attn."),
        ("output_proj", "o_proj"),
        ("mlp.w1", "mlp.gate_proj"),
    ];
    let more = [("mlp.w2", "mlp.down_proj"), ("mlp.w3", "mlp.up_proj")];
    let replace = |name: String, (ours, theirs): (&str, &str)| name.replace(ours, theirs);
    format!(
        "model.{}",
        names.into_iter().chain(more).fold(key.to_owned(), replace)
    )
}

/// Adds what bitsandbytes saves of a packed matrix.
fn add_packed(tensors: &mut Tensors, name: &str, layout: PackedLayout, bytes: &[u8]) {
    let [rows, columns] = layout.shape();
    let numbers = rows * columns;
    let mut add = |part: &str, dtype, shape: &[usize], bytes: &[u8]| {
        tensors.insert(
            format!("{name}{part}"),
            (dtype, shape.to_vec(), bytes.to_vec()),
        );
    };
    let BlockFormat::FourBit(four_bit) = layout.format() else {
        let (codes, scales) = bytes.split_at(numbers);
        add("", Dtype::I8, &[rows, columns], codes);
        let layer = name.strip_suffix("weight").unwrap();
        let scales = (Dtype::F32, vec![rows], scales.to_vec());
        tensors.insert(format!("{layer}SCB"), scales);
        tensors.insert(
            format!("{layer}weight_format"),
            (Dtype::U8, vec![], vec![0]),
        );
        return;
    };
    let (codes, scales) = bytes.split_at(numbers / 2);
    let blocks = numbers / four_bit.block_len;
    add("", Dtype::U8, &[numbers / 2, 1], codes);
    add(
        ".quant_map",
        Dtype::F32,
        &[16],
        &bytes_of(four_bit.table.values()),
    );
    let kind = layout.format();
    let mut state = json!({
        "quant_type": kind.to_string(), "blocksize": four_bit.block_len, "dtype": "bfloat16", "shape": [rows, columns],
    });
    if four_bit.is_nested {
        let (absmax, rest) = scales.split_at(blocks.next_multiple_of(4));
        let (offset, nested) = rest.split_at(4);
        state["nested_blocksize"] = json!(256);
        state["nested_dtype"] = json!("float32");
        state["nested_offset"] = json!(f32::from_le_bytes(offset.try_into().unwrap()));
        add(".absmax", Dtype::U8, &[blocks], &absmax[..blocks]);
        add(".nested_absmax", Dtype::F32, &[nested.len() / 4], nested);
        add(
            ".nested_quant_map",
            Dtype::F32,
            &[256],
            &bytes_of(nested_table()),
        );
    } else {
        add(".absmax", Dtype::F32, &[blocks], scales);
    }
    let state = state.to_string().into_bytes();
    add(
        &format!(".{STATE}{kind}"),
        Dtype::U8,
        &[state.len()],
        &state,
    );
}

/// A model whose linear layers, but for one, are packed so: its tensors, and the numbers that they stand for.
fn quantized(format: BlockFormat) -> (Tensors, StateDict) {
    device().seed(5);
    let mut values = state_dict(&config(false).init(&device()));
    let mut tensors = Tensors::new();
    for (key, value) in &mut values {
        let name = if key == "output.weight" {
            "lm_head.weight"
        } else {
            &hf_name(key)
        };
        let name = name.replace("tok_embeddings", "embed_tokens");
        let name = name.replace("sa_norm", "input_layernorm");
        let name = name.replace("mlp_norm", "post_attention_layernorm");
        let numbers = floats(value);
        let is_linear = key.contains("attn.") || key.contains("mlp.");
        if is_linear && key != DENSE {
            let layout = PackedLayout::new(format, value.shape().dims()).unwrap();
            let bytes = quantize(&numbers, layout).unwrap();
            add_packed(&mut tensors, &name, layout, &bytes);
            let decoded = dequantize(layout, &bytes);
            *value = TensorData::new(decoded, value.shape().clone());
        } else {
            let entry = (Dtype::F32, value.shape().to_vec(), bytes_of(&numbers));
            tensors.insert(name, entry);
        }
    }
    (tensors, values)
}

/// The folder of these tensors, whose shards have every other one: a weight and what belongs to it may lie apart.
fn folder(tensors: &Tensors) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_hf(&config(false).init(&device()), dir.path()).unwrap();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    edit_config(dir.path(), |config| {
        config["quantization_config"] =
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    });
    let shard_of: BTreeMap<&String, &str> = tensors
        .keys()
        .enumerate()
        .map(|(i, name)| (name, SHARDS[i % 2]))
        .collect();
    for shard in SHARDS {
        let own = tensors.iter().filter(|(name, _)| shard_of[name] == shard);
        let own = own.map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(own, None, &dir.path().join(shard)).unwrap();
    }
    let index = json!({ "weight_map": shard_of }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn loaded(
    dir: &Path,
    load: impl FnOnce(&mut TransformerDecoder, &Path) -> Result<LoadReport>,
) -> TransformerDecoder {
    let mut model = read_hf_config(dir).unwrap().init(&device());
    load(&mut model, dir).unwrap();
    model
}

fn format_of(layer: &LoRALinear) -> Option<BlockFormat> {
    match &layer.base.weight {
        FrozenWeight::Packed(packed) => Some(packed.layout().format()),
        _ => None,
    }
}

#[test]
fn packed_weights_stay_as_they_are() {
    for format in formats() {
        let (tensors, values) = quantized(format);
        let dir = folder(&tensors);
        let all = BaseFormat::from(Quantization::Nf4).with_packed_vocabulary(true);
        for (what, model) in [
            (
                "load_hf",
                loaded(dir.path(), |model, dir| load_hf(model, dir)),
            ),
            (
                "Nf4",
                loaded(dir.path(), |model, dir| {
                    load_hf_as(model, dir, Quantization::Nf4)
                }),
            ),
            (
                "all",
                loaded(dir.path(), |model, dir| load_hf_as(model, dir, all)),
            ),
            (
                "the recipe",
                loaded(dir.path(), |model, dir| {
                    load_hf_as(model, dir, RecipeConfig::default().base_format())
                }),
            ),
        ] {
            let what = format!("{format:?}, {what}");
            assert_eq!(
                format_of(model.layers[1].attn.v_proj.as_ref().unwrap()),
                Some(format),
                "{what}"
            );
            let (packs_dense, packs_all) = (what.ends_with("Nf4"), what.ends_with("all"));
            let nf4 = Quantization::Nf4.block_format();
            let expected = (packs_dense || packs_all).then_some(nf4);
            assert_eq!(format_of(&model.layers[1].mlp.w2), expected, "{what}");
            let embedding = &model.tok_embeddings.weight;
            let is_packed = matches!(embedding, FrozenWeight::Packed(_));
            assert_eq!(is_packed, packs_all, "{what}");
            let [found, expected] = [state_dict(&model), values.clone()].map(|mut values| {
                values.retain(|key, _| match key.split('.').next() {
                    Some("tok_embeddings" | "output") => !packs_all,
                    _ => key != DENSE || expected.is_none(),
                });
                values
            });
            assert_eq!(found, expected, "{what}");
        }
    }
}

#[test]
fn a_header_tells_how_weights_are_packed() {
    for format in formats() {
        let (tensors, values) = quantized(format);
        let is_packed = |key: &str| key != DENSE && (key.contains("attn.") || key.contains("mlp."));
        let packed = values.keys().filter(|key| is_packed(key));
        let expected = packed.map(|key| (key.clone(), format)).collect();
        assert_eq!(
            read_base_packing(folder(&tensors).path()).unwrap(),
            expected
        );
    }
}

#[test]
fn they_become_numbers_of_a_type() {
    for format in formats() {
        let (tensors, values) = quantized(format);
        let dir = folder(&tensors);
        let model = loaded(dir.path(), |model, dir| load_hf_as(model, dir, DType::F32));
        assert_eq!(format_of(model.layers[0].mlp.w1.as_ref().unwrap()), None);
        assert_eq!(state_dict(&model), values, "{format:?}");
        if device().supports_dtype(DType::BF16) {
            let model = loaded(dir.path(), |model, dir| load_hf_as(model, dir, DType::BF16));
            let rounded = |value: TensorData| value.convert_dtype(DType::BF16);
            let rounded = values.into_iter().map(|(key, value)| (key, rounded(value)));
            assert_eq!(state_dict(&model), rounded.collect(), "{format:?}");
        }
    }
}

/// As `bnb_4bit_quant_storage` has them.
#[test]
fn codes_may_be_stored_as_other_numbers() {
    let (mut tensors, values) = quantized(formats()[NESTED]);
    for (dtype, shape, _) in tensors.values_mut() {
        if let (Dtype::U8, [bytes, 1]) = (*dtype, &shape[..]) {
            (*dtype, *shape) = (Dtype::BF16, vec![bytes / 2, 1]);
        }
    }
    let model = loaded(folder(&tensors).path(), |model, dir| load_hf(model, dir));
    assert_eq!(state_dict(&model), values);
}

#[test]
fn a_packed_model_is_saved_dense() {
    for format in formats() {
        let (tensors, values) = quantized(format);
        let model = loaded(folder(&tensors).path(), |model, dir| load_hf(model, dir));
        let dir = tempfile::tempdir().unwrap();
        save_hf(&model, dir.path()).unwrap();
        let written = fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(!written.contains("quantization_config"));
        let again = loaded(dir.path(), |model, dir| load_hf(model, dir));
        assert_eq!(
            format_of(again.layers[0].attn.q_proj.as_ref().unwrap()),
            None
        );
        assert_eq!(state_dict(&again), values);
    }
}

/// The error of a folder of some format after `spoil` has changed its tensors. No model may be changed by it.
#[track_caller]
fn refused(format: usize, spoil: impl FnOnce(&mut Tensors)) -> String {
    let (mut tensors, values) = quantized(formats()[format]);
    spoil(&mut tensors);
    let dir = folder(&tensors);
    let mut model = config(false).init(&device());
    load_state_dict(&mut model, &values, true).unwrap();
    let formats = [
        None,
        Some(DType::F32.into()),
        Some(Quantization::Nf4.into()),
    ];
    for format in formats as [Option<BaseFormat>; 3] {
        let loaded = match format {
            None => load_hf(&mut model, dir.path()),
            Some(format) => load_hf_as(&mut model, dir.path(), format),
        };
        assert!(loaded.is_err(), "{format:?} is not refused");
        assert_eq!(state_dict(&model), values);
        assert_eq!(
            format_of(model.layers[0].attn.q_proj.as_ref().unwrap()),
            None
        );
    }
    let error = load_hf(&mut model, dir.path()).unwrap_err();
    if let Error::Format { path, .. } = &error {
        let is_shard = |shard: &&str| *path == dir.path().join(shard);
        assert!(SHARDS.iter().any(is_shard), "{error}");
    }
    error.to_string()
}

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

fn edit_state(tensors: &mut Tensors, edit: impl FnOnce(&mut Value)) {
    let name = format!("{Q}.{STATE}nf4");
    let (_, shape, bytes) = tensors.get_mut(&name).unwrap();
    let mut state = serde_json::from_slice(bytes).unwrap();
    edit(&mut state);
    *bytes = state.to_string().into_bytes();
    *shape = vec![bytes.len()];
}

#[test]
fn a_part_that_is_missing() {
    let layer = Q.strip_suffix("weight").unwrap();
    for (format, part) in [
        (0, format!("{Q}.absmax")),
        (0, format!("{Q}.quant_map")),
        (0, format!("{Q}.{STATE}nf4")),
        (NESTED, format!("{Q}.nested_absmax")),
        (NESTED, format!("{Q}.nested_quant_map")),
        (INT8, format!("{layer}SCB")),
    ] {
        let error = refused(format, |tensors| assert!(tensors.remove(&part).is_some()));
        assert_says(
            &error,
            &[&format!("`{Q}`"), &format!("no file has `{part}`")],
        );
    }
    // Without the last of them.
    let error = refused(0, |tensors| {
        tensors.retain(|name, _| !name.starts_with(&format!("{Q}.")))
    });
    assert_says(
        &error,
        &[&format!("`{Q}` holds U8"), "quant_state.bitsandbytes__nf4"],
    );
    let error = refused(0, |tensors| assert!(tensors.remove(Q).is_some()));
    assert_says(
        &error,
        &[
            &format!("`{Q}."),
            "belongs to a packed weight that no file has",
        ],
    );
}

#[test]
fn a_part_that_is_of_another_packing() {
    let error = refused(0, |tensors| {
        let table = (Dtype::F32, vec![256], bytes_of(nested_table()));
        tensors.insert(format!("{Q}.nested_quant_map"), table);
    });
    assert_says(&error, &["q_proj.weight.nested_quant_map`", "says nothing"]);
}

#[test]
fn a_part_of_another_length_or_type() {
    let set = |part: &'static str, dtype, shape: &'static [usize]| {
        move |tensors: &mut Tensors| {
            let bytes = vec![0; shape.iter().product::<usize>() * dtype_size(dtype)];
            tensors.insert(part.replace('Q', Q), (dtype, shape.to_vec(), bytes));
        }
    };
    // q is a matrix of 128 x 128: 8192 bytes, 256 blocks of 64, one of 256 of these.
    for (format, part, dtype, shape, says) in [
        (
            0,
            "Q",
            Dtype::U8,
            &[4096, 1][..],
            "has 4096 bytes, where 16384 codes",
        ),
        (0, "Q.absmax", Dtype::F32, &[255], "[256] is expected"),
        (0, "Q.absmax", Dtype::BF16, &[2, 128], "transposes"),
        (0, "Q.absmax", Dtype::U8, &[256], "holds U8"),
        (0, "Q.quant_map", Dtype::F32, &[15], "[16] is expected"),
        (
            NESTED,
            "Q.absmax",
            Dtype::F32,
            &[256],
            "holds F32, where U8",
        ),
        (
            NESTED,
            "Q.nested_absmax",
            Dtype::F32,
            &[2],
            "[1] is expected",
        ),
        (
            NESTED,
            "Q.nested_quant_map",
            Dtype::F32,
            &[16],
            "[256] is expected",
        ),
        (INT8, "Q", Dtype::U8, &[128, 128], "holds U8, where I8"),
        (INT8, "Q", Dtype::I8, &[128, 128, 1], "a matrix is expected"),
    ] {
        let error = refused(format, set(part, dtype, shape));
        assert_says(&error, &[&format!("`{}`", part.replace('Q', Q)), says]);
    }
    let layer = Q.strip_suffix("weight").unwrap();
    let error = refused(INT8, |tensors| {
        tensors.insert(format!("{layer}SCB"), (Dtype::F32, vec![64], vec![0; 256]));
    });
    assert_says(&error, &["q_proj.SCB`", "[128] is expected"]);
    let error = refused(INT8, |tensors| {
        tensors.insert(
            format!("{layer}weight_format"),
            (Dtype::U8, vec![], vec![2]),
        );
    });
    assert_says(&error, &["q_proj.weight_format`", "row after row"]);
}

fn dtype_size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

#[test]
fn a_table_that_is_not_that_of_its_type() {
    for (part, number) in [("quant_map", 3), ("nested_quant_map", 200)] {
        for value in [0.5, f32::NAN] {
            let error = refused(NESTED, |tensors| {
                let (_, _, bytes) = tensors.get_mut(&format!("{Q}.{part}")).unwrap();
                bytes[4 * number..][..4].copy_from_slice(&value.to_le_bytes());
            });
            assert_says(
                &error,
                &[
                    &format!("{Q}.{part}`"),
                    &format!("number {number} is {value}"),
                ],
            );
        }
    }
}

#[test]
fn a_state_that_lies() {
    for (key, value, says) in [
        ("blocksize", json!(48), "`blocksize`: 48"),
        ("blocksize", json!(0), "`blocksize`: 0"),
        (
            "blocksize",
            json!(256),
            "256 numbers of a row together, which do not divide rows of 128",
        ),
        ("blocksize", json!(128), "[128] is expected"),
        ("blocksize", json!(-1), "not the JSON text"),
        ("quant_type", json!("int4"), "`int4`"),
        ("quant_type", json!("fp4"), "not the table of its type"),
        (
            "shape",
            json!([1u64 << 40, 1u64 << 40]),
            "more than fits into memory",
        ),
        ("shape", json!([1u64 << 30, 1u64 << 20]), "has 8192 bytes"),
        ("shape", json!([0, 128]), "no numbers"),
        ("shape", json!([16384]), "a matrix is expected"),
        ("shape", json!([256, 64]), "the model expects [128, 128]"),
        ("nested_blocksize", json!(128), "only 256 is read"),
        ("nested_offset", json!(null), "no nested_offset"),
        ("nested_offset", json!("NaN"), "not the JSON text"),
    ] {
        let error = refused(NESTED, |tensors| {
            edit_state(tensors, |state| state[key] = value)
        });
        assert_says(&error, &[Q, says]);
    }
}

#[test]
fn folders_of_other_programs_are_named() {
    let (tensors, _) = quantized(formats()[0]);
    let dir = folder(&tensors);
    for (settings, says) in [
        (json!({"quant_method": "gptq", "bits": 4}), "`gptq`"),
        (json!({"quant_method": "awq"}), "`awq`"),
        (
            json!({"group_size": 64, "bits": 4}),
            "names no quant_method",
        ),
    ] {
        edit_config(dir.path(), |config| {
            config["quantization_config"] = settings
        });
        let error = read_hf_config(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }));
        let parts = [
            "config.json",
            says,
            "bitsandbytes",
            "Quantization::Nf4",
            "quantize_base: nf4",
        ];
        assert_says(&error.to_string(), &parts);
    }
    for settings in [json!(null), json!({"load_in_8bit": true})] {
        edit_config(dir.path(), |config| {
            config["quantization_config"] = settings
        });
        read_hf_config(dir.path()).unwrap();
    }
}
