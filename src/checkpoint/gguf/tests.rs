//! Files that are what they say, and files that lie.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::DType;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::gguf::{GgufFile, TensorKind};
use crate::llama::{QueryScaling, Span};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// For how many minutes bytes are changed at random, in place of a second.
const FUZZ_MINUTES: &str = "BURN_PEFT_FUZZ_MINUTES";

/// A value of the metadata, as bytes: its type and itself.
#[derive(Clone)]
struct Value(Vec<u8>);

fn u32_(value: u32) -> Value {
    Value([4u32.to_le_bytes(), value.to_le_bytes()].concat())
}

fn f32_(value: f32) -> Value {
    Value([6u32.to_le_bytes(), value.to_le_bytes()].concat())
}

fn flag(value: bool) -> Value {
    Value([&7u32.to_le_bytes()[..], &[value.into()]].concat())
}

fn text(value: &str) -> Value {
    Value([&8u32.to_le_bytes()[..], &bytes_of(value)].concat())
}

/// Elements of the same type.
fn array(kind: u32, elements: &[Value]) -> Value {
    let mut out = [9u32.to_le_bytes(), kind.to_le_bytes()].concat();
    out.extend((elements.len() as u64).to_le_bytes());
    out.extend(elements.iter().flat_map(|element| &element.0[4..]));
    Value(out)
}

fn texts(elements: &[&str]) -> Value {
    array(
        8,
        &elements
            .iter()
            .map(|element| text(element))
            .collect::<Vec<_>>(),
    )
}

fn bytes_of(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A row of the table of tensors, and the numbers.
#[derive(Clone)]
struct Tensor {
    name: String,
    /// Neighbours' first.
    dims: Vec<u64>,
    kind: u32,
    /// Not where the numbers are, but somewhere else.
    offset: Option<u64>,
    bytes: Vec<u8>,
}

/// A file to write. Each number may be another than what fits.
#[derive(Clone)]
struct Builder {
    version: u32,
    num_tensors: Option<u64>,
    num_values: Option<u64>,
    values: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
    alignment: usize,
}

impl Builder {
    /// A file without a model.
    fn new() -> Self {
        Self {
            version: 3,
            num_tensors: None,
            num_values: None,
            values: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        }
    }

    /// A Llama of one layer with two heads of four, of which keys and values have one, and a byte-level tokenizer.
    fn llama() -> Self {
        let file = Self::new()
            .with("general.architecture", text("llama"))
            .with("llama.block_count", u32_(1))
            .with("llama.context_length", u32_(64))
            .with("llama.embedding_length", u32_(8))
            .with("llama.feed_forward_length", u32_(32))
            .with("llama.attention.head_count", u32_(2))
            .with("llama.attention.head_count_kv", u32_(1))
            .with("llama.attention.layer_norm_rms_epsilon", f32_(1e-5))
            .with("llama.rope.freq_base", f32_(5e5))
            .with("tokenizer.ggml.model", text("gpt2"))
            .with("tokenizer.ggml.pre", text("llama-bpe"))
            .with(
                "tokenizer.ggml.tokens",
                texts(&["<|end|>", "a", "b", "ab", "\u{120}"]),
            )
            .with(
                "tokenizer.ggml.token_type",
                array(5, &[3, 1, 1, 1, 1].map(u32_)),
            )
            .with("tokenizer.ggml.merges", texts(&["a b"]))
            .with("tokenizer.ggml.add_bos_token", flag(true))
            .with("tokenizer.ggml.bos_token_id", u32_(0))
            .with("tokenizer.ggml.eos_token_id", u32_(0));
        let layer = [
            ("attn_norm.weight", &[8][..]),
            ("attn_q.weight", &[8, 8]),
            ("attn_k.weight", &[8, 4]),
            ("attn_v.weight", &[8, 4]),
            ("attn_output.weight", &[8, 8]),
            ("ffn_norm.weight", &[8]),
            ("ffn_gate.weight", &[8, 32]),
            ("ffn_up.weight", &[8, 32]),
        ];
        let file = file.with_f32("token_embd.weight", &[8, 5]);
        let file = layer.into_iter().fold(file, |file, (name, dims)| {
            file.with_f32(&format!("blk.0.{name}"), dims)
        });
        file.with_tensor("blk.0.ffn_down.weight", &[32, 8], 8, vec![7; 8 * 34])
            .with_f32("output_norm.weight", &[8])
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.values.retain(|(known, _)| known != key);
        self.values.push((key.to_owned(), value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.values.retain(|(key, _)| key != name);
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    fn with_tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
            offset: None,
            bytes,
        });
        self
    }

    /// The same of another architecture.
    fn of(mut self, architecture: &str) -> Self {
        for (key, _) in &mut self.values {
            *key = key.replace("llama.", &format!("{architecture}."));
        }
        self.with("general.architecture", text(architecture))
    }

    /// A tensor of 0, 1, 2 and so on.
    fn with_f32(self, name: &str, dims: &[u64]) -> Self {
        let len = dims.iter().product::<u64>();
        let bytes = (0..len).flat_map(|number| (number as f32).to_le_bytes());
        self.with_tensor(name, dims, 0, bytes.collect())
    }

    /// The same with another first tensor.
    fn with_first(mut self, change: impl FnOnce(&mut Tensor)) -> Self {
        change(&mut self.tensors[0]);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(
            self.num_tensors
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        out.extend(
            self.num_values
                .unwrap_or(self.values.len() as u64)
                .to_le_bytes(),
        );
        for (key, value) in &self.values {
            out.extend([bytes_of(key), value.0.clone()].concat());
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            out.extend(bytes_of(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        [out, data].concat()
    }

    fn write(&self, dir: &TempDir) -> PathBuf {
        write(&self.bytes(), dir)
    }
}

fn write(bytes: &[u8], dir: &TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Reads all that is read of a file.
fn read_all(path: &Path) -> Result<()> {
    let file = GgufFile::open(path)?;
    let config = file.config()?;
    for tensor in file.tensors(&config)? {
        tensor.read(DType::F32);
        assert!(!tensor.bytes().is_empty());
    }
    file.tokenizer()?.encode("ab ab <|end|> é").map(drop)
}

/// What is said of a file that is refused.
fn refused(file: &Builder) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = read_all(&file.write(&dir)).unwrap_err();
    assert!(!matches!(error, Error::Io { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("model.gguf: "), "{message}");
    message
}

#[test]
fn a_small_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for version in [2, 3] {
        let file = Builder {
            version,
            ..Builder::llama()
        };
        let file = GgufFile::open(file.write(&dir)).unwrap();
        let config = file.config().unwrap();
        assert_eq!(
            (config.vocab_size, config.num_layers, config.head_dim),
            (5, 1, 4)
        );
        assert_eq!(
            (config.num_heads, config.num_kv_heads, config.embed_dim),
            (2, 1, 8)
        );
        assert_eq!((config.norm_eps, config.rope_base), (1e-5, 5e5));
        assert_eq!(
            (config.bos_token_id, &config.eos_token_ids[..]),
            (Some(0), &[0][..])
        );
        assert!(config.tie_embeddings && !config.qkv_bias && !config.output_proj_bias);
        let tokenizer = file.tokenizer().unwrap();
        assert_eq!(tokenizer.encode("ab aab").unwrap(), [3, 4, 1, 3]);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), Some(0)));
        file.tensors(&config).unwrap();
    }
}

#[test]
fn tensors_have_our_names_and_order() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::llama().with_f32("blk.0.attn_q.bias", &[8]);
    let names = ["layers.0.attn.q_proj.weight", "layers.0.attn.q_proj.bias"];
    // Rows of pairs to rows in halves.
    let halves = [0f32, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
    let read = |architecture: &str| {
        let file = builder.clone().of(architecture);
        let file = GgufFile::open(file.write(&dir)).unwrap();
        let tensors = file.tensors(&file.config().unwrap()).unwrap();
        let read = |key: &str| {
            let tensor = tensors.iter().find(|tensor| tensor.key() == key).unwrap();
            let data = tensor.read(DType::F32).unwrap();
            assert_eq!(data.shape().to_vec(), tensor.shape());
            data.try_to_vec::<f32>().unwrap()
        };
        names.map(read)
    };
    let row = |row: f32| (0..8).map(move |column| 8.0 * row + column as f32);
    let [weight, bias] = read("llama");
    assert_eq!(weight, halves.into_iter().flat_map(row).collect::<Vec<_>>());
    assert_eq!(bias, halves);
    let [weight, bias] = read("qwen2");
    let numbers = |count: u8| -> Vec<f32> { (0..count).map(f32::from).collect() };
    assert_eq!([weight, bias], [numbers(64), numbers(8)]);
}

#[test]
fn packed_rows_move_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    // Two heads of four rows of one block.
    let rows: Vec<u8> = (0..8).flat_map(|row| [row; 18]).collect();
    let file = Builder::llama()
        .with("llama.embedding_length", u32_(32))
        .with("llama.attention.key_length", u32_(4))
        .with("llama.attention.value_length", u32_(4))
        .with_f32("token_embd.weight", &[32, 5])
        .with_f32("blk.0.attn_norm.weight", &[32])
        .with_f32("blk.0.attn_k.weight", &[32, 4])
        .with_f32("blk.0.ffn_gate.weight", &[32, 32])
        .with_tensor("blk.0.attn_q.weight", &[32, 8], 2, rows.clone());
    let file = GgufFile::open(file.write(&dir)).unwrap();
    let tensors = file.tensors(&file.config().unwrap()).unwrap();
    let tensor = tensors
        .iter()
        .find(|tensor| tensor.name() == "blk.0.attn_q.weight")
        .unwrap();
    assert_eq!(
        (tensor.kind(), tensor.shape()),
        (TensorKind::Q4_0, &[8, 32][..])
    );
    assert_eq!(tensor.stored_bytes(), rows);
    let expected = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| [row; 18]).concat();
    assert_eq!(tensor.bytes(), expected);
    assert!(tensor.read(DType::F32).is_none());
    tensor.release();
    assert_eq!(tensor.stored_bytes(), rows);
}

#[test]
fn halves_are_read_as_they_are_and_widened() {
    let dir = tempfile::tempdir().unwrap();
    let one = |bits: u16| [bits.to_le_bytes(); 8].concat();
    for (kind, bits, dtype) in [(1, 0x3c00, DType::F16), (30, 0x3f80, DType::BF16)] {
        let file = Builder::llama().with_tensor("output_norm.weight", &[8], kind, one(bits));
        let file = GgufFile::open(file.write(&dir)).unwrap();
        let tensors = file.tensors(&file.config().unwrap()).unwrap();
        let norm = tensors
            .iter()
            .find(|tensor| tensor.key() == "norm.weight")
            .unwrap();
        assert_eq!(norm.read(dtype).unwrap().dtype(), dtype);
        assert_eq!(
            norm.read(DType::F32).unwrap().try_to_vec::<f32>().unwrap(),
            [1.0; 8]
        );
    }
}

#[test]
fn every_kind_has_its_block() {
    let dir = tempfile::tempdir().unwrap();
    // As in the `gguf` package.
    for (id, block, bytes, kind) in [
        (0, 1, 4, TensorKind::F32),
        (1, 1, 2, TensorKind::F16),
        (2, 32, 18, TensorKind::Q4_0),
        (3, 32, 20, TensorKind::Q4_1),
        (6, 32, 22, TensorKind::Q5_0),
        (7, 32, 24, TensorKind::Q5_1),
        (8, 32, 34, TensorKind::Q8_0),
        (12, 256, 144, TensorKind::Q4_K),
        (13, 256, 176, TensorKind::Q5_K),
        (14, 256, 210, TensorKind::Q6_K),
        (30, 1, 2, TensorKind::BF16),
    ] {
        assert_eq!(
            (kind.block_len(), kind.block_bytes(), kind.id()),
            (block, bytes, id)
        );
        let file = Builder::new().with_tensor("a", &[2 * block as u64, 3], id, vec![1; 6 * bytes]);
        let file = GgufFile::open(file.write(&dir)).unwrap();
        let entry = file.entry("a").unwrap();
        assert_eq!((entry.kind, &entry.shape[..]), (kind, &[3, 2 * block][..]));
        assert_eq!(file.bytes(entry), vec![1; 6 * bytes]);
    }
}

#[test]
fn kinds_that_are_not_read_are_named() {
    for (id, name) in [
        (17, "IQ2_XS"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (39, "MXFP4"),
        (99, "number 99"),
    ] {
        let message = refused(&Builder::llama().with_first(|tensor| tensor.kind = id));
        for expected in [
            name,
            "`token_embd.weight`",
            "load a Q4_K_M",
            "original folder",
        ] {
            assert!(message.contains(expected), "{message}");
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Builder::llama().bytes();
    read_all(&write(&bytes, &dir)).unwrap();
    for len in 0..bytes.len() {
        let message = match GgufFile::open(write(&bytes[..len], &dir)) {
            Err(error @ Error::Format { .. }) => error.to_string(),
            other => panic!("cut to {len} bytes: {other:?}"),
        };
        let words = ["cut short", "no GGUF file"];
        assert!(
            words.iter().any(|word| message.contains(word)),
            "{len}: {message}"
        );
    }
}

#[test]
fn numbers_that_do_not_fit_the_file() {
    let huge = [u64::MAX, 1 << 60, 1 << 40, 100_000];
    for count in huge {
        let tensors = Builder {
            num_tensors: Some(count),
            ..Builder::llama()
        };
        let values = Builder {
            num_values: Some(count),
            ..Builder::llama()
        };
        for (file, things) in [(tensors, "tensors"), (values, "metadata")] {
            let message = refused(&file);
            assert!(
                message.contains(&format!("{count} {things} are announced")),
                "{message}"
            );
        }
        let lying = |kind: u32| {
            let kind = [9u32.to_le_bytes(), kind.to_le_bytes()].concat();
            Value([kind, count.to_le_bytes().to_vec()].concat())
        };
        for value in (0..13).map(lying) {
            let message = refused(&Builder::llama().with("x", value));
            assert!(
                message.contains("`x`: ") && message.contains("room for"),
                "{message}"
            );
        }
        let long = Value([&8u32.to_le_bytes()[..], &count.to_le_bytes()].concat());
        let message = refused(&Builder::llama().with("x", long));
        assert!(
            message.contains(&format!("{count} bytes of a text")),
            "{message}"
        );
    }
}

#[test]
fn dimensions_and_offsets_that_no_tensor_has() {
    let first = |change: fn(&mut Tensor)| refused(&Builder::llama().with_first(change));
    for (message, word) in [
        (first(|t| t.dims = vec![]), "0 dimensions"),
        (first(|t| t.dims = vec![1; 5]), "5 dimensions"),
        (first(|t| t.dims = vec![8, 0]), "a dimension of 0"),
        (
            first(|t| t.dims = vec![1 << 40, 1 << 40]),
            "more than any file holds",
        ),
        (
            first(|t| t.dims = vec![1 << 62]),
            "more than any file holds",
        ),
        (
            first(|t| t.dims = vec![8, 1 << 30]),
            "beyond the file's end",
        ),
        (
            first(|t| t.kind = 12),
            "rows of 8 numbers do not divide into Q4_K's blocks of 256",
        ),
        (
            first(|t| t.offset = Some(8)),
            "offset 8 is no multiple of 32",
        ),
        (first(|t| t.offset = Some(1 << 40)), "beyond the file's end"),
        (
            first(|t| t.offset = Some(u64::MAX - 31)),
            "beyond every file",
        ),
        (
            first(|t| t.name = "blk.0.attn_q.weight".into()),
            "`blk.0.attn_q.weight` is there twice",
        ),
        (
            first(|t| t.name = "blk.0.attn_q_norm.weight".into()),
            "`token_embd.weight`",
        ),
        (
            first(|t| t.dims = vec![5, 8]),
            "[8, 5], but by the metadata [8, 8]",
        ),
    ] {
        assert!(message.contains(word), "{message}, without {word}");
    }
}

#[test]
fn an_alignment_of_the_files_own() {
    let dir = tempfile::tempdir().unwrap();
    for alignment in [1, 8, 32, 64, 4096] {
        let file = Builder {
            alignment,
            ..Builder::llama().with("general.alignment", u32_(alignment as u32))
        };
        let opened = GgufFile::open(file.write(&dir)).unwrap();
        for tensor in &file.tensors {
            let entry = opened.entry(&tensor.name).unwrap();
            assert_eq!(
                opened.bytes(entry),
                tensor.bytes,
                "{}: {alignment}",
                tensor.name
            );
        }
    }
    for (alignment, word) in [
        (u32_(0), "0 is no power of two"),
        (u32_(24), "24 is no power of two"),
        (text("32"), "it should be a whole number, but is a text"),
        (u32_(1 << 31), "beyond the file's end"),
        (u32_(64), "is no multiple of 64"),
    ] {
        let message = refused(&Builder::llama().with("general.alignment", alignment));
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn metadata_of_other_types() {
    let nested = |levels: usize| {
        (0..levels).fold(u32_(1), |inner, level| {
            array(if level == 0 { 4 } else { 9 }, &[inner])
        })
    };
    let dir = tempfile::tempdir().unwrap();
    read_all(&Builder::llama().with("x", nested(4)).write(&dir)).unwrap();
    let twice = {
        let mut file = Builder::llama();
        file.values.push(file.values[0].clone());
        file
    };
    let llama = |key: &str, value| Builder::llama().with(key, value);
    for (file, word) in [
        (llama("x", nested(5)), "deeper than 4 levels"),
        (llama("x", nested(2000)), "deeper than 4 levels"),
        (
            llama("x", Value(vec![13, 0, 0, 0, 0])),
            "`x`: its type is 13",
        ),
        (
            llama("general.architecture", u32_(1)),
            "it should be a text, but is a whole number",
        ),
        (
            llama(
                "general.architecture",
                Value([&8u32.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0, 255]].concat()),
            ),
            "`general.architecture`: the text is not UTF-8",
        ),
        (
            llama("llama.block_count", f32_(1.0)),
            "`llama.block_count`: it should be a whole number",
        ),
        (
            llama("tokenizer.ggml.tokens", text("a")),
            "it should be an array of texts, but is a text",
        ),
        (
            llama("tokenizer.ggml.merges", array(4, &[u32_(1)])),
            "each of its elements is a whole number",
        ),
        (
            llama("tokenizer.ggml.add_bos_token", Value(vec![7, 0, 0, 0, 2])),
            "`tokenizer.ggml.add_bos_token`: true is 1 and false is 0, not 2",
        ),
        (twice, "`general.architecture` is there twice"),
        (
            llama("llama.block_count", u32_(u32::MAX)),
            "`llama.block_count`: 4294967295 is above 10000",
        ),
        (
            llama(
                "llama.block_count",
                Value([&11u32.to_le_bytes()[..], &(-1i64).to_le_bytes()].concat()),
            ),
            "-1 is no size",
        ),
        (
            llama(
                "llama.block_count",
                Value([&10u32.to_le_bytes()[..], &[255; 8]].concat()),
            ),
            "too large",
        ),
    ] {
        let message = refused(&file);
        assert!(message.contains(word), "{message}, without {word}");
    }
}

#[test]
fn other_versions_byte_orders_and_files() {
    for (version, word) in [
        (1, "version 1 of the format"),
        (4, "version 4 of the format"),
        (3u32.swap_bytes(), "gguf-convert-endian"),
    ] {
        let message = refused(&Builder {
            version,
            ..Builder::llama()
        });
        assert!(message.contains(word), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let message = GgufFile::open(write(b"GGML, say", &dir))
        .unwrap_err()
        .to_string();
    assert!(message.contains("does not begin with `GGUF`"), "{message}");
}

#[test]
fn models_that_are_not_computed_here() {
    let llama = |key: &str, value| Builder::llama().with(key, value);
    for (file, word) in [
        (
            llama("general.architecture", text("mamba")),
            "a `mamba` is not one of llama, qwen2, qwen3, gemma2",
        ),
        (
            llama("general.type", text("adapter")),
            "an adapter, not a model",
        ),
        (
            llama("llama.expert_count", u32_(8)),
            "`llama.expert_count`: 8 is not supported",
        ),
        (
            llama("llama.rope.scaling.type", text("longrope")),
            "`longrope` is not one of none, linear, yarn",
        ),
        (
            llama("llama.rope.dimension_count", u32_(2)),
            "2 is not supported where a head has a width of 4",
        ),
        (
            llama("llama.rope.freq_base", f32_(f32::NAN)),
            "`llama.rope.freq_base`: NaN is no number",
        ),
        (
            llama("llama.rope.freq_base_swa", f32_(1e4)),
            "another base than 500000 is not supported",
        ),
        (
            llama("llama.rope.scaling.attn_factor", f32_(1.5)),
            "1.5 is not supported here",
        ),
        (llama("llama.attention.causal", flag(false)), "looks ahead"),
        (
            llama("llama.attention.head_count", u32_(0)),
            "must be at least 1",
        ),
        (
            llama("llama.attention.head_count_kv", u32_(3)),
            "`llama.attention.head_count_kv`: ",
        ),
        (
            llama("llama.attention.key_length", u32_(3)),
            "`llama.attention.key_length`: rotary embedding needs an even width",
        ),
        (
            llama("llama.embedding_length", u32_(16)),
            "but by the metadata [5, 16]",
        ),
        (
            llama("llama.block_count", u32_(2)),
            "no tensor `blk.1.attn_norm.weight`",
        ),
        (
            Builder::llama().without("llama.context_length"),
            "the metadata have no `llama.context_length`",
        ),
        (
            Builder::llama().without("token_embd.weight"),
            "no tensor `token_embd.weight`",
        ),
        (
            Builder::llama().with_f32("rope_freqs.weight", &[2]),
            "original folder",
        ),
        (
            Builder::llama().with_f32("blk.0.attn_sinks.weight", &[8]),
            "blk.0.attn_sinks.weight",
        ),
        (
            Builder::llama().with_f32("blk.0.attn_k.bias", &[3]),
            "no whole number of heads of 4",
        ),
        (
            Builder::new(),
            "the metadata have no `general.architecture`",
        ),
    ] {
        let message = refused(&file);
        assert!(message.contains(word), "{message}, without {word}");
    }
}

#[test]
fn settings_that_a_file_may_leave_out_or_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = |file: Builder| GgufFile::open(file.write(&dir)).unwrap().config().unwrap();
    let llama = |key: &str, value| config(Builder::llama().with(key, value));
    assert_eq!(
        config(Builder::llama().without("llama.rope.freq_base")).rope_base,
        1e4
    );
    let linear = llama("llama.rope.scale_linear", f32_(2.5)).rope_scaling;
    let factor = Builder::llama().with("llama.rope.scaling.factor", f32_(2.5));
    let named = config(factor.with("llama.rope.scaling.type", text("linear"))).rope_scaling;
    assert_eq!(
        linear,
        Some(crate::llama::RopeScaling::Linear { factor: 2.5 })
    );
    assert_eq!(named, linear);
    let ones = [1f32; 2].map(f32::to_le_bytes).concat();
    let unscaled = config(Builder::llama().with_tensor("rope_freqs.weight", &[2], 0, ones));
    assert_eq!(unscaled, config(Builder::llama()));
    let windowed = llama("llama.attention.sliding_window", u32_(16));
    assert_eq!(windowed.attention_of(0).span, Span::Window(16));
    for (id, known) in [(4, Some(4)), (5, None), (u32::MAX, None)] {
        assert_eq!(
            llama("tokenizer.ggml.padding_token_id", u32_(id)).pad_token_id,
            known
        );
    }
    assert_eq!(
        llama("tokenizer.ggml.eot_token_id", u32_(3)).eos_token_ids,
        [0, 3]
    );
    // Converters name one end of several: of Gemma and Phi-3 that of a document, not that of a turn.
    let tokens = texts(&["<eos>", "a", "<end_of_turn>", "<|end|>x", "<|im_end|>"]);
    assert_eq!(
        llama("tokenizer.ggml.tokens", tokens).eos_token_ids,
        [0, 2, 4]
    );
    let untied = config(Builder::llama().with_f32("output.weight", &[8, 5]));
    assert!(!untied.tie_embeddings);
    let biased = Builder::llama()
        .with_f32("blk.0.attn_v.bias", &[4])
        .with_f32("blk.0.attn_output.bias", &[8]);
    let biased = config(biased);
    assert!(biased.qkv_bias && biased.output_proj_bias);
}

#[test]
fn what_architectures_say_and_leave_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = |file: Builder| GgufFile::open(file.write(&dir)).unwrap().config().unwrap();
    let of = |architecture| Builder::llama().of(architecture);
    let granite = config(of("granite"));
    assert_eq!(granite.block.score_scale, Some(0.5));
    let scaled = of("granite")
        .with("granite.attention.scale", f32_(0.25))
        .with("granite.embedding_scale", f32_(12.0))
        .with("granite.residual_scale", f32_(0.22))
        .with("granite.logit_scale", f32_(8.0));
    let scaled = config(scaled);
    let block = (scaled.block.score_scale, scaled.block.residual_scale);
    assert_eq!(block, (Some(0.25), Some(0.22)));
    assert_eq!(
        (scaled.embedding_scale, scaled.logit_divisor),
        (Some(12.0), Some(8.0))
    );

    let gemma2 = config(of("gemma2"));
    assert_eq!(
        (gemma2.block.score_cap, gemma2.logit_cap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(gemma2.attention_of(0).span, Span::Window(4096));
    assert!(gemma2.block.unit_offset);

    let window = || of("gemma3").with("gemma3.attention.sliding_window", u32_(16));
    let pattern = |value| config(window().with("gemma3.attention.sliding_window_pattern", value));
    let local = config(window());
    assert_eq!(local.attention_of(0).span, Span::Window(16));
    assert_eq!(local.local_rope.unwrap().base, 1e4);
    for full in [
        config(of("gemma3")),
        pattern(u32_(1)),
        pattern(array(7, &[flag(false)])),
    ] {
        assert_eq!(
            (full.attention_of(0).span, full.local_rope),
            (Span::Full, None)
        );
    }
    assert_eq!(
        pattern(array(7, &[flag(true)])).attention_of(0).span,
        Span::Window(16)
    );

    let olmo = || of("olmo2").with_f32("blk.0.post_attention_norm.weight", &[8]);
    assert_eq!(config(olmo()).model_type, "olmo2");
    let window = olmo().with("olmo2.attention.sliding_window", u32_(16));
    assert_eq!(config(window).model_type, "olmo3");

    let heated = of("mistral3").with("mistral3.attention.temperature_scale", f32_(0.1));
    let heated = config(heated.with("mistral3.rope.scaling.original_context_length", u32_(32)));
    assert_eq!(heated.model_type, "ministral3");
    assert_eq!(heated.query_scaling, Some(QueryScaling::new(0.1, 32)));
    assert_eq!(config(of("mistral3")).query_scaling, None);
}

#[test]
fn what_an_architecture_does_not_compute() {
    let of = |architecture| Builder::llama().of(architecture);
    let flags = array(7, &[flag(true), flag(false)]);
    let window = of("gemma3").with("gemma3.attention.sliding_window", u32_(16));
    let yarn = of("qwen3")
        .with("qwen3.rope.scaling.type", text("yarn"))
        .with("qwen3.rope.scaling.factor", f32_(4.0));
    let experts = |gate: &[u64], up: &[u64]| {
        of("qwen3moe")
            .with("qwen3moe.expert_count", u32_(2))
            .with("qwen3moe.expert_used_count", u32_(1))
            .with("qwen3moe.expert_feed_forward_length", u32_(4))
            .with_f32("blk.0.ffn_gate_exps.weight", gate)
            .with_f32("blk.0.ffn_up_exps.weight", up)
    };
    for (file, word) in [
        (
            of("smollm3").with("smollm3.attention.sliding_window", u32_(16)),
            "`smollm3.attention.sliding_window`: a window is not supported",
        ),
        (
            of("granite").with("granite.rope.scaling.finetuned", flag(false)),
            "`granite.rope.scaling.finetuned`: a Granite without rotation",
        ),
        (
            of("qwen3").with("qwen3.final_logit_softcapping", f32_(30.0)),
            "`qwen3.final_logit_softcapping`: 30 is not supported",
        ),
        (
            window.with("gemma3.attention.sliding_window_pattern", flags),
            "2 are given for 1 layers",
        ),
        (
            yarn.clone()
                .with("qwen3.rope.scaling.yarn_beta_fast", f32_(8.0)),
            "`qwen3.rope.scaling.yarn_beta_fast`: 8 is not supported",
        ),
        (
            yarn.with("qwen3.rope.scaling.yarn_attn_factor", f32_(1.5)),
            "`qwen3.rope.scaling.yarn_attn_factor`: 1.5 is not supported",
        ),
        (
            of("phi3").with_f32("rope_factors_long.weight", &[2]),
            "stand together",
        ),
        (of("phi3"), "no tensor `blk.0.attn_qkv.weight`"),
        (of("olmo2"), "no tensor `blk.0.post_attention_norm.weight`"),
        (
            of("qwen3moe").with("qwen3moe.expert_count", u32_(200_000)),
            "`qwen3moe.expert_count`: 200000 in each of 1 layers",
        ),
        (
            experts(&[8, 4, 1], &[8, 4, 1]),
            "`blk.0.ffn_gate_exps.weight` is [1, 4, 8], but by the metadata [2, 4, 8]",
        ),
        (
            experts(&[8, 4, 2], &[8, 4, 1]),
            "not a matrix of each of 2 experts",
        ),
        (
            experts(&[8, 4, 2], &[8, 4, 2]).without("blk.0.ffn_up_exps.weight"),
            "no tensor `blk.0.ffn_up_exps.weight`",
        ),
    ] {
        let message = refused(&file);
        assert!(message.contains(word), "{message}, without {word}");
    }
}

/// Rows of the gate, then rows of up, of each expert.
#[test]
fn experts_are_taken_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = Builder::llama()
        .of("qwen3moe")
        .with("qwen3moe.expert_count", u32_(2))
        .with("qwen3moe.expert_used_count", u32_(1))
        .with("qwen3moe.expert_feed_forward_length", u32_(4))
        .with_f32("blk.0.ffn_gate_exps.weight", &[8, 4, 2])
        .with_f32("blk.0.ffn_up_exps.weight", &[8, 4, 2])
        .with_f32("blk.0.ffn_down_exps.weight", &[4, 8, 2]);
    let file = GgufFile::open(file.write(&dir)).unwrap();
    let tensors = file.tensors(&file.config().unwrap()).unwrap();
    let read = |key: &str| {
        let tensor = tensors.iter().find(|tensor| tensor.key() == key).unwrap();
        let values = tensor.read(DType::F32).unwrap();
        (values.shape().to_vec(), values.try_to_vec::<f32>().unwrap())
    };
    let numbers = |range: std::ops::Range<u8>| range.map(f32::from).collect::<Vec<_>>();
    let (shape, values) = read("layers.0.moe.experts.1.gate_up_proj.weight");
    assert_eq!(shape, [8, 8]);
    assert_eq!(values, [numbers(32..64), numbers(32..64)].concat());
    let (shape, values) = read("layers.0.moe.experts.1.w2.weight");
    assert_eq!((shape, values), (vec![8, 4], numbers(32..64)));
    // The tensor of up is no weight of its own.
    let keys = tensors
        .iter()
        .filter(|tensor| tensor.key().contains(".moe."));
    assert_eq!(keys.count(), 4);
}

#[test]
fn tokenizers_that_are_not_read() {
    let llama = |key: &str, value| Builder::llama().with(key, value);
    let pieces = |scores: [f32; 5]| {
        llama("tokenizer.ggml.model", text("llama"))
            .with(
                "tokenizer.ggml.token_type",
                array(5, &[2, 1, 1, 1, 1].map(u32_)),
            )
            .with("tokenizer.ggml.scores", array(6, &scores.map(f32_)))
    };
    let dir = tempfile::tempdir().unwrap();
    read_all(&pieces([0.0, -1.0, -2.0, -3.0, -4.0]).write(&dir)).unwrap();
    for (file, word) in [
        (
            llama("tokenizer.ggml.model", text("bert")),
            "`bert` is not one of gpt2, llama",
        ),
        (
            llama("tokenizer.ggml.pre", text("klingon")),
            "how `klingon` splits a text into words",
        ),
        (
            llama("tokenizer.ggml.merges", texts(&["ab"])),
            "`ab` is no pair of tokens",
        ),
        (
            llama("tokenizer.ggml.merges", texts(&["a x"])),
            "do not make a tokenizer",
        ),
        (
            llama("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "a", "c"])),
            "`a` is there twice",
        ),
        (
            llama("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
            "5 of them for 3 tokens",
        ),
        (
            llama("tokenizer.ggml.token_type", array(5, &[9; 5].map(u32_))),
            "9 is no type",
        ),
        (
            llama("tokenizer.ggml.model", text("llama")),
            "no `tokenizer.ggml.scores`",
        ),
        (
            pieces([0.0, -1.0, -1.0, -1.0, -1.0]),
            "all pieces have one score",
        ),
        (
            Builder::llama().without("tokenizer.ggml.model"),
            "no `tokenizer.ggml.model`",
        ),
        (
            Builder::llama().without("tokenizer.ggml.merges"),
            "no `tokenizer.ggml.merges`",
        ),
    ] {
        let message = refused(&file);
        assert!(message.contains(word), "{message}, without {word}");
    }
}

#[test]
fn a_token_before_a_text_where_the_file_says_so_or_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let bos = |file: Builder| Tokenizer::from_file(file.write(&dir)).unwrap().bos_id();
    let add = |value| Builder::llama().with("tokenizer.ggml.add_bos_token", flag(value));
    let silent = || Builder::llama().without("tokenizer.ggml.add_bos_token");
    assert_eq!((bos(add(true)), bos(add(false))), (Some(0), None));
    assert_eq!(bos(silent()), Some(0));
    assert_eq!(
        bos(silent().with("tokenizer.ggml.pre", text("qwen2"))),
        None
    );
    let template = silent().with("tokenizer.chat_template", text("{{ messages }}"));
    let tokenizer = Tokenizer::from_gguf(template.write(&dir)).unwrap();
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
}

#[test]
fn a_model_that_was_split_is_opened_by_its_first_part() {
    let dir = tempfile::tempdir().unwrap();
    let part = |number: u32| format!("m-{number:05}-of-00002.gguf");
    let whole = Builder::llama();
    let (first, second) = whole.tensors.split_at(4);
    let split = |file: Builder, number: u32, tensors: &[Tensor]| Builder {
        tensors: tensors.to_vec(),
        ..file
            .with("split.count", u32_(2))
            .with("split.no", u32_(number))
    };
    let first = split(whole.clone(), 0, first).bytes();
    let path = dir.path().join(part(1));
    std::fs::write(&path, &first).unwrap();
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("`m-00002-of-00002.gguf` is not beside it"),
        "{message}"
    );
    let other = dir.path().join(part(2));
    std::fs::write(&other, split(Builder::new(), 1, second).bytes()).unwrap();
    read_all(&path).unwrap();
    let message = GgufFile::open(&other).unwrap_err().to_string();
    assert!(
        message.contains("part 2 of a model that was split into 2; load the first"),
        "{message}"
    );
    let renamed = dir.path().join("renamed.gguf");
    std::fs::write(&renamed, &first).unwrap();
    let message = GgufFile::open(&renamed).unwrap_err().to_string();
    assert!(
        message.contains("should end in `-00001-of-00002.gguf`"),
        "{message}"
    );
    std::fs::write(&other, &first).unwrap();
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(message.contains("is there twice"), "{message}");
}

/// Any change of a file's bytes is read or refused. `BURN_PEFT_FUZZ_MINUTES` makes a long run of it.
#[test]
fn changed_bytes_are_read_or_refused() {
    let minutes = std::env::var(FUZZ_MINUTES)
        .ok()
        .map(|minutes| minutes.parse().unwrap());
    let limit = minutes.map_or(Duration::from_secs(1), |minutes: u64| {
        Duration::from_secs(60 * minutes)
    });
    let dir = tempfile::tempdir().unwrap();
    let files = [
        Builder::llama(),
        Builder {
            alignment: 8,
            ..Builder::llama().with("general.alignment", u32_(8))
        },
        Builder::llama()
            .with("tokenizer.ggml.model", text("llama"))
            .with(
                "tokenizer.ggml.tokens",
                texts(&["<unk>", "a", "b", "ab", "\u{2581}"]),
            )
            .with(
                "tokenizer.ggml.token_type",
                array(5, &[2, 1, 1, 1, 1].map(u32_)),
            )
            .with(
                "tokenizer.ggml.scores",
                array(6, &[0.0, -1.0, -2.0, -3.0, -4.0].map(f32_)),
            ),
    ];
    let files = files.map(|file| file.bytes());
    let mut rng = SmallRng::seed_from_u64(minutes.unwrap_or_default());
    let start = Instant::now();
    let (mut read, mut refused) = (0, 0);
    while start.elapsed() < limit || read == 0 || refused == 0 {
        let mut bytes = files[rng.random_range(0..files.len())].clone();
        for _ in 0..rng.random_range(1..4) {
            change(&mut bytes, &mut rng);
        }
        match read_all(&write(&bytes, &dir)) {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
    }
    println!("{read} files read, {refused} refused");
}

/// Sets a byte or a number to something, moves a piece, or cuts the end off.
fn change(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    // Most of what there is to get wrong stands before the weights.
    let place = rng.random_range(0..bytes.len().min(1700));
    let numbers = [
        0,
        1,
        2,
        3,
        9,
        31,
        255,
        1 << 16,
        1 << 31,
        1 << 32,
        1 << 62,
        u64::MAX - 31,
        u64::MAX,
    ];
    match rng.random_range(0..5) {
        0 => bytes[place] = rng.random(),
        1 => bytes[place] ^= 1 << rng.random_range(0..8),
        2 => {
            let number = numbers[rng.random_range(0..numbers.len())].to_le_bytes();
            let len = [4, 8][rng.random_range(0..2)].min(bytes.len() - place);
            bytes[place..place + len].copy_from_slice(&number[..len]);
        }
        3 => {
            let from = rng.random_range(0..bytes.len() - 8);
            let piece = bytes[from..from + 8].to_vec();
            bytes.splice(place..place, piece);
        }
        _ => bytes.truncate(bytes.len() - rng.random_range(0..64)),
    }
    if bytes.len() < 64 {
        bytes.resize(64, 0);
    }
}
