//! Adapters as GGUF files, read by a parser of their own. `tests/python/check_llama_cpp.py` asks llama.cpp itself.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use burn_peft::adapter::adapter_state_dict;
use burn_peft::checkpoint::save_gguf_adapter;
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{DEFAULT_ADAPTER, Init, LoRAConfig, TrainedBias};

use crate::adapters::{base, config, random, tied};
use crate::common::{assert_floats_close, floats};

/// What stands in a file.
struct Gguf {
    texts: BTreeMap<String, String>,
    alpha: f32,
    /// Dimensions, neighbours' first, and numbers.
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Gguf {
    /// Reads a file of strings, one number and tensors of f32.
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut file = Reader(&bytes, 0);
        assert_eq!((file.take(4), file.u32()), (&b"GGUF"[..], 3));
        let (num_tensors, num_values) = (file.u64(), file.u64());
        let (mut texts, mut alpha) = (BTreeMap::new(), None);
        for _ in 0..num_values {
            let key = file.text();
            match file.u32() {
                8 => drop(texts.insert(key, file.text())),
                6 if key == "adapter.lora.alpha" => alpha = Some(f32::from_bits(file.u32())),
                kind => panic!("`{key}` is of the type {kind}"),
            }
        }
        let infos: Vec<_> = (0..num_tensors).map(|_| file.tensor_info()).collect();
        let start = file.1.next_multiple_of(32);
        let numbers = |(name, dims, offset): (String, Vec<usize>, usize)| {
            assert_eq!(offset % 32, 0);
            let mut data = Reader(&bytes, start + offset);
            let len = dims.iter().product();
            let numbers = (0..len).map(|_| f32::from_bits(data.u32())).collect();
            (name, (dims, numbers))
        };
        Self {
            texts,
            alpha: alpha.unwrap(),
            tensors: infos.into_iter().map(numbers).collect(),
        }
    }

    fn numbers(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }
}

/// Bytes and where the next one is.
struct Reader<'a>(&'a [u8], usize);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        self.1 += len;
        &self.0[self.1 - len..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn text(&mut self) -> String {
        let len = self.u64();
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn tensor_info(&mut self) -> (String, Vec<usize>, usize) {
        let name = self.text();
        let dims = (0..self.u32()).map(|_| self.u64()).collect();
        assert_eq!(self.u32(), 0, "`{name}` is not of f32");
        (name, dims, self.u64())
    }
}

fn saved(model: &TransformerDecoder) -> Gguf {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    save_gguf_adapter(model, DEFAULT_ADAPTER, &path).unwrap();
    Gguf::read(&path)
}

fn llama() -> LlamaConfig {
    config().with_qkv_bias(false)
}

const QV: [&str; 2] = ["q_proj", "v_proj"];
const EVERYWHERE: [(&str, &str); 9] = [
    ("tok_embeddings", "token_embd"),
    ("layers.1.attn.q_proj", "blk.1.attn_q"),
    ("layers.1.attn.k_proj", "blk.1.attn_k"),
    ("layers.1.attn.v_proj", "blk.1.attn_v"),
    ("layers.1.attn.output_proj", "blk.1.attn_output"),
    ("layers.1.mlp.w1", "blk.1.ffn_gate"),
    ("layers.1.mlp.w2", "blk.1.ffn_down"),
    ("layers.1.mlp.w3", "blk.1.ffn_up"),
    ("output", "output"),
];

/// Neighbouring rows of what is `[rows, columns]`, where rows half a head of 8 apart belong together.
fn neighbours(value: &TensorData) -> Vec<f32> {
    let numbers = floats(value);
    let columns = value.shape()[1];
    let heads = numbers.chunks(8 * columns);
    let rows = heads.flat_map(|head| [0, 4, 1, 5, 2, 6, 3, 7].map(|row| &head[row * columns..]));
    rows.flat_map(|row| row[..columns].to_vec()).collect()
}

fn transposed(value: &TensorData) -> Vec<f32> {
    let numbers = floats(value);
    let columns = value.shape()[1];
    let column = |column: usize| numbers[column..].iter().step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[test]
fn an_adapter_is_one_gguf_file() {
    let mistral = llama().with_model_type("mistral");
    for (config, architecture) in [(llama(), "llama"), (mistral, "llama"), (config(), "qwen2")] {
        let lora = LoRAConfig::new(EVERYWHERE.map(|(ours, _)| ours))
            .with_rank(4)
            .with_alpha(6.0);
        let model = random(base(&config).with_adapters(&lora).unwrap(), 1);
        let (file, values) = (saved(&model), adapter_state_dict(&model));
        assert_eq!(file.texts["general.type"], "adapter");
        assert_eq!(file.texts["general.architecture"], architecture);
        assert_eq!(file.texts["adapter.type"], "lora");
        assert_eq!((file.texts.len(), file.alpha), (3, 6.0));
        assert_eq!(file.tensors.len(), 2 * EVERYWHERE.len());
        for (ours, theirs) in EVERYWHERE {
            let [a, b] = ["a", "b"].map(|factor| &values[&format!("{ours}.lora_{factor}.weight")]);
            let is_embedding = ours == "tok_embeddings";
            let is_turned =
                architecture == "llama" && (ours.ends_with("q_proj") || ours.ends_with("k_proj"));
            let a = if is_embedding {
                transposed(a)
            } else {
                floats(a)
            };
            assert_eq!(
                file.numbers(&format!("{theirs}.weight.lora_a")),
                a,
                "{ours}"
            );
            let b = if is_turned { neighbours(b) } else { floats(b) };
            assert_eq!(
                file.numbers(&format!("{theirs}.weight.lora_b")),
                b,
                "{ours}"
            );
        }
        for (name, dims) in [
            ("blk.1.attn_k.weight.lora_a", [32, 4]),
            ("blk.1.attn_k.weight.lora_b", [4, 16]),
            ("output.weight.lora_b", [4, 48]),
            ("token_embd.weight.lora_a", [4, 48]),
            ("token_embd.weight.lora_b", [4, 32]),
        ] {
            assert_eq!(file.tensors[name].0, dims, "{name}");
        }
    }
}

/// `A` and `B` as they are, scaled by one alpha over their rank.
#[test]
fn scales_of_layers_are_in_the_tensors() {
    let qv = || LoRAConfig::new(QV).with_rank(4).with_alpha(3.0);
    let patterns = qv()
        .with_rank_pattern([("v_proj", 2)])
        .with_alpha_pattern([("v_proj", 5.0)]);
    for lora in [qv(), qv().with_rslora(true), patterns.clone()]
        .into_iter()
        .chain([patterns.with_rslora(true), qv().with_alpha(1e-60)])
    {
        let model = random(base(&config()).with_adapters(&lora).unwrap(), 1);
        let file = saved(&model);
        for (name, layer) in [
            ("blk.0.attn_q.weight", &model.layers[0].attn.q_proj),
            ("blk.0.attn_v.weight", &model.layers[0].attn.v_proj),
        ] {
            let adapter = layer.as_ref().unwrap().adapter().unwrap();
            let (dims, b) = &file.tensors[&format!("{name}.lora_b")];
            assert_eq!(dims[0], adapter.rank(), "no rank is filled up");
            assert_ne!(file.alpha, 0.0, "0 would be a scale of 1");
            let scale = file.alpha / dims[0] as f32;
            let found: Vec<f32> = b.iter().map(|b| b * scale).collect();
            let expected = adapter.matrix("lora_b.weight") * adapter.scale();
            assert_floats_close(name, &found, &floats(&expected.into_data()), 1e-6);
        }
    }
}

/// PiSSA's file is for the base as it was.
#[test]
fn what_an_adapter_began_with_is_in_its_file() {
    let lora = LoRAConfig::new(QV).with_rank(4).with_init(Init::Pissa);
    let model = random(base(&config()).with_adapters(&lora).unwrap(), 1);
    let (dims, _) = &saved(&model).tensors["blk.0.attn_v.weight.lora_a"];
    assert_eq!(dims[..], [32, 8]);
}

#[test]
fn what_llama_cpp_would_not_take_is_no_file() {
    let qv = || LoRAConfig::new(QV);
    for (config, lora, word) in [
        (config(), qv().with_dora(true), "magnitude"),
        (config(), qv().with_lora_bias(true), "lora_b.bias"),
        (config(), qv().with_bias(TrainedBias::All), "full.bias"),
        (config(), qv().with_modules_to_save(["norm"]), "norm"),
        (config(), qv().with_modules_to_save(["output"]), "output"),
        (
            tied(),
            LoRAConfig::new(["tok_embeddings"]),
            "tok_embeddings",
        ),
        (tied(), LoRAConfig::new(["output"]), "share one weight"),
    ] {
        let model = base(&config).with_adapters(&lora).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.gguf");
        let error = save_gguf_adapter(&model, DEFAULT_ADAPTER, &path).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("llama.cpp") && error.contains(word) && error.contains("merge"),
            "{error}"
        );
        assert!(!path.exists());
    }
    let model = base(&config());
    let error = save_gguf_adapter(&model, "french", "adapter.gguf").unwrap_err();
    assert!(error.to_string().contains("`french`"), "{error}");
}
