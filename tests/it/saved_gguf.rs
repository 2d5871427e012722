//! Models written as GGUF files and read back; that llama.cpp runs them, `tests/python/check_llama_cpp.py` shows.

#[path = "../tiny_tokenizer/mod.rs"]
mod tiny_tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use burn_peft::adapter::{StateDict, load_state_dict, quantize_base, state_dict};
use burn_peft::checkpoint::{
    GgufFormat, MergedCheckpoint, load_gguf, load_gguf_as, read_gguf_config, save_gguf, save_hf,
    save_merged_gguf, save_peft_adapter,
};
use burn_peft::llama::{
    Experts, LayerAttention, LlamaConfig, QueryScaling, RopeScaling, Rotary, Span,
    TransformerDecoder,
};
use burn_peft::lora::{DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::quantization::{BlockFormat, PackedLayout, dequantize, quantize};
use burn_peft::tokenizer::Tokenizer;
use burn_peft::weight::{FrozenWeight, Quantization};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapters::{base, random};
use crate::at_hand::left_out;
use crate::common::{device, floats};

/// A model with more tokens than its tokenizer, and rows of w2 that no block divides.
fn config() -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(288)
        .with_num_layers(2)
        .with_num_heads(4)
        .with_num_kv_heads(2)
        .with_head_dim(16)
        .with_embed_dim(64)
        .with_intermediate_dim(72)
        .with_max_seq_len(64)
}

fn configs() -> [LlamaConfig; 4] {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len: 8192,
    };
    let linear = RopeScaling::Linear { factor: 2.5 };
    [
        config().with_layer_attention(vec![LayerAttention {
            span: Span::Window(32),
            rotary: Rotary::Global,
        }]),
        config()
            .with_tie_embeddings(true)
            .with_rope_base(5e5)
            .with_rope_scaling(Some(llama3)),
        config()
            .with_rope_scaling(Some(linear))
            .with_eos_token_ids(vec![2, 5, 7]),
        config().with_model_type("qwen2").with_qkv_bias(true),
    ]
}

/// Small models of the families that say more of themselves.
fn families() -> Vec<LlamaConfig> {
    let small = |preset: LlamaConfig| {
        let config = preset.with_vocab_size(288).with_num_layers(7);
        let config = config.with_num_heads(4).with_num_kv_heads(2);
        let config = config.with_head_dim(16).with_embed_dim(64);
        let config = config.with_intermediate_dim(72).with_max_seq_len(64);
        let config = config.with_bos_token_id(Some(1));
        config.with_eos_token_ids(vec![2]).with_pad_token_id(None)
    };
    let gemma = |preset: LlamaConfig| {
        let config = small(preset).with_embedding_scale(Some(8.0));
        let block = config.block.clone().with_score_scale(Some(0.25));
        config.with_block(block)
    };
    let yarn = |factor: f64, attention_factor| RopeScaling::Yarn {
        factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor,
        original_max_seq_len: 16,
    };
    let usual = 0.1 * 4f64.ln() + 1.0;
    let longrope = RopeScaling::LongRope {
        short_factor: vec![1.0, 1.5, 2.0, 2.5],
        long_factor: vec![1.0, 3.0, 9.0, 27.0],
        attention_factor: (1.0 + 4f64.ln() / 16f64.ln()).sqrt(),
        original_max_seq_len: 16,
    };
    let local = LayerAttention {
        span: Span::Window(8),
        rotary: Rotary::Local,
    };
    let moe = small(LlamaConfig::qwen3_30b_a3b());
    let experts = moe.experts.clone().unwrap();
    let experts = Experts::new(4, 2, 32).with_normalized(experts.is_normalized);
    vec![
        small(LlamaConfig::qwen3_0_6b()).with_rope_scaling(Some(yarn(4.0, usual))),
        gemma(LlamaConfig::gemma2_2b()),
        gemma(LlamaConfig::gemma3_4b()),
        gemma(LlamaConfig::gemma3_1b())
            .with_layer_attention(vec![local, LayerAttention::default()]),
        small(LlamaConfig::phi3_mini_4k()),
        small(LlamaConfig::phi4_mini())
            .with_rotary_dim(Some(8))
            .with_rope_scaling(Some(longrope)),
        small(LlamaConfig::smollm3_3b()),
        small(LlamaConfig::granite3_2b()),
        small(LlamaConfig::olmo2_1b()),
        small(LlamaConfig::olmo3_7b()).with_rope_scaling(Some(yarn(4.0, usual))),
        small(LlamaConfig::ministral3_8b())
            .with_rope_scaling(Some(yarn(4.0, 1.0)))
            .with_query_scaling(Some(QueryScaling::new(0.1, 16))),
        moe.with_experts(Some(experts)),
    ]
}

fn tokenizer() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tiny_tokenizer::json()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    dir
}

/// What a weight is after it was stored in a format. Norms are stored with the 1 that a model adds to them.
fn stored(key: &str, data: &TensorData, format: GgufFormat, config: &LlamaConfig) -> TensorData {
    let mut values = floats(data);
    if config.block.unit_offset && key.ends_with("norm.weight") {
        values = values.into_iter().map(|w| (w + 1.0) - 1.0).collect();
    }
    let shape = data.shape().to_vec();
    let is_matrix = shape.len() == 2;
    let is_vocabulary = ["tok_embeddings.weight", "output.weight"].contains(&key);
    let is_divided = shape.last().unwrap().is_multiple_of(32);
    let block = match format {
        GgufFormat::Q4_0 if !is_vocabulary => BlockFormat::Q4_0,
        _ => BlockFormat::Q8_0,
    };
    let is_router = key.ends_with(".moe.gate.weight");
    let values = match format {
        _ if !is_matrix || is_router => values,
        GgufFormat::F32 => values,
        GgufFormat::BF16 => floats(&data.clone().convert_dtype(DType::BF16).convert::<f32>()),
        GgufFormat::Q8_0 | GgufFormat::Q4_0 if is_divided => {
            let layout = PackedLayout::new(block, data.shape().dims()).unwrap();
            dequantize(layout, &quantize(&values, layout).unwrap())
        }
        _ => floats(&data.clone().convert_dtype(DType::F16).convert::<f32>()),
    };
    TensorData::new(values, shape)
}

fn logits(model: &TransformerDecoder) -> Vec<f32> {
    let ids = burn::tensor::Tensor::from_ints([[1, 7, 3, 45, 9], [2, 4, 4, 11, 30]], &device());
    floats(&model.forward(ids, None).into_data())
}

/// The same numbers for the same tokens, however the layers' pattern is told.
fn assert_same_model(found: &LlamaConfig, expected: &LlamaConfig) {
    let layers = |config: &LlamaConfig| {
        let layers = (0..config.num_layers).map(|layer| config.attention_of(layer));
        LayerAttention::pattern(layers)
    };
    assert_eq!(layers(found), layers(expected));
    let mut found = found.clone();
    found.layer_attention = expected.layer_attention.clone();
    assert_eq!(&found, expected);
}

#[test]
fn a_model_is_read_back_as_it_was_stored() {
    let tokenizer = tokenizer();
    let configs = configs().into_iter().chain(families());
    for config in configs {
        let model = base(&config);
        for format in GgufFormat::ALL {
            let path = tokenizer.path().join("model.gguf");
            save_gguf(&model, tokenizer.path(), format, &path).unwrap();
            let found = read_gguf_config(&path).unwrap();
            assert_eq!(found.model_type, config.model_type);
            assert_same_model(&found, &config);
            let expected: StateDict = state_dict(&model)
                .iter()
                .map(|(key, data)| (key.clone(), stored(key, data, format, &config)))
                .collect();
            let mut found = config.init(&device());
            load_gguf_as(&mut found, &path, DType::F32).unwrap();
            for (key, data) in state_dict(&found) {
                assert_eq!(data, expected[&key], "{format}: {key}");
            }
            let mut rounded = config.init(&device());
            load_state_dict(&mut rounded, &expected, true).unwrap();
            assert_eq!(logits(&found), logits(&rounded), "{format}");
        }
    }
}

/// What llama.cpp would compute otherwise than the model, or not at all.
#[test]
fn models_that_llama_cpp_does_not_have_are_refused() {
    let families = families();
    let of = |model_type: &str| {
        let mut families = families.iter();
        families
            .find(|config| config.model_type == model_type)
            .unwrap()
            .clone()
    };
    let layer = |span, rotary| LayerAttention { span, rotary };
    let scaled = |mut config: LlamaConfig, scale: f64| {
        config.block.score_scale = Some(scale);
        config
    };
    let yarn = of("ministral3").rope_scaling;
    let mut untruncated = of("qwen3");
    if let Some(RopeScaling::Yarn { truncate, .. }) = &mut untruncated.rope_scaling {
        *truncate = false;
    }
    let experts = |change: fn(Experts) -> Experts| {
        let config = of("qwen3_moe");
        let experts = config.experts.clone().map(change);
        config.with_experts(experts)
    };
    let window = layer(Span::Window(8), Rotary::Global);
    for (config, word) in [
        (
            of("qwen3").with_qkv_bias(true).with_output_proj_bias(true),
            "biases",
        ),
        (
            of("qwen3").with_layer_attention(vec![window, LayerAttention::default()]),
            "layer_attention",
        ),
        (untruncated, "rope_scaling.Yarn.truncate"),
        (
            of("gemma2").with_tie_embeddings(false),
            "an output of its own",
        ),
        (of("gemma2").with_logit_cap(None), "logit_cap"),
        (scaled(of("gemma2"), 0.5), "score_scale"),
        (scaled(of("gemma3_text"), 0.5), "score_scale"),
        (
            of("gemma3_text").with_rope_scaling(yarn.clone()),
            "no `gemma3` whose rotary embedding is scaled by \"yarn\"; known are linear",
        ),
        (
            of("qwen3").with_rope_scaling(Some(RopeScaling::llama3(8.0))),
            "scaled by \"llama3\"; known are linear, yarn",
        ),
        (of("phi3").with_head_dim(32), "heads"),
        (
            of("smollm3").with_layer_attention(vec![layer(Span::Full, Rotary::None)]),
            "layer_attention",
        ),
        (of("smollm3").with_mlp_bias(true), "biases"),
        (of("olmo2").with_tie_embeddings(true), "one weight"),
        (
            of("ministral3").with_query_scaling(Some(QueryScaling::new(0.1, 32))),
            "query_scaling",
        ),
        (
            experts(|experts| experts.with_normalized(false)),
            "experts.is_normalized",
        ),
        (
            experts(|experts| experts.with_layer_step(2)),
            "layers without experts",
        ),
    ] {
        let dir = tokenizer();
        let path = dir.path().join("model.gguf");
        let error = save_gguf(&base(&config), dir.path(), GgufFormat::F16, &path).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(word), "{message}, without {word}");
        assert!(!path.exists());
    }
}

#[test]
fn a_checkpoint_is_merged_into_a_file() {
    let dir = tokenizer();
    let config = config().with_tie_embeddings(true);
    let model = base(&config);
    save_hf(&model, dir.path()).unwrap();
    let lora = LoRAConfig::new(["q_proj", "w1", "tok_embeddings"]).with_rank(4);
    let adapted = random(model.with_adapters(&lora).unwrap(), 1);
    let adapter = tempfile::tempdir().unwrap();
    save_peft_adapter(&adapted, DEFAULT_ADAPTER, None, adapter.path()).unwrap();
    let path = dir.path().join("merged.gguf");
    let whole = dir.path().join("whole.gguf");
    for format in [GgufFormat::F16, GgufFormat::Q4_0] {
        let merged = MergedCheckpoint::open(dir.path(), adapter.path()).unwrap();
        merged.save_gguf(format, &path).unwrap();
        save_gguf(&adapted.clone().merge_lora(), dir.path(), format, &whole).unwrap();
        let by_weight = dir.path().join("by_weight.gguf");
        save_merged_gguf(&adapted, dir.path(), format, &by_weight).unwrap();
        assert!(fs::read(&by_weight).unwrap() == fs::read(&whole).unwrap());
        let [found, expected] = [&path, &whole].map(|path| {
            let mut model = read_gguf_config(path).unwrap().init(&device());
            load_gguf_as(&mut model, path, DType::F32).unwrap();
            state_dict(&model)
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn blocks_stay_as_they_are_in_another_file() {
    let dir = tokenizer();
    let [first, second] = ["first.gguf", "second.gguf"].map(|name| dir.path().join(name));
    save_gguf(&base(&config()), dir.path(), GgufFormat::Q4_0, &first).unwrap();
    let load = |path: &Path| {
        let mut model = read_gguf_config(path).unwrap().init(&device());
        load_gguf(&mut model, path).unwrap();
        model
    };
    // F32 is for what is not packed: norms, and rows that no block divides.
    save_gguf(&load(&first), &first, GgufFormat::F32, &second).unwrap();
    let [before, after] = [&first, &second].map(|path| load(path));
    let after_values = state_dict(&after);
    for (key, data) in state_dict(&before) {
        let [before, after] =
            [&data, &after_values[&key]].map(|data| data.clone().convert::<f32>());
        assert_eq!(before, after, "{key}");
    }
    let weight = &after.layers[1].attn.k_proj.as_ref().unwrap().base.weight;
    let FrozenWeight::Packed(packed) = weight else {
        panic!("it is packed");
    };
    assert_eq!(packed.layout().format(), BlockFormat::Q4_0);
    let encode = |path: &Path| {
        Tokenizer::from_gguf(path)
            .unwrap()
            .encode("hello !")
            .unwrap()
    };
    assert_eq!(encode(&first), encode(&second));
    // Other packings are decoded.
    let nf4 = quantize_base(
        base(&configs()[0].clone().with_intermediate_dim(64)),
        Quantization::Nf4,
        |_| false,
    );
    let nf4 = nf4.unwrap();
    save_gguf(&nf4, dir.path(), GgufFormat::F32, &second).unwrap();
    assert_eq!(state_dict(&load(&second)), state_dict(&nf4));
}

/// Writes a model with this tokenizer and reads it again.
fn through_gguf(tokenizer: &Path, vocab_size: usize) -> burn_peft::Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model = base(&config().with_num_layers(1).with_vocab_size(vocab_size));
    save_gguf(&model, tokenizer, GgufFormat::Q8_0, &path)?;
    Tokenizer::from_gguf(&path)
}

const TEXTS: [&str; 6] = [
    "hello",
    "  hello !!  hehe\n",
    "été 漢字 🦙",
    "don't 1234 x=7\t\n\n  y",
    "",
    "<s> is text",
];

#[track_caller]
fn assert_same_ids(found: &Tokenizer, expected: &Tokenizer) {
    for text in TEXTS {
        let [found, expected] = [found, expected].map(|t| t.encode(text).unwrap());
        assert_eq!(found, expected, "{text:?}");
    }
    assert_eq!(found.bos_id(), expected.bos_id());
    assert_eq!(found.eos_id(), expected.eos_id());
    assert_eq!(found.chat_template(), expected.chat_template());
}

#[test]
fn a_sentencepiece_tokenizer_stays_what_it_is() {
    let dir = tokenizer();
    let expected = Tokenizer::from_dir(dir.path()).unwrap();
    let found = through_gguf(dir.path(), 288).unwrap();
    assert_same_ids(&found, &expected);
    assert_eq!(
        found.encode("hello").unwrap(),
        [tiny_tokenizer::id("\u{2581}hello")]
    );
    assert_eq!(found.bos_id(), Some(1));
    assert_eq!(found.chat_template(), Some("{{ messages }}"));
    let error = through_gguf(dir.path(), 96).unwrap_err().to_string();
    assert!(error.contains("tokenizer of the same model"), "{error}");
}

#[test]
fn tokenizers_of_real_models_stay_what_they_are() {
    let Some(shared) = std::env::var_os("BURN_PEFT_SHARED") else {
        return left_out(
            "shared",
            "BURN_PEFT_SHARED does not name the folder of the real assets",
        );
    };
    for (folder, vocab_size) in [
        ("assets/llama2_tokenizer", 32_000),
        ("reference/stories260k/hf", 512),
    ] {
        for file in ["tokenizer.json", "tokenizer.model"] {
            let file = PathBuf::from(&shared).join(folder).join(file);
            let expected = Tokenizer::from_file(&file).unwrap();
            assert_same_ids(&through_gguf(&file, vocab_size).unwrap(), &expected);
        }
    }
}

/// A byte-level tokenizer of bytes and two merges.
fn byte_level(normalizer: Value, pre_tokenizer: Value, ignore_merges: bool) -> Value {
    // The characters that stand for bytes: those that print for themselves, the others from U+0100 on.
    let prints = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100..;
    let symbols = (0..256u32).map(|byte| match prints(byte) {
        true => byte,
        false => next.next().unwrap(),
    });
    let symbols = symbols.map(|code| char::from_u32(code).unwrap().to_string());
    let tokens = symbols.chain(["he".to_owned(), "hel".to_owned(), "12".to_owned()]);
    let vocab: serde_json::Map<_, _> = tokens.zip((0..).map(Value::from)).collect();
    // Newer files have lists.
    let merges = match ignore_merges {
        true => json!([["h", "e"], ["he", "l"], ["1", "2"]]),
        false => json!(["h e", "he l", "1 2"]),
    };
    json!({
        "version": "1.0",
        "added_tokens": [
            { "id": 259, "content": "<|endoftext|>", "special": true, "normalized": false,
              "single_word": false, "lstrip": false, "rstrip": false },
            { "id": 260, "content": "<tool>", "special": false, "normalized": false,
              "single_word": false, "lstrip": false, "rstrip": false },
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges,
        },
    })
}

fn bytes(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[test]
fn byte_level_tokenizers_stay_what_they_are() {
    let sequence = |steps: &[Value]| json!({ "type": "Sequence", "pretokenizers": steps });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    for (pre, json) in [
        ("gpt-2", byte_level(Value::Null, bytes(true), false)),
        (
            "smollm",
            byte_level(Value::Null, sequence(&[digits, bytes(true)]), false),
        ),
        (
            "llama-bpe",
            byte_level(Value::Null, sequence(&[split(LLAMA3), bytes(false)]), true),
        ),
        (
            "dbrx",
            byte_level(Value::Null, sequence(&[split(LLAMA3), bytes(false)]), false),
        ),
        (
            "gpt-4o",
            byte_level(Value::Null, sequence(&[split(GPT_4O), bytes(false)]), false),
        ),
        (
            "tekken",
            byte_level(Value::Null, sequence(&[split(TEKKEN), bytes(false)]), true),
        ),
        (
            "qwen2",
            byte_level(
                json!({ "type": "NFC" }),
                sequence(&[split(QWEN2), bytes(false)]),
                false,
            ),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let expected = Tokenizer::from_dir(dir.path()).unwrap();
        let found = through_gguf(dir.path(), 288).unwrap();
        for text in TEXTS {
            let [found, expected] = [&found, &expected].map(|t| t.encode(text).unwrap());
            assert_eq!(found, expected, "{pre}: {text:?}");
        }
        assert_eq!(found.bos_id(), None, "{pre}");
    }
    let words = sequence(&[split(r"\w+"), bytes(false)]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, byte_level(Value::Null, words, false).to_string()).unwrap();
    let error = through_gguf(&path, 288).unwrap_err().to_string();
    assert!(error.contains("splits a text into words"), "{error}");
}

#[test]
fn what_llama_cpp_has_not_is_refused() {
    let dir = tokenizer();
    let path = dir.path().join("model.gguf");
    fs::write(&path, "before").unwrap();
    let mut values = state_dict(&base(&config()));
    let infinite = TensorData::new(vec![1e30f32; 288 * 64], [288, 64]);
    values.insert("output.weight".into(), infinite);
    let mut model = base(&config());
    load_state_dict(&mut model, &values, true).unwrap();
    for format in [GgufFormat::F16, GgufFormat::Q8_0] {
        let error = save_gguf(&model, dir.path(), format, &path)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`output.weight`"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"before");
    }
    assert_eq!("q4_0".parse::<GgufFormat>().unwrap(), GgufFormat::Q4_0);
    let error = "q4_k".parse::<GgufFormat>().unwrap_err().to_string();
    assert!(error.contains("F32, F16, BF16, Q8_0, Q4_0"), "{error}");
}
