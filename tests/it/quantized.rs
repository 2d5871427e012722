//! Bases of few bits: what they compute is what the numbers that they stand for compute.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, TensorData};
use burn_peft::adapter::{
    ParamCount, ParamInfo, StateDict, adapter_state_dict, get_adapter_params, initialize_adapters,
    initialize_params, load_state_dict, merge_adapters, quantize_base, state_dict,
};
use burn_peft::checkpoint::{load_hf, load_hf_as, save_hf};
use burn_peft::data::Batch;
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{LoRAConfig, LoRALinear, TrainedBias};
use burn_peft::training::{
    AdamWConfig, GradientOptions, LrSchedule, ScheduleKind, Trainer, accumulate_gradients,
};
use burn_peft::weight::{BaseFormat, FrozenWeight, Quantization};

use crate::common::{device, floats, max_abs_diff};

const KINDS: [Quantization; 2] = [Quantization::Nf4, Quantization::Int8];

pub fn config(tie_embeddings: bool) -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(96)
        .with_num_layers(2)
        .with_num_heads(4)
        .with_num_kv_heads(2)
        .with_head_dim(32)
        .with_embed_dim(128)
        .with_intermediate_dim(192)
        .with_max_seq_len(64)
        .with_tie_embeddings(tie_embeddings)
}

fn all_linear() -> LoRAConfig {
    LoRAConfig::default()
        .with_targets(burn_peft::lora::Targets::AllLinear)
        .with_rank(4)
}

fn batch() -> Batch {
    let ids: Vec<i32> = (0..48).map(|n| (7 * n + 3) % 96).collect();
    Batch {
        labels: ids.clone(),
        input_ids: ids,
        segments: vec![vec![24]; 2],
        batch_size: 2,
        seq_len: 24,
        adapters: None,
    }
}

/// A model with trained-like adapters, its weights those of `seed`.
fn model(config: &LlamaConfig, lora: &LoRAConfig) -> TransformerDecoder {
    device().seed(7);
    let base = config.init(&device());
    initialize_params(&base);
    let model = initialize_adapters(base.with_adapters(lora).unwrap(), 3);
    // B, or A of an embedding, is zero at first, which would hide half of the gradients.
    let moved: StateDict = adapter_state_dict(&model)
        .into_iter()
        .filter(|(key, _)| key.ends_with("lora_b.weight") || key == "tok_embeddings.lora_a.weight")
        .map(|(key, data)| {
            let numbers = (0..data.num_elements()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 2000.0);
            let shape = data.shape();
            (key, TensorData::new(numbers.collect::<Vec<_>>(), shape))
        })
        .collect();
    let mut model = model;
    load_state_dict(&mut model, &moved, false).unwrap();
    model
}

/// The same with a dense base of the numbers that a packed one stands for.
fn unpacked(packed: &TransformerDecoder, dense: TransformerDecoder) -> TransformerDecoder {
    let mut dense = dense;
    load_state_dict(&mut dense, &state_dict(packed), true).unwrap();
    dense
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    let ids = batch().input_tensor(&device().without_autodiff());
    floats(
        &model
            .valid()
            .forward(ids, None)
            .cast(DType::F32)
            .into_data(),
    )
}

/// The gradients of the adapters' matrices.
fn gradients(model: &TransformerDecoder) -> BTreeMap<String, Vec<f32>> {
    let options = GradientOptions::default().with_seed(11);
    let (_, grads) = accumulate_gradients(model, &[batch()], options);
    let params = get_adapter_params(model);
    let of_matrix = |(name, info): (&str, &ParamInfo)| {
        let [_, _] = info.shape[..] else {
            return None;
        };
        let grad = grads.get::<2>(info.id)?;
        Some((name.to_owned(), floats(&grad.into_data())))
    };
    params.iter().filter_map(of_matrix).collect()
}

fn assert_same(found: &TransformerDecoder, expected: &TransformerDecoder, what: &str) {
    let difference = max_abs_diff(&logits(found), &logits(expected));
    assert!(difference < 1e-5, "{what}: {difference}");
    let (found, expected) = (gradients(found), gradients(expected));
    assert_eq!(found.len(), expected.len());
    for (key, expected) in expected {
        let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let difference = max_abs_diff(&found[&key], &expected);
        assert!(
            difference <= 1e-5 * largest.max(1.0),
            "{what}: {key}: {difference} of {largest}"
        );
        assert!(largest > 0.0, "{what}: {key} has no gradient");
    }
}

#[test]
fn a_packed_base_computes_what_its_numbers_do() {
    for tied in [false, true] {
        for kind in KINDS {
            let dense = model(&config(tied), &all_linear());
            let before = logits(&dense);
            let packed = quantize_base(dense.clone(), kind, |path| path == "output").unwrap();
            assert!(matches!(
                packed.layers[0].mlp.w2.base.weight,
                FrozenWeight::Packed(_)
            ));
            assert_eq!(ParamCount::of(&packed), ParamCount::of(&dense));
            assert_ne!(logits(&packed), before);
            assert_same(
                &packed,
                &unpacked(&packed, dense),
                &format!("{kind:?}, tied {tied}"),
            );
        }
    }
}

#[test]
fn so_it_does_with_every_kind_of_adapter() {
    let lora = all_linear();
    for lora in [
        lora.clone().with_dora(true),
        lora.clone().with_dora(true).with_dropout(0.5),
        lora.clone().with_dropout(0.5),
        lora.clone().with_lora_bias(true),
        lora.clone().with_frozen_a(true),
        lora.clone().with_modules_to_save(["norm"]),
        LoRAConfig::new(["q_proj", "w1"]).with_bias(TrainedBias::All),
    ] {
        let dense = model(&config(false), &lora);
        let packed = quantize_base(dense.clone(), Quantization::Nf4, |_| false).unwrap();
        let dense = unpacked(&packed, dense);
        assert_same(&packed, &dense, &format!("{lora:?}"));
    }
}

#[test]
fn a_folder_is_packed_as_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let lora = all_linear().with_dora(true);
    let dense = model(&config(false), &lora);
    save_hf(&dense.clone().without_adapters(), dir.path()).unwrap();
    for kind in KINDS {
        let new = || config(false).init_lora(&lora, &device()).unwrap();
        let [mut found, mut expected] = [new(), new()];
        load_hf(&mut expected, dir.path()).unwrap();
        let expected = quantize_base(expected, kind, |path| path == "output").unwrap();
        let report = load_hf_as(&mut found, dir.path(), kind).unwrap();
        assert!(
            report
                .loaded
                .contains(&"layers.1.attn.v_proj.weight".to_owned())
        );
        let [found, expected] = [found, expected].map(|model| initialize_adapters(model, 1));
        initialize_params(&found);
        assert_eq!(state_dict(&found), state_dict(&expected), "{kind:?}");
        assert!(matches!(
            found.tok_embeddings.weight,
            FrozenWeight::Dense(_)
        ));
    }
}

#[test]
fn a_packed_vocabulary_computes_what_its_numbers_do() {
    let dir = tempfile::tempdir().unwrap();
    let all = BaseFormat::from(Quantization::Nf4).with_packed_vocabulary(true);
    for tied in [false, true] {
        save_hf(
            &model(&config(tied), &all_linear()).without_adapters(),
            dir.path(),
        )
        .unwrap();
        for dora in [false, true] {
            let lora = LoRAConfig::new(["tok_embeddings", "output", "q_proj"]).with_dora(dora);
            let dense = model(&config(tied), &lora);
            let mut packed = dense.clone();
            load_hf_as(&mut packed, dir.path(), all).unwrap();
            assert!(matches!(
                packed.tok_embeddings.weight,
                FrozenWeight::Packed(_)
            ));
            let what = format!("tied {tied}, DoRA {dora}");
            assert_same(&packed, &unpacked(&packed, dense), &what);
        }
    }
}

#[test]
fn it_trains_and_merges_into_a_dense_model() {
    let packed = quantize_base(
        model(&config(true), &all_linear()),
        Quantization::Nf4,
        |_| false,
    );
    let (mut model, schedule) = (
        packed.unwrap(),
        LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1e-2,
            warmup_steps: 0,
            total_steps: 6,
        },
    );
    let base = state_dict(&model.clone().without_adapters());
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let mut losses = Vec::new();
    for _ in 0..6 {
        let output;
        (model, output) = trainer.step(model, &[batch()]);
        losses.push(output.loss);
    }
    assert!(losses[5] < 0.9 * losses[0], "{losses:?}");
    assert_eq!(state_dict(&model.clone().without_adapters()), base);
    let adapted = logits(&model);
    let merged = merge_adapters(model);
    let q_proj = merged.layers[1].attn.q_proj.as_ref().unwrap();
    assert!(matches!(q_proj.base.weight, FrozenWeight::Dense(_)));
    assert!(max_abs_diff(&logits(&merged), &adapted) < 1e-4);
    let dir = tempfile::tempdir().unwrap();
    save_hf(&merged, dir.path()).unwrap();
    let mut again = config(true).init(&device());
    load_hf(&mut again, dir.path()).unwrap();
    assert!(max_abs_diff(&logits(&again), &adapted) < 1e-4);
}

#[test]
fn what_cannot_be_packed_is_named() {
    let narrow = config(false).with_intermediate_dim(100).init(&device());
    let before = state_dict(&narrow);
    let dir = tempfile::tempdir().unwrap();
    save_hf(&narrow, dir.path()).unwrap();
    let mut model = narrow.clone();
    let loaded = load_hf_as(&mut model, dir.path(), Quantization::Nf4);
    assert_eq!(state_dict(&model), before);
    let packed = quantize_base(narrow, Quantization::Nf4, |_| false);
    for error in [loaded.unwrap_err(), packed.unwrap_err()] {
        let error = error.to_string();
        for part in ["layers.0.mlp.w2", "64", "rows of 100", "take int8"] {
            assert!(error.contains(part), "{error}");
        }
    }

    let mut layer = LoRALinear::plain(64, 2, false, &device());
    let broken = TensorData::new(vec![f32::NAN; 128], [2, 64]);
    let broken = StateDict::from([("weight".to_owned(), broken)]);
    load_state_dict(&mut layer, &broken, true).unwrap();
    let error = quantize_base(layer, Quantization::Nf4, |_| false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("finite"), "{error}");

    // A packed weight packs what it is given, or says why not.
    let layer = LoRALinear::plain(64, 2, false, &device());
    let mut layer = quantize_base(layer, Quantization::Nf4, |_| false).unwrap();
    let before = state_dict(&layer);
    let error = load_state_dict(&mut layer, &broken, true)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`weight`") && error.contains("finite"),
        "{error}"
    );
    assert_eq!(state_dict(&layer), before);
    load_state_dict(&mut layer, &before, true).unwrap();
    let [again, before] = [&state_dict(&layer), &before].map(|dict| floats(&dict["weight"]));
    // Only the scales are rounded again.
    assert!(max_abs_diff(&again, &before) < 2e-3);
}
