//! A training that was stopped and resumed equals one that ran through, bit for bit. A process of
//! its own with one test, since a device's random numbers belong to the process.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_peft::adapter::{StateDict, adapter_state_dict, initialize_adapters, initialize_params};
use burn_peft::checkpoint::{load_hf, read_hf_config};
use burn_peft::data::{Batch, IGNORE_INDEX};
use burn_peft::llama::TransformerDecoder;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{RunDir, Trainer};

const STEPS: usize = 6;
const STOP: usize = 3;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/gqa")
}

fn config(output_dir: &Path) -> RecipeConfig {
    let overrides = [
        "lora_dropout=0.1",
        "apply_lora_to_mlp=true",
        "gradient_accumulation_steps=2",
        "clip_grad_norm=0.5",
        "lr_scheduler.num_warmup_steps=2",
        "optimizer.lr=1e-2",
        "seed=7",
    ];
    let mut config = RecipeConfig::default();
    config.output_dir = output_dir.to_owned();
    config
        .with_overrides(&overrides.map(str::to_owned))
        .unwrap()
}

/// The model at the start of a run, made anew with the run's seed.
fn new_model(config: &RecipeConfig) -> TransformerDecoder {
    let device = Device::default().autodiff();
    let llama = read_hf_config(golden()).unwrap();
    let mut model = llama.init_lora(&config.lora(), &device).unwrap();
    load_hf(&mut model, golden()).unwrap();
    let model = initialize_adapters(model, config.seed);
    initialize_params(&model);
    model
}

/// Two micro-batches of two rows; rows and lengths differ from step to step.
fn micro_batches(step: usize) -> Vec<Batch> {
    let batch = |micro: usize| {
        let seq_len = 8 + step;
        let ids = (0..2 * seq_len).map(|i| ((i * 37 + step * 11 + micro * 53) % 128) as i32);
        let input_ids: Vec<i32> = ids.collect();
        let mut labels = input_ids.clone();
        labels[..3].fill(IGNORE_INDEX);
        Batch {
            input_ids,
            labels,
            segments: vec![vec![seq_len]; 2],
            batch_size: 2,
            seq_len,
            adapters: None,
        }
    };
    vec![batch(0), batch(1)]
}

/// Trains up to `end` steps; returns the model and each step's loss and gradient norm.
fn train(
    mut model: TransformerDecoder,
    trainer: &mut Trainer,
    end: usize,
) -> (TransformerDecoder, Vec<(f64, f64)>) {
    let mut outputs = Vec::new();
    while trainer.step < end {
        let (next, output) = trainer.step(model, &micro_batches(trainer.step));
        model = next;
        outputs.push((output.loss, output.grad_norm));
    }
    (model, outputs)
}

fn through(config: &RecipeConfig) -> (StateDict, Vec<(f64, f64)>) {
    let mut trainer = config.trainer(STEPS);
    let (model, outputs) = train(new_model(config), &mut trainer, STEPS);
    (adapter_state_dict(&model), outputs)
}

fn stopped_and_resumed(config: &RecipeConfig) -> (StateDict, Vec<(f64, f64)>) {
    let run = RunDir::create(config, 1).unwrap();
    let mut trainer = config.trainer(STEPS);
    let (model, mut outputs) = train(new_model(config), &mut trainer, STOP);
    run.save_checkpoint(&model, &config.lora(), &trainer)
        .unwrap();
    drop((model, trainer));

    let run = RunDir::resume(config).unwrap();
    let mut trainer = config.trainer(STEPS);
    let mut model = new_model(config);
    run.load_checkpoint(&mut model, &mut trainer).unwrap();
    assert_eq!(trainer.step, STOP);
    let (model, rest) = train(model, &mut trainer, STEPS);
    outputs.extend(rest);
    (adapter_state_dict(&model), outputs)
}

#[test]
fn resuming_equals_running_through() {
    for extra in [
        [].as_slice(),
        &["use_dora=true"],
        &["lora_dropout=0"],
        &["init_lora_weights=orthogonal"],
        &["init_lora_weights=pissa"],
        &["init_lora_weights=olora"],
        &["init_lora_weights=pissa_niter_2"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let extra: Vec<String> = extra.iter().map(|e| e.to_string()).collect();
        let config = config(dir.path()).with_overrides(&extra).unwrap();
        let (adapter, outputs) = through(&config);
        let (resumed_adapter, resumed_outputs) = stopped_and_resumed(&config);
        assert_eq!(resumed_outputs, outputs);
        assert!(resumed_adapter == adapter, "the adapters differ");
        // The rest of the run must have something to do that could go wrong.
        assert!(outputs[STOP..].iter().all(|(_, norm)| *norm > 0.5));
        let start = adapter_state_dict(&new_model(&config));
        for (key, value) in &adapter {
            // What PiSSA and OLoRA take off the base stays what it was.
            assert_eq!(*value == start[key], key.contains(".shift_"), "{key}");
        }
    }
}
