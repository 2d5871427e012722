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
use burn_peft::adapter::{adapter_state_dict, state_dict};
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
    types.into_iter().filter(supported).collect()
}

#[test]
fn half_precision_bases_serve_and_train() {
    for fused in [true, false] {
        set_fused(fused);
        logits_are_those_of_f32_but_for_rounding();
        adapters_train_in_f32();
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

fn adapters_train_in_f32() {
    let inputs = Tensors::open(golden("gqa/inputs.safetensors"));
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-3,
        warmup_steps: 0,
        total_steps: 3,
    };
    let expected = Tensors::open(golden("gqa/lora_qv_r8/expected.safetensors"));
    for (dtype, _) in half_types() {
        let mut model = load("lora_qv_r8", dtype);
        let base = state_dict(&model.clone().without_adapters());
        let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
        let batches = inputs.batches("train_input_ids", "train_labels");
        for (batch, loss) in batches
            .into_iter()
            .zip(expected.floats("step_losses"))
            .take(3)
        {
            let (next, output) = trainer.step(model, &[batch]);
            model = next;
            assert!(
                (output.loss as f32 - loss).abs() < 0.03,
                "{dtype:?}: {}",
                output.loss
            );
        }
        for (key, value) in adapter_state_dict(&model) {
            assert_eq!(value.dtype(), DType::F32, "{key}");
        }
        assert_eq!(state_dict(&model.without_adapters()), base);
    }
}

/// The mean over many copies of a batch is that over one, and so is its gradient, though each copy's part
/// of it is below f16's smallest number.
fn small_gradients_do_not_vanish() {
    let inputs = Tensors::open(golden("gqa/inputs.safetensors"));
    let batch = inputs.batches("train_input_ids", "train_labels").remove(0);
    for (dtype, _) in half_types() {
        let model = load("lora_qv_r8", dtype);
        let gradients = |copies: usize| {
            let batches = vec![batch.clone(); copies];
            let (loss, grads) = accumulate_gradients(&model, &batches, GradientOptions::default());
            let mut values = Values(&grads, vec![loss as f32]);
            model.visit(&mut values);
            values.1
        };
        let (one, many) = (gradients(1), gradients(256));
        let largest = one[1..].iter().fold(0f32, |max, x| max.max(x.abs()));
        let difference = max_abs_diff(&one, &many);
        println!("{dtype:?}: {difference:e} of {largest:e}");
        assert!(
            difference < 1e-5 * largest,
            "{dtype:?}: {difference:e} of {largest:e}"
        );
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
