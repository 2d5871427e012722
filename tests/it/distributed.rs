//! Threads that train together give what one process with all their samples gives.

use std::thread;

use burn::tensor::{Tensor, TensorData};
use burn_peft::Error;
use burn_peft::adapter::{StateDict, adapter_state_dict, initialize_params};
use burn_peft::checkpoint::{load_hf, load_peft, read_hf_config, read_peft_config};
use burn_peft::data::{Batch, DataOrder, IGNORE_INDEX, Sample};
use burn_peft::distributed::{
    DeviceGroup, ProcessGroup, SingleProcess, broadcast_params, require_same,
};
use burn_peft::llama::TransformerDecoder;
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{
    AdamWConfig, LossNormalization, LrSchedule, ScheduleKind, StepOutput, Trainer, lm_loss_sum,
    validation_loss_in,
};

use crate::common::{assert_floats_close, device, floats, golden};

const STEPS: usize = 50;

fn model() -> TransformerDecoder {
    model_with_dropout(0.0)
}

fn model_with_dropout(dropout: f64) -> TransformerDecoder {
    let (dir, adapter) = (golden("gqa"), golden("gqa/lora_qv_r8"));
    let lora = read_peft_config(&adapter).unwrap().with_dropout(dropout);
    let llama = read_hf_config(&dir).unwrap();
    let mut model = llama.init_lora(&lora, &device()).unwrap();
    load_hf(&mut model, &dir).unwrap();
    load_peft(&mut model, &adapter).unwrap();
    model
}

/// Samples of 3 to 13 tokens, of which one to all are labelled.
fn samples() -> Vec<Sample> {
    let sample = |index: usize| {
        let len = 3 + (index * 5) % 11;
        let tokens: Vec<u32> = (0..len)
            .map(|t| ((index * 31 + t * 17) % 128) as u32)
            .collect();
        let mut labels: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        labels[..index % (len - 1)].fill(IGNORE_INDEX);
        Sample {
            tokens,
            labels,
            is_cut: false,
        }
    };
    (0..37).map(sample).collect()
}

fn batches(samples: &[Sample], indices: &[Vec<usize>]) -> Vec<Batch> {
    let batch = |indices: &Vec<usize>| {
        let samples: Vec<&Sample> = indices.iter().map(|i| &samples[*i]).collect();
        Batch::collate(&samples, 0)
    };
    indices.iter().map(batch).collect()
}

fn trainer() -> Trainer {
    let schedule = LrSchedule {
        kind: ScheduleKind::Cosine,
        lr: 1e-3,
        warmup_steps: 5,
        total_steps: STEPS,
    };
    Trainer::new(AdamWConfig::default(), schedule).with_max_grad_norm(Some(1.0))
}

/// Trains as one member of a group.
fn train(
    group: &dyn ProcessGroup,
    order: &DataOrder,
    mut trainer: Trainer,
) -> (StateDict, Vec<StepOutput>) {
    let (samples, mut model) = (samples(), model());
    let mut outputs = Vec::new();
    while trainer.step < STEPS {
        let shard = order.shard(trainer.step, group.rank(), group.size());
        let gradients = trainer.gradients(group, &model, &batches(&samples, &shard));
        let (next, output) = trainer.update(model, gradients.unwrap());
        model = next;
        outputs.push(output);
    }
    (adapter_state_dict(&model), outputs)
}

/// Calls `run` in a thread for each member of a group.
fn in_threads<T: Send>(size: usize, run: impl Fn(DeviceGroup) -> T + Sync) -> Vec<T> {
    let members = DeviceGroup::new(vec![device().without_autodiff(); size]);
    thread::scope(|scope| {
        let run = &run;
        let threads = members
            .into_iter()
            .map(|member| scope.spawn(move || run(member)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// 37 samples in steps of eight: token counts are uneven in each step, and in the last step of an
/// epoch the members have two or three samples, or, of four members, one or two.
#[test]
fn members_equal_one_process_with_all_their_samples() {
    let order = |batch_size, accumulation_steps, num_processes| {
        DataOrder::new(samples().len(), batch_size)
            .with_accumulation_steps(accumulation_steps)
            .with_num_processes(num_processes)
            .with_seed(3)
    };
    let (adapter, outputs) = train(&SingleProcess, &order(4, 2, 1), trainer());
    for (batch_size, accumulation_steps, size) in [(2, 2, 2), (4, 1, 2), (2, 1, 4)] {
        let order = order(batch_size, accumulation_steps, size);
        let results = in_threads(size, |member| train(&member, &order, trainer()));
        let (first, first_outputs) = &results[0];
        for (shared, shared_outputs) in &results {
            assert!(shared == first && shared_outputs == first_outputs);
        }
        for (shared, alone) in first_outputs.iter().zip(&outputs) {
            assert!((shared.loss - alone.loss).abs() < 1e-5, "{}", alone.loss);
            assert!((shared.grad_norm - alone.grad_norm).abs() < 1e-4);
            assert_eq!((shared.num_tokens, shared.lr), (alone.num_tokens, alone.lr));
        }
        for (key, value) in first {
            assert_floats_close(key, &floats(value), &floats(&adapter[key]), 1e-4);
        }
    }
}

/// Threads draw what one process draws for as many micro-batches.
#[test]
fn members_drop_what_one_process_drops() {
    let samples = samples();
    let model = || model_with_dropout(0.3);
    let all = batches(&samples, &[vec![0, 1, 2], vec![3, 4]]);
    let loss = |seed| {
        let trainer = trainer().with_seed(seed);
        let gradients = trainer.gradients(&SingleProcess, &model(), &all).unwrap();
        gradients.loss
    };
    let shared = in_threads(2, |member| {
        let mine = &all[member.rank()..][..1];
        let trainer = trainer().with_seed(5);
        trainer.gradients(&member, &model(), mine).unwrap().loss
    });
    assert!(shared.iter().all(|shared| (shared - loss(5)).abs() < 1e-6));
    assert!((loss(5) - loss(6)).abs() > 1e-4);
}

/// A run that two began and one or three go on with has the same steps.
#[test]
fn another_number_of_members_goes_on_with_the_same_steps() {
    let order = DataOrder::new(5, 2).with_num_processes(2).with_seed(3);
    let (_, two) = in_threads(2, |member| train(&member, &order, trainer())).remove(0);
    for size in [1, 3] {
        // Of three members one has nothing in the steps of one sample.
        let (_, others) = in_threads(size, |member| train(&member, &order, trainer())).remove(0);
        for (a, b) in two.iter().zip(&others) {
            assert!((a.loss - b.loss).abs() < 1e-5);
        }
    }
}

#[test]
fn a_mean_of_micro_batches_is_one_over_all_members() {
    let samples = samples();
    let all = batches(&samples, &[vec![0, 1], vec![2], vec![3, 4], vec![5]]);
    let trainer = trainer().with_normalization(LossNormalization::MicroBatchMean);
    let alone = trainer.gradients(&SingleProcess, &model(), &all).unwrap();
    let shared = in_threads(2, |member| {
        let mine = &all[member.rank() * 2..][..2];
        let gradients = trainer.gradients(&member, &model(), mine).unwrap();
        (gradients.loss, gradients.grad_norm)
    });
    for (loss, grad_norm) in shared {
        assert!((loss - alone.loss).abs() < 1e-6);
        assert!((grad_norm - alone.grad_norm).abs() < 1e-5);
    }
}

#[test]
fn a_step_in_which_nobody_has_a_label_is_an_error_of_all() {
    let mut sample = samples().remove(0);
    sample.labels.fill(IGNORE_INDEX);
    let errors = in_threads(2, |member| {
        let batches = [Batch::collate(&[&sample], 0)];
        let gradients = trainer().gradients(&member, &model(), &batches);
        gradients.err().expect("nothing to learn").to_string()
    });
    assert!(errors[0].contains("nothing to learn"), "{}", errors[0]);
    assert_eq!(errors[0], errors[1]);
}

#[test]
fn validation_is_shared() {
    let samples = samples();
    let indices: Vec<Vec<usize>> = (0..5).map(|i| vec![i, i + 5]).collect();
    let (model, batches) = (model(), batches(&samples, &indices));
    let alone = validation_loss_in(&SingleProcess, &model, &batches).unwrap();
    let sum: f64 = batches.iter().filter_map(|b| lm_loss_sum(&model, b)).sum();
    let labels: usize = batches.iter().map(Batch::num_label_tokens).sum();
    assert!((alone - sum / labels as f64).abs() < 1e-9);
    let shared = in_threads(3, |member| {
        validation_loss_in(&member, &model, &batches).unwrap()
    });
    assert!(
        shared
            .iter()
            .all(|loss| (loss - alone).abs() < 1e-6 && *loss == shared[0])
    );
}

#[test]
fn all_begin_with_the_values_of_the_first() {
    let lora = LoRAConfig::new([AttnModule::QProj]);
    let values = in_threads(2, |member| {
        let llama = read_hf_config(golden("gqa")).unwrap();
        let mut model = llama.init_lora(&lora, &device()).unwrap();
        load_hf(&mut model, golden("gqa")).unwrap();
        initialize_params(&model);
        let own = adapter_state_dict(&model);
        let model = broadcast_params(&member, model).unwrap();
        (own, adapter_state_dict(&model))
    });
    let [(first, first_after), (second, second_after)] = &values[..] else {
        panic!("two members")
    };
    assert!(
        first != second,
        "the members must begin with different values"
    );
    assert!(first == first_after && first == second_after);
}

#[test]
fn sums_are_those_of_all() {
    let sums = in_threads(3, |member| {
        let rank = member.rank() as f32;
        let mine = TensorData::from([rank + 1.0, 10.0 * rank, 0.1]);
        let mine = Tensor::from_data(mine, &device().without_autodiff());
        floats(&member.all_reduce(mine).unwrap().into_data())
    });
    for sum in sums {
        assert_floats_close("sum", &sum, &[6.0, 30.0, 0.3], 1e-6);
    }
}

#[test]
fn a_member_that_ends_ends_the_waiting_of_the_others() {
    let results = in_threads(3, |member| {
        for _ in 0..3 {
            member.all_gather(&[1.0]).unwrap();
        }
        match member.rank() {
            1 => None, // Leaves, as by an error.
            _ => Some(member.all_gather(&[1.0])),
        }
    });
    let waiting: Vec<_> = results.into_iter().flatten().collect();
    assert_eq!(waiting.len(), 2);
    for result in waiting {
        assert!(matches!(result, Err(Error::PeerLost)));
    }
}

#[test]
fn members_with_different_data_are_named() {
    let results = in_threads(3, |member| {
        let data = if member.rank() == 2 { "other" } else { "same" };
        require_same(&member, "training data", &data)
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::PeersDiffer { .. }));
        assert_eq!(
            error.to_string(),
            "training data: rank 2 differs from rank 0; give all processes the same"
        );
    }
}
