//! A GGUF file of a Llama without biases, whose weights are all zero: what memory and headers are asked about.

use std::fs;
use std::path::Path;

use burn_peft::adapter::get_params;
use burn_peft::llama::LlamaConfig;
use burn_peft::quantization::BlockFormat;

const ALIGNMENT: usize = 32;
const U32: u32 = 4;
const F32: u32 = 6;
const STRING: u32 = 8;

const NAMES: [(&str, &str); 12] = [
    ("tok_embeddings.", "token_embd."),
    ("layers.", "blk."),
    ("sa_norm", "attn_norm"),
    ("mlp_norm", "ffn_norm"),
    ("attn.q_proj", "attn_q"),
    ("attn.k_proj", "attn_k"),
    ("attn.v_proj", "attn_v"),
    ("attn.output_proj", "attn_output"),
    ("mlp.w1", "ffn_gate"),
    ("mlp.w2", "ffn_down"),
    ("mlp.w3", "ffn_up"),
    ("norm.", "output_norm."),
];

fn gguf_name(key: &str) -> String {
    let name = |name: String, (ours, theirs): &(&str, &str)| match *ours {
        // The norms of layers end in the same word.
        "norm." if name.starts_with("blk.") => name,
        ours => name.replace(ours, theirs),
    };
    NAMES.iter().fold(key.to_owned(), name)
}

/// The number of a kind, the numbers of its blocks and their bytes; numbers of f32 where there is none.
fn kind(format: Option<BlockFormat>) -> (u32, usize, usize) {
    match format {
        None => (0, 1, 4),
        Some(BlockFormat::Q4_1) => (3, 32, 20),
        Some(BlockFormat::Q5_0) => (6, 32, 22),
        Some(BlockFormat::Q8_0) => (8, 32, 34),
        Some(BlockFormat::Q4K) => (12, 256, 144),
        Some(BlockFormat::Q6K) => (14, 256, 210),
        Some(other) => panic!("add {other}"),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, key: &str, kind: u32, value: [u8; 4]) {
    put_text(out, key);
    out.extend(kind.to_le_bytes());
    out.extend(value);
}

/// The sizes, as many values as there are.
fn metadata(config: &LlamaConfig) -> (u64, Vec<u8>) {
    let mut out = Vec::new();
    put_text(&mut out, "general.architecture");
    out.extend(STRING.to_le_bytes());
    put_text(&mut out, "llama");
    let sizes = [
        ("block_count", config.num_layers),
        ("embedding_length", config.embed_dim),
        ("feed_forward_length", config.intermediate_dim),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("context_length", config.max_seq_len),
    ];
    for (key, size) in sizes {
        put(
            &mut out,
            &format!("llama.{key}"),
            U32,
            (size as u32).to_le_bytes(),
        );
    }
    let numbers = [
        ("attention.layer_norm_rms_epsilon", config.norm_eps),
        ("rope.freq_base", config.rope_base),
    ];
    for (key, number) in numbers {
        put(
            &mut out,
            &format!("llama.{key}"),
            F32,
            (number as f32).to_le_bytes(),
        );
    }
    ((1 + sizes.len() + numbers.len()) as u64, out)
}

/// Writes the file. `format_of` tells by the key of a matrix how it is packed.
pub fn write_zero_gguf(
    config: &LlamaConfig,
    path: &Path,
    format_of: impl Fn(&str) -> Option<BlockFormat>,
) {
    let params = get_params(&config.init(&burn::tensor::Device::flex()));
    let (mut table, mut offset, mut count) = (Vec::new(), 0usize, 0u64);
    for (key, param) in params.iter() {
        let format = (param.shape.len() == 2).then(|| format_of(key)).flatten();
        let (id, numbers, bytes) = kind(format);
        put_text(&mut table, &gguf_name(key));
        table.extend((param.shape.len() as u32).to_le_bytes());
        for size in param.shape.iter().rev() {
            table.extend((*size as u64).to_le_bytes());
        }
        table.extend(id.to_le_bytes());
        table.extend((offset as u64).to_le_bytes());
        let bytes = param.shape.iter().product::<usize>() / numbers * bytes;
        offset += bytes.next_multiple_of(ALIGNMENT);
        count += 1;
    }
    let (num_values, values) = metadata(config);
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(num_values.to_le_bytes());
    out.extend(values);
    out.extend(table);
    out.resize(out.len().next_multiple_of(ALIGNMENT) + offset, 0);
    fs::write(path, out).unwrap();
}
