//! LoftQ on packed bases: what it makes up for, what it leaves alone, what it says. That the factors are PEFT's,
//! `tests/python/check_loftq.py` shows.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use burn_peft::adapter::{
    StateDict, adapter_state_dict, initialize_adapters, initialize_loftq, initialize_params,
    load_state_dict, quantize_base, state_dict,
};
use burn_peft::checkpoint::{
    attach_peft, initialize_loftq_from, load_gguf, load_hf_as, read_gguf_config, save_hf, save_peft,
};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{Decomposition, Init, LoRAConfig};
use burn_peft::quantization::BlockFormat;
use burn_peft::weight::{FrozenWeight, Quantization};
use burn_peft::{Error, Result};
use tempfile::TempDir;

use crate::common::{device, floats};
use crate::quantized::config;
use crate::zero_gguf::write_zero_gguf;

const EXACT: Decomposition = Decomposition::Exact;
const KINDS: [Quantization; 2] = [Quantization::Nf4, Quantization::Int8];

fn adapters() -> LoRAConfig {
    LoRAConfig::new(["q_proj", "w2", "output"])
        .with_rank(8)
        .with_init(Init::Loftq)
}

/// A dense model whose weights are those of a seed, the same for each call.
fn dense(lora: &LoRAConfig) -> TransformerDecoder {
    device().seed(3);
    let base = config(false).init(&device());
    initialize_params(&base);
    initialize_adapters(base.with_adapters(lora).unwrap(), 1)
}

/// All but the output packed.
fn packed(dense: &TransformerDecoder, kind: Quantization) -> TransformerDecoder {
    quantize_base(dense.clone(), kind, |path| path == "output").unwrap()
}

fn begun(
    dense: &TransformerDecoder,
    kind: Quantization,
    iterations: usize,
) -> Result<TransformerDecoder> {
    let weights = state_dict(dense);
    initialize_loftq(packed(dense, kind), iterations, EXACT, |key| {
        Ok(weights[key].clone())
    })
}

/// How far the packed layers with an adapter are from a dense model's, by the squares of all their numbers.
fn distance(model: &TransformerDecoder, dense: &StateDict) -> f64 {
    let merged = state_dict(&model.clone().merge_lora());
    let keys = dense
        .keys()
        .filter(|key| key.ends_with("q_proj.weight") || key.ends_with("w2.weight"));
    let squares = keys.map(|key| {
        let [a, b] = [&merged[key], &dense[key]].map(floats);
        a.iter()
            .zip(&b)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}

#[test]
fn the_residual_falls_with_every_iteration() {
    for lora in [
        adapters().with_alpha(32.0),
        adapters().with_dora(true),
        adapters().with_rslora(true),
    ] {
        for kind in KINDS {
            let dense = dense(&lora);
            let weights = state_dict(&dense);
            let distances = [1, 2, 5]
                .map(|iterations| distance(&begun(&dense, kind, iterations).unwrap(), &weights));
            let without = distance(&packed(&dense, kind), &weights);
            let what = format!("{kind:?}, {lora:?}: {without}, {distances:?}");
            assert!(distances[0] < 0.95 * without, "{what}");
            assert!(
                distances[1] < distances[0] && distances[2] < distances[1],
                "{what}"
            );
        }
    }
}

fn is_packed(model: &TransformerDecoder) -> bool {
    let weight = &model.layers[1].attn.q_proj.as_ref().unwrap().base.weight;
    matches!(weight, FrozenWeight::Packed(_))
}

#[test]
fn one_iteration_leaves_the_base_and_more_pack_it_anew() {
    let dense = dense(&adapters());
    for kind in KINDS {
        let before = state_dict(&packed(&dense, kind).without_adapters());
        for iterations in [1, 2] {
            let model = begun(&dense, kind, iterations).unwrap();
            assert!(is_packed(&model));
            let after = state_dict(&model.without_adapters());
            let changed = after.iter().filter(|(key, value)| before[*key] != **value);
            let changed: Vec<_> = changed.map(|(key, _)| key.as_str()).collect();
            let expected: &[&str] = match iterations {
                1 => &[],
                _ => &[
                    "layers.0.attn.q_proj.weight",
                    "layers.0.mlp.w2.weight",
                    "layers.1.attn.q_proj.weight",
                    "layers.1.mlp.w2.weight",
                ],
            };
            assert_eq!(changed, expected);
        }
    }
}

/// The output is dense: its adapter is what it was.
#[test]
fn an_adapter_of_a_dense_layer_stays() {
    let dense = dense(&adapters());
    let before = adapter_state_dict(&dense);
    let after = adapter_state_dict(&begun(&dense, Quantization::Nf4, 1).unwrap());
    for (key, value) in &after {
        assert_eq!(*value == before[key], key.starts_with("output"), "{key}");
    }
}

/// The folder of a dense model.
fn folder(dense: &TransformerDecoder) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_hf(&dense.clone().without_adapters(), dir.path()).unwrap();
    dir
}

#[test]
fn a_folder_has_the_dense_weights() {
    for lora in [adapters(), adapters().with_dora(true)] {
        let dense = dense(&lora);
        let dir = folder(&dense);
        for kind in KINDS {
            let mut model = config(false).init_lora(&lora, &device()).unwrap();
            load_hf_as(&mut model, dir.path(), kind).unwrap();
            let model = initialize_adapters(model, 1);
            let model = initialize_loftq_from(model, dir.path(), 2, EXACT).unwrap();
            let expected = begun(&dense, kind, 2).unwrap();
            assert_eq!(state_dict(&model), state_dict(&expected), "{kind:?}");
        }
    }
}

/// Whoever loads the folder has the base that the adapter is for, and does not begin again.
#[test]
fn an_adapter_is_saved_as_any_other() {
    let dense = dense(&adapters());
    let model = begun(&dense, Quantization::Nf4, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_peft(&model, &adapters(), dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(fields["init_lora_weights"], true);
    let mut again = packed(&dense, Quantization::Nf4).without_adapters();
    attach_peft(&mut again, dir.path()).unwrap();
    assert_eq!(state_dict(&again), state_dict(&model));
}

/// The blocks of a GGUF file need not be made again.
#[test]
fn a_packing_that_is_only_read_takes_one_iteration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llama.gguf");
    let sizes = config(true).with_embed_dim(256);
    write_zero_gguf(&sizes, &path, |key| {
        key.contains("q_proj").then_some(BlockFormat::Q4K)
    });
    let lora = LoRAConfig::new(["q_proj"]).with_rank(4);
    let config = read_gguf_config(&path).unwrap();
    let mut model = config.init_lora(&lora, &device()).unwrap();
    load_gguf(&mut model, &path).unwrap();
    let model = initialize_adapters(model, 1);
    let weights = state_dict(&model);
    // Of rank two from the packed ones.
    let other = |key: &str| {
        let value = &weights[key];
        let [rows, columns] = value.shape().dims();
        let numbers = floats(value).into_iter().enumerate();
        let numbers = numbers.map(|(i, x)| x + 1e-2 * (i / columns + i % columns % 3) as f32);
        Ok(TensorData::new(
            numbers.collect::<Vec<_>>(),
            [rows, columns],
        ))
    };
    let key = "layers.0.attn.q_proj.weight";
    let begun = initialize_loftq(model.clone(), 1, EXACT, other).unwrap();
    let merged = state_dict(&begun.merge_lora());
    let [found, expected] = [&merged[key], &other(key).unwrap()].map(floats);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
    let error = initialize_loftq(model.clone(), 2, EXACT, other).unwrap_err();
    says(&error, &["`layers.0.attn.q_proj`", "read, not written"]);
    // The file itself has no other weights.
    let error = initialize_loftq_from(model, &path, 1, EXACT).unwrap_err();
    assert!(matches!(error, Error::Format { .. }));
    says(
        &error,
        &[
            "llama.gguf",
            "`blk.0.attn_q.weight` is packed",
            "dense weights",
        ],
    );
}

#[track_caller]
fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn what_it_cannot_do_is_told() {
    let nf4 = Quantization::Nf4;
    let of = |lora: &LoRAConfig, iterations| begun(&dense(lora), nf4, iterations).unwrap_err();
    says(&of(&adapters(), 0), &["at least one iteration"]);
    says(
        &of(&adapters().with_rank(200), 1),
        &["`layers.0.attn.q_proj`", "rank"],
    );
    let pissa = adapters().with_init(Init::Pissa);
    says(&of(&pissa, 1), &["`layers.0.attn.q_proj`", "pissa"]);
    let only_dense = LoRAConfig::new(["output"]);
    says(
        &of(&only_dense, 1),
        &["no adapter acts on a packed linear layer", "quantize"],
    );
    let no_linear = LoRAConfig::new(["tok_embeddings"]);
    says(&of(&no_linear, 1), &["no adapter acts on a linear layer"]);
    let model = packed(&dense(&adapters()), nf4);
    let error = initialize_loftq(model, 1, EXACT, |_| {
        Ok(TensorData::new(vec![0.0f32; 12], [3, 4]))
    });
    says(
        &error.unwrap_err(),
        &["layers.0.attn.q_proj.weight", "[3, 4]", "[128, 128]"],
    );
}

#[test]
fn files_that_do_not_have_the_dense_weights() {
    let dense = dense(&adapters());
    let model = || packed(&dense, Quantization::Nf4);
    let from = |path: &Path| initialize_loftq_from(model(), path, 1, EXACT).unwrap_err();
    let narrow = config(false)
        .with_num_heads(2)
        .with_num_kv_heads(1)
        .init(&device());
    let dir = tempfile::tempdir().unwrap();
    save_hf(&narrow, dir.path()).unwrap();
    let error = from(dir.path());
    says(
        &error,
        &[
            "model.layers.0.self_attn.q_proj.weight",
            "[64, 128]",
            "[128, 128]",
        ],
    );

    let short = config(false).with_num_layers(1).init(&device());
    save_hf(&short, dir.path()).unwrap();
    let error = initialize_loftq_from(model(), dir.path(), 1, EXACT).unwrap_err();
    assert!(matches!(error, Error::Keys { .. }));
    says(&error, &["model.layers.1.self_attn.q_proj.weight"]);

    let mut broken = dense.clone();
    let nan = TensorData::new(vec![f32::NAN; 128 * 128], [128, 128]);
    let nan = StateDict::from([("layers.0.attn.q_proj.weight".to_owned(), nan)]);
    load_state_dict(&mut broken, &nan, false).unwrap();
    let weights = state_dict(&broken);
    let error = initialize_loftq(model(), 1, EXACT, |key| Ok(weights[key].clone()));
    says(
        &error.unwrap_err(),
        &["`layers.0.attn.q_proj`", "NaN or infinite"],
    );
}

/// Weights of a half-precision checkpoint.
#[test]
fn dense_weights_may_be_of_any_float_type() {
    let dense = dense(&adapters());
    let weights = state_dict(&dense);
    let half = |key: &str| Ok(weights[key].clone().convert_dtype(DType::BF16));
    let model = packed(&dense, Quantization::Nf4);
    let model = initialize_loftq(model, 1, EXACT, half).unwrap();
    let a = &adapter_state_dict(&model)["layers.0.attn.q_proj.lora_a.weight"];
    let a = Tensor::<2>::from_data(a.clone(), &device());
    assert!(a.abs().max().into_scalar::<f32>() > 0.0);
}
