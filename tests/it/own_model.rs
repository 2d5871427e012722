//! LoRA in a module that is not a Llama, beside Burn's own layers, records and training flags.

use burn::module::{Lora, Module, ModuleVisitor, Param};
use burn::nn;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor};
use burn_peft::Error;
use burn_peft::adapter::{
    LoadReport, ParamSet, adapter_state_dict, get_adapter_params, get_params, initialize_adapters,
    load_state_dict, load_tensors, set_trainable_params, state_dict, validate_state_dict_for_lora,
};
use burn_peft::lora::{DEFAULT_ADAPTER, LoRAConfig, LoRALinear, PlainLinear};
use burn_peft::training::{AdamW, AdamWConfig};

use crate::at_hand::left_out;
use crate::common::{device, floats};

/// An encoder of layers without names and a head.
#[derive(Module, Debug)]
struct Model {
    layers: Vec<LoRALinear>,
    norm: nn::LayerNorm,
    head: nn::Linear,
}

impl Model {
    fn new(lora: &LoRAConfig, device: &Device) -> Self {
        let layer = |_| LoRALinear::new(6, 6, lora, true, device);
        Self {
            layers: (0..2).map(layer).collect(),
            norm: nn::LayerNormConfig::new(6).init(device),
            head: nn::LinearConfig::new(6, 3).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let layers = self.layers.iter();
        let x = layers.fold(x, |x, layer| self.norm.forward(layer.forward(x)));
        self.head.forward(x)
    }
}

fn lora() -> LoRAConfig {
    LoRAConfig::default().with_rank(2)
}

fn input(device: &Device) -> Tensor<2> {
    Tensor::<1>::from_floats([0.5, -1.0, 2.0, 0.25, -0.75, 1.5], device).reshape([1, 6])
}

fn outputs(y: Tensor<2>) -> Vec<f32> {
    floats(&y.into_data())
}

/// `B` is zero at first, and of one column of equal numbers the norm leaves nothing.
fn with_update(model: Model) -> Model {
    let mut model = model;
    for layer in &mut model.layers {
        let adapter = layer.adapters.get_mut(DEFAULT_ADAPTER).unwrap();
        let numbers = |b: Tensor<2>| {
            let numbers = Tensor::<1, Int>::arange(0..12, &b.device()).float() / 12.0;
            numbers.reshape([6, 2])
        };
        adapter.map_matrix("lora_b.weight", numbers);
    }
    model
}

#[test]
fn dropout_stops_with_the_training() {
    let x = input(&device());
    let drops = |model: &Model| {
        let outputs = (0..8).map(|_| outputs(model.forward(x.clone())));
        let outputs: Vec<_> = outputs.collect();
        outputs.iter().any(|other| *other != outputs[0])
    };
    let model = with_update(Model::new(&lora().with_dropout(0.5), &device()));
    assert!(drops(&model));
    // The input is still one of a training.
    assert!(!drops(&model.valid()));
    assert!(drops(&model.valid().train()));

    let frozen = model.freeze();
    assert!(!drops(&frozen));
    let adapters = get_adapter_params(&frozen);
    let second: ParamSet = adapters
        .clone()
        .filter(|name, _| name.starts_with("layers.1."));
    let second_only = set_trainable_params(frozen, &second);
    let is_on = |layer: &LoRALinear| layer.adapter().unwrap().training.is_enabled();
    assert_eq!([0, 1].map(|i| is_on(&second_only.layers[i])), [false, true]);
    assert!(drops(&set_trainable_params(second_only, &adapters)));
}

/// Burn's counterpart of activation checkpointing for any model.
#[test]
fn a_device_with_gradient_checkpointing_trains_as_one_without() {
    let values = state_dict(&with_update(Model::new(&lora(), &device())));
    let train = |device: &Device| {
        let mut model = Model::new(&lora(), device);
        load_state_dict(&mut model, &values, true).unwrap();
        let mut optimizer = AdamW::new(AdamWConfig::default());
        for _ in 0..3 {
            let loss = model.forward(input(device)).square().sum();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, grads);
        }
        outputs(model.forward(input(device)))
    };
    let expected = train(&device());
    assert_eq!(train(&device().gradient_checkpointing()), expected);
}

#[test]
fn burns_layer_comes_back() {
    let theirs = nn::LinearConfig::new(6, 3).init(&device());
    // Not its outputs: a GPU may multiply by another layout with another rounding.
    let numbers = |layer: &nn::Linear| {
        let bias = layer.bias.as_ref().unwrap();
        [
            floats(&layer.weight.val().into_data()),
            floats(&bias.val().into_data()),
        ]
    };
    let expected = numbers(&theirs);
    let back = nn::Linear::from(PlainLinear::from(theirs));
    assert_eq!(back.weight.dims(), [6, 3]);
    assert_eq!(numbers(&back), expected);
}

/// Where they stand, the name of the last module says nothing.
#[test]
fn adapters_are_those_of_the_model_whatever_they_are_called() {
    let model = Model::new(&lora(), &device());
    let keys: Vec<String> = get_params(&model).names().map(Into::into).collect();
    let (adapter, base) = keys.into_iter().partition(|key| key.contains("lora"));
    let mut report = LoadReport::default();
    (report.loaded, report.missing) = (base, adapter);
    validate_state_dict_for_lora(&get_adapter_params(&model), &report).unwrap();
    let empty = get_adapter_params(&model).filter(|_, _| false);
    let error = validate_state_dict_for_lora(&empty, &report).unwrap_err();
    assert!(
        error.to_string().contains("layers.1.lora_b.weight"),
        "{error}"
    );
}

#[test]
fn burns_adapters_are_adapters() {
    let head = nn::LinearConfig::new(6, 3).init(&device());
    let head = head.apply_lora(Lora::new(2, 4.0));
    let adapters = get_adapter_params(&head);
    assert_eq!(adapters.num_elements(), 2 * (6 + 3));
    assert_eq!(adapter_state_dict(&head).len(), 2);
    let trained = set_trainable_params(head.no_grad(), &adapters);
    let loss = trained.forward(input(&device())).sum();
    assert_eq!(
        GradientsParams::from_grads(loss.backward(), &trained).len(),
        2
    );
    // Their first values are Burn's.
    let before = adapter_state_dict(&trained);
    assert_eq!(adapter_state_dict(&initialize_adapters(trained, 1)), before);
}

#[test]
fn a_dora_layer_begins_as_its_base_whatever_loaded_that() {
    let dora = lora().with_dora(true);
    let base = LoRALinear::plain(6, 6, true, &device());
    let expected = outputs(base.forward(input(&device())));
    let mut layer = LoRALinear::new(6, 6, &dora, true, &device());
    layer.base.weight = layer
        .base
        .weight
        .load_record(base.base.weight.into_record());
    layer.base.bias = layer.base.bias.load_record(base.base.bias.into_record());
    let layer = initialize_adapters(layer, 0);
    let found = outputs(layer.forward(input(&device())));
    for (found, expected) in found.iter().zip(&expected) {
        approx::assert_relative_eq!(found, expected, max_relative = 1e-5);
    }
}

#[test]
fn a_dora_magnitude_follows_its_layer_to_a_device() {
    let layer = LoRALinear::new(6, 6, &lora().with_dora(true), false, &Device::flex());
    let moved = layer.to_device(&device());
    let magnitude = moved.adapter().unwrap().vector("magnitude").unwrap();
    assert_eq!(magnitude.device(), moved.base.weight.val().device());
}

#[test]
fn a_dora_magnitude_may_be_in_half_precision() {
    if !device().supports_dtype(DType::BF16) {
        return left_out("bf16", "this device has no bf16");
    }
    let mut layer = LoRALinear::new(6, 6, &lora().with_dora(true), false, &device());
    let exact = outputs(layer.forward(input(&device())));
    let mut values = state_dict(&layer);
    let magnitude = values.get_mut("magnitude").unwrap();
    *magnitude = magnitude.clone().convert_dtype(DType::BF16);
    load_state_dict(&mut layer, &values, true).unwrap();
    let rounded = outputs(layer.forward(input(&device())));
    for (rounded, exact) in rounded.iter().zip(&exact) {
        approx::assert_relative_eq!(rounded, exact, max_relative = 1.0 / 256.0);
    }
}

#[test]
fn a_value_of_another_shape_is_an_error() {
    let mut layer = LoRALinear::new(6, 6, &lora(), false, &device());
    let wrong = state_dict(&LoRALinear::plain(6, 5, false, &device()));
    let keys = ["weight".to_owned()];
    let error = load_tensors(&mut layer, &keys, |key| Ok(wrong[key].clone())).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { key, .. } if key == "weight"),
        "{error}"
    );
}

#[test]
#[should_panic = "must lie in [0, 1), not 1"]
fn a_dropout_of_all_is_refused() {
    LoRALinear::new(6, 6, &lora().with_dropout(1.0), false, &device());
}

/// burn-store's adapters for PyTorch's files transpose the matrices of every `Linear`, and those of this
/// crate have PyTorch's layout already.
#[test]
fn no_matrix_of_an_adapted_layer_is_that_of_a_linear() {
    #[derive(Default)]
    struct Containers {
        open: Vec<String>,
        of_weights: Vec<String>,
    }
    impl ModuleVisitor for Containers {
        fn enter_module(&mut self, _: &str, container: &str) {
            self.open.push(container.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.open.pop();
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            self.of_weights.extend(self.open.last().cloned());
        }
    }
    let mut containers = Containers::default();
    Model::new(&lora(), &device()).visit(&mut containers);
    let transposed = containers
        .of_weights
        .iter()
        .filter(|c| *c == "Struct:Linear");
    // Weight and bias of the head, which is Burn's.
    assert_eq!(transposed.count(), 2, "{:?}", containers.of_weights);
}
