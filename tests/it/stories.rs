//! A real pre-trained Llama, and 200 LoRA steps on Alpaca rows that PEFT took with it.
//!
//! The model cannot be part of this repository: the folder that holds
//! `reference/stories260k` is named by `BURN_PEFT_SHARED`, and without it these tests say that they
//! are skipped. With `BURN_PEFT_ROUND_TRIP` the trained adapter, the merged model and their logits
//! are left in that folder for `tests/python/round_trip.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::at_hand::left_out;
use crate::common::{Tensors, assert_close, assert_floats_close, device, floats, max_abs_diff};
use burn::tensor::{Int, Tensor, TensorData};
use burn_peft::adapter::{adapter_state_dict, quantize_base};
use burn_peft::checkpoint::{
    load_hf, load_peft, read_hf_config, read_peft_config, save_hf, save_peft, write_tensors,
};
use burn_peft::data::Batch;
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRAConfig;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::{
    AdamWConfig, LossNormalization, LrSchedule, ScheduleKind, Trainer, validation_loss,
};
use burn_peft::weight::Quantization;

fn stories() -> Option<PathBuf> {
    match std::env::var_os("BURN_PEFT_SHARED") {
        Some(shared) => Some(Path::new(&shared).join("reference/stories260k")),
        None => {
            left_out(
                "shared",
                "BURN_PEFT_SHARED does not name the folder of the reference run",
            );
            None
        }
    }
}

fn base(dir: &Path) -> TransformerDecoder {
    let mut model = read_hf_config(dir.join("hf")).unwrap().init(&device());
    load_hf(&mut model, dir.join("hf")).unwrap();
    model
}

fn with_adapter(dir: &Path, adapter: &str) -> (TransformerDecoder, LoRAConfig) {
    let adapter = dir.join("finetune").join(adapter);
    let lora = read_peft_config(&adapter).unwrap();
    let config = read_hf_config(dir.join("hf")).unwrap();
    let mut model = config.init_lora(&lora, &device()).unwrap();
    load_hf(&mut model, dir.join("hf")).unwrap();
    load_peft(&mut model, &adapter).unwrap();
    (model, lora)
}

#[test]
fn base_logits_and_greedy_text() {
    let Some(dir) = stories() else { return };
    let model = base(&dir);
    let expected = Tensors::open(dir.join("base_expected.safetensors"));
    let ids = expected.ids("story_ids", &device());
    let logits = model.forward(ids, None);
    assert_close("story", logits, &expected.floats("story_logits"), 1e-4);

    let tokenizer = Tokenizer::from_dir(dir.join("hf")).unwrap();
    let text = std::fs::read_to_string(dir.join("ref.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bos = vec![tokenizer.bos_id().unwrap()];
    let from_bos = expected.ints("greedy_bos_ids");
    assert_continues(&model, &bos, &from_bos);
    let prompt: Vec<u32> = as_tokens(&expected.ints("greedy_prompt_ids"));
    let from_prompt = expected.ints("greedy_prompt_out_ids");
    assert_continues(&model, &prompt, &from_prompt);
    for (ids, key) in [
        (from_bos, "greedy_from_bos"),
        (from_prompt, "greedy_from_prompt"),
    ] {
        let text = tokenizer.decode(&as_tokens(&ids)).unwrap();
        assert_eq!(text, reference["base"][key]);
    }
}

fn as_tokens(ids: &[i32]) -> Vec<u32> {
    ids.iter().map(|id| *id as u32).collect()
}

/// `all` holds the prompt and its greedy continuation.
fn assert_continues(model: &TransformerDecoder, prompt: &[u32], all: &[i32]) {
    let options = GenerateOptions::greedy(all.len() - prompt.len()).with_stop_tokens([]);
    let new = generate(model, prompt, &options).unwrap();
    assert_eq!([prompt, &new].concat(), as_tokens(all));
}

/// Rows of the prepared data set.
struct Rows {
    ids: Vec<i32>,
    labels: Vec<i32>,
    lengths: Vec<i32>,
    seq_len: usize,
}

impl Rows {
    fn new(data: &Tensors, split: &str) -> Self {
        Self {
            ids: data.ints(&format!("{split}_input_ids")),
            labels: data.ints(&format!("{split}_labels")),
            lengths: data.ints(&format!("{split}_len")),
            seq_len: data.shape(&format!("{split}_input_ids"))[1],
        }
    }

    fn batch(&self, rows: &[i32]) -> Batch {
        let row = |values: &[i32], row: &i32| {
            let start = *row as usize * self.seq_len;
            values[start..start + self.seq_len].to_vec()
        };
        Batch {
            input_ids: rows.iter().flat_map(|r| row(&self.ids, r)).collect(),
            labels: rows.iter().flat_map(|r| row(&self.labels, r)).collect(),
            segments: rows
                .iter()
                .map(|r| vec![self.lengths[*r as usize] as usize])
                .collect(),
            batch_size: rows.len(),
            seq_len: self.seq_len,
            adapters: None,
        }
    }
}

#[test]
fn two_hundred_steps_equal_pefts() {
    let Some(dir) = stories() else { return };
    let (model, lora) = with_adapter(&dir, "adapter_init");
    let data = Tensors::open(dir.join("finetune/data.safetensors"));
    let curve = Tensors::open(dir.join("finetune/curve.safetensors"));
    let (model, losses, norms) = trained(model, &data);
    let worst = max_abs_diff(&losses, &curve.floats("losses"));
    println!("largest difference of a step's loss: {worst:e}");
    assert_floats_close("losses", &losses, &curve.floats("losses"), 1e-4);
    assert_floats_close("norms", &norms, &curve.floats("grad_norms"), 1e-3);
    assert_final_adapter(&model, &dir);
    assert_validation_loss(&model, &data, &dir);
    leave_for_python(&model, &lora, &data);
}

/// PEFT's curve is that of the unquantized base, to 1e-4. Single steps are noisy, with four rows in each: on the numbers that
/// bitsandbytes makes of these weights PEFT too is 6 % off at two of the 200.
#[test]
fn two_hundred_steps_on_nf4_follow_the_unquantized_ones() {
    let Some(dir) = stories() else { return };
    let (model, _) = with_adapter(&dir, "adapter_init");
    // Blocks of 64 do not divide the 172 inputs of w2.
    let keeps = |path: &str| path == "output" || path.ends_with("mlp.w2");
    let model = quantize_base(model, Quantization::Nf4, keeps).unwrap();
    let data = Tensors::open(dir.join("finetune/data.safetensors"));
    let curve = Tensors::open(dir.join("finetune/curve.safetensors")).floats("losses");
    let (_, losses, _) = trained(model, &data);
    assert_ne!(losses, curve);
    let difference = |window: usize| {
        let sums = |losses: &[f32]| -> Vec<f32> {
            let windows = losses.windows(window);
            windows.map(|losses| losses.iter().sum()).collect()
        };
        let pairs = sums(&losses).into_iter().zip(sums(&curve));
        pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f32::max)
    };
    let (single, ten) = (difference(1), difference(10));
    println!("largest relative difference of a step's loss: {single}, of ten steps': {ten}");
    assert!(ten < 0.05, "{ten}");
}

/// The model after 200 steps, and the loss and the gradient's norm at each.
fn trained(
    mut model: TransformerDecoder,
    data: &Tensors,
) -> (TransformerDecoder, Vec<f32>, Vec<f32>) {
    let rows = Rows::new(data, "train");
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: 2e-3,
        warmup_steps: 10,
        total_steps: 200,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule)
        .with_max_grad_norm(Some(1.0))
        .with_normalization(LossNormalization::StepTokens);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for order in data.ints("order").chunks(4) {
        let (next, output) = trainer.step(model, &[rows.batch(order)]);
        model = next;
        losses.push(output.loss as f32);
        norms.push(output.grad_norm as f32);
    }
    assert_eq!(losses.len(), 200);
    (model, losses, norms)
}

fn assert_final_adapter(model: &TransformerDecoder, dir: &Path) {
    let (reference, _) = with_adapter(dir, "adapter_final");
    let reference = adapter_state_dict(&reference);
    for (key, value) in adapter_state_dict(model) {
        assert_floats_close(&key, &floats(&value), &floats(&reference[&key]), 1e-3);
    }
}

fn assert_validation_loss(model: &TransformerDecoder, data: &Tensors, dir: &Path) {
    let rows = Rows::new(data, "eval");
    let text = std::fs::read_to_string(dir.join("ref.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = reference["finetune"]["eval_loss"]["200"].as_f64().unwrap();
    let all: Vec<i32> = (0..rows.lengths.len() as i32).collect();
    let batches: Vec<Batch> = all.chunks(8).map(|c| rows.batch(c)).collect();
    let loss = validation_loss(model, &batches).unwrap();
    assert!((loss - expected).abs() < 1e-3, "{loss} against {expected}");
}

fn leave_for_python(model: &TransformerDecoder, lora: &LoRAConfig, data: &Tensors) {
    let Some(dir) = std::env::var_os("BURN_PEFT_ROUND_TRIP").map(PathBuf::from) else {
        return;
    };
    let rows = Rows::new(data, "eval");
    let batch = rows.batch(&[0, 1]);
    let ids = TensorData::new(batch.input_ids, [batch.batch_size, batch.seq_len]);
    let input = || Tensor::<2, Int>::from_data(ids.clone(), &device());
    let merged = model.clone().merge_lora();
    save_peft(model, lora, dir.join("adapter")).unwrap();
    save_hf(&merged, dir.join("merged")).unwrap();
    let expected = BTreeMap::from([
        ("input_ids".to_owned(), ids.clone()),
        (
            "adapter_logits".to_owned(),
            model.forward(input(), None).into_data(),
        ),
        (
            "merged_logits".to_owned(),
            merged.forward(input(), None).into_data(),
        ),
    ]);
    let tensors = expected.iter().map(|(key, value)| (key.clone(), value));
    write_tensors(tensors, &dir.join("expected.safetensors")).unwrap();
}
