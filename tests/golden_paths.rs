//! Every path of a step gives the gradients, losses and trained weights of PEFT: fused and plain
//! operations, activations kept and computed again, samples in rows of their own and packed, the
//! loss of all rows at once and in chunks.
//!
//! A program of its own: the switch between fused and plain operations is the process's.

#[path = "it/common.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests in `it`, which use the rest"
)]
mod common;
#[path = "it/golden_cases.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests in `it`, which use the rest"
)]
mod golden_cases;

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_peft::adapter::{adapter_state_dict, get_params, state_dict};
use burn_peft::data::Batch;
use burn_peft::llama::TransformerDecoder;
use burn_peft::ops::set_fused;
use burn_peft::training::{
    Activations, AdamWConfig, GradientOptions, LrSchedule, ScheduleKind, Trainer,
    accumulate_gradients, lm_loss_sum,
};

use common::{assert_close, assert_floats_close, device, floats};
use golden_cases::*;

const GRADIENT: f32 = 1e-5;

/// A way to compute a step.
#[derive(Debug, Clone, Copy)]
struct Path {
    fused: bool,
    activations: Activations,
    packed: bool,
    loss_chunk_rows: usize,
}

const ALL_ROWS: usize = 1024;

fn paths() -> Vec<Path> {
    let activations = [
        Activations::Keep,
        Activations::Recompute { layers: 1 },
        Activations::Recompute { layers: 3 },
    ];
    let mut paths = Vec::new();
    for fused in [true, false] {
        for activations in activations {
            for packed in [false, true] {
                for loss_chunk_rows in [ALL_ROWS, 5] {
                    paths.push(Path {
                        fused,
                        activations,
                        packed,
                        loss_chunk_rows,
                    });
                }
            }
        }
    }
    paths
}

impl Path {
    /// The batch as it is, or with all its rows in one.
    fn arrange(&self, batch: Batch) -> Batch {
        match self.packed {
            false => batch,
            true => Batch {
                segments: vec![batch.segments.concat()],
                seq_len: batch.batch_size * batch.seq_len,
                batch_size: 1,
                ..batch
            },
        }
    }

    fn options(&self) -> GradientOptions {
        GradientOptions::default()
            .with_activations(self.activations)
            .with_loss_chunk_rows(self.loss_chunk_rows)
    }

    fn trainer(&self) -> Trainer {
        let schedule = LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1e-3,
            warmup_steps: 0,
            total_steps: 10,
        };
        Trainer::new(AdamWConfig::default(), schedule)
            .with_activations(self.activations)
            .with_loss_chunk_rows(self.loss_chunk_rows)
    }
}

#[test]
fn every_path_equals_peft() {
    for path in paths() {
        set_fused(path.fused);
        for (case, adapter) in ADAPTERS {
            println!("{case}/{adapter}, {path:?}");
            logits_and_loss(path, case, adapter);
            gradients(path, case, adapter);
            ten_adamw_steps(path, case, adapter);
        }
    }
}

fn logits_and_loss(path: Path, case: &str, adapter: &str) {
    let (model, _) = with_adapter(case, adapter);
    let expected = expected(&format!("{case}/{adapter}"));
    let logits = model.forward(inputs(case).ids("input_ids", &device()), None);
    assert_close(adapter, logits, &expected.floats("logits"), LOGITS);
    let batch = path.arrange(inputs(case).batch("input_ids", "labels"));
    let loss = lm_loss_sum(&model, &batch).unwrap() / batch.num_label_tokens() as f64;
    assert_floats_close(adapter, &[loss as f32], &expected.floats("loss"), LOSS);
}

fn gradients(path: Path, case: &str, adapter: &str) {
    let (model, lora) = with_adapter(case, adapter);
    let expected = expected(&format!("{case}/{adapter}"));
    let batch = path.arrange(inputs(case).batch("input_ids", "labels"));
    let (_, grads) = accumulate_gradients(&model, &[batch], path.options());
    let grads = named(&model, &grads);
    let names = peft_names(&model, &lora);
    assert_eq!(grads.len(), names.len(), "only the adapter has gradients");
    for name in names {
        let expected = expected.floats(&format!("grad.{name}"));
        assert_floats_close(&name, &grads[&our_name(&name)], &expected, GRADIENT);
    }
}

/// Gradients by the name of their parameter.
fn named(model: &TransformerDecoder, grads: &GradientsParams) -> HashMap<String, Vec<f32>> {
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
    names: HashMap<burn::module::ParamId, String>,
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

fn ten_adamw_steps(path: Path, case: &str, adapter: &str) {
    let (mut model, lora) = with_adapter(case, adapter);
    let before = base_weights(&model);
    let expected = expected(&format!("{case}/{adapter}"));
    let mut trainer = path.trainer();
    let mut losses = Vec::new();
    for batch in inputs(case).batches("train_input_ids", "train_labels") {
        let (next, output) = trainer.step(model, &[path.arrange(batch)]);
        model = next;
        losses.push(output.loss as f32);
    }
    assert_floats_close(adapter, &losses, &expected.floats("step_losses"), STEP_LOSS);
    assert_adapter(&model, &lora, &expected, "final.");
    let logits = model.forward(inputs(case).ids("input_ids", &device()), None);
    assert_close(adapter, logits, &expected.floats("final_logits"), LOGITS);
    assert_eq!(base_weights(&model), before, "the base is frozen");
    let num_states = trainer.optimizer.num_states();
    assert_eq!(num_states, adapter_state_dict(&model).len());
}

fn base_weights(model: &TransformerDecoder) -> HashMap<String, Vec<f32>> {
    let values = state_dict(&model.clone().without_adapters());
    values.into_iter().map(|(k, v)| (k, floats(&v))).collect()
}
