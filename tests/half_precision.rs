//! A base in half precision under adapters in f32: computed in f32, as the fused bodies of Flex do,
//! and in half precision, as every other device does. Flex multiplies no two types of numbers, so
//! that a forgotten cast would panic here.
//!
//! A program of its own: the switch between the bodies is the process's.

#[path = "it/common.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests in `it`, which use the rest"
)]
mod common;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_peft::adapter::{StateDict, adapter_state_dict, load_state_dict, state_dict};
use burn_peft::checkpoint::{load_hf_as, load_peft, read_hf_config, read_peft_config};
use burn_peft::llama::TransformerDecoder;
use burn_peft::ops::{compute_dtype, set_fused};
use burn_peft::training::{
    AdamWConfig, GradientOptions, LrSchedule, ScheduleKind, Trainer, accumulate_gradients,
};

use common::{Tensors, device, floats, golden, max_abs_diff};

fn load(adapter: &str, dtype: DType) -> TransformerDecoder {
    let dir = golden("gqa");
    let lora = read_peft_config(dir.join(adapter)).unwrap();
    let config = read_hf_config(&dir).unwrap();
    let mut model = config.init_lora(&lora, &device()).unwrap();
    load_hf_as(&mut model, &dir, dtype).unwrap();
    load_peft(&mut model, dir.join(adapter)).unwrap();
    model
}

/// The types that the device computes in, with the error of a logit that their rounding allows:
/// some steps of 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of logits of size 4.
fn half_types() -> Vec<(DType, f32)> {
    let types = [(DType::BF16, 0.3), (DType::F16, 0.04)];
    let supported = |(dtype, _): &(DType, f32)| device().supports_dtype(*dtype);
    let types: Vec<_> = types.into_iter().filter(supported).collect();
    // NdArray has neither.
    let none = std::env::var("BURN_DEVICE").is_ok_and(|name| name == "ndarray");
    assert!(
        none || !types.is_empty(),
        "the device has no half precision"
    );
    types
}

#[test]
fn half_precision_bases_serve_and_train() {
    for fused in [true, false] {
        set_fused(fused);
        logits_are_those_of_f32_but_for_rounding();
        adapters_train_in_f32();
        merged_weights_are_rounded_once();
        small_gradients_do_not_vanish();
    }
}

fn logits_are_those_of_f32_but_for_rounding() {
    let inputs = Tensors::open(golden("gqa/inputs.safetensors"));
    for adapter in ["lora_qv_r8", "dora_qv_r8"] {
        let expected = Tensors::open(golden("gqa").join(adapter).join("expected.safetensors"));
        for (dtype, tolerance) in half_types() {
            let model = load(adapter, dtype);
            let logits = model.forward(inputs.ids("input_ids", &device()), None);
            assert_eq!(logits.dtype(), compute_dtype(&device(), dtype));
            println!(
                "{adapter}, {dtype:?} weights, computed in {:?}",
                logits.dtype()
            );
            let logits = floats(&logits.cast(DType::F32).into_data());
            let difference = max_abs_diff(&logits, &expected.floats("logits"));
            assert!(
                difference < tolerance,
                "{adapter} in {dtype:?}: {difference}"
            );
        }
    }
}

/// Ten steps change the adapter as they do over a base in f32.
fn adapters_train_in_f32() {
    let exact = adapter_changes(DType::F32);
    for (dtype, _) in half_types() {
        let changes = adapter_changes(dtype);
        let product = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let norms = product(&changes, &changes) * product(&exact, &exact);
        let cosine = product(&changes, &exact) / norms.sqrt();
        println!("{dtype:?}: cosine {cosine}");
        assert!(cosine > 0.95, "{dtype:?}: {cosine}");
    }
}

fn adapter_changes(dtype: DType) -> Vec<f32> {
    let inputs = Tensors::open(golden("gqa/inputs.safetensors"));
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-2,
        warmup_steps: 0,
        total_steps: 10,
    };
    let mut model = load("lora_qv_r8", dtype);
    let (before, base) = (
        adapter_state_dict(&model),
        state_dict(&model.clone().without_adapters()),
    );
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let batches = inputs.batches("train_input_ids", "train_labels");
    for batch in batches.into_iter().cycle().take(10) {
        (model, _) = trainer.step(model, &[batch]);
    }
    let after = adapter_state_dict(&model);
    assert!(after.values().all(|value| value.dtype() == DType::F32));
    assert_eq!(state_dict(&model.without_adapters()), base);
    let values = |dict: &StateDict| dict.values().flat_map(floats).collect::<Vec<_>>();
    let both = values(&after).into_iter().zip(values(&before));
    both.map(|(after, before)| after - before).collect()
}

/// The merged weight is that of the same numbers in f32, rounded once.
fn merged_weights_are_rounded_once() {
    for (dtype, _) in half_types() {
        for adapter in ["lora_qv_r8", "dora_qv_r8"] {
            let model = load(adapter, dtype);
            let mut wide = load(adapter, DType::F32);
            let widened = state_dict(&model).into_iter();
            let widened = widened.map(|(key, value)| (key, value.convert_dtype(DType::F32)));
            load_state_dict(&mut wide, &widened.collect(), true).unwrap();
            let (merged, expected) = (
                state_dict(&model.merge_lora()),
                state_dict(&wide.merge_lora()),
            );
            for (key, value) in merged {
                assert_eq!(value.dtype(), dtype, "{key}");
                assert_eq!(value, expected[&key].clone().convert_dtype(dtype), "{key}");
            }
        }
    }
}

/// The mean over many copies of a batch is that over one, and so is its gradient, though each copy's part
/// of it is below f16's smallest number.
fn small_gradients_do_not_vanish() {
    let inputs = Tensors::open(golden("gqa/inputs.safetensors"));
    let batch = inputs.batches("train_input_ids", "train_labels").remove(0);
    for (dtype, _) in half_types() {
        for adapter in ["lora_qv_r8", "dora_qv_r8"] {
            let model = load(adapter, dtype);
            let gradients = |copies: usize| {
                let batches = vec![batch.clone(); copies];
                let options = GradientOptions::default();
                let (loss, grads) = accumulate_gradients(&model, &batches, options);
                let mut values = Values(&grads, vec![loss as f32]);
                model.visit(&mut values);
                values.1
            };
            let (one, many) = (gradients(1), gradients(64));
            let largest = one[1..].iter().fold(0f32, |max, x| max.max(x.abs()));
            let difference = max_abs_diff(&one, &many);
            println!("{adapter}, {dtype:?}: {difference:e} of {largest:e}");
            assert!(difference < 1e-5 * largest, "{adapter}, {dtype:?}");
        }
    }
}

struct Values<'a>(&'a GradientsParams, Vec<f32>);

impl ModuleVisitor for Values<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.0.get::<D>(param.id) {
            self.1.extend(floats(&grad.into_data()));
        }
    }
}
