//! Copies on the host while training goes on, which overwrites parameters and moments where they lie.

use burn_peft::adapter::{StateDict, adapter_state_dict};
use burn_peft::llama::TransformerDecoder;
use burn_peft::training::{AdamWConfig, LrSchedule, ScheduleKind, Trainer};

use crate::golden_cases::{inputs, with_adapter};

fn copies(model: &TransformerDecoder, trainer: &Trainer) -> [StateDict; 2] {
    [
        adapter_state_dict(model),
        trainer.optimizer.state_dict(model),
    ]
}

fn numbers(copies: [StateDict; 2]) -> [Vec<Vec<f32>>; 2] {
    copies.map(|values| {
        values
            .values()
            .map(|data| data.iter::<f32>().collect())
            .collect()
    })
}

#[test]
fn copies_on_the_host_stay_what_they_were() {
    let (model, _) = with_adapter("gqa", "lora_qv_r8");
    let rows = inputs("gqa").batches("train_input_ids", "train_labels");
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-2,
        warmup_steps: 0,
        total_steps: 2,
    };
    let mut trainer = Trainer::new(AdamWConfig::default(), schedule);
    let (model, _) = trainer.step(model, &rows[..1]);
    let kept = copies(&model, &trainer);
    let read_at_once = numbers(copies(&model, &trainer));
    let (model, _) = trainer.step(model, &rows[1..2]);
    let [adapter, moments] = numbers(copies(&model, &trainer));
    assert_ne!(adapter, read_at_once[0]);
    assert_ne!(moments, read_at_once[1]);
    assert_eq!(numbers(kept), read_at_once);
}
