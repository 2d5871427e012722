//! The golden cases: what transformers and PEFT computed, and the tolerances, which are absolute.
//! `tests/python/make_golden.py` made them.

use burn_peft::adapter::adapter_state_dict;
use burn_peft::checkpoint::{load_hf, load_peft, read_hf_config, read_peft_config, save_peft};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::LoRAConfig;

use crate::common::{Tensors, assert_floats_close, device, floats, golden};

pub const LOGITS: f32 = 1e-4;
pub const LOSS: f32 = 1e-5;
pub const STEP_LOSS: f32 = 2e-5;
pub const TRAINED: f32 = 1e-4;
pub const MERGED: f32 = 1e-5;

pub const ADAPTERS: [(&str, &str); 7] = [
    ("gqa", "lora_qv_r8"),
    ("gqa", "lora_all_r4"),
    ("gqa", "dora_qv_r8"),
    ("gqa", "rslora_qv_r8"),
    ("mha", "lora_qv_r8"),
    ("mha", "dora_all_r4"),
    ("gqa", "lora_output_r4"),
];

/// The folder with inputs and expected values; shards hold the same weights as `gqa`.
pub fn values_of(case: &str) -> &str {
    case.strip_suffix("_sharded").unwrap_or(case)
}

pub fn with_adapter(case: &str, adapter: &str) -> (TransformerDecoder, LoRAConfig) {
    let dir = golden(case);
    let lora = read_peft_config(dir.join(adapter)).unwrap();
    let config = read_hf_config(&dir).unwrap();
    let mut model = config.init_lora(&lora, &device()).unwrap();
    load_hf(&mut model, &dir).unwrap();
    load_peft(&mut model, dir.join(adapter)).unwrap();
    (model, lora)
}

pub fn inputs(case: &str) -> Tensors {
    Tensors::open(golden(values_of(case)).join("inputs.safetensors"))
}

pub fn expected(path: &str) -> Tensors {
    Tensors::open(golden(path).join("expected.safetensors"))
}

/// The names of an adapter's tensors in PEFT's files, found through one that this crate wrote; not of a base
/// weight that PEFT saved with them.
pub fn peft_names(model: &TransformerDecoder, lora: &LoRAConfig) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    save_peft(model, lora, dir.path()).unwrap();
    let names = Tensors::open(dir.path().join("adapter_model.safetensors")).keys();
    let is_adapter = |name: &String| name.contains(".lora_");
    names.into_iter().filter(is_adapter).collect()
}

/// Our name of such a tensor.
pub fn our_name(peft: &str) -> String {
    peft.replace("base_model.model.model.layers", "layers")
        .replace("base_model.model.lm_head", "output")
        .replace("self_attn", "attn")
        .replace("o_proj", "output_proj")
        .replace("gate_proj", "w1")
        .replace("down_proj", "w2")
        .replace("up_proj", "w3")
        .replace("lora_A", "lora_a")
        .replace("lora_B", "lora_b")
        .replace("lora_magnitude_vector", "magnitude")
}

pub fn assert_adapter(
    model: &TransformerDecoder,
    lora: &LoRAConfig,
    expected: &Tensors,
    prefix: &str,
) {
    let values = adapter_state_dict(model);
    for name in peft_names(model, lora) {
        let got = floats(&values[&our_name(&name)]);
        let expected = expected.floats(&format!("{prefix}{name}"));
        assert_floats_close(&name, &got, &expected, TRAINED);
    }
}
