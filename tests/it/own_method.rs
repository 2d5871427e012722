//! A method of one's own, as CONTRIBUTING.md describes it: this file, and nothing else.
//!
//! It is the scaling of outputs of Liu et al., *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
//! In-Context Learning*, <https://arxiv.org/abs/2205.05638>: `y = l ⊙ (W x) + b`, with `l` one at first.

use burn::tensor::{DType, Tensor};
use burn_peft::adapter::{
    Adapter, ParamCount, adapter_state_dict, detach, get_adapter_params, initialize_adapters,
    initialize_params, validate_state_dict_for_lora,
};
use burn_peft::checkpoint::{
    load_adapter, load_adapter_with, load_hf, save_adapter, save_hf, save_peft_adapter,
};
use burn_peft::data::Batch;
use burn_peft::llama::LlamaConfig;
use burn_peft::lora::{
    AdapterParams, AdapterSettings, DEFAULT_ADAPTER, FirstValue, Kept, LayerKind, LayerParams,
    LayerShape, LoRAConfig, Method, MethodRef, ParamSpec, PlainLinear,
};
use burn_peft::ops::DropoutMask;
use burn_peft::training::{
    AdamWConfig, EstimateConfig, LrSchedule, ScheduleKind, Trainer, estimate,
};

use crate::common::{device, floats};

#[derive(Debug)]
struct OutputScaling;

static OUTPUT_SCALING: OutputScaling = OutputScaling;

impl Method for OutputScaling {
    fn name(&self) -> &'static str {
        "output_scaling"
    }

    fn adapts(&self, kind: LayerKind) -> bool {
        kind == LayerKind::Linear
    }

    fn params(&self, layer: &LayerShape, _: &AdapterSettings) -> Vec<ParamSpec> {
        let [out_dim, _] = layer.dims;
        let first = FirstValue::VectorOfLayer(ones);
        vec![ParamSpec::vector("scaling", "ia3_l", out_dim, first)]
    }

    fn add_update(
        &self,
        adapter: &AdapterParams,
        _: &PlainLinear,
        _: Tensor<3>,
        y: Tensor<3>,
        _: Option<DropoutMask>,
    ) -> Tensor<3> {
        y * scaling(adapter).unsqueeze()
    }

    fn merge(
        &self,
        adapter: &AdapterParams,
        _: &LayerShape,
        _: &Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        weight * scaling(adapter).set_require_grad(false).unsqueeze_dim(1)
    }

    fn kept(&self, layer: &LayerShape, _: &AdapterSettings) -> Kept {
        Kept::per_token(layer.dims[0])
    }
}

fn scaling(adapter: &AdapterParams) -> Tensor<1> {
    adapter.vector("scaling").expect("the method has a scaling")
}

fn ones(layer: &LayerParams, _: &AdapterSettings) -> Tensor<1> {
    let weight = layer.weight.as_ref().expect("a linear layer has a weight");
    let [out_dim, _] = weight.shape();
    Tensor::ones([out_dim], (&weight.device(), DType::F32))
}

fn config() -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(32)
        .with_num_layers(2)
        .with_num_heads(2)
        .with_num_kv_heads(2)
        .with_head_dim(8)
        .with_embed_dim(16)
        .with_intermediate_dim(24)
        .with_max_seq_len(32)
}

fn lora() -> LoRAConfig {
    LoRAConfig::new(["v_proj", "w2"]).with_method(MethodRef(&OUTPUT_SCALING))
}

fn batch() -> Batch {
    let ids: Vec<i32> = (0..16).map(|n| (5 * n + 2) % 32).collect();
    Batch {
        labels: ids.clone(),
        input_ids: ids,
        segments: vec![vec![8]; 2],
        batch_size: 2,
        seq_len: 8,
        adapters: None,
    }
}

#[test]
fn a_method_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = config().init(&device());
    save_hf(&base, dir.path()).unwrap();

    // Keys, validation, first values and counts follow from the table.
    let mut model = config().init_lora(&lora(), &device()).unwrap();
    let report = load_hf(&mut model, dir.path()).unwrap();
    validate_state_dict_for_lora(&lora(), &report).unwrap();
    let model = initialize_adapters(model, 0);
    initialize_params(&model);
    assert!(adapter_state_dict(&model).contains_key("layers.1.mlp.w2.scaling"));
    assert_eq!(ParamCount::of(&model).trainable, 2 * (16 + 16));

    let ids = batch().input_tensor(&device());
    let logits = |model: &burn_peft::llama::TransformerDecoder| {
        floats(&model.forward(ids.clone(), None).into_data())
    };
    let expected = logits(&base);
    assert_eq!(logits(&model), expected);

    // It trains, merges, comes off and goes on again.
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-1,
        warmup_steps: 0,
        total_steps: 4,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let mut model = model;
    let mut losses = Vec::new();
    for _ in 0..4 {
        let output;
        (model, output) = trainer.step(model, &[batch()]);
        losses.push(output.loss);
    }
    assert!(losses[3] < losses[0], "{losses:?}");
    assert_eq!(
        trainer.optimizer.num_states(),
        get_adapter_params(&model).len()
    );
    let adapted = logits(&model);
    for (merged, adapted) in logits(&model.clone().merge_lora()).iter().zip(&adapted) {
        approx::assert_relative_eq!(merged, adapted, epsilon = 1e-4);
    }
    save_peft_adapter(&model, DEFAULT_ADAPTER, None, dir.path().join("adapter")).unwrap_err();
    let (model, adapter): (_, Adapter) = detach(model, DEFAULT_ADAPTER).unwrap();
    assert_eq!(logits(&model), expected);
    assert_eq!(logits(&adapter.attach(model, "again").unwrap()), adapted);

    // A file has its name; who reads the file brings the method.
    let path = dir.path().join("own.safetensors");
    save_adapter(&adapter, &path).unwrap();
    let error = load_adapter(&path).unwrap_err().to_string();
    assert!(error.contains("`load_adapter_with`"), "{error}");
    let read = load_adapter_with(&path, &[&OUTPUT_SCALING]).unwrap();
    assert_eq!(read, adapter);

    // What it does not adapt is told by name.
    let embedding =
        LoRAConfig::new(["v_proj", "embed_tokens"]).with_method(MethodRef(&OUTPUT_SCALING));
    let error = base.with_adapters(&embedding).unwrap_err().to_string();
    let expected = "`output_scaling` does not adapt `tok_embeddings`, an embedding";
    assert!(error.contains(expected), "{error}");

    // The estimate counts it.
    let memory = estimate(&EstimateConfig::new(config(), Some(lora()), 2, 8));
    assert_eq!(memory.adapters, 4 * 2 * (16 + 16));
}
