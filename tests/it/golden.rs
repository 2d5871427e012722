//! Equality with transformers and PEFT. `tests/golden_paths.rs` has the gradients and the training
//! steps, on every path.

use approx::assert_relative_eq;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_peft::adapter::{get_params, state_dict};
use burn_peft::checkpoint::{load_hf, read_hf_config};
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{Context, TransformerDecoder};
use burn_peft::training::{
    AdamWConfig, GradientOptions, LossNormalization, LrSchedule, ScheduleKind, Trainer,
    accumulate_gradients, lm_loss_sum,
};

use crate::common::{Tensors, assert_close, assert_floats_close, device, floats, golden};
use crate::golden_cases::*;

const BASES: [&str; 3] = ["gqa", "mha", "gqa_sharded"];

pub fn base(case: &str) -> TransformerDecoder {
    let dir = golden(case);
    let mut model = read_hf_config(&dir).unwrap().init(&device());
    load_hf(&mut model, &dir).unwrap();
    model
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
    let options = GenerateOptions::greedy(all.len() - prompt.len()).with_stop_tokens([]);
    let new = generate(model, &prompt, &options).unwrap();
    let got: Vec<i32> = prompt.iter().chain(&new).map(|id| *id as i32).collect();
    assert_eq!(got, all);
}

#[test]
fn generation_stops_where_the_model_ends_a_text() {
    let case = BASES[0];
    let (mut model, prompt) = (base(case), [1, 2, 3]);
    let whole = GenerateOptions::greedy(8).with_stop_tokens([]);
    let all = generate(&model, &prompt, &whole).unwrap();
    let end = *all.last().unwrap();
    let len = all.iter().position(|id| *id == end).unwrap();
    for (ends, expected) in [(vec![], &all[..]), (vec![end], &all[..len])] {
        model.config.eos_token_ids = ends;
        let got = generate(&model, &prompt, &GenerateOptions::greedy(8)).unwrap();
        assert_eq!(got, expected);
        assert_eq!(generate(&model, &prompt, &whole).unwrap(), all);
    }
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
        let context = Context::causal(&model.config, 0, seq, &device());
        let mut states = vec![model.tok_embeddings.forward(ids)];
        for layer in &model.layers {
            let last = states.last().unwrap().clone();
            states.push(layer.forward(last, &context, None));
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
        let is_linear = |name: &&String| name.contains("proj") || name.contains("lm_head");
        for name in file.keys().iter().filter(is_linear) {
            let ours = our_name(&format!("base_model.model.{name}"));
            assert_floats_close(name, &floats(&values[&ours]), &file.floats(name), MERGED);
            compared += 1;
        }
        assert!(compared >= 5);
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

/// Without adapters everything is trained: embedding, norms and output too.
#[test]
fn full_gradients_have_transformers_norms() {
    for case in ["gqa", "mha"] {
        let model = base(case);
        let batch = inputs(case).batch("input_ids", "labels");
        let (_, grads) = accumulate_gradients(&model, &[batch], GradientOptions::default());
        let text = std::fs::read_to_string(golden(case).join("case.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = json["full_finetune_grad_l2"].as_object().unwrap();
        let mut norms = Norms {
            grads: &grads,
            found: Vec::new(),
        };
        model.visit(&mut norms);
        let params = get_params(&model);
        assert_eq!(norms.found.len(), params.len());
        assert_eq!(expected.len(), params.len());
        for ((name, _), norm) in params.iter().zip(norms.found) {
            let expected = expected[&hf_name(name)].as_f64().unwrap();
            assert_relative_eq!(norm, expected, max_relative = 1e-4);
        }
    }
}

struct Norms<'a> {
    grads: &'a GradientsParams,
    found: Vec<f64>,
}

impl ModuleVisitor for Norms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = self.grads.get::<D>(param.id).expect("it is trained");
        let squares = grad.into_data().iter::<f64>().map(|x| x * x).sum::<f64>();
        self.found.push(squares.sqrt());
    }
}

fn hf_name(name: &str) -> String {
    let inside = [
        ("attn.output_proj", "self_attn.o_proj"),
        (".attn.", ".self_attn."),
        ("mlp.w1", "mlp.gate_proj"),
        ("mlp.w2", "mlp.down_proj"),
        ("mlp.w3", "mlp.up_proj"),
        ("sa_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
        ("tok_embeddings", "embed_tokens"),
    ];
    let name = inside
        .into_iter()
        .fold(name.to_owned(), |name, (ours, theirs)| {
            name.replace(ours, theirs)
        });
    match name.strip_prefix("output.") {
        Some(rest) => format!("lm_head.{rest}"),
        None => format!("model.{name}"),
    }
}
