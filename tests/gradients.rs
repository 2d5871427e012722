//! A step's gradients are the same, to the bit, whether activations are kept or computed again, and
//! those of a loss over all logits at once.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use burn_peft::adapter::{
    get_adapter_params, get_params, initialize_params, load_state_dict, set_trainable_params,
    state_dict,
};
use burn_peft::data::{Batch, IGNORE_INDEX, Padding, Sample, pack};
use burn_peft::distributed::SingleProcess;
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::{Experts, LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, DEFAULT_ADAPTER, LoRAConfig};
use burn_peft::training::{
    Activations, AdamWConfig, GradientOptions, LrSchedule, ScheduleKind, Trainer,
    accumulate_gradients, cross_entropy_sum, lm_loss_sum, validation_loss,
};

fn device() -> Device {
    Device::default().autodiff()
}

fn config() -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(96)
        .with_num_layers(5)
        .with_num_heads(4)
        .with_num_kv_heads(2)
        .with_head_dim(8)
        .with_embed_dim(32)
        .with_intermediate_dim(48)
        .with_max_seq_len(512)
}

/// Rows of `lengths` tokens, some without a label, padded on the right.
fn batch(lengths: &[usize]) -> Batch {
    let seq_len = *lengths.iter().max().unwrap();
    let token = |row: usize, t: usize| 3 + ((row * 31 + t * t * 7 + t) % 93) as i32;
    let mut batch = Batch {
        input_ids: vec![0; lengths.len() * seq_len],
        labels: vec![IGNORE_INDEX; lengths.len() * seq_len],
        segments: lengths.iter().map(|length| vec![*length]).collect(),
        batch_size: lengths.len(),
        seq_len,
        adapters: None,
    };
    for (row, length) in lengths.iter().enumerate() {
        for t in 0..*length {
            batch.input_ids[row * seq_len + t] = token(row, t);
            if t % 5 != 2 {
                batch.labels[row * seq_len + t] = token(row, t);
            }
        }
    }
    batch
}

/// A model whose adapters do something: `B` is not zero.
fn with_adapters(config: &LlamaConfig, lora: &LoRAConfig) -> TransformerDecoder {
    let mut model = config.init_lora(lora, &device()).unwrap();
    initialize_params(&model);
    let noise = |b: Tensor<2>| Tensor::random(b.shape(), Distribution::Normal(0.0, 0.3), &device());
    for layer in &mut model.layers {
        let experts = layer.moe.iter_mut().flat_map(|moe| &mut moe.experts);
        let blocks = layer.mlp.iter_mut().chain(experts);
        let w2 = blocks.map(|block| &mut block.w2);
        let own = [&mut layer.attn.q_proj, &mut layer.attn.v_proj];
        for linear in own.into_iter().flatten().chain(w2) {
            if let Some(adapter) = linear.adapters.get_mut(DEFAULT_ADAPTER) {
                adapter.map_matrix("lora_b.weight", noise);
            }
        }
    }
    model
}

fn qv() -> LoRAConfig {
    LoRAConfig::new([AttnModule::QProj, AttnModule::VProj])
}

/// Models to train in different places: adapters here and there, everything, the top only.
fn models() -> Vec<(&'static str, TransformerDecoder)> {
    let tied = config().with_tie_embeddings(true);
    let full = tied.init(&device());
    initialize_params(&full);
    let top = with_adapters(&config(), &qv());
    let only_top = get_adapter_params(&top).filter(|name, _| name.starts_with("layers.3"));
    vec![
        ("dropout", with_adapters(&config(), &qv().with_dropout(0.2))),
        (
            "dora, mlp and output",
            with_adapters(
                &config(),
                &qv().with_dora(true).with_mlp(true).with_output(true),
            ),
        ),
        (
            "dora with dropout",
            with_adapters(&tied, &qv().with_dora(true).with_dropout(0.1)),
        ),
        (
            "experts with dropout",
            with_adapters(
                &config().with_experts(Some(Experts::new(6, 2, 24).with_layer_step(2))),
                &qv().with_mlp(true).with_dropout(0.1),
            ),
        ),
        ("one layer", set_trainable_params(top, &only_top)),
        ("everything", full),
    ]
}

struct Collect<'a> {
    names: BTreeMap<ParamId, String>,
    grads: &'a GradientsParams,
    found: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let name = self.names[&param.id].clone();
            self.found.insert(name, grad.into_data());
        }
    }
}

fn by_name(model: &TransformerDecoder, grads: &GradientsParams) -> BTreeMap<String, TensorData> {
    let params = get_params(model);
    let mut collect = Collect {
        names: params.iter().map(|(n, p)| (p.id, n.to_owned())).collect(),
        grads,
        found: BTreeMap::new(),
    };
    model.visit(&mut collect);
    collect.found
}

fn gradients(
    model: &TransformerDecoder,
    batches: &[Batch],
    activations: Activations,
) -> (f64, BTreeMap<String, TensorData>) {
    let options = GradientOptions::default()
        .with_activations(activations)
        .with_seed(11);
    let (loss, grads) = accumulate_gradients(model, batches, options);
    (loss, by_name(model, &grads))
}

#[test]
fn recomputing_changes_no_bit() {
    let batches = [batch(&[40, 33]), batch(&[9])];
    for (name, model) in models() {
        let (loss, kept) = gradients(&model, &batches, Activations::Keep);
        assert!(!kept.is_empty(), "{name}");
        for layers in [1, 2, 5, 9] {
            let again = gradients(&model, &batches, Activations::Recompute { layers });
            assert_eq!(again.0, loss, "{name}, {layers} layers");
            assert_eq!(again.1.len(), kept.len(), "{name}, {layers} layers");
            for (key, grad) in &kept {
                assert!(again.1[key] == *grad, "{name}, {layers} layers: {key}");
            }
        }
    }
}

#[test]
fn burns_gradient_checkpointing_changes_no_bit() {
    let batches = [batch(&[40, 33])];
    let model = with_adapters(&config(), &qv());
    let expected = gradients(&model, &batches, Activations::Keep);
    let device = device().gradient_checkpointing();
    let mut other = config().init_lora(&qv(), &device).unwrap();
    load_state_dict(&mut other, &state_dict(&model), true).unwrap();
    for activations in [Activations::Keep, Activations::Recompute { layers: 2 }] {
        assert!(
            gradients(&other, &batches, activations) == expected,
            "{activations:?}"
        );
    }
}

#[test]
fn dropout_is_drawn_anew_for_each_seed() {
    let model = with_adapters(&config(), &qv().with_dropout(0.2));
    let loss = |seed| {
        let options = GradientOptions::default().with_seed(seed);
        accumulate_gradients(&model, &[batch(&[40])], options).0
    };
    assert_eq!(loss(1), loss(1));
    assert_ne!(loss(1), loss(2));
}

/// NEFTune's noise is drawn anew for each seed, and is the same for a layer that is computed again; without an alpha, or with
/// one of 0, nothing is added.
#[test]
fn noise_is_the_same_when_layers_are_recomputed() {
    let batches = [batch(&[40, 33]), batch(&[9])];
    for (name, model) in models() {
        let gradients = |alpha, seed, activations| {
            let options = GradientOptions::default()
                .with_activations(activations)
                .with_neftune_noise_alpha(alpha)
                .with_seed(seed);
            let (loss, grads) = accumulate_gradients(&model, &batches, options);
            (loss, by_name(&model, &grads))
        };
        let kept = gradients(Some(5.0), 11, Activations::Keep);
        let again = gradients(Some(5.0), 11, Activations::Recompute { layers: 2 });
        assert!(kept == again, "{name}");
        let (plain, zero) = (
            gradients(None, 11, Activations::Keep),
            gradients(Some(0.0), 11, Activations::Keep),
        );
        assert!(plain == zero, "{name}");
        for other in [plain.0, gradients(Some(5.0), 12, Activations::Keep).0] {
            assert!((kept.0 - other).abs() > 1e-6, "{name}: {} {other}", kept.0);
        }
    }
}

/// More rows than a chunk of logits has, against the loss over all of them at once.
#[test]
fn chunks_equal_the_whole() {
    let model = with_adapters(&config(), &qv().with_output(true));
    let batch = batch(&[300, 211]);
    assert!(batch.num_label_tokens() > 256);
    let (loss, grads) = gradients(&model, std::slice::from_ref(&batch), Activations::Keep);

    let (rows, targets) = batch.predictions();
    let rows = Tensor::<1, Int>::from_ints(&rows[..], &device());
    let targets = Tensor::from_ints(&targets[..], &device());
    let ids = batch.input_tensor(&device());
    let logits = model.forward(ids, batch.attention_mask(&device()));
    let flat = logits.reshape([2 * 300, 96]).select(0, rows);
    let whole = cross_entropy_sum(flat, targets) / batch.num_label_tokens() as f64;
    let expected = GradientsParams::from_grads(whole.backward(), &model);
    let whole = f64::from(whole.into_scalar::<f32>());

    assert!((loss - whole).abs() < 1e-5, "{loss} against {whole}");
    let mean = lm_loss_sum(&model, &batch).unwrap() / batch.num_label_tokens() as f64;
    assert!((mean - whole).abs() < 1e-5, "{mean} against {whole}");
    for (key, expected) in by_name(&model, &expected) {
        let largest = largest_difference(&grads[&key], &expected);
        assert!(largest < 1e-5, "{key}: {largest:e}");
    }
}

/// Samples that share a row give the loss and gradients that they give in rows of their own.
#[test]
fn packing_equals_rows_of_their_own() {
    let samples: Vec<Sample> = [17, 30, 9, 24].map(sample).to_vec();
    let alone: Vec<&Sample> = samples.iter().collect();
    let groups = pack(&samples.iter().map(Sample::len).collect::<Vec<_>>(), 44);
    assert_eq!(groups.len(), 2);
    let rows: Vec<Vec<&Sample>> = groups
        .iter()
        .map(|group| group.iter().map(|i| &samples[*i]).collect())
        .collect();
    let rows: Vec<&[&Sample]> = rows.iter().map(Vec::as_slice).collect();
    let packed = Batch::collate_packed(&rows, 0, Padding::Fixed(44));
    let padded = Batch::collate(&alone, 0);
    assert!(packed.is_packed() && !padded.is_packed());
    assert_eq!(packed.num_label_tokens(), padded.num_label_tokens());
    assert_eq!(packed.num_tokens(), padded.num_tokens());

    let lora = qv().with_mlp(true).with_output(true);
    let model = with_adapters(&config(), &lora);
    let (expected_loss, expected) = gradients(&model, &[padded], Activations::Keep);
    for activations in [Activations::Keep, Activations::Recompute { layers: 2 }] {
        let (loss, grads) = gradients(&model, std::slice::from_ref(&packed), activations);
        assert!(
            (loss - expected_loss).abs() < 1e-5,
            "{loss} against {expected_loss}"
        );
        assert_eq!(grads.len(), expected.len());
        for (key, grad) in &grads {
            let largest = largest_difference(grad, &expected[key]);
            assert!(largest < 1e-5, "{key}: {largest:e}");
        }
    }
}

fn sample(length: usize) -> Sample {
    let tokens = (0..length as u32).map(|t| 3 + (t * t * 5 + t + length as u32) % 93);
    let tokens: Vec<u32> = tokens.collect();
    let labels = tokens.iter().enumerate();
    let label = |(t, token): (usize, &u32)| match t % 4 {
        1 => IGNORE_INDEX,
        _ => *token as i32,
    };
    Sample {
        is_cut: false,
        labels: labels.map(label).collect(),
        tokens,
    }
}

fn largest_difference(a: &TensorData, b: &TensorData) -> f32 {
    let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
#[should_panic(expected = "at least one layer")]
fn no_layer_at_a_time_is_a_bug() {
    let model = config().init(&device());
    gradients(&model, &[batch(&[5])], Activations::Recompute { layers: 0 });
}

fn loss(trainer: &Trainer, model: &TransformerDecoder, batches: &[Batch]) -> f64 {
    let gradients = trainer.gradients(&SingleProcess, model, batches);
    gradients.unwrap().loss
}

#[test]
fn each_step_and_batch_drops_otherwise() {
    let model = with_adapters(&config(), &qv().with_dropout(0.5));
    let batch = batch(&[24, 17]);
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-3,
        warmup_steps: 0,
        total_steps: 2,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let one = loss(&trainer, &model, std::slice::from_ref(&batch));
    let again = loss(&trainer, &model, std::slice::from_ref(&batch));
    assert_eq!(one, again);
    // The mean over the same batch twice, had both dropped the same.
    let two = loss(&trainer, &model, &[batch.clone(), batch.clone()]);
    assert!((one - two).abs() > 1e-6, "{one} {two}");
    trainer.step = 1;
    let next = loss(&trainer, &model, std::slice::from_ref(&batch));
    assert!((one - next).abs() > 1e-6, "{one} {next}");
}

#[test]
fn nothing_is_dropped_but_in_training() {
    let dropping = with_adapters(&config(), &qv().with_dropout(0.5));
    let mut whole = config().init_lora(&qv(), &device()).unwrap();
    load_state_dict(&mut whole, &state_dict(&dropping), true).unwrap();
    let batches = [batch(&[24, 17])];
    let losses = [&dropping, &whole].map(|model| validation_loss(model, &batches).unwrap());
    assert_eq!(losses[0], losses[1]);
    let options = GenerateOptions::greedy(12).with_stop_tokens([]);
    let answers = [&dropping, &whole].map(|model| generate(model, &[3, 4], &options));
    let [dropping, whole] = answers.map(Result::unwrap);
    assert_eq!(dropping, whole);
}
