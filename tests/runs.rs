//! Runs that begin, stop and go on: from which checkpoint, with which base, for how long.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{
    StateDict, adapter_state_dict, initialize_adapters, initialize_params, load_state_dict,
};
use burn_peft::checkpoint::{base_fingerprint, load_hf, read_hf_config};
use burn_peft::data::Batch;
use burn_peft::distributed::SingleProcess;
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRAConfig;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{Resume, RunDir, RunOptions, SavePlan, Trainer, nonfinite_records};
use tempfile::TempDir;

const STEPS_PER_EPOCH: usize = 3;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(name)
}

/// The configuration of a run in `dir`, of one epoch unless the overrides say otherwise.
fn config(dir: &Path, overrides: &[&str]) -> RecipeConfig {
    let mut config = RecipeConfig::default();
    config.output_dir = dir.to_owned();
    config.optimizer.lr = 1e-2;
    config.lr_scheduler.num_warmup_steps = 0;
    with(&config, overrides)
}

fn with(config: &RecipeConfig, overrides: &[&str]) -> RecipeConfig {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    config.clone().with_overrides(&overrides).unwrap()
}

fn new_model(config: &RecipeConfig) -> TransformerDecoder {
    let device = Device::default().autodiff();
    let llama = read_hf_config(golden("gqa")).unwrap();
    let mut model = llama.init_lora(&config.lora(), &device).unwrap();
    load_hf(&mut model, golden("gqa")).unwrap();
    let model = initialize_adapters(model, config.seed);
    initialize_params(&model);
    model
}

fn trainer(config: &RecipeConfig) -> Trainer {
    config.trainer(config.epochs * STEPS_PER_EPOCH)
}

fn batch(step: usize) -> Batch {
    let input_ids: Vec<i32> = (0..8).map(|i| (i * 37 + step as i32 * 11) % 128).collect();
    Batch {
        labels: input_ids.clone(),
        input_ids,
        segments: vec![vec![8]],
        batch_size: 1,
        seq_len: 8,
        adapters: None,
    }
}

/// Trains up to `end` steps, with a checkpoint of each.
fn train(
    run: &RunDir,
    config: &RecipeConfig,
    mut model: TransformerDecoder,
    trainer: &mut Trainer,
    end: usize,
) -> StateDict {
    while trainer.step < end {
        (model, _) = trainer.step(model, &[batch(trainer.step)]);
        run.save_checkpoint(&model, &config.lora(), trainer)
            .unwrap();
    }
    adapter_state_dict(&model)
}

/// A run that has come to `steps`, with a checkpoint of each. It is let go of, as when its process ends.
fn stopped(config: &RecipeConfig, steps: usize) -> StateDict {
    let run = RunDir::create(config, 1).unwrap();
    train(&run, config, new_model(config), &mut trainer(config), steps)
}

/// The run that goes on, its model and its trainer.
fn gone_on(config: &RecipeConfig) -> (RunDir, TransformerDecoder, Trainer) {
    let run = RunDir::open(config, 0, 1).unwrap();
    let (mut model, mut trainer) = (new_model(config), trainer(config));
    run.load_checkpoint(&mut model, &mut trainer).unwrap();
    run.begin().unwrap();
    (run, model, trainer)
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Error>, texts: &[&str]) {
    let error = match result {
        Err(error @ Error::Resume { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it is not refused"),
    };
    for text in texts {
        assert!(error.contains(text), "`{text}` is not in: {error}");
    }
}

// Where a run goes on.

#[test]
fn auto_begins_or_goes_on() {
    let dir = TempDir::new().unwrap();
    let config = config(
        &dir.path().join("run"),
        &["resume_from_checkpoint=auto", "epochs=2"],
    );
    let run = RunDir::open(&config, 0, 1).unwrap();
    assert!(!run.is_resumed());
    run.begin().unwrap();
    train(&run, &config, new_model(&config), &mut trainer(&config), 2);
    drop(run);
    let (run, _, trainer) = gone_on(&config);
    assert!(run.is_resumed());
    assert_eq!(trainer.step, 2);
}

/// A loop of one's own says what a run has to know, and what makes it another one.
#[test]
fn a_run_without_a_recipe() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("run");
    let recipe = config(&path, &[]);
    let lora = recipe.lora();
    let options = |lora: &LoRAConfig| {
        RunOptions::new(&path, lora)
            .with_resume(Resume::Auto)
            .with_base_name(Some("me/base".into()))
            .with_saves(SavePlan::default().with_every_epoch(true))
    };
    let run = RunDir::open(options(&lora), 0, 1).unwrap();
    assert!(!run.is_resumed() && run.adapter_config().unwrap().is_none());
    run.begin().unwrap();
    let adapter = train(&run, &recipe, new_model(&recipe), &mut trainer(&recipe), 2);
    drop(run);

    let run = RunDir::open(options(&lora), 0, 1).unwrap();
    assert_eq!(run.adapter_config().unwrap().unwrap().rank, lora.rank);
    let (mut model, mut going_on) = (new_model(&recipe), trainer(&recipe));
    run.load_checkpoint(&mut model, &mut going_on).unwrap();
    assert_eq!(going_on.step, 2);
    assert!(adapter_state_dict(&model) == adapter);
    assert!(run.options().saves.is_due(&going_on, 2) && !run.options().saves.is_due(&going_on, 3));
    let saved = fs::read_to_string(path.join("checkpoints/step_2/adapter_config.json")).unwrap();
    assert!(saved.contains("\"me/base\""), "{saved}");
    drop(run);

    let other = lora.clone().with_rank(4);
    assert_refused(
        RunDir::open(options(&other), 0, 1),
        &["`rank` was 8, now 4"],
    );
    let longer = RunDir::open(options(&lora).with_epochs(2), 0, 1).unwrap();
    assert_eq!(longer.epochs_before(), Some(1));
    drop(longer);

    let anew = options(&other).with_resume(Resume::No).with_overwrite(true);
    let input = path.join("checkpoints/step_2/adapter_config.json");
    let reading = anew.clone().with_inputs(vec![("first".into(), input)]);
    assert_refused(
        RunDir::open(reading, 0, 1),
        &["`first` is in", "would delete"],
    );
    RunDir::open(anew, 0, 1).unwrap().begin().unwrap();
    assert!(!path.join("checkpoints").exists());
}

/// In processes beside the first, which touch no file.
#[test]
fn the_other_processes_of_a_run_do_as_the_first() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir.path().join("run"), &["resume_from_checkpoint=auto"]);
    assert!(!RunDir::open(&config, 1, 2).unwrap().is_resumed());
    assert!(!config.output_dir.exists());
    stopped(&config, 1);
    let _first = RunDir::open(&config, 0, 1).unwrap();
    assert!(RunDir::open(&config, 1, 2).unwrap().is_resumed());
}

#[test]
fn going_on_from_an_earlier_checkpoint_of_the_run() {
    let dir = TempDir::new().unwrap();
    let whole = config(dir.path(), &[]);
    let adapter = stopped(&whole, 3);
    let earlier = dir.path().join("checkpoints/step_1");
    let earlier = with(
        &whole,
        &[&format!("resume_from_checkpoint={}", earlier.display())],
    );
    let (run, model, mut trainer) = gone_on(&earlier);
    assert_eq!(trainer.step, 1);
    // Or they would be taken for what this run comes to.
    assert_eq!(checkpoints(dir.path()), ["step_1"]);
    assert!(train(&run, &earlier, model, &mut trainer, 3) == adapter);
    assert_eq!(checkpoints(dir.path()), ["step_1", "step_2", "step_3"]);
}

/// A run that branches off leaves the other one as it is, and has its metrics up to there.
#[test]
fn going_on_from_a_checkpoint_of_another_run() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let config = config(&first, &[]);
    let adapter = stopped(&config, 2);
    fs::write(first.join("metrics.jsonl"), "{\"step\":1}\n{\"step\":2}\n").unwrap();
    // A copy by another name is no checkpoint of the run, but may be named.
    let copy = first.join("checkpoints/kept");
    fs::rename(first.join("checkpoints/step_1"), &copy).unwrap();
    for (path, step) in [
        (first.clone(), 2),
        (first.join("checkpoints/step_2"), 2),
        (copy, 1),
    ] {
        let from = format!("resume_from_checkpoint={}", path.display());
        let mut config = with(&config, &[&from]);
        config.output_dir = second.clone();
        let (run, model, mut trainer) = gone_on(&config);
        assert_eq!(trainer.step, step, "{}", path.display());
        assert!(
            fs::read_to_string(run.metrics_path())
                .unwrap()
                .contains("\"step\":2")
        );
        assert!(train(&run, &config, model, &mut trainer, 2) == adapter);
        assert_eq!(checkpoints(&first), ["kept", "step_2"]);
        drop(run);
        fs::remove_dir_all(&second).unwrap();
    }
    let missing = with(&config, &["resume_from_checkpoint=nowhere"]);
    assert_refused(
        RunDir::open(&missing, 0, 1),
        &["nowhere", "neither a complete checkpoint", "step_N"],
    );
}

/// As a program that was killed while it wrote it leaves one.
fn cut_off(dir: &Path, step: usize) {
    let folder = dir.join(format!("checkpoints/step_{step}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("adapter_config.json"), "{}").unwrap();
}

#[test]
fn a_run_whose_first_checkpoint_was_cut_off() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &[]);
    drop(RunDir::create(&config, 1).unwrap());
    cut_off(dir.path(), 1);
    let goes_on = with(&config, &["resume_from_checkpoint=true"]);
    let instruction = "begin anew by resume_from_checkpoint=false";
    assert_refused(
        RunDir::open(&goes_on, 0, 1),
        &["no complete checkpoint", instruction],
    );
    // What it says works.
    let run = RunDir::open(&config, 0, 1).unwrap();
    run.begin().unwrap();
    assert!(!dir.path().join("checkpoints").exists());
    drop(run);
    cut_off(dir.path(), 1);
    let auto = with(&config, &["resume_from_checkpoint=auto"]);
    assert!(!RunDir::open(&auto, 0, 1).unwrap().is_resumed());
}

/// What is left of a checkpoint goes when the run goes on, a copy by another name does not.
#[test]
fn what_was_cut_off_goes_with_the_run_that_goes_on() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &[]);
    stopped(&config, 2);
    cut_off(dir.path(), 1);
    fs::remove_file(dir.path().join("checkpoints/step_1/trainer.json")).unwrap();
    cut_off(dir.path(), 3);
    fs::create_dir(dir.path().join("checkpoints/mine")).unwrap();
    let (run, ..) = gone_on(&with(&config, &["resume_from_checkpoint=true"]));
    assert_eq!(run.saved_step(), Some(2));
    assert_eq!(checkpoints(dir.path()), ["mine", "step_2"]);
}

/// What is complete, or nobody knows, is not deleted by a run that begins.
#[test]
fn beside_a_checkpoint_that_was_cut_off() {
    for other in ["checkpoints/mine", "adapter/adapter_config.json"] {
        let dir = TempDir::new().unwrap();
        let config = config(dir.path(), &[]);
        drop(RunDir::create(&config, 1).unwrap());
        cut_off(dir.path(), 1);
        let other = dir.path().join(other);
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        let refused = RunDir::open(&config, 0, 1);
        // There is nothing to go on from, so that is not said.
        let error = refused.as_ref().unwrap_err().to_string();
        assert!(!error.contains("resume_from_checkpoint"), "{error}");
        assert_refused(refused, &["not finished", "overwrite_output_dir=true"]);
    }
}

// For how long.

/// Where the learning rate does not depend on the length of the run, to the bit what a longer run would have been.
#[test]
fn more_epochs_than_before() {
    let constant = "lr_scheduler.kind=constant";
    let dir = TempDir::new().unwrap();
    let long = config(&dir.path().join("long"), &["epochs=2", constant]);
    let expected = stopped(&long, 2 * STEPS_PER_EPOCH);
    let short = config(&dir.path().join("short"), &[constant]);
    stopped(&short, STEPS_PER_EPOCH);
    let longer = with(&short, &["epochs=2", "resume_from_checkpoint=true"]);
    let (run, model, mut trainer) = gone_on(&longer);
    assert_eq!(run.epochs_before(), Some(1));
    assert_eq!((trainer.step, trainer.schedule.total_steps), (3, 6));
    assert!(trainer.optimizer.num_states() > 0);
    train(&run, &longer, model, &mut trainer, 4);
    // It may be stopped again before it has all of them.
    drop(run);
    let (run, model, mut trainer) = gone_on(&longer);
    assert_eq!((trainer.step, run.epochs_before()), (4, None));
    assert!(train(&run, &longer, model, &mut trainer, 6) == expected);
    drop(run);
    assert_refused(RunDir::resume(&short), &["`epochs` was 2, now 1"]);
}

#[test]
fn more_epochs_of_other_records() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &[]);
    stopped(&config, 1);
    let longer = with(&config, &["epochs=2", "resume_from_checkpoint=true"]);
    let run = RunDir::open(&longer, 0, 1).unwrap();
    let mut trainer = longer.trainer(2 * (STEPS_PER_EPOCH + 1));
    let loaded = run.load_checkpoint(&mut new_model(&longer), &mut trainer);
    assert_refused(loaded, &["3 steps in 1 epoch", "8 in 2", "records"]);
}

// With which base.

/// A copy of a base, and what may be changed of it.
fn copy_of_base(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("gqa").join(name), to.join(name)).unwrap();
    }
}

#[test]
fn a_base_is_known_by_its_content() {
    let dir = TempDir::new().unwrap();
    let [base, moved] = ["base", "moved"].map(|name| dir.path().join(name));
    copy_of_base(&base);
    let on = |path: &Path| format!("checkpoint_dir={}", path.display());
    let config = config(&dir.path().join("run"), &[&on(&base)]);
    let run = RunDir::create(&config, 1)
        .unwrap()
        .on_base(base_fingerprint(&base).unwrap());
    train(&run, &config, new_model(&config), &mut trainer(&config), 1);
    drop(run);
    fs::rename(&base, &moved).unwrap();

    let config = with(&config, &[&on(&moved), "resume_from_checkpoint=true"]);
    let load = || {
        let run = RunDir::open(&config, 0, 1).unwrap();
        let run = run.on_base(base_fingerprint(&moved).unwrap());
        run.load_checkpoint(&mut new_model(&config), &mut trainer(&config))
    };
    load().unwrap();
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = moved.join(name);
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let loaded = load();
        fs::write(&path, before).unwrap();
        loaded
    };
    let last_bit = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let other = change("model.safetensors", &last_bit);
    assert_refused(
        other,
        &["another base", "checkpoint_dir", "another output_dir"],
    );
    let field = |name: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let mut fields: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            fields[name] = 1e-3.into();
            *bytes = serde_json::to_vec(&fields).unwrap();
        }
    };
    assert_refused(
        change("config.json", &field("rms_norm_eps")),
        &["another base"],
    );
    // What programs write beside it says nothing of the model.
    change("config.json", &field("transformers_version")).unwrap();
}

/// Its checkpoints say nothing of the content, so the path has to do.
#[test]
fn a_run_of_before_whose_base_has_moved() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["checkpoint_dir=here"]);
    stopped(&config, 1);
    let moved = with(
        &config,
        &["checkpoint_dir=there", "resume_from_checkpoint=true"],
    );
    assert_refused(
        RunDir::open(&moved, 0, 1),
        &["`checkpoint_dir` was here, now there"],
    );
    RunDir::open(&with(&config, &["resume_from_checkpoint=true"]), 0, 1).unwrap();
}

// The best validation.

/// The run with a checkpoint after each of these validation losses, of which `kept` are left.
fn validated(config: &RecipeConfig, losses: &[f64], kept: usize) -> (RunDir, Vec<StateDict>) {
    let run = RunDir::create(config, 1).unwrap();
    let mut trainer = config.trainer(losses.len());
    let mut model = new_model(config);
    let mut adapters = Vec::new();
    for loss in losses {
        (model, _) = trainer.step(model, &[batch(trainer.step)]);
        trainer.validations.add(trainer.step, *loss);
        run.save_checkpoint(&model, &config.lora(), &trainer)
            .unwrap();
        run.keep_last_checkpoints(kept).unwrap();
        adapters.push(adapter_state_dict(&model));
    }
    (run, adapters)
}

#[test]
fn the_best_checkpoint_is_never_deleted() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &[]);
    let (run, adapters) = validated(&config, &[3.0, 1.0, 2.0, 4.0, 2.0], 1);
    assert_eq!(checkpoints(dir.path()), ["step_2", "step_5"]);
    drop(run);

    // It is known to a run that goes on, too.
    let goes_on = with(&config, &["resume_from_checkpoint=true"]);
    let run = RunDir::open(&goes_on, 0, 1).unwrap();
    let (mut model, mut trainer) = (new_model(&config), config.trainer(5));
    run.load_checkpoint(&mut model, &mut trainer).unwrap();
    let validations = trainer.validations;
    assert_eq!(
        (validations.since_best, validations.last.unwrap().step),
        (3, 5)
    );
    let best = validations.best.unwrap();
    assert_eq!((best.step, best.loss), (2, 1.0));
    run.load_best(&mut model, best).unwrap();
    assert!(adapter_state_dict(&model) == adapters[1]);

    fs::remove_dir_all(dir.path().join("checkpoints/step_2")).unwrap();
    assert_refused(
        run.load_best(&mut model, best),
        &["after step 2", "best_checkpoint=none"],
    );
}

/// Only the best one of all is spared.
#[test]
fn a_best_checkpoint_that_was_overtaken_goes() {
    let dir = TempDir::new().unwrap();
    validated(&config(dir.path(), &[]), &[3.0, 1.0, 2.0, 0.5, 2.0, 0.7], 2);
    assert_eq!(checkpoints(dir.path()), ["step_4", "step_5", "step_6"]);
}

// A step whose loss is no number.

/// A base in which one token's embedding is none.
fn with_broken_token(token: usize) -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_of_base(dir.path());
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let tensor = &tensors["model.embed_tokens.weight"];
    let width = tensor["shape"][1].as_u64().unwrap() as usize * 4;
    let start = header + tensor["data_offsets"][0].as_u64().unwrap() as usize + token * width;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
    dir
}

/// Two rows, of which the first has two samples and the second is filled up.
fn packed_batch(token: i32) -> Batch {
    Batch {
        input_ids: vec![1, 2, 3, 4, 5, 6, 7, 8, token, 9, 0, 0],
        labels: vec![1, 2, 3, 4, 5, 6, 7, 8, token, 9, -100, -100],
        segments: vec![vec![4, 2], vec![4]],
        batch_size: 2,
        seq_len: 6,
        adapters: None,
    }
}

#[test]
fn a_step_that_is_no_number_names_its_records_and_can_be_left_out() {
    const TOKEN: i32 = 77;
    let (base, dir) = (with_broken_token(TOKEN as usize), TempDir::new().unwrap());
    let config = config(dir.path(), &[]);
    let mut model = new_model(&config);
    load_hf(&mut model, base.path()).unwrap();
    let whole = packed_batch(10);
    let broken = packed_batch(TOKEN);
    let records = whole.records();
    let ids: Vec<_> = records
        .iter()
        .map(|record| record.input_ids.clone())
        .collect();
    assert_eq!(ids, [vec![1, 2, 3, 4], vec![5, 6], vec![7, 8, 10, 9]]);
    assert!(
        records
            .iter()
            .all(|record| record.labels == record.input_ids)
    );

    let found = nonfinite_records(&model, &[whole.clone(), broken.clone()]);
    assert_eq!(found, [broken.records()[2].clone()]);
    // If none is, it is what they make together.
    assert_eq!(
        nonfinite_records(&model, std::slice::from_ref(&whole)),
        records
    );

    let mut trainer = trainer(&config);
    let before = adapter_state_dict(&model);
    let gradients = trainer
        .gradients(&SingleProcess, &model, &[whole.clone(), broken])
        .unwrap();
    let error = trainer.require_finite(&gradients).unwrap_err();
    let error = error.with_records(vec!["the third".into()]).to_string();
    for text in ["step 1", "NaN", "the third", "skip_nonfinite_steps=1"] {
        assert!(error.contains(text), "`{text}` is not in: {error}");
    }
    let output = trainer.skip(gradients);
    assert!(output.loss.is_nan());
    assert_eq!(
        (trainer.step, trainer.skipped_steps, trainer.last_loss),
        (1, 1, None)
    );
    assert_eq!(trainer.optimizer.num_states(), 0);
    assert!(adapter_state_dict(&model) == before);

    // A run that goes on knows how many it has left out.
    let run = RunDir::create(&config, 1).unwrap();
    let (model, _) = trainer.step(model, &[whole]);
    run.save_checkpoint(&model, &config.lora(), &trainer)
        .unwrap();
    drop(run);
    let (_run, _, trainer) = gone_on(&with(&config, &["resume_from_checkpoint=true"]));
    assert_eq!((trainer.step, trainer.skipped_steps), (2, 1));
    let gradients = trainer
        .gradients(&SingleProcess, &model, &[packed_batch(TOKEN)])
        .unwrap();
    let error = trainer.require_finite(&gradients).unwrap_err().to_string();
    assert!(error.contains("skip_nonfinite_steps=2"), "{error}");
}

/// A `trainer.json` is written as a whole; what else is in it was changed by somebody.
/// As an update by a learning rate that is too high leaves it: the loss before it was a number.
#[test]
fn an_adapter_that_is_no_number_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let run = RunDir::create(&config, 1).unwrap();
    let (mut model, mut trainer) = (new_model(&config), trainer(&config));
    train(&run, &config, model.clone(), &mut trainer, 1);
    let spoilt = adapter_state_dict(&model).into_iter().map(|(key, value)| {
        let mut numbers = value.try_to_vec::<f32>().unwrap();
        numbers[0] = f32::INFINITY;
        (key, TensorData::new(numbers, value.shape()))
    });
    load_state_dict(&mut model, &spoilt.take(1).collect(), false).unwrap();
    trainer.step = 2;
    let error = run.save_checkpoint(&model, &config.lora(), &trainer);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("is inf after step 2, which is not saved"),
        "{error}"
    );
    assert_eq!(checkpoints(dir.path()).len(), 1);
    drop(run);
    let resumed = with(&config, &["resume_from_checkpoint=true"]);
    assert_eq!(gone_on(&resumed).2.step, 1);
}

#[test]
fn a_checkpoint_that_was_changed_is_named() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &[]);
    stopped(&config, 2);
    let path = dir.path().join("checkpoints/step_2/trainer.json");
    let text = fs::read_to_string(&path).unwrap();
    let goes_on = with(&config, &["resume_from_checkpoint=true"]);
    let change = |key: &str, value: serde_json::Value| {
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        state[key] = value;
        fs::write(&path, state.to_string()).unwrap();
    };
    for (key, value, word) in [
        ("num_processes", 0.into(), "of 0 processes"),
        (
            "num_processes",
            (1u64 << 63).into(),
            "of 9223372036854775808 processes",
        ),
        ("epochs", 0.into(), "no epoch"),
        ("step", 3.into(), "it is of step 3, its folder of step 2"),
        ("total_steps", 1.into(), "it is of step 2 of 1"),
        ("step", "two".into(), "invalid type"),
    ] {
        change(key, value);
        let error = RunDir::open(&goes_on, 0, 1).unwrap_err().to_string();
        assert!(
            error.contains("trainer.json") && error.contains(word),
            "{error}"
        );
    }
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let error = RunDir::open(&goes_on, 0, 1).unwrap_err().to_string();
    assert!(error.contains("delete this checkpoint's folder"), "{error}");
    // Where the user makes a copy, it says which step it is of.
    let copy = dir.path().join("checkpoints/kept");
    fs::rename(path.parent().unwrap(), &copy).unwrap();
    fs::write(copy.join("trainer.json"), &text).unwrap();
    let from = format!("resume_from_checkpoint={}", copy.display());
    RunDir::open(&with(&config, &[&from]), 0, 1).unwrap();
}

/// What version 0.1 wrote: less in `trainer.json`, no configuration beside it, and fewer keys in that of the run.
#[test]
fn a_run_of_version_0_1_goes_on() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["epochs=2"]);
    let adapter = stopped(&config, STEPS_PER_EPOCH);
    let checkpoint = dir.path().join("checkpoints/step_3");
    fs::remove_file(checkpoint.join("config.yaml")).unwrap();
    let path = checkpoint.join("trainer.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let old = ["step", "loss", "total_steps", "data", "num_processes"];
    let old = old.map(|key| (key.to_owned(), state[key].clone()));
    let old = serde_json::Value::Object(old.into_iter().collect());
    fs::write(path, old.to_string()).unwrap();
    let path = dir.path().join("config.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let old: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("- jsonl"))
        .map(|line| match line {
            "metric_logger:" => "metric_logger: jsonl",
            "matmul_precision: auto" => "matmul_precision: highest",
            line => line,
        })
        .collect();
    for written in ["metric_logger: jsonl", "matmul_precision: highest"] {
        assert!(old.contains(&written), "{text}");
    }
    let is_new = |line: &&str| {
        ["base_model_name", "skip_nonfinite_steps", "best_checkpoint"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    let old: Vec<&str> = old.into_iter().filter(|line| !is_new(line)).collect();
    fs::write(path, old.join("\n")).unwrap();

    let goes_on = with(&config, &["resume_from_checkpoint=true"]);
    let (run, model, mut trainer) = gone_on(&goes_on);
    assert!(adapter_state_dict(&model) == adapter);
    assert_eq!((trainer.step, run.epochs_before()), (STEPS_PER_EPOCH, None));
    train(&run, &goes_on, model, &mut trainer, 4);
    assert_eq!(checkpoints(dir.path()).len(), 4);
}
