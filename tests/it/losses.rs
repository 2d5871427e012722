//! Losses over whole samples, gradients that are read and changed, and steps that have nothing to learn.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn;
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor};
use burn_peft::Error;
use burn_peft::adapter::{adapter_state_dict, get_params, with_adapters};
use burn_peft::data::{Batch, IGNORE_INDEX, Sample};
use burn_peft::distributed::SingleProcess;
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{LoRAConfig, LoRALinear};
use burn_peft::training::{
    Activations, AdamWConfig, Dpo, HiddenStates, LrSchedule, SampleLogProb, ScheduleKind,
    SequenceLoss, StepGradients, Trainer, cross_entropy_sum, grad_norm, sample_log_probs,
    validation_loss,
};

use crate::common::{Tensors, assert_floats_close, device, floats};
use crate::golden_cases::{inputs, our_name, peft_names, with_adapter};

fn trainer() -> Trainer {
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-2,
        warmup_steps: 0,
        total_steps: 10,
    };
    Trainer::new(AdamWConfig::default(), schedule)
}

fn named<M: Module>(model: &M, grads: &GradientsParams) -> HashMap<String, Vec<f32>> {
    let params = get_params(model);
    let mut named = Named {
        names: params.iter().map(|(n, p)| (p.id, n.to_owned())).collect(),
        grads,
        values: HashMap::new(),
    };
    model.visit(&mut named);
    named.values
}

struct Named<'a> {
    names: HashMap<ParamId, String>,
    grads: &'a GradientsParams,
    values: HashMap<String, Vec<f32>>,
}

impl ModuleVisitor for Named<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let name = self.names[&param.id].clone();
            self.values.insert(name, floats(&grad.into_data()));
        }
    }
}

/// The rows of `train_input_ids` in pairs, with so many tokens as the prompt; of different lengths, if asked for.
fn pairs(count: usize, prompt: usize, cut: bool) -> Vec<Sample> {
    let file = inputs("gqa");
    let [_, rows, seq] = file.shape("train_input_ids")[..] else {
        panic!("three dimensions");
    };
    let ids = file.ints("train_input_ids");
    let rows = ids.chunks(seq).take(rows * count).enumerate();
    rows.map(|(index, row)| {
        let len = if cut { seq - index } else { seq };
        let mut labels = row[..len].to_vec();
        labels[..prompt].fill(IGNORE_INDEX);
        Sample {
            tokens: row[..len].iter().map(|id| *id as u32).collect(),
            labels,
            is_cut: false,
        }
    })
    .collect()
}

fn padded(samples: &[Sample]) -> Batch {
    Batch::collate(&samples.iter().collect::<Vec<_>>(), 0)
}

fn packed(samples: &[Sample]) -> Batch {
    let rows: Vec<Vec<&Sample>> = samples.chunks(2).map(|row| row.iter().collect()).collect();
    let rows: Vec<&[&Sample]> = rows.iter().map(|row| &row[..]).collect();
    Batch::collate_packed(&rows, 0, Default::default())
}

fn gradients<M: HiddenStates>(
    trainer: &Trainer,
    loss: Option<&dyn SequenceLoss<M>>,
    model: &M,
    batches: &[Batch],
) -> StepGradients {
    let gradients = trainer.gradients_by(loss, &SingleProcess, model, batches);
    gradients.unwrap()
}

/// What `tests/python/make_dpo.py` made.
#[test]
fn dpo_is_that_of_pytorch() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/generate/dpo.safetensors"
    );
    let file = Tensors::open(path);
    let samples = pairs(3, 5, false);
    let loss = Dpo::new(0.3).with_label_smoothing(0.1);
    for adapter in ["lora_qv_r8", "lora_output_r4"] {
        let expected = |key: &str| file.floats(&format!("{adapter}.{key}"));
        let (model, lora) = with_adapter("gqa", adapter);
        let batch = padded(&samples);
        let own = sample_log_probs(&model, &batch);
        let own: Vec<f32> = own.iter().map(|sample| sample.log_prob as f32).collect();
        assert_floats_close("log_probs", &own, &expected("log_probs"), 1e-4);
        let margins = loss.margins(&model, &batch);
        let margins: Vec<f32> = margins.iter().map(|margin| *margin as f32).collect();
        assert_floats_close("margins", &margins, &expected("margins"), 1e-4);
        let recomputed = Activations::Recompute { layers: 2 };
        for trainer in [
            trainer(),
            trainer()
                .with_activations(recomputed)
                .with_loss_chunk_rows(7),
        ] {
            for batches in [
                vec![padded(&samples)],
                vec![packed(&samples)],
                samples.chunks(2).map(padded).collect(),
            ] {
                let got = gradients(&trainer, Some(&loss), &model, &batches);
                assert_floats_close("loss", &[got.loss as f32], &expected("loss"), 1e-5);
                let grads = named(&model, got.params());
                for name in peft_names(&model, &lora) {
                    let expected = expected(&format!("grad.{name}"));
                    assert_floats_close(&name, &grads[&our_name(&name)], &expected, 1e-4);
                }
            }
        }
    }
}

#[test]
fn dpo_learns_what_is_preferred() {
    let (mut model, _) = with_adapter("gqa", "lora_qv_r8");
    let (loss, batch) = (Dpo::new(0.3), padded(&pairs(3, 5, true)));
    let mut trainer = trainer();
    let base = model.clone().without_adapters();
    let log_probs = |model: &TransformerDecoder, batch: &Batch| {
        let samples = sample_log_probs(model, batch).into_iter();
        samples
            .map(|sample| sample.log_prob as f32)
            .collect::<Vec<_>>()
    };
    let reference = |model: &TransformerDecoder| {
        let none = vec![None::<String>; batch.batch_size];
        log_probs(model, &batch.clone().with_adapters(none))
    };
    let of_base = log_probs(&base, &batch);
    assert_floats_close("the base", &reference(&model), &of_base, 1e-5);
    for _ in 0..30 {
        (model, _) = trainer.step_by(&loss, model, std::slice::from_ref(&batch));
    }
    assert!(
        loss.margins(&model, &batch)
            .iter()
            .all(|margin| *margin > 0.5)
    );
    assert_floats_close("still the base", &reference(&model), &of_base, 1e-5);
}

/// The cross entropy as a loss over samples.
struct CrossEntropy;

impl<M> SequenceLoss<M> for CrossEntropy {
    fn sum(&self, _: &M, _: &Batch, _: &[SampleLogProb], log_probs: Tensor<1>) -> Tensor<1> {
        log_probs.sum().neg()
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.num_label_tokens()
    }
}

#[test]
fn the_cross_entropy_is_a_loss_over_samples() {
    let (model, _) = with_adapter("gqa", "lora_output_r4");
    let samples = pairs(3, 5, true);
    for trainer in [trainer(), trainer().with_loss_chunk_rows(3)] {
        for batch in [padded(&samples), packed(&samples)] {
            let batches = [batch];
            let expected = gradients(&trainer, None, &model, &batches);
            let got = gradients(&trainer, Some(&CrossEntropy), &model, &batches);
            assert!((got.loss - expected.loss).abs() < 1e-5);
            let (got, expected) = (
                named(&model, got.params()),
                named(&model, expected.params()),
            );
            assert_eq!(got.len(), expected.len());
            for (name, expected) in expected {
                assert_floats_close(&name, &got[&name], &expected, 1e-5);
            }
        }
    }
}

#[test]
fn gradients_of_a_step_are_read_and_changed() {
    let (model, _) = with_adapter("gqa", "lora_qv_r8");
    let batches = [padded(&pairs(2, 5, false))];
    let mut step = gradients(&trainer(), None, &model, &batches);
    let norms = step.norms(&model);
    let names: Vec<_> = norms.keys().cloned().collect();
    let mut adapter: Vec<_> = adapter_state_dict(&model).into_keys().collect();
    adapter.sort();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(sorted, adapter);
    let total = |norms: &mut dyn Iterator<Item = f64>| norms.map(|n| n * n).sum::<f64>().sqrt();
    assert!((total(&mut norms.values().copied()) - step.grad_norm).abs() < 1e-5);
    let by_layer = step.layer_norms(&model);
    let layers: Vec<_> = by_layer.keys().map(String::as_str).collect();
    assert_eq!(layers, ["layers.0", "layers.1", "layers.2", "layers.3"]);
    assert!((total(&mut by_layer.values().copied()) - step.grad_norm).abs() < 1e-5);

    // Without those of the first layer, and the others halved.
    step.scale(&model, |name| match name.starts_with("layers.0.") {
        true => 0.0,
        false => 0.5,
    });
    let after = step.layer_norms(&model);
    assert_eq!(after["layers.0"], 0.0);
    assert!((after["layers.2"] - by_layer["layers.2"] / 2.0).abs() < 1e-6);
    assert!((step.grad_norm - grad_norm(&model, step.params())).abs() < 1e-9);
    let before = adapter_state_dict(&model);
    let config = AdamWConfig::default().with_weight_decay(0.0);
    let mut without_decay = trainer();
    without_decay.optimizer = burn_peft::training::AdamW::new(config);
    let (model, _) = without_decay.update(model, step);
    for (name, value) in adapter_state_dict(&model) {
        let is_same = floats(&value) == floats(&before[&name]);
        assert_eq!(is_same, name.starts_with("layers.0."), "{name}");
    }
}

#[test]
fn a_step_without_labels_and_a_validation_without_records_are_errors() {
    let (model, _) = with_adapter("gqa", "lora_qv_r8");
    let unlabelled = padded(&pairs(1, 16, false));
    assert_eq!(unlabelled.num_label_tokens(), 0);
    let error = trainer().gradients(&SingleProcess, &model, std::slice::from_ref(&unlabelled));
    let Some(Error::InvalidArgument { name, message }) = error.err() else {
        panic!("an error of another kind");
    };
    assert_eq!(name, "labels");
    assert!(
        message.contains("no token of the step has a label"),
        "{message}"
    );
    for batches in [vec![], vec![unlabelled]] {
        let error = validation_loss(&model, &batches).unwrap_err().to_string();
        assert!(error.contains("nothing to validate on"), "{error}");
    }
}

/// A model of one's own: each token is predicted from the one before it.
#[derive(Module, Debug)]
struct Bigrams {
    embedding: nn::Embedding,
    layers: Vec<LoRALinear>,
    output: LoRALinear,
}

impl Bigrams {
    fn new() -> Self {
        let device = device();
        let linear = |out_dim| LoRALinear::plain(16, out_dim, false, &device);
        let model = Self {
            embedding: nn::EmbeddingConfig::new(128, 16).init(&device),
            layers: (0..3).map(|_| linear(16)).collect(),
            output: linear(128),
        };
        let lora = LoRAConfig::new(["layers.1", "layers.2", "output"]).with_rank(2);
        burn_peft::adapter::initialize_adapters(with_adapters(model, &lora).unwrap(), 7)
    }
}

impl HiddenStates for Bigrams {
    type Pass = Tensor<2, Int>;

    fn vocab_size(&self) -> usize {
        128
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn start(&self, batch: &Batch, _: u64) -> Self::Pass {
        batch.input_tensor(&self.embedding.weight.lazy_device())
    }

    fn embed(&self, ids: &Self::Pass) -> Tensor<3> {
        self.embedding.forward(ids.clone())
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, _: &Self::Pass) -> Tensor<3> {
        hidden.clone() + self.layers[index].forward(hidden).tanh()
    }

    fn logits(&self, hidden: Tensor<2>, _: &[usize], _: &Self::Pass) -> Tensor<2> {
        self.output.forward(hidden)
    }
}

#[test]
fn a_model_of_ones_own_is_trained() {
    let mut model = Bigrams::new();
    let batch = padded(&pairs(2, 5, true));
    // Some steps, so that no adapter is zero.
    let mut trainer = trainer();
    let before = validation_loss(&model, std::slice::from_ref(&batch)).unwrap();
    for _ in 0..20 {
        (model, _) = trainer.step(model, std::slice::from_ref(&batch));
    }
    let after = validation_loss(&model, std::slice::from_ref(&batch)).unwrap();
    assert!(after < before - 0.1, "{after} after {before}");

    // By the whole at once.
    let pass = model.start(&batch, 0);
    let top = (0..3).fold(model.embed(&pass), |x, index| model.layer(index, x, &pass));
    let [rows, seq, dim] = top.dims();
    let (places, targets) = batch.predictions();
    let places = Tensor::from_ints(&places[..], &device());
    let hidden = top.reshape([rows * seq, dim]).select(0, places);
    let count = targets.len() as f64;
    let targets = Tensor::from_ints(&targets[..], &device());
    let loss = cross_entropy_sum(model.logits(hidden, &[], &pass), targets) / count;
    let value = loss.clone().into_scalar::<f32>();
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let expected = named(&model, &grads);
    assert_eq!(expected.len(), 6);
    for activations in [Activations::Keep, Activations::Recompute { layers: 2 }] {
        let trainer = trainer
            .clone()
            .with_activations(activations)
            .with_loss_chunk_rows(5);
        for loss in [None, Some(&CrossEntropy as &dyn SequenceLoss<Bigrams>)] {
            let step = gradients(&trainer, loss, &model, std::slice::from_ref(&batch));
            assert!((step.loss as f32 - value).abs() < 1e-5);
            let got = named(&model, step.params());
            assert_eq!(got.len(), expected.len());
            for (name, expected) in &expected {
                assert_floats_close(name, &got[name], expected, 1e-5);
            }
        }
    }
}
