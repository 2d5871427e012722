//! Equality with transformers and PEFT: see `tests/python/make_golden.py` for how the cases were
//! made. Tolerances are absolute.

use crate::common::{Tensors, assert_close, assert_floats_close, device, floats, golden};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_peft::adapter::{adapter_state_dict, get_params, state_dict};
use burn_peft::checkpoint::{load_hf, load_peft, read_hf_config, read_peft_config, save_peft};
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{AttentionMask, RotaryEmbedding, TransformerDecoder};
use burn_peft::lora::LoRAConfig;
use burn_peft::training::{
    Activations, AdamWConfig, GradientOptions, LossNormalization, LrSchedule, ScheduleKind,
    Trainer, accumulate_gradients, lm_loss_sum,
};
use std::collections::HashMap;

const LOGITS: f32 = 1e-4;
const LOSS: f32 = 1e-5;
const GRADIENT: f32 = 1e-5;
const STEP_LOSS: f32 = 2e-5;
const TRAINED: f32 = 1e-4;
const MERGED: f32 = 1e-5;

const BASES: [&str; 3] = ["gqa", "mha", "gqa_sharded"];
const ADAPTERS: [(&str, &str); 6] = [
    ("gqa", "lora_qv_r8"),
    ("gqa", "lora_all_r4"),
    ("gqa", "dora_qv_r8"),
    ("gqa", "rslora_qv_r8"),
    ("mha", "lora_qv_r8"),
    ("mha", "dora_all_r4"),
];

/// The folder with inputs and expected values; shards hold the same weights as `gqa`.
fn values_of(case: &str) -> &str {
    case.strip_suffix("_sharded").unwrap_or(case)
}

fn base(case: &str) -> TransformerDecoder {
    let dir = golden(case);
    let mut model = read_hf_config(&dir).unwrap().init(&device());
    load_hf(&mut model, &dir).unwrap();
    model
}

fn with_adapter(case: &str, adapter: &str) -> (TransformerDecoder, LoRAConfig) {
    let dir = golden(case);
    let lora = read_peft_config(dir.join(adapter)).unwrap();
    let config = read_hf_config(&dir).unwrap();
    let mut model = config.init_lora(&lora, &device()).unwrap();
    load_hf(&mut model, &dir).unwrap();
    load_peft(&mut model, dir.join(adapter)).unwrap();
    (model, lora)
}

fn inputs(case: &str) -> Tensors {
    Tensors::open(golden(values_of(case)).join("inputs.safetensors"))
}

fn expected(path: &str) -> Tensors {
    Tensors::open(golden(path).join("expected.safetensors"))
}

fn logits(model: &TransformerDecoder, case: &str) -> Tensor<3> {
    model.forward(inputs(case).ids("input_ids", &device()), None)
}

fn loss(model: &TransformerDecoder, case: &str, prefix: &str) -> f32 {
    let batch = inputs(case).batch(&format!("{prefix}input_ids"), &format!("{prefix}labels"));
    let sum = lm_loss_sum(model, &batch).unwrap();
    (sum / batch.num_label_tokens() as f64) as f32
}

fn assert_generates(model: &TransformerDecoder, case: &str, expected: &Tensors) {
    let prompt = inputs(case).ints("prompt_ids");
    let prompt: Vec<u32> = prompt.into_iter().map(|id| id as u32).collect();
    let all = expected.ints("generated_ids");
    let options = GenerateOptions::greedy(all.len() - prompt.len());
    let new = generate(model, &prompt, &options).unwrap();
    let got: Vec<i32> = prompt.iter().chain(&new).map(|id| *id as i32).collect();
    assert_eq!(got, all);
}

#[test]
fn base_logits_and_loss() {
    for case in BASES {
        let (model, expected) = (base(case), expected(values_of(case)));
        assert_close(
            case,
            logits(&model, case),
            &expected.floats("logits"),
            LOGITS,
        );
        assert_floats_close(
            case,
            &[loss(&model, case, "")],
            &expected.floats("loss"),
            LOSS,
        );
    }
}

#[test]
fn base_hidden_states() {
    for case in BASES {
        let (model, expected) = (base(case), expected(values_of(case)));
        let ids = inputs(case).ids("input_ids", &device());
        let [_, seq] = ids.dims();
        let rope = RotaryEmbedding::new(&model.config, 0, seq, &device());
        let mask = AttentionMask::causal(0, seq);
        let mut states = vec![model.tok_embeddings.forward(ids)];
        for layer in &model.layers {
            let last = states.last().unwrap().clone();
            states.push(layer.forward(last, &rope, &mask, None));
        }
        let last = states.pop().unwrap();
        states.push(model.norm.forward(last));
        for (index, state) in states.into_iter().enumerate() {
            let key = format!("hidden_states.{index}");
            assert_close(&key, state, &expected.floats(&key), LOGITS);
        }
    }
}

#[test]
fn base_padded_batch() {
    for case in BASES {
        let (model, expected) = (base(case), expected(values_of(case)));
        let inputs = inputs(case);
        let mask = inputs.ints("padded_attention_mask");
        let real: Vec<bool> = mask.iter().map(|m| *m == 1).collect();
        let shape = inputs.shape("padded_attention_mask");
        let is_token = Tensor::<2, Bool>::from_data(TensorData::new(real, shape), &device());
        let ids = inputs.ids("padded_input_ids", &device());
        let logits = model.forward(ids, Some(is_token));
        assert_close(case, logits, &expected.floats("padded_logits"), LOGITS);
        let got = loss(&model, case, "padded_");
        assert_floats_close(case, &[got], &expected.floats("padded_loss"), LOSS);
    }
}

#[test]
fn base_greedy_ids() {
    for case in BASES {
        assert_generates(&base(case), case, &expected(values_of(case)));
    }
}

#[test]
fn adapter_logits_loss_and_greedy_ids() {
    for (case, adapter) in ADAPTERS {
        let (model, _) = with_adapter(case, adapter);
        let expected = expected(&format!("{case}/{adapter}"));
        assert_close(
            adapter,
            logits(&model, case),
            &expected.floats("logits"),
            LOGITS,
        );
        assert_floats_close(
            adapter,
            &[loss(&model, case, "")],
            &expected.floats("loss"),
            LOSS,
        );
        assert_generates(&model, case, &expected);
    }
}

/// Gradients by the name of their parameter.
struct Named<'a> {
    names: HashMap<burn::module::ParamId, String>,
    grads: &'a GradientsParams,
    values: HashMap<String, Vec<f32>>,
}

impl ModuleVisitor for Named<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let name = self.names[&param.id].clone();
            self.values.insert(name, floats(&grad.into_data()));
        }
    }
}

/// Our name of a tensor in PEFT's files, found through a file that this crate wrote.
fn peft_names(model: &TransformerDecoder, lora: &LoRAConfig) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    save_peft(model, lora, dir.path()).unwrap();
    Tensors::open(dir.path().join("adapter_model.safetensors")).keys()
}

fn our_name(peft: &str) -> String {
    peft.replace("base_model.model.model.layers", "layers")
        .replace("self_attn", "attn")
        .replace("o_proj", "output_proj")
        .replace("gate_proj", "w1")
        .replace("down_proj", "w2")
        .replace("up_proj", "w3")
        .replace("lora_A", "lora_a")
        .replace("lora_B", "lora_b")
        .replace("lora_magnitude_vector", "magnitude")
}

#[test]
fn adapter_gradients() {
    let cases = ADAPTERS
        .iter()
        .flat_map(|case| ACTIVATIONS.map(|activations| (case, activations)));
    for (&(case, adapter), activations) in cases {
        let (model, lora) = with_adapter(case, adapter);
        let expected = expected(&format!("{case}/{adapter}"));
        let batch = inputs(case).batch("input_ids", "labels");
        let options = GradientOptions {
            activations,
            ..Default::default()
        };
        let (_, grads) = accumulate_gradients(&model, &[batch], options);
        let params = get_params(&model);
        let mut named = Named {
            names: params.iter().map(|(n, p)| (p.id, n.to_owned())).collect(),
            grads: &grads,
            values: HashMap::new(),
        };
        model.visit(&mut named);
        let names = peft_names(&model, &lora);
        assert_eq!(
            named.values.len(),
            names.len(),
            "only the adapter has gradients"
        );
        for name in names {
            let expected = expected.floats(&format!("grad.{name}"));
            assert_floats_close(&name, &named.values[&our_name(&name)], &expected, GRADIENT);
        }
    }
}

fn assert_adapter(model: &TransformerDecoder, lora: &LoRAConfig, expected: &Tensors, prefix: &str) {
    let values = adapter_state_dict(model);
    for name in peft_names(model, lora) {
        let got = floats(&values[&our_name(&name)]);
        let expected = expected.floats(&format!("{prefix}{name}"));
        assert_floats_close(&name, &got, &expected, TRAINED);
    }
}

/// The ways in which a step can be computed.
const ACTIVATIONS: [Activations; 3] = [
    Activations::Keep,
    Activations::Recompute { layers: 1 },
    Activations::Recompute { layers: 3 },
];

#[test]
fn ten_adamw_steps() {
    let cases = ADAPTERS
        .iter()
        .flat_map(|case| ACTIVATIONS.map(|activations| (case, activations)));
    for (&(case, adapter), activations) in cases {
        let (mut model, lora) = with_adapter(case, adapter);
        let before = base_weights(&model);
        let expected = expected(&format!("{case}/{adapter}"));
        let schedule = LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1e-3,
            warmup_steps: 0,
            total_steps: 10,
        };
        let mut trainer =
            Trainer::new(AdamWConfig::default(), schedule).with_activations(activations);
        let mut losses = Vec::new();
        for batch in inputs(case).batches("train_input_ids", "train_labels") {
            let (next, output) = trainer.step(model, &[batch]);
            model = next;
            losses.push(output.loss as f32);
        }
        assert_floats_close(adapter, &losses, &expected.floats("step_losses"), STEP_LOSS);
        assert_adapter(&model, &lora, &expected, "final.");
        assert_close(
            adapter,
            logits(&model, case),
            &expected.floats("final_logits"),
            LOGITS,
        );
        assert_eq!(base_weights(&model), before, "the base is frozen");
        assert_eq!(
            trainer.optimizer.num_states(),
            adapter_state_dict(&model).len()
        );
    }
}

fn base_weights(model: &TransformerDecoder) -> HashMap<String, Vec<f32>> {
    let values = state_dict(&model.clone().without_adapters());
    values.into_iter().map(|(k, v)| (k, floats(&v))).collect()
}

/// Accumulation over two micro-batches, warmup and cosine, clipping to 1.
#[test]
fn recipe_with_accumulation_cosine_and_clipping() {
    let (mut model, lora) = with_adapter("gqa", "lora_qv_r8");
    let expected = expected("gqa/lora_qv_r8");
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: 1e-3,
        warmup_steps: 2,
        total_steps: 8,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule)
        .with_max_grad_norm(Some(1.0))
        .with_normalization(LossNormalization::MicroBatchMean);
    let rows = inputs("gqa").batches("train_input_ids", "train_labels");
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..8 {
        let micro: Vec<_> = (0..2).map(|i| rows[(2 * step + i) % 10].clone()).collect();
        let (next, output) = trainer.step(model, &micro);
        model = next;
        losses.push(output.loss as f32);
        norms.push(output.grad_norm as f32);
    }
    let name = "recipe";
    assert_floats_close(
        name,
        &losses,
        &expected.floats("recipe_step_losses"),
        STEP_LOSS,
    );
    assert_floats_close(name, &norms, &expected.floats("recipe_grad_norms"), 1e-4);
    assert_adapter(&model, &lora, &expected, "recipe_final.");
}

#[test]
fn merged_weights_and_logits() {
    for (case, adapter) in ADAPTERS {
        let (model, _) = with_adapter(case, adapter);
        let merged = model.merge_lora();
        let dir = golden(case).join(adapter);
        let changed = dir.join("merged_changed.safetensors");
        let file = Tensors::open(match changed.exists() {
            true => changed,
            false => dir.join("merged/model.safetensors"),
        });
        let values = state_dict(&merged);
        let mut compared = 0;
        for name in file.keys().iter().filter(|name| name.contains("proj")) {
            let ours = our_name(name).replace("model.layers", "layers");
            assert_floats_close(name, &floats(&values[&ours]), &file.floats(name), MERGED);
            compared += 1;
        }
        assert!(compared >= 8);
        let expected = expected(&format!("{case}/{adapter}")).floats("merged_logits");
        assert_close(adapter, logits(&merged, case), &expected, LOGITS);
    }
}

#[test]
fn whole_merged_folder_loads() {
    let dir = golden("gqa/lora_qv_r8/merged");
    let mut model = read_hf_config(&dir).unwrap().init(&device());
    load_hf(&mut model, &dir).unwrap();
    let expected = expected("gqa/lora_qv_r8").floats("merged_logits");
    assert_close("merged", logits(&model, "gqa"), &expected, LOGITS);
}

#[test]
fn learning_rates() {
    let text = std::fs::read_to_string(golden("schedules.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let lr = file["base_lr"].as_f64().unwrap();
    let mut compared = 0;
    for (name, rates) in file["lrs"].as_object().unwrap() {
        let (rest, total) = name.rsplit_once("_total").unwrap();
        let (kind, warmup) = rest.rsplit_once("_warmup").unwrap();
        let (kind, warmup) = match kind {
            "cosine" => (ScheduleKind::Cosine, warmup),
            "linear" => (ScheduleKind::Linear, warmup),
            "constant_with_warmup" => (ScheduleKind::Constant, warmup),
            // transformers' `constant` knows no warmup.
            "constant" => (ScheduleKind::Constant, "0"),
            other => panic!("{other}"),
        };
        let schedule = LrSchedule {
            kind,
            lr,
            warmup_steps: warmup.parse().unwrap(),
            total_steps: total.parse().unwrap(),
        };
        for (step, rate) in rates.as_array().unwrap().iter().enumerate() {
            let difference = (schedule.lr_at(step) - rate.as_f64().unwrap()).abs();
            assert!(difference < 1e-15, "{name} at {step}: {difference:e}");
            compared += 1;
        }
    }
    assert_eq!(compared, 320);
}
