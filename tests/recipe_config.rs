//! The recipe's configuration: its table of keys, files, overrides and errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_peft::Error;
use burn_peft::checkpoint::{read_hf_config, read_peft_config};
use burn_peft::data::SftOptions;
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, Init, LoRAConfig, Targets, TrainedBias};
use burn_peft::ops::MatmulPrecision;
use burn_peft::quantization::BlockFormat;
use burn_peft::training::recipe::{ModelSize, Modules, Precision, RecipeConfig, RecipeKey, Resume};
use burn_peft::training::{Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer, estimate};
use burn_peft::weight::{BaseFormat, Quantization};
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(text: &str) -> Result<RecipeConfig, Error> {
    RecipeConfig::from_yaml(text, "run.yaml", &[])
}

fn overridden(overrides: &[&str]) -> Result<RecipeConfig, Error> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    RecipeConfig::default().with_overrides(&overrides)
}

/// The message of the error that `text` as a file gives.
fn complaint(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn find(name: &str) -> &'static RecipeKey {
    let found = RecipeConfig::keys().iter().find(|key| key.name() == name);
    found.unwrap_or_else(|| panic!("no key {name}"))
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example(name: &str) -> RecipeConfig {
    let path = repository().join("examples/configs").join(name);
    RecipeConfig::from_file(path, &[]).unwrap()
}

// The table of keys.

/// The dotted names of everything in `tree` that is not itself a section.
fn leaves(prefix: &str, tree: &Value) -> Vec<String> {
    match tree {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .flat_map(|(name, value)| leaves(&format!("{prefix}.{name}"), value))
            .collect(),
        _ => vec![prefix.trim_start_matches('.').to_owned()],
    }
}

#[test]
fn the_table_lists_exactly_the_fields_of_the_struct_in_their_order() {
    let tree = serde_json::to_value(RecipeConfig::default()).unwrap();
    let names: Vec<&str> = RecipeConfig::keys().iter().map(|key| key.name()).collect();
    assert_eq!(names, leaves("", &tree));
}

#[test]
fn every_key_accepts_its_own_default() {
    for key in RecipeConfig::keys() {
        let text = format!("{}={}", key.name(), key.default());
        assert_eq!(
            overridden(&[&text]).unwrap(),
            RecipeConfig::default(),
            "{text}"
        );
    }
}

#[test]
fn every_choice_in_the_table_is_accepted_and_told_apart() {
    for key in RecipeConfig::keys() {
        let list = key.accepts().starts_with("a list");
        let mut seen = BTreeSet::new();
        for choice in key.choices() {
            let value = if list {
                format!("[{choice}]")
            } else {
                choice.to_string()
            };
            // Without which one of the choices is refused.
            let quantized = "quantize_base=nf4";
            let validated = ["run_val_every_n_steps=1", "validation_split=0.5"];
            let [every, split] = validated;
            let choice = format!("{}={value}", key.name());
            let config = overridden(&[quantized, every, split, &choice]).unwrap();
            assert!(seen.insert(config.to_yaml()), "{}={value}", key.name());
        }
    }
}

#[test]
fn null_is_accepted_exactly_where_the_table_says_so() {
    for key in RecipeConfig::keys() {
        let result = overridden(&[&format!("{}=null", key.name())]);
        assert_eq!(
            result.is_ok(),
            key.accepts().ends_with("or null"),
            "{}",
            key.name()
        );
    }
}

#[test]
fn the_documentation_holds_a_row_for_each_key() {
    let path = repository().join("docs/recipe.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let expected: Vec<String> = RecipeConfig::keys()
        .iter()
        .map(|key| {
            let (name, default) = (key.name(), key.default());
            format!(
                "| `{name}` | `{default}` | {} | {} |",
                key.accepts(),
                key.doc()
            )
        })
        .collect();
    let expected_text = expected.join("\n");
    assert!(
        rows == expected,
        "{} is behind the table of keys; its rows should be:\n{expected_text}",
        path.display()
    );
}

#[test]
fn the_page_names_the_keys_that_a_resumed_run_may_change() {
    let text = std::fs::read_to_string(repository().join("docs/recipe.md")).unwrap();
    let (_, sentence) = text.split_once("Free to change are ").unwrap();
    let (sentence, _) = sentence.split_once("\n\n").unwrap();
    let named: Vec<&str> = sentence.split('`').skip(1).step_by(2).collect();
    let keys = RecipeConfig::keys().iter();
    let free: Vec<&str> = keys
        .filter(|key| !key.binds_resume())
        .map(|key| key.name())
        .collect();
    assert_eq!(named, free);
}

// Files.

#[test]
fn an_empty_file_is_the_tutorials_first_experiment() {
    for text in ["", "# nothing but a comment\n"] {
        assert_eq!(read(text).unwrap(), RecipeConfig::default());
    }
    let config = RecipeConfig::default();
    assert_eq!(
        config.lora_attn_modules,
        [AttnModule::QProj, AttnModule::VProj]
    );
    assert_eq!(
        (config.lora_rank, config.lora_alpha, config.batch_size),
        (8, 16.0, 2)
    );
    assert_eq!(
        (config.epochs, config.seed, config.train_on_input),
        (1, 0, true)
    );
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.lr, optimizer.weight_decay), (3e-4, 0.01));
    assert_eq!((optimizer.betas, optimizer.eps), ([0.9, 0.999], 1e-8));
    assert_eq!(optimizer.loraplus_lr_ratio, 1.0);
    assert_eq!(config.lr_scheduler.kind, ScheduleKind::Cosine);
    assert_eq!(config.lr_scheduler.num_warmup_steps, 100);
}

#[test]
fn the_7b_example_is_the_default_on_a_real_checkpoint() {
    let mut expected = RecipeConfig::default();
    expected.model = ModelSize::Llama2_7b;
    expected.checkpoint_dir = Some("./Llama-2-7b-hf".into());
    expected.dataset = Some("./alpaca_data.json".into());
    expected.dtype = Precision::Bf16;
    assert_eq!(example("llama2_7b_lora.yaml"), expected);
}

/// A checkpoint of the same shapes with another rotary base must not be trained as Llama 2.
#[test]
fn a_checkpoint_is_what_the_model_key_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: String| std::fs::write(dir.path().join("config.json"), text).unwrap();
    let json = |rope_theta: f64| {
        format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
            "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "bos_token_id": 1, "eos_token_id": 2, "rope_theta": {rope_theta:?}}}"#
        )
    };
    let llama = |text: &str| read(text).unwrap().llama(dir.path());
    write(json(10000.0));
    assert_eq!(llama("model: llama2_7b").unwrap(), LlamaConfig::llama2_7b());
    assert_eq!(llama("model: auto").unwrap(), LlamaConfig::llama2_7b());
    let error = llama("model: llama2_13b").unwrap_err().to_string();
    assert!(error.contains("hidden_size is 4096, not 5120"), "{error}");

    // What fills up batches makes no other model, and is kept.
    write(json(10000.0).replacen('{', r#"{"pad_token_id": 0,"#, 1));
    let padded = llama("model: llama2_7b").unwrap();
    assert_eq!(padded.pad_token_id, Some(0));

    // Nor does what ends a text.
    let generation = dir.path().join("generation_config.json");
    std::fs::write(&generation, r#"{"eos_token_id": [2, 7]}"#).unwrap();
    let ended = llama("model: llama2_7b").unwrap();
    assert_eq!(ended.eos_token_ids, [2, 7]);

    write(json(1e6));
    let error = llama("model: llama2_7b").unwrap_err().to_string();
    assert!(
        error.contains("(rope_theta is 1000000.0, not 10000.0)"),
        "{error}"
    );
    assert!(error.contains("model=auto"), "{error}");
    assert_eq!(llama("model: auto").unwrap().rope_base, 1e6);
}

#[test]
fn the_larger_examples_load() {
    let config = example("llama2_13b_lora.yaml");
    assert_eq!((config.model, config.lora_rank), (ModelSize::Llama2_13b, 8));
    assert!(config.enable_activation_checkpointing);
    let config = example("llama2_70b_lora.yaml");
    assert_eq!(
        (config.model, config.lora_rank),
        (ModelSize::Llama2_70b, 16)
    );
    assert!(config.apply_lora_to_mlp && config.enable_activation_checkpointing);
}

#[test]
fn every_llama2_example_spells_out_every_key() {
    let folder = repository().join("examples/configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        RecipeConfig::from_file(&path, &[]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        if !path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("llama2")
        {
            continue;
        }
        for key in RecipeConfig::keys() {
            let last = key.name().rsplit('.').next().unwrap();
            let written = text
                .lines()
                .any(|l| l.trim_start().starts_with(&format!("{last}:")));
            assert!(written, "{} lacks {}", path.display(), key.name());
        }
        count += 1;
    }
    assert!(count >= 3);
}

#[test]
fn the_tutorials_second_experiment_is_four_overrides_away() {
    let path = repository().join("examples/configs/llama2_7b_lora.yaml");
    let overrides = [
        "lora_attn_modules=[q_proj,k_proj,v_proj,output_proj]",
        "lora_rank=32",
        "lora_alpha=64",
        "output_dir=./lora_experiment_1",
    ]
    .map(String::from);
    let config = RecipeConfig::from_file(path, &overrides).unwrap();
    assert_eq!(config.lora_attn_modules.len(), 4);
    assert_eq!((config.lora_rank, config.lora_alpha), (32, 64.0));
    assert_eq!(config.output_dir, PathBuf::from("./lora_experiment_1"));
    assert_eq!(config.model, ModelSize::Llama2_7b);
}

#[test]
fn other_spellings_mean_the_same() {
    let config = read("lora_attn_modules: [o_proj, q_proj, output_proj]\ndtype: fp16").unwrap();
    assert_eq!(
        config.lora_attn_modules,
        [AttnModule::QProj, AttnModule::OutputProj]
    );
    assert_eq!(config.dtype, Precision::F16);
    assert_eq!(overridden(&["dtype=fp32"]).unwrap().dtype, Precision::F32);
    let nested = read("optimizer:\n  lr: 0.1\n  betas: [0.8, 0.95]\n").unwrap();
    let dotted = read("optimizer.lr: 0.1\noptimizer.betas: [0.8, 0.95]\n").unwrap();
    assert_eq!(nested, dotted);
}

#[test]
fn a_missing_file_is_named() {
    let error = RecipeConfig::from_file("no/such/recipe.yaml", &[]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(error.to_string().starts_with("no/such/recipe.yaml: "));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        rank in 1_usize..512,
        alpha in 1e-3_f64..1e3,
        lr in 0.0_f64..1.0,
        eps in 1e-12_f64..1e-3,
        betas in [0.0_f64..1.0, 0.0_f64..1.0],
        seed in any::<u64>(),
        clip in proptest::option::of(1e-3_f64..10.0),
        steps in proptest::option::of(1_usize..1000),
        mask in 1_usize..16,
        // Texts that YAML would read as something else have to be quoted.
        path in prop_oneof![
            "[a-zA-Z0-9_./ #:'\"\\\\{}\\[\\]&*!|>%@`é-]{1,20}",
            "(null|true|no|~|1e3|007|0x1F|\\.nan|- a|a: b|2024-01-01)",
        ],
    ) {
        prop_assume!(!path.trim().is_empty());
        // Read, it is the home folder, which `./~` is not.
        let path = if path == "~" { "./~".to_owned() } else { path };
        let all = [AttnModule::QProj, AttnModule::KProj, AttnModule::VProj, AttnModule::OutputProj];
        let chosen = (0..4).filter(|i| mask & (1 << i) != 0).map(|i| all[i]).collect();
        let mut config = RecipeConfig::default();
        config.lora_attn_modules = chosen;
        (config.lora_rank, config.lora_alpha) = (rank, alpha);
        (config.optimizer.lr, config.optimizer.betas, config.optimizer.eps) = (lr, betas, eps);
        (config.optimizer.weight_decay, config.optimizer.loraplus_lr_ratio) = (0.1, 4.0);
        (config.seed, config.clip_grad_norm, config.max_steps_per_epoch) = (seed, clip, steps);
        config.output_dir = path.clone().into();
        config.device = path.clone();
        config.dataset = Some(path.into());
        prop_assert_eq!(read(&config.to_yaml()).unwrap(), config);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}", key in "[a-z_.]{0,20}") {
        // Either outcome is fine, what matters is that there is one.
        let _ = read(&text);
        let _ = read(&format!("{key}: {text}"));
        let _ = overridden(&[&text, &format!("{key}={text}")]);
    }
}

/// No key of the adapters, the order of the records or the training is left aside.
#[test]
fn every_key_reaches_what_it_configures() {
    let text = "\
lora_attn_modules: [k_proj]
apply_lora_to_mlp: true
apply_lora_to_output: true
lora_rank: 3
lora_alpha: 5
lora_dropout: 0.25
use_dora: true
use_rslora: true
exclude_modules: .*1.*
layers_to_transform: [0, 2]
modules_to_save: [norm]
trainable_token_indices: {embed_tokens: [3]}
rank_pattern: {layers.1.attn.k_proj: 2, k_proj: 4}
alpha_pattern: {k_proj: 1.5}
init_lora_weights: gaussian
bias: all
freeze_a: true
batch_size: 6
gradient_accumulation_steps: 7
max_steps_per_epoch: 9
shuffle: false
seed: 11
optimizer: {lr: 0.5, weight_decay: 0.125, betas: [0.75, 0.625], eps: 0.25, loraplus_lr_ratio: 16}
lr_scheduler: {kind: linear, num_warmup_steps: 13}
clip_grad_norm: 2.5
enable_activation_checkpointing: true
";
    let config = read(text).unwrap();
    let lora = LoRAConfig::new([AttnModule::KProj])
        .with_mlp(true)
        .with_output(true)
        .with_rank(3)
        .with_alpha(5.0)
        .with_dropout(0.25)
        .with_dora(true)
        .with_rslora(true)
        .with_exclude(Targets::pattern(".*1.*"))
        .with_layers([0, 2])
        .with_modules_to_save(["norm"])
        .with_trainable_tokens("embed_tokens", [3])
        .with_rank_pattern([("layers.1.attn.k_proj", 2), ("k_proj", 4)])
        .with_alpha_pattern([("k_proj", 1.5)])
        .with_init(Init::Gaussian)
        .with_bias(TrainedBias::All)
        .with_frozen_a(true);
    assert_eq!(config.lora(), lora);
    let llama = LlamaConfig::llama2_7b();
    let options = SftOptions::new(4096, 32000)
        .with_batch_size(6)
        .with_accumulation_steps(7)
        .with_max_steps_per_epoch(Some(9))
        .with_shuffle(false)
        .with_seed(11)
        .with_folder(config.output_dir.clone());
    assert_eq!(config.sft_options(&llama), options);
    let adamw = AdamWConfig::default()
        .with_betas((0.75, 0.625))
        .with_eps(0.25)
        .with_weight_decay(0.125);
    let schedule = LrSchedule {
        kind: ScheduleKind::Linear,
        lr: 0.5,
        warmup_steps: 13,
        total_steps: 50,
    };
    let trainer = Trainer::new(adamw, schedule)
        .with_max_grad_norm(Some(2.5))
        .with_activations(Activations::Recompute { layers: 1 })
        .with_lr_factor("lora_b.weight", 16.0)
        .with_seed(11);
    assert_eq!(format!("{:?}", config.trainer(50)), format!("{trainer:?}"));
}

#[test]
fn what_the_model_does_not_have_is_told_by_key() {
    let tiny = repository().join("examples/assets/tiny");
    for (setting, expected) in [
        (
            "target_modules=[q_prj]",
            "target_modules: no module is called `q_prj`; did you mean `q_proj`?",
        ),
        (
            "exclude_modules=[q_prj]",
            "exclude_modules: no module is called `q_prj`; did you mean `q_proj`?",
        ),
        (
            "layers_to_transform=[0, 99]",
            "layers_to_transform: the model has no layer 99; its layers are 0 to 3",
        ),
        (
            "rank_pattern={q_prj: 4}",
            "rank_pattern: no module is called `q_prj`; did you mean `q_proj`?",
        ),
        (
            "modules_to_save=[lm_hed]",
            "modules_to_save: no module is called `lm_hed`; did you mean `lm_head`?",
        ),
    ] {
        let config = overridden(&[setting]).unwrap();
        let error = config.load_model(&tiny, &config.lora(), &Device::default());
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

// Overrides.

#[test]
fn overrides_win_over_the_file_and_later_ones_over_earlier_ones() {
    let overrides = ["lora_rank=4", "optimizer.lr=1e-3", "lora_rank=2"].map(String::from);
    let text = "lora_rank: 16\noptimizer:\n  lr: 1\n  eps: 1e-6\n";
    let config = RecipeConfig::from_yaml(text, "run.yaml", &overrides).unwrap();
    assert_eq!(config.lora_rank, 2);
    assert_eq!((config.optimizer.lr, config.optimizer.eps), (1e-3, 1e-6));
}

#[test]
fn an_override_may_set_a_whole_section_or_unset_a_key() {
    let config = overridden(&["optimizer={lr: 1e-3, betas: [0.8, 0.9]}"]).unwrap();
    assert_eq!(
        (config.optimizer.lr, config.optimizer.betas),
        (1e-3, [0.8, 0.9])
    );
    assert_eq!(config.optimizer.weight_decay, 0.01);

    let set = overridden(&[
        "clip_grad_norm=1",
        "tokenizer=a=b.json",
        "save_every_n_steps=5",
    ]);
    let set = set.unwrap();
    assert_eq!(set.clip_grad_norm, Some(1.0));
    assert_eq!(set.tokenizer, Some("a=b.json".into()));
    let unset = ["clip_grad_norm=null", "tokenizer=", "save_every_n_steps=~"].map(String::from);
    assert_eq!(set.with_overrides(&unset).unwrap(), RecipeConfig::default());
}

#[test]
fn a_bad_override_is_told_from_a_line_of_the_file() {
    let message = |text| overridden(&[text]).unwrap_err().to_string();
    assert_eq!(
        message("lora_rnk=8"),
        "command line: unknown key `lora_rnk`; did you mean `lora_rank`?"
    );
    assert_eq!(
        message("optimizer={lr: 1, epsilon: 2}"),
        "command line: unknown key `optimizer.epsilon`; did you mean `optimizer.eps`?"
    );
    assert_eq!(
        message("lora_rank"),
        "command line: `lora_rank` is not of the form key=value"
    );
    assert!(
        message("lora_attn_modules=[q_proj")
            .starts_with("command line: the value of `lora_attn_modules` is not YAML: ")
    );
}

// Errors.

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    let text = "# a comment\nmodel: auto\n\nbatchsize: 4\n";
    let error = read(text).unwrap_err();
    let Error::Config {
        origin,
        key,
        line,
        nearest,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (origin.as_str(), key.as_str(), *line),
        ("run.yaml", "batchsize", Some(4))
    );
    assert_eq!(nearest, &["batch_size"]);
    assert_eq!(
        error.to_string(),
        "run.yaml (line 4): unknown key `batchsize`; did you mean `batch_size`?"
    );
    assert_eq!(
        complaint("optimizer:\n  lr: 1e-3\n  beta: [0.9, 0.99]\n"),
        "run.yaml (line 3): unknown key `optimizer.beta`; did you mean `optimizer.betas`?"
    );
    assert_eq!(
        complaint("lr: 1e-3"),
        "run.yaml (line 1): unknown key `lr`; did you mean `optimizer.lr`?"
    );
    assert_eq!(complaint("qqq: 1"), "run.yaml (line 1): unknown key `qqq`");
}

#[test]
fn a_bad_value_names_what_is_accepted() {
    for (text, expected) in [
        (
            "lora_rank: 0",
            "`lora_rank` is 0, expected a whole number from 1 to 10⁹",
        ),
        (
            "lora_rank: eight",
            "`lora_rank` is \"eight\", expected a whole number from 1 to 10⁹",
        ),
        (
            "lora_rank: 8.5",
            "`lora_rank` is 8.5, expected a whole number from 1 to 10⁹",
        ),
        (
            "lora_rank: null",
            "`lora_rank` is null, expected a whole number from 1 to 10⁹",
        ),
        (
            "batch_size: 0",
            "`batch_size` is 0, expected a whole number from 1 to 10⁹",
        ),
        (
            "batch_size: -2",
            "`batch_size` is -2, expected a whole number from 1 to 10⁹",
        ),
        (
            "epochs: 0",
            "`epochs` is 0, expected a whole number from 1 to 10⁹",
        ),
        // From here on the steps of a run would be no number.
        (
            "epochs: 1000000000000000000",
            "`epochs` is 1000000000000000000, expected a whole number from 1 to 10⁹",
        ),
        (
            "lora_alpha: 1e308",
            "`lora_alpha` is 1e+308, expected a number above 0",
        ),
        (
            "lora_dropout: 1.0",
            "`lora_dropout` is 1.0, expected a number from 0 to below 1",
        ),
        (
            "lora_dropout: -0.1",
            "`lora_dropout` is -0.1, expected a number from 0 to below 1",
        ),
        (
            "lora_alpha: 0",
            "`lora_alpha` is 0, expected a number above 0",
        ),
        (
            "clip_grad_norm: 0",
            "`clip_grad_norm` is 0, expected a number above 0, or null",
        ),
        (
            "train_on_input: yes",
            "`train_on_input` is \"yes\", expected true or false",
        ),
        ("output_dir: ''", "`output_dir` is \"\", expected a path"),
        (
            "dataset: [a, b]",
            "`dataset` is [\"a\",\"b\"], expected a path, or null",
        ),
        (
            "max_seq_len: 1",
            "`max_seq_len` is 1, expected a whole number from 2 to 10⁹, or null",
        ),
        (
            "lora_attn_modules: [q]",
            "`lora_attn_modules` is [\"q\"], \
             expected a list of q_proj, k_proj, v_proj, output_proj; did you mean `q_proj`?",
        ),
        (
            "optimizer: adamw",
            "`optimizer` is \"adamw\", expected keys below it: lr, weight_decay, betas, eps, \
             loraplus_lr_ratio",
        ),
    ] {
        assert_eq!(complaint(text), format!("run.yaml (line 1): {expected}"));
    }
    for (line, key, expected) in [
        (
            "lr: -1e-3",
            "lr",
            "is -0.001, expected a number, at least 0",
        ),
        (
            "lr: .nan",
            "lr",
            "is \".nan\", expected a number, at least 0",
        ),
        ("eps: 0", "eps", "is 0, expected a number above 0"),
        // Zero in f32.
        ("eps: 1e-50", "eps", "is 1e-50, expected a number above 0"),
        (
            "betas: [0.9]",
            "betas",
            "is [0.9], expected two numbers from 0 to below 1",
        ),
        (
            "betas: [0.9, 1.0]",
            "betas",
            "is [0.9,1.0], expected two numbers from 0 to below 1",
        ),
    ] {
        assert_eq!(
            complaint(&format!("optimizer:\n  {line}")),
            format!("run.yaml (line 2): `optimizer.{key}` {expected}")
        );
    }
}

/// Each key at the ends of what is a number: it is refused by its name, or what follows from it is a plan of numbers.
#[test]
fn numbers_that_are_none_to_train_with() {
    let edges = [
        "0",
        "-1",
        "-0.0",
        "1e-46",
        "1e18",
        "1e38",
        "1e39",
        "1e308",
        "1000000000",
        "18446744073709551616",
        ".nan",
        ".inf",
    ];
    let llama = read_hf_config(repository().join("tests/fixtures/golden/gqa")).unwrap();
    let device = Device::default();
    let mut taken = 0;
    for key in RecipeConfig::keys() {
        for edge in edges {
            let (name, set) = (key.name(), format!("{}={edge}", key.name()));
            let config = match overridden(&[&set]) {
                Ok(config) => config,
                Err(error) => {
                    let error = error.to_string();
                    let section = name.split('.').next().unwrap();
                    let is_named = error.contains(&format!("`{section}"));
                    // A key may be a path.
                    assert!(
                        is_named || error.contains(&format!("{edge}: ")),
                        "{set}: {error}"
                    );
                    continue;
                }
            };
            taken += 1;
            let trainer = config.trainer(1000);
            for step in [0, 1, 500, 999] {
                let lr = trainer.schedule.lr_at(step);
                assert!(
                    lr.is_finite() && lr >= 0.0,
                    "{set}: a learning rate of {lr}"
                );
            }
            let lora = config.lora();
            let length = config.sft_options(&llama).context_len;
            let plan = config.estimate_config(&llama, BTreeMap::new(), &lora, length, &device);
            if let Ok(plan) = plan {
                assert!(estimate(&plan).total() > 0, "{set}");
            }
            let checked = config
                .check_adapters(&llama, &lora)
                .map_err(|error| error.to_string());
            assert_ne!(checked, Err(String::new()), "{set}");
        }
    }
    assert!(taken > 50, "{taken}");
}

#[test]
fn an_unknown_word_names_the_nearest_one() {
    assert_eq!(
        complaint("model: llama2_7B"),
        "run.yaml (line 1): `model` is \"llama2_7B\", \
         expected auto, llama2_7b, llama2_13b or llama2_70b; did you mean `llama2_7b`?"
    );
    assert_eq!(
        complaint("lora_attn_modules:\n- q_proj\n- kproj\n"),
        "run.yaml (line 1): `lora_attn_modules` is [\"q_proj\",\"kproj\"], expected a list \
         of q_proj, k_proj, v_proj, output_proj; did you mean `k_proj`?"
    );
    assert_eq!(
        complaint("\nlr_scheduler: {kind: cosin}"),
        "run.yaml (line 2): `lr_scheduler.kind` is \"cosin\", \
         expected cosine, linear or constant; did you mean `cosine`?"
    );
}

#[test]
fn a_key_set_twice_names_both_lines() {
    assert_eq!(
        complaint("seed: 1\nepochs: 1\nseed: 2\n"),
        "run.yaml (line 3): `seed` is set already on line 1"
    );
    assert_eq!(
        complaint("optimizer.lr: 1\noptimizer:\n  lr: 2\n"),
        "run.yaml (line 3): `optimizer.lr` is set already on line 1"
    );
    assert_eq!(
        complaint("optimizer:\n  lr: 1e-3\nseed: 1\noptimizer:\n  eps: 1e-8\n"),
        "run.yaml (line 4): `optimizer` is set already on line 1"
    );
    assert_eq!(
        complaint("rank_pattern:\n  q_proj: 4\n  q_proj: 8\n"),
        "run.yaml (line 3): `rank_pattern.q_proj` is set already on line 2"
    );
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    assert_eq!(
        complaint("validation_dataset: v.json\nvalidation_split: 0.1\n"),
        "run.yaml (line 2): `validation_split` and `validation_dataset` exclude each other, \
         keep one of them"
    );
    let error = overridden(&["run_val_every_n_steps=10"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: `run_val_every_n_steps` needs records to validate on, \
         set `validation_dataset` or `validation_split` too"
    );
    overridden(&["run_val_every_n_steps=10", "validation_split=0.1"]).unwrap();
    let error = overridden(&["packed=true"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: `packed` needs the length of the rows that records share, \
         set `max_seq_len` too"
    );
    overridden(&["packed=true", "max_seq_len=2048"]).unwrap();
    let error =
        overridden(&["packed=true", "max_seq_len=2048", "group_by_length=true"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: `group_by_length` and `packed` exclude each other: rows that are packed are all about as long"
    );
    let error = overridden(&["lora_attn_modules=[]"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: no layer has an adapter, name some in `lora_attn_modules`, \
         or set `apply_lora_to_mlp` or `apply_lora_to_output` too"
    );
    overridden(&["lora_attn_modules=[]", "apply_lora_to_mlp=true"]).unwrap();
}

#[test]
fn text_that_is_not_yaml_names_line_and_column() {
    for (text, place) in [
        ("seed: 1\nlora_attn_modules: [q_proj\n", "line 2, column 20"),
        ("seed: 1\n  epochs: 2\n", "line 2, column 9"),
        ("dataset: *nowhere\n", "line 1, column 10"),
    ] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("run.yaml: "), "{message}");
        assert!(message.contains(place), "{message}");
    }
    assert_eq!(
        complaint("- a\n- b\n"),
        "run.yaml: expected a line `key: value` for each setting"
    );
}

#[test]
fn a_beginning_may_have_a_number() {
    let begins = |value: &str| overridden(&[&format!("init_lora_weights={value}")]);
    let randomized = Init::PissaRandomized { iterations: 16 };
    for (word, init) in [
        ("pissa_niter_16", randomized),
        ("true", Init::Kaiming),
        ("eva", Init::Eva),
    ] {
        let config = begins(word).unwrap();
        assert_eq!(config.lora().init, init);
        assert_eq!(read(&config.to_yaml()).unwrap(), config);
    }
    for value in ["false", "pissa_niter_", "pissa_niter_N", "corda", "3"] {
        let error = begins(value).unwrap_err().to_string();
        let all =
            "expected kaiming, gaussian, orthogonal, pissa, pissa_niter_N, olora, eva or loftq";
        assert!(error.contains(all), "{error}");
    }
    assert_eq!(
        complaint("lora_rank: 7\ninit_lora_weights: orthogonal\n"),
        "run.yaml (line 1): `lora_rank`: orthogonal first values need an even rank"
    );
}

#[test]
fn a_vocabulary_is_quantized_with_the_linear_layers() {
    let message = complaint("seed: 3\nquantize_vocabulary: true\n");
    let expected = "run.yaml (line 2): `quantize_vocabulary` goes with the linear layers, set `quantize_base` to nf4 or int8 \
                    too";
    assert_eq!(message, expected);
    let config = overridden(&["quantize_vocabulary=true", "quantize_base=int8"]).unwrap();
    let format = BaseFormat::from(Quantization::Int8).with_packed_vocabulary(true);
    assert_eq!(config.base_format(), format.with_kept_packing(true));
}

#[test]
fn into_what_an_adapter_is_merged() {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");
    let config = |settings: &[&str]| overridden(settings).unwrap();
    let packed = config(&["quantize_base=int8"]);
    assert!(packed.merges_into_files(tiny.as_ref()));
    assert!(!packed.merges_into_files("model.gguf".as_ref()));
    assert!(!config(&[]).merges_into_files(tiny.as_ref()));
    let loftq = config(&["quantize_base=int8", "init_lora_weights=loftq"]);
    assert!(!loftq.merges_into_files(tiny.as_ref()));
    let mut begun = packed;
    begun.adapter_checkpoint = Some("adapter".into());
    assert!(!begun.merges_into_files(tiny.as_ref()));
}

#[test]
fn loftq_is_for_a_quantized_base() {
    let message = complaint("seed: 3\ninit_lora_weights: loftq\n");
    let expected = "run.yaml (line 2): `init_lora_weights` is loftq, which makes up for the error of packing dense \
                    weights; set `quantize_base` to nf4 or int8 too, and `checkpoint_dir` to the original folder if \
                    yours is packed";
    assert_eq!(message, expected);
    let config = overridden(&["init_lora_weights=loftq", "quantize_base=nf4"]).unwrap();
    assert_eq!(config.lora().init, Init::Loftq);
    assert_eq!(read(&config.to_yaml()).unwrap(), config);
}

// An adapter to begin with.

/// A PEFT folder's configuration.
fn folder(fields: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), fields.to_string()).unwrap();
    dir
}

fn beginning_with(path: &Path, text: &str) -> Result<RecipeConfig, Error> {
    let checkpoint = format!("adapter_checkpoint={}", path.display());
    RecipeConfig::from_yaml(text, "run.yaml", &[checkpoint])
}

#[test]
fn an_adapter_says_what_it_is_like() {
    let dir = folder(json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 6, "lora_dropout": 0.25, "bias": "all",
        "target_modules": ["v_proj", "down_proj"], "exclude_modules": ["layers.0.mlp.down_proj"],
        "use_dora": true, "use_rslora": true, "modules_to_save": ["lm_head"],
        "layers_to_transform": [0, 2], "layers_pattern": "layers",
        "rank_pattern": { "v_proj": 2 }, "alpha_pattern": { "down_proj": 3 },
        "trainable_token_indices": [5, 7], "init_lora_weights": "gaussian",
    }));
    let config = beginning_with(dir.path(), "freeze_a: true\n").unwrap();
    let lora = config.adapter_config().unwrap();
    let expected = read_peft_config(dir.path()).unwrap();
    assert_eq!(lora, expected.with_frozen_a(true));
    assert_eq!(lora.layers_pattern, ["layers"]);
    // As far as keys can say it, the configuration that a run writes does.
    assert_eq!(
        (config.lora_rank, config.lora_alpha, config.use_dora),
        (4, 6.0, true)
    );
    assert_eq!(config.rank_pattern["v_proj"], 2);
    let targets = Modules::Names(vec!["down_proj".into(), "v_proj".into()]);
    assert_eq!(config.target_modules, Some(targets));
    assert_eq!(
        beginning_with(dir.path(), &config.to_yaml()).unwrap(),
        config
    );
    let mut new = config.clone();
    new.adapter_checkpoint = None;
    assert_eq!(new.adapter_config().unwrap(), config.lora());
}

#[test]
fn keys_that_describe_another_adapter_are_refused() {
    let dir = folder(json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"],
    }));
    let begin = |text| beginning_with(dir.path(), text);
    // The same in other words, and what a training may do otherwise.
    let same = "lora_attn_modules: [output_proj, q_proj]\nlora_rank: 4\nlora_dropout: 0.1\n\
                init_lora_weights: orthogonal\n";
    let config = begin(same).unwrap();
    assert_eq!((config.lora_alpha, config.lora_dropout), (8.0, 0.1));
    assert_eq!(config.adapter_config().unwrap().dropout, 0.1);
    let error = begin("seed: 3\nlora_rank: 8\nuse_dora: true\n")
        .unwrap_err()
        .to_string();
    let expected = "run.yaml (line 2): `lora_rank` is 8, the adapter's 4; `use_dora` is true, the \
                    adapter's false; leave such keys out to go on with the adapter in ";
    assert!(error.starts_with(expected), "{error}");
    for (text, part) in [
        (
            "lora_attn_modules: [q_proj]",
            "is [q_proj], the adapter's [o_proj, q_proj]",
        ),
        ("apply_lora_to_mlp: true", "down_proj"),
        ("target_modules: all-linear", "is all-linear"),
        ("rank_pattern: {q_proj: 2}", "{q_proj: 2}, the adapter's {}"),
        ("modules_to_save: [norm]", "is [norm], the adapter's []"),
        (
            "init_lora_weights: pissa",
            "is pissa, the adapter's kaiming",
        ),
        ("init_lora_weights: eva", "is eva"),
        ("init_lora_weights: loftq", "is loftq"),
    ] {
        let error = begin(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_adapter_that_is_gone_stops_only_a_new_run() {
    let gone = Path::new("no/such/adapter");
    let error = beginning_with(gone, "").unwrap_err();
    assert!(error.to_string().contains("no/such/adapter"), "{error}");
    beginning_with(gone, "resume_from_checkpoint: true\n").unwrap();
}

// Resuming.

#[test]
fn the_difference_names_key_old_and_new_value() {
    let new = overridden(&[
        "lora_rank=32",
        "optimizer.betas=[0.8,0.9]",
        "clip_grad_norm=1",
    ]);
    assert_eq!(
        RecipeConfig::default().difference(&new.unwrap()),
        [
            "`lora_rank` was 8, now 32",
            "`clip_grad_norm` was null, now 1.0",
            "`optimizer.betas` was [0.9, 0.999], now [0.8, 0.9]",
        ]
    );
}

#[test]
fn what_does_not_change_the_training_is_no_difference() {
    let new = overridden(&[
        "output_dir=elsewhere",
        "log_every_n_steps=7",
        "log_peak_memory_stats=false",
        "save_every_n_steps=3",
        "keep_last_n_checkpoints=2",
        "save_adapter_weights_only=true",
        "checkpoint_dir=b",
        "base_model_name=me/b",
        "epochs=2",
        "dataset=d.json",
        "validation_dataset=v.json",
        "overwrite_output_dir=true",
        "report_samples=0",
        "run_val_every_n_steps=9",
        "best_checkpoint=save",
        "skip_nonfinite_steps=2",
        "early_stopping_patience=2",
        "save_every_epoch=true",
        "resume_from_checkpoint=true",
        "device=cuda:1",
    ]);
    let mut new = new.unwrap();
    new.adapter_checkpoint = Some("adapter".into());
    assert!(RecipeConfig::default().difference(&new).is_empty());
    for name in [
        "epochs",
        "seed",
        "tokenizer",
        "validation_split",
        "max_steps_per_epoch",
        "dtype",
    ] {
        assert!(find(name).binds_resume(), "{name}");
    }
}

#[test]
fn two_paths_of_one_folder_are_no_difference() {
    let folder = repository().join("examples");
    let detour = folder.join("../examples");
    let config = |dir: &Path| overridden(&[&format!("tokenizer={}", dir.display())]).unwrap();
    assert!(config(&folder).difference(&config(&detour)).is_empty());
    let other = config(&repository().join("src"));
    assert_eq!(config(&folder).difference(&other).len(), 1);
}

#[test]
fn an_epoch_less_is_a_difference() {
    let of = |epochs: usize| overridden(&[&format!("epochs={epochs}")]).unwrap();
    assert_eq!(of(3).difference(&of(2)), ["`epochs` was 3, now 2"]);
    assert!(of(2).difference(&of(3)).is_empty());
}

#[test]
fn where_a_run_goes_on() {
    for (value, expected) in [
        ("false", Resume::No),
        ("true", Resume::Last),
        ("auto", Resume::Auto),
        (
            "run/checkpoints/step_3",
            Resume::From("run/checkpoints/step_3".into()),
        ),
    ] {
        let config = overridden(&[&format!("resume_from_checkpoint={value}")]).unwrap();
        assert_eq!(config.resume_from_checkpoint, expected);
        assert_eq!(read(&config.to_yaml()).unwrap(), config);
        assert!(
            config
                .to_yaml()
                .contains(&format!("resume_from_checkpoint: {value}\n"))
        );
    }
    let error = complaint("resume_from_checkpoint: 3");
    assert!(
        error.contains("expected true, false, auto or a path"),
        "{error}"
    );
}

#[test]
fn products_are_rounded_with_narrow_bases_where_that_is_faster_or_where_it_is_asked() {
    let device = Device::default();
    let with = |settings: &[&str], packed: &BTreeMap<String, BlockFormat>| {
        let settings: Vec<_> = settings.iter().map(|setting| setting.to_string()).collect();
        let config = RecipeConfig::default().with_overrides(&settings).unwrap();
        config.matmul_precision_for(packed, &device)
    };
    let dense = BTreeMap::new();
    let packed = BTreeMap::from([("layers.0.mlp.w1".to_string(), BlockFormat::Q4K)]);
    let faster = MatmulPrecision::for_base(&device, true);
    assert_eq!(with(&["dtype=bf16"], &dense), faster);
    assert_eq!(with(&["quantize_base=nf4"], &dense), faster);
    assert_eq!(with(&[], &packed), faster);
    for exact in [&[][..], &["dtype=f16"]] {
        assert_eq!(with(exact, &dense), MatmulPrecision::Highest);
    }
    for (name, precision) in [
        ("highest", MatmulPrecision::Highest),
        ("medium", MatmulPrecision::Medium),
    ] {
        let asked = format!("matmul_precision={name}");
        assert_eq!(with(&[&asked, "dtype=bf16"], &packed), precision);
        assert_eq!(with(&[&asked], &dense), precision);
    }
}

#[test]
fn the_home_folder_in_paths() {
    let home = std::env::home_dir().unwrap();
    let text = "checkpoint_dir: ~/base\ndataset: ~/a.json,b.json, ~/c.json\noutput_dir: '~'\ntokenizer: ~me/~/x\n\
                resume_from_checkpoint: ~/run\nchat_template: ~/t.jinja\n";
    let config = read(text).unwrap();
    assert_eq!(config.checkpoint_dir, Some(home.join("base")));
    let [first, last] = ["a.json", "c.json"].map(|name| home.join(name).display().to_string());
    assert_eq!(
        config.dataset,
        Some(format!("{first},b.json,{last}").into())
    );
    assert_eq!(config.output_dir, home);
    // Whose home that is, and what the character is within a path, is the shell's to know.
    assert_eq!(config.tokenizer, Some("~me/~/x".into()));
    assert_eq!(
        config.resume_from_checkpoint,
        Resume::From(home.join("run"))
    );
    assert_eq!(
        config.chat_template,
        home.join("t.jinja").to_str().map(str::to_owned)
    );
}

#[test]
fn other_names_for_a_word_and_one_word_for_a_list() {
    for (name, dtype) in [
        ("float32", Precision::F32),
        ("bfloat16", Precision::Bf16),
        ("float16", Precision::F16),
    ] {
        assert_eq!(
            overridden(&[&format!("dtype={name}")]).unwrap().dtype,
            dtype
        );
    }
    let config = overridden(&["lora_attn_modules=k_proj"]).unwrap();
    assert_eq!(config.lora_attn_modules, [AttnModule::KProj]);
}
