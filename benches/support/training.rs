//! LoRA trainings of small Llamas with random weights and made-up tokens.

use burn::tensor::Device;
use burn_peft::Result;
use burn_peft::adapter::initialize_params;
use burn_peft::data::{Batch, Sample};
use burn_peft::distributed::{ProcessGroup, SingleProcess};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{AttnModule, LoRAConfig};
use burn_peft::training::{Activations, AdamWConfig, LrSchedule, ScheduleKind, Trainer};

/// The width of the hidden state.
pub const DIM: usize = 512;
const VOCAB_SIZE: usize = 8000;
/// No batch is padded.
const PAD_ID: u32 = 0;

/// What varies between trainings.
#[derive(Clone, Copy)]
pub struct Case {
    /// The sequences of a batch.
    pub rows: usize,
    /// The tokens of a sequence.
    pub seq_len: usize,
    /// The decoder layers.
    pub layers: usize,
    /// The rank of the adapters, which all seven linear modules of a layer have.
    pub rank: usize,
    /// Activations kept or computed again.
    pub activations: Activations,
}

/// A training whose steps all take the same batch.
pub struct Training {
    trainer: Trainer,
    /// None only while a step has it.
    model: Option<TransformerDecoder>,
    batch: Batch,
}

impl Training {
    /// A model with its parameters in memory, and a trainer without state.
    pub fn new(case: &Case) -> Self {
        let schedule = LrSchedule {
            kind: ScheduleKind::Constant,
            lr: 1e-4,
            warmup_steps: 0,
            total_steps: 1,
        };
        let trainer = Trainer::new(AdamWConfig::default(), schedule);
        Self {
            trainer: trainer.with_activations(case.activations),
            model: Some(model(case)),
            batch: batch(case),
        }
    }

    /// Forward, backward and update.
    pub fn step(&mut self) {
        self.step_in(&SingleProcess)
            .expect("there is no other process");
    }

    /// The same by all members of a group.
    ///
    /// # Errors
    /// If another member has ended.
    pub fn step_in(&mut self, group: &dyn ProcessGroup) -> Result<()> {
        let model = self.model.take().expect("every step gives it back");
        let batches = std::slice::from_ref(&self.batch);
        let gradients = self.trainer.gradients(group, &model, batches)?;
        let (model, _) = self.trainer.update(model, gradients);
        self.model = Some(model);
        Ok(())
    }
}

fn model(case: &Case) -> TransformerDecoder {
    let config = LlamaConfig::llama2_7b()
        .with_vocab_size(VOCAB_SIZE)
        .with_num_layers(case.layers)
        .with_num_heads(8)
        .with_num_kv_heads(8)
        .with_head_dim(DIM / 8)
        .with_embed_dim(DIM)
        .with_intermediate_dim(1408);
    let lora = LoRAConfig::new(AttnModule::ALL)
        .with_mlp(true)
        .with_rank(case.rank);
    let model = config.init_lora(&lora, &Device::default().autodiff());
    let model = model.expect("sizes that fit each other");
    initialize_params(&model);
    model
}

/// Rows without padding, with a label for every token.
fn batch(case: &Case) -> Batch {
    let row = |row: usize| {
        let ids = (0..case.seq_len).map(|index| (row * 131 + index * 17) % VOCAB_SIZE);
        let tokens: Vec<u32> = ids.map(|id| id as u32).collect();
        let labels = tokens.iter().map(|id| *id as i32).collect();
        Sample {
            tokens,
            labels,
            is_cut: false,
        }
    };
    let samples: Vec<Sample> = (0..case.rows).map(row).collect();
    Batch::collate(&samples.iter().collect::<Vec<_>>(), PAD_ID)
}
