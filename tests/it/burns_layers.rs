//! Beside Burn's own layers: its LoRA in one model with this crate's, its attention, and the layout of its weights.

use std::collections::HashMap;

use burn::module::{Lora, Module};
use burn::nn;
use burn::nn::attention::{MhaInput, MhaOutput, MultiHeadAttentionConfig};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use burn_peft::adapter::{
    Adapter, StateDict, adapter_state_dict, get_adapter_params, get_params, load_state_dict,
    merge_adapters, set_trainable_params, state_dict, train_adapters, with_adapters,
};
use burn_peft::checkpoint::{load_state_dict_file, save_state_dict};
use burn_peft::lora::{
    AttentionInput, DEFAULT_ADAPTER, LoRAConfig, LoRALinear, MultiHeadAttention,
};
use burn_peft::training::{AdamW, AdamWConfig};

use crate::common::{device, floats};

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    floats(&tensor.into_data())
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        approx::assert_abs_diff_eq!(found, expected, epsilon = 1e-5);
    }
}

fn trained_step<M: Module>(model: M, optimizer: &mut AdamW, loss: Tensor<1>) -> M {
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    optimizer.step(1e-2, model, grads)
}

/// A block of Burn's and a layer of this crate's.
#[derive(Module, Debug)]
struct Classifier {
    encoder: TransformerEncoder,
    head: LoRALinear,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        let encoder = TransformerEncoderConfig::new(8, 16, 2, 1).with_dropout(0.0);
        Self {
            encoder: encoder.init(device),
            head: LoRALinear::plain(8, 3, true, device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.encoder.forward(TransformerEncoderInput::new(x));
        self.head.forward(x)
    }
}

#[test]
fn burns_lora_trains_beside_this_crates() {
    let device = device();
    let base = Classifier::new(&device);
    let before = state_dict(&base);
    let adapted = Classifier {
        encoder: base.encoder.apply_lora(Lora::new(2, 4.0)),
        head: base.head,
    };
    // It freezes all but its own adapters, Burn's among the others.
    let model = with_adapters(adapted, &LoRAConfig::new(["head"]).with_rank(2)).unwrap();
    let mut model = train_adapters(model);
    // Query, key, value, output, and two of the feed-forward network.
    let names = get_adapter_params(&model);
    assert_eq!(names.len(), 6 * 2 + 2);

    let x = random([2, 4, 8], &device);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let at_first = adapter_state_dict(&model);
    let output = numbers(model.forward(x.clone()));
    for _ in 0..2 {
        let loss = (model.forward(x.clone()) - 1.0).square().mean();
        model = trained_step(model, &mut optimizer, loss);
    }
    assert_eq!(optimizer.num_states(), names.len());
    assert_ne!(numbers(model.forward(x.clone())), output);
    let after = state_dict(&model);
    assert!(before.iter().all(|(key, value)| after[key] == *value));
    assert!(at_first.iter().all(|(key, value)| after[key] != *value));

    // An `Adapter` has this crate's, a state dict has both.
    let own = Adapter::of(&model, DEFAULT_ADAPTER).unwrap();
    let keys: Vec<&str> = own.tensors.keys().map(String::as_str).collect();
    assert_eq!(keys, ["head.lora_a.weight", "head.lora_b.weight"]);
    assert_eq!(adapter_state_dict(&model).len(), names.len());

    // Each merges its own.
    let trained = numbers(model.valid().forward(x.clone().inner()));
    let merged = merge_adapters(model.valid());
    assert_eq!(get_adapter_params(&merged).len(), 6 * 2);
    let merged = merged.materialize();
    assert!(get_adapter_params(&merged).is_empty());
    assert_close(&numbers(merged.forward(x.inner())), &trained);
}

fn same(ours: MhaOutput, theirs: MhaOutput) {
    assert_close(&numbers(ours.context), &numbers(theirs.context));
    assert_close(&numbers(ours.weights), &numbers(theirs.weights));
}

/// The second row's last keys are padding.
fn mask_pad(device: &Device) -> Tensor<2, Bool> {
    let ints = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    Tensor::<1, Int>::from_ints(ints, device)
        .reshape([2, 5])
        .equal_elem(1)
}

#[test]
fn attention_from_burns_is_burns() {
    let device = device();
    for (quiet, bias) in [(false, true), (true, false)] {
        let theirs = MultiHeadAttentionConfig::new(8, 2)
            .with_dropout(0.0)
            .with_quiet_softmax(quiet)
            .with_min_float(-5.0)
            .with_key_bias(bias)
            .init(&device);
        let ours = MultiHeadAttention::from(theirs.clone());
        assert_eq!(ours.key.base.bias.is_some(), bias);

        let x = random([2, 5, 8], &device);
        let causal = Tensor::<2, Bool>::tril_mask([5, 5], 0, &device).unsqueeze::<3>();
        let masked = AttentionInput::self_attn(x.clone());
        let masked = masked.mask_pad(mask_pad(&device)).mask_attn(causal.clone());
        let expected = MhaInput::self_attn(x.clone());
        let expected = expected.mask_pad(mask_pad(&device)).mask_attn(causal);
        same(ours.forward(masked), theirs.forward(expected));

        let query = random([2, 3, 8], &device);
        let value = random([2, 5, 8], &device);
        let unseen = random([2, 3, 5], &device).greater_elem(0.5);
        let masked = AttentionInput::new(query.clone(), x.clone(), value.clone());
        let masked = masked.mask_pad(mask_pad(&device)).mask_attn(unseen.clone());
        let expected = MhaInput::new(query, x, value);
        let expected = expected.mask_pad(mask_pad(&device)).mask_attn(unseen);
        same(ours.forward(masked), theirs.forward(expected));
    }
}

#[test]
fn attention_drops_weights_in_training_only() {
    let device = device();
    let config = MultiHeadAttentionConfig::new(8, 2).with_dropout(0.5);
    let ours = MultiHeadAttention::from(config.init(&device));
    let x = random([2, 5, 8], &device);
    let zeros = |ours: &MultiHeadAttention, x: Tensor<3>| {
        let weights = ours.forward(AttentionInput::self_attn(x)).weights;
        numbers(weights).iter().filter(|w| **w == 0.0).count()
    };
    assert!(zeros(&ours, x.clone()) > 0);
    assert_eq!(zeros(&ours.valid(), x.inner()), 0);
}

#[test]
fn adapters_go_on_the_attention_by_name() {
    let device = device();
    let config = MultiHeadAttentionConfig::new(8, 2).with_dropout(0.0);
    let ours = MultiHeadAttention::from(config.init(&device));
    let before = state_dict(&ours);
    let lora = LoRAConfig::new(["query", "value"]).with_rank(2);
    let mut model = with_adapters(ours, &lora).unwrap();
    let x = random([2, 5, 8], &device);
    let forward = |model: &MultiHeadAttention| {
        let input = AttentionInput::self_attn(x.clone());
        model.forward(input).context
    };
    let at_first = numbers(forward(&model));
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for _ in 0..2 {
        let loss = (forward(&model) - 1.0).square().mean();
        model = trained_step(model, &mut optimizer, loss);
    }
    assert_eq!(optimizer.num_states(), 4);
    let trained = numbers(forward(&model));
    assert_ne!(trained, at_first);
    let after = state_dict(&model);
    assert!(before.iter().all(|(key, value)| after[key] == *value));
    assert_close(&numbers(forward(&merge_adapters(model))), &trained);
}

/// Of one model with Burn's layers and one with this crate's.
#[derive(Module, Debug)]
struct Theirs {
    hidden: nn::Linear,
}

#[derive(Module, Debug)]
struct Ours {
    hidden: LoRALinear,
}

fn theirs(in_dim: usize, layout: nn::LinearLayout, device: &Device) -> Theirs {
    let config = nn::LinearConfig::new(in_dim, 4).with_layout(layout);
    Theirs {
        hidden: config.init(device),
    }
}

/// Of a square weight the shape does not tell.
#[test]
fn a_state_dict_goes_between_burns_layer_and_this_crates() {
    let device = device();
    for layout in [nn::LinearLayout::Row, nn::LinearLayout::Col] {
        for in_dim in [4, 3] {
            let from = theirs(in_dim, layout, &device);
            let x = random([2, in_dim], &device);
            assert!(!from.hidden.weight.is_initialized());
            let while_lazy = get_params(&from).get("hidden.weight").unwrap().clone();
            let values = state_dict(&from);
            for shape in [&while_lazy.shape[..], &values["hidden.weight"].shape()[..]] {
                assert_eq!(shape, [4, in_dim]);
            }
            let expected = numbers(from.hidden.forward(x.clone()));

            let mut ours = Ours {
                hidden: LoRALinear::plain(in_dim, 4, true, &device),
            };
            load_state_dict(&mut ours, &values, true).unwrap();
            assert_close(&numbers(ours.hidden.forward(x.clone())), &expected);

            let mut back = theirs(in_dim, layout, &device);
            load_state_dict(&mut back, &state_dict(&ours), true).unwrap();
            assert_close(&numbers(back.hidden.forward(x)), &expected);
            assert_eq!(state_dict(&back), values);
        }
    }
}

#[test]
fn a_square_weight_in_burns_record_is_converted_with_its_layer() {
    let device = device();
    let from = theirs(4, nn::LinearLayout::Row, &device);
    let x = random([2, 4], &device);
    let expected = numbers(from.hidden.forward(x.clone()));
    let record = from.into_record();
    let loaded = theirs(4, nn::LinearLayout::Row, &device).load_record(record);
    let layer = LoRALinear::from(loaded.hidden);
    assert_close(&numbers(layer.forward(x)), &expected);
}

fn burn_store_file(path: &std::path::Path, columns: usize) {
    let bytes = vec![0; 4 * 4 * columns];
    let shape = vec![4, columns];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
    let metadata = [("format", "safetensors"), ("producer", "burn")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let tensors = [("hidden.weight", view.unwrap())];
    safetensors::serialize_to_file(tensors, Some(HashMap::from(metadata)), path).unwrap();
}

/// Its files are alike whether or not it has transposed a weight.
#[test]
fn a_square_weight_of_burn_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    burn_store_file(&path, 4);
    let error = load_state_dict_file(&path).unwrap_err().to_string();
    for part in ["burn-store", "`hidden.weight`", "LoRALinear::from"] {
        assert!(error.contains(part), "{error}");
    }

    // Of another one the shape tells.
    burn_store_file(&path, 3);
    let values = load_state_dict_file(&path).unwrap();
    let mut ours = Ours {
        hidden: LoRALinear::plain(4, 3, false, &device()),
    };
    let error = load_state_dict(&mut ours, &values, true).unwrap_err();
    assert!(error.to_string().contains("is it transposed"), "{error}");

    save_state_dict(
        &state_dict(&theirs(4, nn::LinearLayout::Row, &device())),
        &path,
    )
    .unwrap();
    assert_eq!(load_state_dict_file(&path).unwrap().len(), 2);
}

/// Moments in the shape of a state dict's weight are in its layout too.
#[test]
fn moments_of_burns_layer_have_the_layout_of_its_weight() {
    let device = device();
    let model = theirs(4, nn::LinearLayout::Row, &device);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let loss = model.hidden.forward(random([2, 4], &device)).square().sum();
    let model = trained_step(model, &mut optimizer, loss);
    let flat = optimizer.state_dict(&model);
    let mut shaped: StateDict = flat.clone();
    for suffix in ["exp_avg", "exp_avg_sq"] {
        let key = format!("hidden.weight.{suffix}");
        let moment = TensorData::new(floats(&flat[&key]), [4, 4]);
        let moment = Tensor::<2>::from_data(moment, &device).transpose();
        shaped.insert(key, moment.into_data());
    }
    assert_ne!(shaped, flat);
    let mut again = AdamW::new(AdamWConfig::default());
    again.load_state_dict(&model, &shaped).unwrap();
    assert_eq!(again.state_dict(&model), flat);
}

/// The set is no borrow of the model, and the model goes through: nothing asks for a clone, which a lazy model would
/// share its training flags with.
#[test]
fn a_lazy_model_is_frozen_without_a_clone() {
    let device = device();
    let model = Ours {
        hidden: LoRALinear::new(4, 4, &LoRAConfig::default(), true, &device),
    };
    let adapters = get_adapter_params(&model);
    let model = set_trainable_params(model.set_require_grad(true), &adapters);
    assert!(!model.hidden.base.weight.is_initialized());
    let loss = model.hidden.forward(random([2, 4], &device)).sum();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    assert_eq!(grads.len(), 2);
    assert!(!model.hidden.base.weight.val().is_require_grad());
}
