//! What a run works with: the base, the records, the tokenizer, and the model that it begins with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn_peft::Result;
use burn_peft::adapter::{adapter_config, initialize_eva, initialize_params};
use burn_peft::checkpoint::{
    check_base, initialize_loftq_from, load_any_adapter, load_tokenizer, read_base_packing,
};
use burn_peft::data::{Batch, SftData, fingerprint};
use burn_peft::distributed::{ProcessGroup, require_same};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::lora::{DEFAULT_ADAPTER, Decomposition, Init, LoRAConfig};
use burn_peft::ops::set_matmul_precision;
use burn_peft::quantization::BlockFormat;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{RunDir, Trainer, nonfinite_records};

use super::launch::Member;
use super::records::{self, name_of, pass_first};
use super::report::{print_device, print_work};
use super::unset;
use crate::allocator;

/// How LoftQ decomposes the error of a weight: to a thousandth of what is left as the exact decomposition does.
const LOFTQ: Decomposition = Decomposition::Randomized {
    iterations: 8,
    seed: 0,
};

/// What a member works with, as the configuration names it.
pub(super) struct Job<'a> {
    config: &'a RecipeConfig,
    member: &'a Member<'a>,
    pub(super) base: PathBuf,
    llama: LlamaConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) data: SftData,
    /// What the base's files have packed.
    packed: BTreeMap<String, BlockFormat>,
    /// Of the samples that are trained on.
    pub(super) fingerprint: u64,
}

/// What is trained, none of its weights read yet.
pub(super) struct Base<'a> {
    config: &'a RecipeConfig,
    member: &'a Member<'a>,
    path: PathBuf,
    llama: LlamaConfig,
    tokenizer: Tokenizer,
}

impl<'a> Base<'a> {
    pub(super) fn open(config: &'a RecipeConfig, member: &'a Member<'a>) -> Result<Self> {
        let path = base(config)?;
        let llama = config.llama(&path)?;
        check_base(&path, &llama, member.device)?;
        let tokenizer = load_tokenizer(config.tokenizer.as_deref().unwrap_or(&path), &llama)?;
        Ok(Self {
            config,
            member,
            path,
            llama,
            tokenizer,
        })
    }
}

impl<'a> Job<'a> {
    /// The base with its records.
    pub(super) fn load(base: Base<'a>) -> Result<Self> {
        let Base {
            config,
            member,
            path,
            llama,
            tokenizer,
        } = base;
        let (source, data) = records::load(config, &llama, &tokenizer)?;
        let fingerprint = fingerprint(&data.samples)?;
        require_same_run(member.group, config, &data, fingerprint)?;
        let packed = read_base_packing(&path)?;
        set_matmul_precision(config.matmul_precision_for(&packed, member.device));
        let job = Self {
            config,
            member,
            base: path,
            llama,
            tokenizer,
            data,
            packed,
            fingerprint,
        };
        if job.is_first() {
            print_work(&job.base, &source, &job.data);
        }
        Ok(job)
    }

    pub(super) fn is_first(&self) -> bool {
        self.member.group.rank() == 0
    }

    /// That of a run that begins.
    pub(super) fn trainer(&self) -> Trainer {
        let steps_per_epoch = self.data.order.steps_per_epoch();
        self.config.trainer(steps_per_epoch * self.config.epochs)
    }

    /// The records of a step that make its loss no number, by the end of their texts.
    pub(super) fn name_broken(
        &self,
        model: &TransformerDecoder,
        batches: &[Batch],
    ) -> Result<Vec<String>> {
        let records = nonfinite_records(model, batches);
        records
            .iter()
            .map(|record| name_of(record, &self.tokenizer))
            .collect()
    }

    /// What the training will need, if the member is the one that reports.
    pub(super) fn print_estimate(&self, lora: &LoRAConfig) -> Result<()> {
        if self.is_first() {
            let (packed, longest) = (self.packed.clone(), self.data.longest_row()?);
            let device = self.member.device;
            let (config, llama) = (self.config, &self.llama);
            let estimate = config.estimate_config(llama, packed, lora, longest, device)?;
            print_device(&estimate, self.member)?;
        }
        Ok(())
    }

    /// Whether the model can have such adapters, and the merged one what they learn.
    pub(super) fn check_adapters(&self, lora: &LoRAConfig) -> Result<()> {
        self.config.check_adapters(&self.llama, lora)
    }

    /// The model that the training begins with. It stops at the ends that it learns, too.
    pub(super) fn model(&self, lora: &LoRAConfig, dir: &RunDir) -> Result<TransformerDecoder> {
        let device = self.member.device.clone().autodiff();
        let mut model = self.config.load_model(&self.base, lora, &device)?;
        let known = &mut model.config.eos_token_ids;
        // A text may end, too, where only turns were learned.
        for end in self
            .data
            .ends
            .iter()
            .copied()
            .chain(self.tokenizer.eos_id())
        {
            if !known.contains(&end) {
                known.push(end);
            }
        }
        allocator::keep_freed_memory();
        match dir.is_resumed() {
            true => Ok(model),
            false => self.begin(model),
        }
    }

    /// What a new run begins with beyond what a seed gives: an adapter's tensors, directions of its data, or the error of
    /// the base's quantization.
    fn begin(&self, mut model: TransformerDecoder) -> Result<TransformerDecoder> {
        let config = self.config;
        if let Some(path) = &config.adapter_checkpoint {
            load_any_adapter(&mut model, path)?;
            return Ok(model);
        }
        match config.init_lora_weights {
            Init::Eva => self.begin_by_data(model),
            // With more iterations the adapter would be for another base than `quantize_base` gives.
            Init::Loftq => initialize_loftq_from(model, &self.base, 1, LOFTQ),
            _ => Ok(model),
        }
    }

    fn begin_by_data(&self, model: TransformerDecoder) -> Result<TransformerDecoder> {
        let mut passed = Ok(());
        let model = initialize_eva(model, self.config.eva_rho, |model| {
            passed = pass_first(&self.data, model, self.member.device);
        })?;
        passed?;
        initialize_params(&model);
        require_same_adapter(self.member.group, &adapter_of(&model))?;
        Ok(model)
    }
}

/// Members on machines of their own may have other files.
fn require_same_run(
    group: &dyn ProcessGroup,
    config: &RecipeConfig,
    data: &SftData,
    fingerprint: u64,
) -> Result<()> {
    let settings = config.without_places().to_yaml();
    require_same(group, "configuration", &settings)?;
    require_same(group, "training data", &fingerprint)?;
    require_same(group, "validation data", &data.validation)
}

pub(super) fn require_same_adapter(group: &dyn ProcessGroup, lora: &LoRAConfig) -> Result<()> {
    let lora = serde_json::to_string(lora).expect("a configuration is plain data");
    require_same(group, "adapter's configuration", &lora)
}

/// The configuration of the run's adapter.
pub(super) fn adapter_of(model: &TransformerDecoder) -> LoRAConfig {
    let config = adapter_config(model, DEFAULT_ADAPTER);
    (*config.expect("the run has an adapter")).clone()
}

/// The base of a run.
fn base(config: &RecipeConfig) -> Result<PathBuf> {
    let of_program = crate::EMBEDDED.map(|embedded| embedded.base.into());
    let base = config.checkpoint_dir.clone().or(of_program);
    base.ok_or_else(|| {
        unset(
            "checkpoint_dir",
            "name the folder of a base model, or its GGUF file",
        )
    })
}
