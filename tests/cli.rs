//! The program `burn-peft`, called as a user calls it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use burn_peft::training::recipe::RecipeConfig;
use serde_json::json;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets/tiny");

/// What the program prints, with these arguments and this input.
fn called(arguments: &[&str], input: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_burn-peft"));
    let program = program.args(arguments);
    let program = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    // One that ends before it has read all of it is told of below.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn output(arguments: &[&str], input: &str) -> String {
    let output = called(arguments, input);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_fails(arguments: &[&str], complaint: &str) {
    let output = called(arguments, "");
    assert!(!output.status.success(), "{arguments:?}");
    let found = String::from_utf8(output.stderr).unwrap();
    assert!(
        found.starts_with("error: ") && found.contains(complaint),
        "{found}"
    );
}

fn joined<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

/// From the training to what other programs take.
#[test]
fn an_adapter_is_trained_asked_evaluated_merged_and_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (run, adapter) = (path("run"), path("run/adapter"));
    let settings = [
        format!("checkpoint_dir={TINY}"),
        format!("dataset={TINY}/alpaca_train.json"),
        format!("output_dir={run}"),
    ];
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.extend(["max_seq_len=128", "report_samples=1"]);
    let told = output(
        &joined(&[&["train"], &settings, &["--max_steps_per_epoch=2"]]),
        "",
    );
    assert!(told.contains("2 steps an epoch, 2 in all"), "{told}");
    let told = output(&joined(&[&["plan"], &settings]), "");
    assert!(told.contains("2 rows of 128 tokens"), "{told}");
    assert!(told.contains("Estimated memory"), "{told}");

    let question = "What is a tyre made of?";
    let of_model: &[&str] = &["--model", TINY, "--adapter", &adapter];
    let told = output(&joined(&[&["generate"], of_model, &[question]]), "");
    assert!(!told.trim().is_empty());
    let records = format!("{TINY}/alpaca_heldout.json");
    let told = output(
        &joined(&[&["evaluate"], of_model, &["--records", &records]]),
        "",
    );
    for text in ["base", "finetuned", "answer perplexity"] {
        assert!(told.contains(text), "{told}");
    }

    let (merged, exported, picture) = (path("merged.gguf"), path("mlx"), path("loss.svg"));
    output(&joined(&[&["merge"], of_model, &["--out", &merged]]), "");
    let told = output(&["generate", "--model", &merged, question], "");
    assert!(!told.trim().is_empty());
    output(
        &joined(&[&["export"], of_model, &["--to", "mlx", "--out", &exported]]),
        "",
    );
    assert!(Path::new(&exported).join("adapters.safetensors").exists());
    output(&["plot", &run, "-o", &picture], "");
    assert!(Path::new(&picture).exists());
}

/// Of Alpaca's records and of conversations with the same turns the scores are the same.
#[test]
fn conversations_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let records = fs::read(Path::new(TINY).join("alpaca_heldout.json")).unwrap();
    let records: Vec<serde_json::Value> = serde_json::from_slice(&records).unwrap();
    let (mut alpaca, mut chats) = (Vec::new(), Vec::new());
    for record in records.iter().take(4) {
        let instruction = &record["instruction"];
        alpaca.push(json!({"instruction": instruction, "output": record["output"]}));
        let turn = |role: &str, content| json!({"role": role, "content": content});
        let turns = [
            turn("user", instruction),
            turn("assistant", &record["output"]),
        ];
        chats.push(json!({"messages": turns}));
    }
    let scores = |name: &str, records: Vec<serde_json::Value>, template: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, serde_json::to_vec(&records).unwrap()).unwrap();
        let evaluate = ["evaluate", "--json", "--exact-match", "--model", TINY];
        let of_records = ["--records", path.to_str().unwrap()];
        output(&joined(&[&evaluate, &of_records, template]), "")
    };
    let of_chats = scores("chats.json", chats, &[]);
    assert!(of_chats.contains("exact match"), "{of_chats}");
    let chatml = ["--chat-template", "chatml"];
    assert_eq!(scores("alpaca.json", alpaca.clone(), &chatml), of_chats);
    assert_ne!(scores("alpaca.json", alpaca, &[]), of_chats);
    let texts = dir.path().join("texts.json");
    fs::write(&texts, r#"[{"text": "hello"}]"#).unwrap();
    let records = ["--records", texts.to_str().unwrap(), "--exact-match"];
    let evaluate = ["evaluate", "--model", TINY];
    assert_fails(&joined(&[&evaluate, &records]), "asks for an answer");
}

/// As under `| head -1`: a training goes on, an answer that nobody waits for does not.
#[test]
fn output_that_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let settings = [
        "train".to_owned(),
        format!("checkpoint_dir={TINY}"),
        format!("dataset={TINY}/alpaca_train.json"),
        format!("output_dir={}", run.display()),
        "max_seq_len=64".to_owned(),
        "max_steps_per_epoch=1".to_owned(),
        "report_samples=0".to_owned(),
    ];
    let unread = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_burn-peft"));
        let program = program.args(arguments).stdin(Stdio::null());
        let mut child = program
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let ended = unread(&settings.each_ref().map(String::as_str));
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{complaint}");
    assert!(
        run.join("adapter/adapter_model.safetensors").exists() && run.join("summary.json").exists()
    );
    let ended = unread(&["generate", "--model", TINY, "What is a tyre made of?"]);
    let complaint = String::from_utf8(ended.stderr).unwrap();
    assert!(
        complaint.starts_with("error: standard output: "),
        "{complaint}"
    );
    assert_eq!(ended.status.code(), Some(1));
}

#[test]
fn a_conversation_in_the_terminal() {
    let lines = "What is a tyre made of?\n\n/help\n/reset\nAnd a window?\n/quit\nnever asked\n";
    let told = output(&["chat", "--model", TINY, "--max-new-tokens", "8"], lines);
    // Two answers, and what `/help` says.
    let help = "/reset begins a new conversation, /quit ends the program\n";
    let (before, behind) = told.split_once(help).expect(&told);
    assert!(
        !before.trim().is_empty() && !behind.trim().is_empty(),
        "{told}"
    );
    // A question that has no room is told, and the conversation goes on.
    let lines = format!("{}\nWho?\n", "tyre ".repeat(300));
    let chat = ["chat", "--model", TINY, "--max-new-tokens", "4"];
    let ended = called(&chat, &lines);
    let complaint = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.success() && complaint.contains("ask a shorter one"),
        "{complaint}"
    );
    // Without `/quit` it ends with the input.
    output(
        &["chat", "--model", TINY, "--max-new-tokens", "1"],
        "Who?\n",
    );
}

#[test]
fn a_plan_for_a_model_that_is_not_there() {
    let plan = [
        "plan",
        "--preset",
        "llama2_7b",
        "max_seq_len=512",
        "quantize_base=nf4",
    ];
    assert!(output(&plan, "").contains("Estimated memory"));
    assert_fails(&["plan", "--preset", "llama9"], "llama3_1_8b");
}

/// Before anything is made of either.
#[test]
fn a_configuration_of_other_sizes_than_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let of_dir = |name: &str| dir.path().join(name);
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(TINY).join(name), of_dir(name)).unwrap();
    }
    let config = fs::read_to_string(Path::new(TINY).join("config.json")).unwrap();
    let settings = [
        format!("checkpoint_dir={}", dir.path().display()),
        format!("dataset={TINY}/alpaca_train.json"),
        format!("output_dir={}", of_dir("run").display()),
    ];
    let settings = settings.each_ref().map(String::as_str);
    for (field, other, complaint) in [
        (
            "\"num_hidden_layers\": 4",
            "\"num_hidden_layers\": 10000",
            "its configuration says 10000 layers, but its weights are those of 4",
        ),
        (
            "\"num_hidden_layers\": 4",
            "\"num_hidden_layers\": 3",
            "its configuration says 3 layers, but its weights are those of 4",
        ),
        (
            "\"intermediate_size\": 352",
            "\"intermediate_size\": 384",
            ".mlp.",
        ),
    ] {
        let changed = config.replace(field, other);
        assert_ne!(changed, config);
        fs::write(of_dir("config.json"), changed).unwrap();
        for program in ["plan", "train"] {
            assert_fails(&joined(&[&[program], &settings]), complaint);
        }
    }
}

/// The keys of a training of the tiny model that ends soon.
fn short_training(base: &str, run: &str) -> Vec<String> {
    [
        "train",
        &format!("checkpoint_dir={base}"),
        &format!("dataset={TINY}/alpaca_train.json"),
        &format!("output_dir={run}"),
        "max_seq_len=64",
        "max_steps_per_epoch=1",
        "report_samples=1",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What was learned on fewer bits is merged into the numbers of the base's files.
#[test]
fn a_base_that_is_packed_for_the_training_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (run, adapter, merged) = (path("run"), path("run/adapter"), path("merged"));
    let settings = short_training(TINY, &run);
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let warmup = "lr_scheduler.num_warmup_steps=0";
    let packed = ["quantize_base=int8", "quantize_vocabulary=true"];
    settings.extend([packed[0], packed[1], "optimizer.lr=1e-2", warmup]);
    output(&settings, "");
    let of_model = ["--model", TINY, "--adapter", &adapter];
    output(&joined(&[&["merge"], &of_model, &["--out", &merged]]), "");
    let [found, expected, base] = [&path("run/merged"), &merged, TINY]
        .map(|folder| fs::read(Path::new(folder).join("model.safetensors")).unwrap());
    assert!(found == expected && found.len() == base.len() && found != base);
}

#[test]
fn what_cannot_be_trained_or_saved_is_told_before() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run").to_str().unwrap().to_owned();
    for (settings, complaint) in [
        (&["init_lora_weights=pissa", "lora_rank=4000"][..], "4000"),
        (&["lora_bias=true"], "(save_adapter_weights_only)"),
    ] {
        let mut training = short_training(TINY, &run);
        training.extend(settings.iter().map(|setting| setting.to_string()));
        let training: Vec<&str> = training.iter().map(String::as_str).collect();
        assert_fails(&training, complaint);
        assert!(!Path::new(&run).join("metrics.jsonl").exists());
        assert_fails(&joined(&[&training, &["--dry-run"]]), complaint);
    }
    let base = format!("checkpoint_dir={TINY}");
    let plan = ["plan", &base, "init_lora_weights=pissa", "--lora_rank=4000"];
    assert_fails(&plan, "4000");
}

/// Of a base whose logits are no numbers the questions of the report are no reason to end.
#[test]
fn questions_that_have_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new(TINY).join(name), dir.path().join(name)).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..begin]).unwrap();
    let offsets = &header["model.norm.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|end| begin + offsets[end].as_u64().unwrap() as usize);
    bytes[from..to].fill(0xff); // no numbers, in any type
    fs::write(&weights, bytes).unwrap();

    let run = dir.path().join("run");
    let mut training = short_training(dir.path().to_str().unwrap(), run.to_str().unwrap());
    training.push("save_adapter_weights_only=true".to_owned());
    training.push("skip_nonfinite_steps=1".to_owned());
    let training: Vec<&str> = training.iter().map(String::as_str).collect();
    let ended = called(&training, "");
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{told}");
    assert!(told.contains("warning: no question is asked: "), "{told}");
    assert!(run.join("summary.json").exists());
}

#[test]
fn the_help_lists_every_key() {
    let told = output(&["train", "--help"], "");
    for key in RecipeConfig::keys() {
        assert!(told.contains(&format!("{}=", key.name())), "{told}");
    }
}

#[test]
fn arguments_that_say_nothing() {
    let generate = ["generate", "--model", TINY, "Who?"];
    for argument in [
        &["--top-p", "0.9"][..],
        &["--seed", "1"],
        &["--answers", "2"],
    ] {
        assert_fails(&joined(&[&generate, argument]), "--temperature above 0");
    }
    let choices = ["evaluate", "--model", TINY, "--text", "Cargo.toml"];
    assert_fails(&joined(&[&choices, &["--exact-match"]]), "--records");
}

#[test]
fn an_answer_that_is_cut_off() {
    let limit = ["--model", TINY, "--max-new-tokens", "1"];
    let told = output(&joined(&[&["chat"], &limit]), "What is a tyre made of?\n");
    assert!(told.contains("(the answer is cut off; "), "{told}");
    let ended = called(&joined(&[&["generate"], &limit, &["Who?"]]), "");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("note: the answer is cut off; "));
}

/// Beside the adapter lies the one that the training has used.
#[test]
fn the_template_of_the_training_is_that_of_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run").to_str().unwrap().to_owned();
    let training = short_training(TINY, &run);
    output(&training.iter().map(String::as_str).collect::<Vec<_>>(), "");
    let adapter = format!("{run}/adapter");
    let ask = [
        "generate",
        "--model",
        TINY,
        "--adapter",
        &adapter,
        "--chat",
        "Who?",
    ];
    output(&ask, "");
    let broken = Path::new(&adapter).join("chat_template.jinja");
    fs::write(&broken, "{{ raise_exception('that of the training') }}").unwrap();
    assert_fails(&ask, "that of the training");
    output(&joined(&[&ask, &["--chat-template", "chatml"]]), "");
}

/// There is no model and no data set that is taken if none is named.
#[test]
fn what_is_missing_is_told() {
    assert_fails(&["train"], "`checkpoint_dir` is not set");
    assert_fails(
        &["train", &format!("checkpoint_dir={TINY}")],
        "`dataset` is not set",
    );
    assert_fails(&["generate", "Who?"], "name one by --model");
    assert_fails(&["plan"], "--preset");
}
