//! What is read of users' files, each as a file of which all bytes may be anything, in a folder that is right otherwise.
//! `cargo test` changes right files at random, `fuzz/` lets libFuzzer do it.

#[path = "../support/one_step.rs"]
mod one_step;
#[allow(dead_code, reason = "shared with other tests, which use the rest")]
#[path = "../tiny_tokenizer/mod.rs"]
mod tiny_tokenizer;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use burn_peft::Result;
use burn_peft::adapter::{Adapter, initialize_adapters};
use burn_peft::checkpoint::{
    LoadOptions, ModelAdapter, SafetensorsFile, attach_any_adapter, base_fingerprint,
    copy_generation_config, load_hf, load_model, load_state_dict_file, read_adapter_config,
    read_hf_config, read_torchtune, save_adapter, save_mlx, save_torchtune,
};
use burn_peft::data::{Conversation, Format, Message, RecordEncoder, load_records};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::report::{Curves, draw_loss};
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{MetricsLog, RunDir};
use serde_json::{Map, Value, json};

use self::one_step::save_one_step;

/// A kind of file.
pub struct Target {
    /// What it is called on the command line of `cargo fuzz`.
    pub name: &'static str,
    /// The name of the file.
    file: &'static str,
    /// Writes the folder's other files.
    prepare: fn(&Path),
    /// Files of this kind that are right.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads the folder.
    read: fn(&Path) -> Result<()>,
}

impl Target {
    /// Writes what stays the same into a folder.
    pub fn prepare(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        (self.prepare)(folder);
    }

    /// The file in a folder.
    pub fn file(&self, folder: &Path) -> PathBuf {
        folder.join(self.file)
    }

    /// Reads the folder with these bytes as its file.
    pub fn read(&self, folder: &Path, bytes: &[u8]) -> Result<()> {
        fs::write(self.file(folder), bytes).unwrap();
        (self.read)(folder)
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        file: "tensors.safetensors",
        prepare: nothing,
        seeds: || {
            let quantized = ["mean", "tables", "int8"];
            fixtures(&quantized.map(|name| format!("quantization/{name}.safetensors")))
        },
        read: read_safetensors,
    },
    Target {
        name: "hf_config",
        file: "config.json",
        prepare: |dir| copy("golden/gqa/model.safetensors", dir),
        seeds: || vec![fixture("golden/gqa/config.json"), config_with(llama_keys())],
        read: read_base,
    },
    Target {
        name: "hf_families",
        file: "config.json",
        prepare: nothing,
        seeds: || {
            let families = [
                "mistral",
                "qwen2",
                "qwen3",
                "qwen3_moe",
                "smollm3",
                "olmo2",
                "granite",
                "phi3",
                "gemma2",
            ];
            let of = |family: &&str| config_with(json!({ "model_type": family }));
            families.iter().map(of).chain([gemma3()]).collect()
        },
        read: |dir| read_hf_config(dir).map(|config| drop(config.init(&device()))),
    },
    Target {
        name: "hf_generation_config",
        file: "generation_config.json",
        prepare: |dir| {
            copy("golden/gqa/model.safetensors", dir);
            copy("golden/gqa/config.json", dir);
        },
        seeds: || {
            vec![br#"{"bos_token_id": 1, "eos_token_id": [2, 7], "temperature": 0.6}"#.to_vec()]
        },
        read: |dir| {
            read_base(dir)?;
            // In its own place, which the next file takes.
            copy_generation_config(dir, dir)
        },
    },
    Target {
        name: "hf_weights",
        file: "model.safetensors",
        prepare: |dir| copy("golden/gqa/config.json", dir),
        seeds: || fixtures(&["golden/gqa/model.safetensors"]),
        read: read_base,
    },
    Target {
        name: "hf_index",
        file: "model.safetensors.index.json",
        prepare: |dir| {
            copy("golden/gqa_sharded/config.json", dir);
            for shard in 1..=5 {
                copy(
                    &format!("golden/gqa_sharded/model-0000{shard}-of-00005.safetensors"),
                    dir,
                );
            }
        },
        seeds: || fixtures(&["golden/gqa_sharded/model.safetensors.index.json"]),
        read: read_base,
    },
    Target {
        name: "gguf",
        file: "model.gguf",
        prepare: nothing,
        seeds: || {
            let families = ["llama", "mistral", "qwen2", "gemma3"];
            fixtures(&families.map(|family| format!("gguf/{family}.gguf")))
        },
        read: |dir| {
            let file = dir.join("model.gguf");
            let tokenizer = read_tokenizer(&file);
            load_model(&file, ModelAdapter::None, &options())?;
            base_fingerprint(&file)?;
            tokenizer
        },
    },
    Target {
        name: "meta_params",
        file: "params.json",
        prepare: |dir| {
            copy("meta/llama3_2/consolidated.00.pth", dir);
            copy("meta/llama3_2/tokenizer.model", dir);
        },
        seeds: || fixtures(&["meta/llama3_2/params.json"]),
        read: read_base,
    },
    Target {
        name: "meta_weights",
        file: "consolidated.00.pth",
        prepare: |dir| {
            copy("meta/llama1/params.json", dir);
            copy("meta/llama1/tokenizer.model", dir);
        },
        seeds: || fixtures(&["meta/llama1/consolidated.00.pth"]),
        read: read_base,
    },
    Target {
        name: "peft_config",
        file: "adapter_config.json",
        prepare: |dir| copy("golden/gqa/lora_qv_r8/adapter_model.safetensors", dir),
        seeds: || {
            let plain = fixture("golden/gqa/lora_qv_r8/adapter_config.json");
            let more = json!({
                "exclude_modules": ["o_proj"], "rank_pattern": {"q_proj": 8},
                "alpha_pattern": {".*v_proj": 16}, "layers_to_transform": [0, 1, 2, 3],
                "layers_pattern": "layers", "init_lora_weights": "gaussian",
            });
            let pattern = json!({"target_modules": "model.layers.(0|1|2|3).self_attn.(q|v)_proj"});
            vec![with(&plain, more), with(&plain, pattern), plain]
        },
        read: read_adapter,
    },
    Target {
        name: "peft_weights",
        file: "adapter_model.safetensors",
        prepare: |dir| copy("golden/gqa/dora_qv_r8/adapter_config.json", dir),
        seeds: || fixtures(&["golden/gqa/dora_qv_r8/adapter_model.safetensors"]),
        read: read_adapter,
    },
    Target {
        name: "adapter_file",
        file: "adapter.safetensors",
        prepare: nothing,
        seeds: || {
            vec![written(|dir| {
                save_adapter(&adapter(), dir.join("adapter.safetensors"))
            })]
        },
        read: |dir| attach_any_adapter(&mut base(), dir.join("adapter.safetensors")),
    },
    Target {
        name: "torchtune",
        file: "adapter.safetensors",
        prepare: nothing,
        seeds: || {
            vec![written(|dir| {
                save_torchtune(&adapter(), &config(), dir.join("adapter.safetensors"))
            })]
        },
        read: |dir| read_torchtune(dir.join("adapter.safetensors"), &qv(), &config()).map(drop),
    },
    Target {
        name: "mlx_config",
        file: "adapter_config.json",
        prepare: |dir| save_mlx(&adapter(), 2, dir).unwrap(),
        seeds: || {
            let dir = tempfile::tempdir().unwrap();
            save_mlx(&adapter(), 2, dir.path()).unwrap();
            vec![fs::read(dir.path().join("adapter_config.json")).unwrap()]
        },
        read: read_adapter,
    },
    Target {
        name: "tokenizer_json",
        file: "tokenizer.json",
        prepare: |dir| fs::write(dir.join("tokenizer_config.json"), tokenizer_config()).unwrap(),
        seeds: || vec![fixture(TINY), tiny_tokenizer::json().into_bytes()],
        read: read_tokenizer,
    },
    Target {
        name: "tokenizer_config",
        file: "tokenizer_config.json",
        prepare: |dir| copy(TINY, dir),
        seeds: || vec![tokenizer_config().into_bytes()],
        read: read_tokenizer,
    },
    Target {
        name: "tokenizer_model",
        file: "tokenizer.model",
        prepare: nothing,
        seeds: || {
            fixtures(&[
                "meta/llama2/tokenizer.model",
                "meta/llama3_2/tokenizer.model",
            ])
        },
        read: read_tokenizer,
    },
    Target {
        name: "chat_template",
        file: "chat_template.jinja",
        prepare: nothing,
        seeds: || {
            let mut seeds = vec![written(|dir| ChatTemplate::chatml().save(dir))];
            seeds.push(TEMPLATE.into());
            seeds
        },
        read: |dir| {
            let template = ChatTemplate::from_file(dir.join("chat_template.jinja"))?;
            template
                .for_tokenizer(&tokenizer())
                .render(&conversation(), true)
                .map(drop)
        },
    },
    Target {
        name: "data_json",
        file: "records.json",
        prepare: nothing,
        seeds: || {
            let mut seeds = fixtures(&["parquet/records.jsonl"]);
            seeds.extend(RECORDS.map(|text| text.as_bytes().to_vec()));
            seeds
        },
        read: |dir| read_records(&dir.join("records.json")),
    },
    Target {
        name: "data_csv",
        file: "records.csv",
        prepare: nothing,
        seeds: || vec![CSV.into()],
        read: |dir| read_records(&dir.join("records.csv")),
    },
    Target {
        name: "data_gzip",
        file: "records.jsonl.gz",
        prepare: nothing,
        seeds: || vec![gzip(&fixture("parquet/records.jsonl"))],
        read: |dir| read_records(&dir.join("records.jsonl.gz")),
    },
    Target {
        name: "data_zstd",
        file: "records.jsonl.zst",
        prepare: nothing,
        seeds: || {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            let records = fixture("parquet/records.jsonl");
            vec![ruzstd::encoding::compress_to_vec(&records[..], level)]
        },
        read: |dir| read_records(&dir.join("records.jsonl.zst")),
    },
    #[cfg(feature = "parquet")]
    Target {
        name: "data_parquet",
        file: "records.parquet",
        prepare: nothing,
        seeds: || {
            let codecs = ["none", "snappy", "gzip", "zstd"];
            fixtures(&codecs.map(|codec| format!("parquet/{codec}.parquet")))
        },
        read: |dir| read_records(&dir.join("records.parquet")),
    },
    Target {
        name: "recipe",
        file: "recipe.yaml",
        prepare: nothing,
        seeds: || {
            vec![
                RecipeConfig::default().to_yaml().into_bytes(),
                fixture("../../examples/configs/llama2_7b_lora.yaml"),
            ]
        },
        read: |dir| {
            let recipe = RecipeConfig::from_file(dir.join("recipe.yaml"), &[])?;
            recipe.to_yaml();
            config().init_lora(&recipe.lora(), &device()).map(drop)
        },
    },
    Target {
        name: "overrides",
        file: "arguments",
        prepare: nothing,
        seeds: || {
            vec![b"optimizer.lr=1e-3\nlora_rank=4\ntarget_modules=[q_proj, v_proj]\nrank_pattern={q_proj: 2}".into()]
        },
        read: |dir| {
            let lines = fs::read(dir.join("arguments")).unwrap();
            let lines: Vec<String> = String::from_utf8_lossy(&lines)
                .lines()
                .map(str::to_owned)
                .collect();
            RecipeConfig::default()
                .with_overrides(&lines)
                .map(|recipe| drop(recipe.to_yaml()))
        },
    },
    Target {
        name: "run_trainer",
        file: "checkpoints/step_1/trainer.json",
        prepare: make_run,
        seeds: || of_run("checkpoints/step_1/trainer.json"),
        read: go_on,
    },
    Target {
        name: "run_optimizer",
        file: "checkpoints/step_1/optimizer.safetensors",
        prepare: make_run,
        seeds: || of_run("checkpoints/step_1/optimizer.safetensors"),
        read: go_on,
    },
    Target {
        name: "run_config",
        file: "checkpoints/step_1/config.yaml",
        prepare: make_run,
        seeds: || of_run("checkpoints/step_1/config.yaml"),
        read: go_on,
    },
    Target {
        name: "run_metrics",
        file: "metrics.jsonl",
        prepare: make_run,
        seeds: || vec![METRICS.into()],
        read: |dir| {
            let log = dir.join("metrics.jsonl");
            let read = MetricsLog::read(&log);
            let curves = Curves::read(dir);
            MetricsLog::resume(&log, 2)?;
            read?;
            draw_loss(&[curves?], 0.9, dir.join("loss.svg"))
        },
    },
];

/// The target of a name, for a program of libFuzzer's: reads `bytes` in a folder of this process.
#[allow(dead_code, reason = "the programs in fuzz/ call it")]
pub fn fuzz(name: &str, bytes: &[u8]) {
    use std::sync::OnceLock;
    static FOLDER: OnceLock<(PathBuf, &Target)> = OnceLock::new();
    let (folder, target) = FOLDER.get_or_init(|| {
        let target = TARGETS.iter().find(|target| target.name == name);
        let target = target.expect("a target of this name");
        let folder = format!("burn-peft-fuzz-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        target.prepare(&folder);
        (folder, target)
    });
    let _ = target.read(folder, bytes);
}

/// From the fixtures.
const TINY: &str = "../../examples/assets/tiny/tokenizer.json";

fn device() -> Device {
    Device::default()
}

fn options() -> LoadOptions {
    LoadOptions::new(&device())
}

fn nothing(_: &Path) {}

fn path(fixture: &str) -> PathBuf {
    // The folder of this file's crate, also for the one in `fuzz/`.
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    match tests.exists() {
        true => tests.join(fixture),
        false => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures")
            .join(fixture),
    }
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn fixtures(names: &[impl AsRef<str>]) -> Vec<Vec<u8>> {
    names.iter().map(|name| fixture(name.as_ref())).collect()
}

fn copy(name: &str, dir: &Path) {
    let from = path(name);
    fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
}

/// The file that something writes into a folder.
fn written(write: impl FnOnce(&Path) -> Result<()>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).unwrap();
    let file = fs::read_dir(dir.path()).unwrap().next().unwrap();
    fs::read(file.unwrap().path()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn base() -> TransformerDecoder {
    thread_local! {
        static BASE: TransformerDecoder =
            load_model(path("golden/gqa"), ModelAdapter::None, &options()).unwrap();
    }
    BASE.with(Clone::clone)
}

fn tokenizer() -> Tokenizer {
    thread_local! {
        static TOKENIZER: Tokenizer = Tokenizer::load(path(TINY)).unwrap();
    }
    TOKENIZER.with(Clone::clone)
}

fn config() -> LlamaConfig {
    read_hf_config(path("golden/gqa")).unwrap()
}

fn qv() -> LoRAConfig {
    LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]).with_rank(2)
}

fn adapter() -> Adapter {
    let model = initialize_adapters(config().init_lora(&qv(), &device()).unwrap(), 0);
    Adapter::of(&model, DEFAULT_ADAPTER).unwrap()
}

fn conversation() -> Conversation {
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": {"city": "text"}}});
    let asked = Message::new("assistant", "")
        .with("tool_calls", json!([{"function": {"name": "weather"}}]));
    let turns = [
        Message::new("system", "You help."),
        Message::new("user", "Is it raining in <s>Turin?"),
        asked,
        Message::new("tool", "{\"rain\": true}"),
        Message::new("assistant", "Yes."),
        Message::new("user", "Thanks \u{1f327}"),
    ];
    Conversation::new(turns).with_tools(vec![weather])
}

fn read_safetensors(dir: &Path) -> Result<()> {
    let path = dir.join("tensors.safetensors");
    let file = SafetensorsFile::open(&path)?;
    for key in file.shapes().keys() {
        let _ = file.dtype(key);
        let _ = file.read(key, DType::F32);
        let _ = file.read_ints(key);
    }
    // Integers are no parameters.
    let _ = load_state_dict_file(path);
    Ok(())
}

fn read_base(dir: &Path) -> Result<()> {
    load_model(dir, ModelAdapter::None, &options())?;
    base_fingerprint(dir).map(drop)
}

fn read_adapter(dir: &Path) -> Result<()> {
    read_adapter_config(dir)?;
    attach_any_adapter(&mut base(), dir)
}

fn read_tokenizer(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::load(path)?;
    let ids = tokenizer.encode("Is it raining in <s>Turin?\n\u{1f327} \0");
    let _ = tokenizer.encode_continuation_first("yes yes", 1);
    let _ = tokenizer.decode(&[u32::MAX, 0, 1]);
    let _ = tokenizer.show(&ids.unwrap_or_default());
    if let Ok(Some(template)) = ChatTemplate::of(&tokenizer) {
        let _ = template.prompt(&conversation(), &tokenizer);
    }
    Ok(())
}

fn read_records(path: &Path) -> Result<()> {
    let tokenizer = tokenizer();
    let encoder = RecordEncoder::new(&tokenizer).with_template(Some(ChatTemplate::chatml()));
    encoder
        .encode_all(&load_records(path, Format::Auto)?)
        .map(drop)
}

fn run_recipe(dir: &Path) -> RecipeConfig {
    let mut recipe = RecipeConfig::default();
    recipe.output_dir = dir.to_owned();
    recipe.with_overrides(&["lora_rank=2".to_owned()]).unwrap()
}

/// A run of one step.
fn make_run(dir: &Path) {
    let recipe = run_recipe(dir);
    let device = device().autodiff();
    let mut model = config().init_lora(&recipe.lora(), &device).unwrap();
    load_hf(&mut model, path("golden/gqa")).unwrap();
    save_one_step(&recipe, model);
}

fn of_run(file: &str) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    make_run(dir.path());
    vec![fs::read(dir.path().join(file)).unwrap()]
}

fn go_on(dir: &Path) -> Result<()> {
    let recipe = run_recipe(dir);
    let run = RunDir::resume(&recipe)?;
    let lora = run.adapter_config()?.unwrap_or_else(|| recipe.lora());
    let mut model = config().init_lora(&lora, &device())?;
    run.load_checkpoint(&mut model, &mut recipe.trainer(10))
}

/// A text of JSON with other fields.
fn with(text: &[u8], more: Value) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(text).unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::to_vec_pretty(&fields).unwrap()
}

fn config_with(more: Value) -> Vec<u8> {
    with(&fixture("golden/gqa/config.json"), more)
}

/// Each kind of layer has its angles.
fn gemma3() -> Vec<u8> {
    let angles = |theta: f64| json!({ "rope_type": "default", "rope_theta": theta });
    config_with(json!({
        "model_type": "gemma3_text", "rope_parameters": {"full_attention": angles(1e6), "sliding_attention": angles(1e4)},
    }))
}

fn llama_keys() -> Value {
    json!({
        "rope_parameters": {
            "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "sliding_window": 8, "eos_token_id": [2, 3], "quantization_config": null,
    })
}

fn tokenizer_config() -> String {
    let config = json!({
        "bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null, "add_bos_token": true,
        "model_max_length": 1e30, "chat_template": [
            {"name": "default", "template": "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"},
            {"name": "tool_use", "template": TEMPLATE},
        ],
    });
    serde_json::to_string_pretty(&config).unwrap()
}

const TEMPLATE: &str = r#"{%- set ns = namespace(last=messages|length - 1) %}{{ bos_token }}
{%- macro said(message) %}{{ '<|' ~ message['role'] ~ '|>' }}{% endmacro %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- for message in messages[::-1] %}
{%- if loop.index0 == 3 %}{% continue %}{% endif %}
{{- said(message) }}{% generation %}{{ message.content.split('</think>')[-1].strip() | upper }}{% endgeneration %}
{%- if message.tool_calls is defined %}{{ message.tool_calls[0].function.name * 2 }}{% endif %}
{%- endfor %}{% for i in range(3) %}{{ "%s" | format(i) }}{{ [1, 2] + [i] }}{% endfor %}
{%- if messages[0].role == 'x' %}{{ raise_exception('No ' + strftime_now('%d %b')) }}{% endif %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"#;

const RECORDS: [&str; 5] = [
    r#"[{"instruction": "Say 1.", "input": "", "output": "1"}, {"instruction": "Say \ud83c\udf27.", "output": "\u0000"}]"#,
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": []}"#,
    r#"{"prompt": "a", "completion": "b"}"#,
    r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
    r#"[{"text": "a"}, {"text": "b"}]"#,
];

const CSV: &str = "instruction,input,output\n\"Say \"\"1\"\".\",,1\n\"two\nlines\",x,\u{1f327}\n";

const METRICS: &str = r#"{"step":1,"time":1796057488.03,"epoch":0,"loss":10.7,"lr":0.0,"grad_norm":4.6,"device_memory_bytes":null}
{"step":2,"time":1796057488.58,"epoch":0,"loss":10.8,"lr":2.9e-6,"val_loss":3.5}
{"step":3,"time":1796057489.21,"event":"note","message":"a"}
"#;
