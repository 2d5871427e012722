//! Loading a checkpoint holds the model once, not the file beside it, and so does merging adapters into
//! it. A program of its own: the peak memory is that of the process.

#[path = "support/at_hand.rs"]
mod at_hand;

use std::borrow::Cow;

use at_hand::left_out;
use burn::tensor::{DType, Device};
use burn_peft::adapter::{ParamCount, adapter_names, state_readers};
use burn_peft::checkpoint::{WritableTensor, load_hf, read_hf_config, save_hf, write_tensors};
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::peak_memory_bytes;

/// A tensor of zeros that is made when it is written.
struct Zeros(Vec<usize>);

impl WritableTensor for Zeros {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn shape(&self) -> Vec<usize> {
        self.0.clone()
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Owned(vec![0; self.0.iter().product::<usize>() * size_of::<f32>()])
    }
}

fn hf_name(key: &str) -> String {
    let names = [
        ("tok_embeddings", "model.embed_tokens"),
        ("layers.", "model.layers."),
        ("sa_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
        ("attn.", "self_attn."),
        ("output_proj", "o_proj"),
        ("w1", "gate_proj"),
        ("w2", "down_proj"),
        ("w3", "up_proj"),
        ("output.", "lm_head."),
    ];
    let named = names
        .iter()
        .fold(key.to_owned(), |key, (ours, hf)| key.replace(ours, hf));
    match named.as_str() {
        "norm.weight" => "model.norm.weight".into(),
        _ => named,
    }
}

#[test]
fn a_model_is_held_once() {
    let config = LlamaConfig::llama2_7b()
        .with_vocab_size(1000)
        .with_num_layers(12)
        .with_num_heads(8)
        .with_num_kv_heads(8)
        .with_head_dim(64)
        .with_embed_dim(512)
        .with_intermediate_dim(2048);
    let tiny = config.clone().with_num_layers(1);
    let dir = tempfile::tempdir().unwrap();
    // The configuration, by way of a model of one layer.
    save_hf(&tiny.init(&Device::default()), dir.path()).unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 12");
    std::fs::write(&path, text).unwrap();
    assert_eq!(read_hf_config(dir.path()).unwrap(), config);
    let base = config.init(&Device::default());
    let tensors = state_readers(&base).into_iter();
    let tensors = tensors.map(|reader| (hf_name(&reader.key), Zeros(reader.shape)));
    write_tensors(tensors, &dir.path().join("model.safetensors")).unwrap();

    let lora = LoRAConfig::new(AttnModule::ALL).with_mlp(true);
    let mut model = config.init_lora(&lora, &Device::default()).unwrap();
    let Some(before) = peak_memory_bytes() else {
        return left_out(
            "memory",
            "this system does not tell a process's peak memory",
        );
    };
    load_hf(&mut model, dir.path()).unwrap();
    let size = 4 * ParamCount::of(&model).total as u64;
    assert!(size > 200_000_000);
    let assert_once = |what: &str| {
        let risen = peak_memory_bytes().unwrap() - before;
        assert!(
            risen < size + size / 4,
            "{what}: {risen} bytes for a model of {size}"
        );
    };
    assert_once("loading");
    let merged = model.merge_lora();
    assert!(adapter_names(&merged).is_empty());
    assert_once("merging");
}
