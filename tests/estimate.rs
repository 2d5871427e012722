//! The estimate of a training's memory against what an allocator counts.
//!
//! A program of its own, since the allocator counts for the whole process.

#[path = "support/at_hand.rs"]
mod at_hand;
#[path = "support/counting.rs"]
mod counting;
#[path = "../examples/support/memory_table.rs"]
mod memory_table;
#[path = "support/zero_gguf.rs"]
mod zero_gguf;

use std::alloc::System;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use at_hand::left_out;
use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_peft::adapter::{ParamCount, get_params, initialize_params};
use burn_peft::checkpoint::{load_any_base_as, read_base_packing, save_hf};
use burn_peft::data::Batch;
use burn_peft::llama::{Block, Context, Experts, LlamaConfig, QkNorm, TransformerDecoder};
use burn_peft::lora::{AttnModule, Init, LoRAConfig, Targets, TrainedBias};
use burn_peft::ops::{AttentionBody, MatmulPrecision, kept_dtype, set_fused, set_matmul_precision};
use burn_peft::quantization::BlockFormat;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::{
    Activations, AdamWConfig, Change, EstimateConfig, LrSchedule, MemoryEstimate, Moment,
    ScheduleKind, Trainer, available_memory_bytes, estimate, installed_memory_bytes,
    require_memory, saved_bytes_per_layer, suggestions,
};
use burn_peft::weight::{BaseFormat, Quantization};
use counting::{Counting, live_bytes, peak_bytes, reset_peak};
use zero_gguf::write_zero_gguf;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

/// One test at a time, since the others' allocations would be counted too; on two threads, whose
/// buffers then are the same on every machine.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    let guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: the standard library reads and writes the environment under a lock, and nothing else
    // here does.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "2") };
    set_fused(true); // whatever a test that failed has left
    guard
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// Heads of width 32; the feed-forward block is 11/4 times as wide as the hidden state.
fn llama(
    num_layers: usize,
    embed_dim: usize,
    num_kv_heads: usize,
    vocab_size: usize,
) -> LlamaConfig {
    LlamaConfig::llama2_7b()
        .with_vocab_size(vocab_size)
        .with_num_layers(num_layers)
        .with_num_heads(embed_dim / 32)
        .with_num_kv_heads(num_kv_heads)
        .with_head_dim(32)
        .with_embed_dim(embed_dim)
        .with_intermediate_dim(embed_dim * 11 / 4)
        .with_max_seq_len(1024)
}

fn qv(rank: usize) -> LoRAConfig {
    LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]).with_rank(rank)
}

fn all(rank: usize) -> LoRAConfig {
    LoRAConfig::new(AttnModule::ALL)
        .with_mlp(true)
        .with_rank(rank)
}

fn all_linear(rank: usize) -> LoRAConfig {
    let lora = LoRAConfig::default().with_targets(Targets::AllLinear);
    lora.with_rank(rank)
}

/// With joint projections, and a part of each head rotated.
fn joint(model: LlamaConfig) -> LlamaConfig {
    let block = Block::default().with_joint_projections(true);
    model.with_block(block).with_rotary_dim(Some(24))
}

/// With experts in the place of the feed-forward block.
fn experts(model: LlamaConfig) -> LlamaConfig {
    let experts = Experts::new(4, 2, 512).with_normalized(true);
    let block = Block::default().with_qk_norm(Some(QkNorm::Head));
    let model = model.with_model_type("qwen3_moe").with_block(block);
    model.with_experts(Some(experts))
}

/// What two threads may hold for matrix products, which no estimate counts.
const THREAD_BUFFERS: usize = 2 << 20;

/// Whether an estimate is within 5 % and the threads' buffers, but 10 % at most.
fn is_close(found: usize, expected: u64) -> bool {
    let tolerance = (found / 20 + THREAD_BUFFERS).min(found / 10);
    found.abs_diff(expected as usize) <= tolerance
}

/// The bytes that the forward pass of a layer leaves behind, its output included.
fn measured_saved_bytes(config: &EstimateConfig, input_is_tracked: bool) -> usize {
    let lora = config.lora.as_ref().unwrap();
    let model = config.model.init_lora(lora, &device()).unwrap();
    initialize_params(&model);
    let shape = [config.batch_size, config.seq_len, config.model.embed_dim];
    let x = Tensor::<3>::random(shape, Distribution::Default, &device());
    let x = x.cast(config.compute_dtype).detach();
    let x = x.set_require_grad(input_is_tracked);
    let context = Context::causal(&config.model, 0, config.seq_len, &device());
    let forward = || model.layers[0].forward(x.clone(), &context, None);
    // A graph is held until its backward pass.
    let backward = |output: Tensor<3>| drop(output.sum().backward());
    backward(forward()); // what threads allocate once
    let before = live_bytes();
    let output = forward();
    let saved = live_bytes() - before;
    backward(output);
    saved
}

#[test]
fn a_layer_keeps_what_the_formula_says() {
    let _alone = alone();
    let grouped = llama(1, 256, 2, 1000);
    let mlp_only = LoRAConfig::default().with_mlp(true);
    let down_only = LoRAConfig::new([burn_peft::lora::MlpModule::W2]);
    let loras = [
        qv(8),
        all(8),
        all(64),
        mlp_only,
        down_only,
        LoRAConfig::new([AttnModule::OutputProj]),
        qv(8).with_dropout(0.1),
        all(8).with_dropout(0.1),
        qv(8).with_dora(true),
        all(8).with_dora(true),
        all(8).with_dora(true).with_dropout(0.1),
        all(8).with_frozen_a(true),
        all(8).with_frozen_a(true).with_dora(true),
        all(8).with_lora_bias(true),
        qv(8).with_init(Init::Pissa),
        qv(8).with_init(Init::Olora).with_dora(true),
        qv(8).with_modules_to_save(["mlp_norm", "w1"]),
    ];
    let biases = [LoRAConfig::default(), qv(8).with_lora_bias(true)]
        .map(|lora| lora.with_bias(TrainedBias::All));
    let biased = grouped
        .clone()
        .with_qkv_bias(true)
        .with_output_proj_bias(true);
    let of_joint = [
        all_linear(8),
        LoRAConfig::new(["qkv_proj"]),
        LoRAConfig::new(["gate_up_proj"]).with_dora(true),
        LoRAConfig::new(["o_proj", "down_proj"]).with_dropout(0.1),
    ];
    let of_experts = [
        all_linear(8),
        all_linear(8).with_dropout(0.1),
        LoRAConfig::new(["gate_up_proj"]),
        LoRAConfig::new(["w2", "moe.gate"]),
        qv(8),
    ];
    let models = [
        (llama(1, 256, 8, 1000), &loras[..11]),
        (joint(grouped.clone()), &of_joint),
        (experts(llama(1, 512, 4, 1000)), &of_experts),
        (joint(biased.clone()), &biases[..1]),
        (grouped, &loras),
        (biased, &biases),
    ];
    for (model, loras) in models {
        for lora in loras {
            for is_tracked in [true, false] {
                check_saved_bytes(&model, lora, is_tracked);
            }
        }
    }
}

/// With activations in half precision, which the portable bodies compute, and in f32 on both paths; on the fused one
/// also where what only the backward pass reads is kept in bf16.
fn check_saved_bytes(model: &LlamaConfig, lora: &LoRAConfig, is_tracked: bool) {
    let mut config = EstimateConfig::new(model.clone(), Some(lora.clone()), 2, 1024);
    for (dtype, fused, precision) in [
        (DType::BF16, false, MatmulPrecision::Highest),
        (DType::F32, false, MatmulPrecision::Highest),
        (DType::F32, true, MatmulPrecision::Highest),
        (DType::F32, true, MatmulPrecision::Medium),
    ] {
        set_fused(fused);
        set_matmul_precision(precision);
        config.compute_dtype = dtype;
        config.kept_dtype = kept_dtype(&device(), dtype);
        let expected = saved_bytes_per_layer(&config, is_tracked);
        let found = measured_saved_bytes(&config, is_tracked);
        set_matmul_precision(MatmulPrecision::Highest);
        assert!(
            found.abs_diff(expected as usize) <= found / 100,
            "{found} bytes, not {expected}: {dtype:?}, {precision:?}, fused {fused}, tracked {is_tracked}, {lora:?}"
        );
    }
}

#[test]
fn an_attention_without_scores_keeps_its_output_and_totals() {
    let model = llama(1, 256, 8, 1000);
    let (batch, seq) = (2, 64);
    let added = |lora: LoRAConfig| {
        let [flash, other] = [AttentionBody::Flash, AttentionBody::Cache].map(|attention| {
            let lora = Some(lora.clone());
            let config = EstimateConfig::new(model.clone(), lora, batch, seq)
                .with_attention(attention)
                .with_compute_dtype(DType::BF16);
            saved_bytes_per_layer(&config, false)
        });
        flash - other
    };
    let (output, totals) = (2 * 256, 4 * 8);
    let tokens = (batch * seq) as u64;
    assert_eq!(added(qv(8)), tokens * (output + totals));
    // An adapter on the output projection keeps the output anyway.
    assert_eq!(added(all(8)), tokens * totals);
    // What has no backward pass keeps nothing.
    let after_attention = LoRAConfig::new([AttnModule::OutputProj]);
    assert_eq!(added(after_attention), 0);
}

/// The files of a base: a folder of random weights, or a GGUF file of one that has weights packed there.
fn write_base(config: &EstimateConfig, dir: &Path) -> PathBuf {
    if config.packed.is_empty() {
        save_hf(&config.model.init(&Device::flex()), dir).unwrap();
        return dir.to_owned();
    }
    let path = dir.join("model.gguf");
    write_zero_gguf(&config.model, &path, |key| config.packed.get(key).copied());
    assert_eq!(read_base_packing(&path).unwrap(), config.packed);
    path
}

/// A model of these weights in the configuration's type.
fn model(config: &EstimateConfig, weights: &Path) -> TransformerDecoder {
    let mut model = match &config.lora {
        Some(lora) => config.model.init_lora(lora, &device()).unwrap(),
        None => config.model.init(&device()),
    };
    let format = BaseFormat::new(config.dtype)
        .with_quantization(config.quantization)
        .with_packed_vocabulary(config.packs_vocabulary)
        .with_kept_packing(true);
    load_any_base_as(&mut model, weights, format).unwrap();
    initialize_params(&model);
    model
}

fn batch(config: &EstimateConfig) -> Batch {
    let EstimateConfig {
        batch_size,
        seq_len,
        ..
    } = *config;
    let token = |i| ((i * 7919 + 13) % config.model.vocab_size) as i32;
    let ids: Vec<i32> = (0..batch_size * seq_len).map(token).collect();
    Batch {
        labels: ids.clone(),
        input_ids: ids,
        segments: vec![vec![seq_len]; batch_size],
        batch_size,
        seq_len,
        adapters: None,
    }
}

fn trainer(config: &EstimateConfig) -> Trainer {
    let schedule = LrSchedule {
        kind: ScheduleKind::Constant,
        lr: 1e-4,
        warmup_steps: 0,
        total_steps: 2,
    };
    Trainer::new(AdamWConfig::default(), schedule)
        .with_activations(config.activations)
        .with_loss_chunk_rows(config.loss_chunk_rows)
}

/// The most bytes in use at a time in two steps; what loading takes is not counted.
fn measured_peak(config: &EstimateConfig) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let weights = write_base(config, dir.path());
    drop(model(config, &weights)); // what threads allocate once
    let before = live_bytes();
    let mut model = model(config, &weights);
    reset_peak();
    let mut trainer = trainer(config);
    for _ in 0..2 {
        let batches = vec![batch(config); config.micro_batches];
        (model, _) = trainer.step(model, &batches);
    }
    peak_bytes() - before
}

fn trainings() -> Vec<(&'static str, EstimateConfig)> {
    let lora = |model, lora, batch, seq| EstimateConfig::new(model, Some(lora), batch, seq);
    let bf16 = |config: EstimateConfig| config.with_dtype(DType::BF16);
    let recompute =
        |layers, config: EstimateConfig| config.with_activations(Activations::Recompute { layers });
    let accumulate = |count, config: EstimateConfig| config.with_micro_batches(count);
    let packed = |kind, config: EstimateConfig| config.with_quantization(Some(kind));
    let [nf4, int8] = [Quantization::Nf4, Quantization::Int8];
    let small = || llama(4, 256, 8, 4000);
    let grouped = || llama(4, 512, 4, 4000);
    let tied = small().with_tie_embeddings(true);
    vec![
        ("q, v", lora(small(), qv(4), 2, 256)),
        ("q, v, bf16", bf16(lora(small(), qv(4), 2, 256))),
        ("q, v, nf4", packed(nf4, lora(grouped(), qv(4), 2, 64))),
        (
            "all, nf4, bf16",
            packed(nf4, bf16(lora(small(), all(64), 1, 64))),
        ),
        (
            "all, nf4, vocabulary too",
            packed(nf4, lora(small(), all(4), 2, 64)).with_packed_vocabulary(true),
        ),
        (
            "q, v, int8, vocabulary too, tied",
            packed(int8, lora(tied.clone(), qv(4), 2, 64)).with_packed_vocabulary(true),
        ),
        ("all, int8", packed(int8, lora(grouped(), all(4), 1, 64))),
        (
            "q, v, nf4, dora",
            packed(nf4, lora(grouped(), qv(4).with_dora(true), 2, 64)),
        ),
        (
            "all, nf4, dora, recompute",
            packed(
                nf4,
                recompute(1, lora(grouped(), all(4).with_dora(true), 2, 64)),
            ),
        ),
        ("rank 64", lora(small(), qv(64), 2, 128)),
        ("all modules", lora(small(), all(4), 2, 256)),
        ("all, rank 64, bf16", bf16(lora(small(), all(64), 1, 64))),
        (
            "all, rank 64, 3 micro-batches",
            accumulate(3, lora(small(), all(64), 1, 64)),
        ),
        ("grouped queries", lora(grouped(), all(8), 2, 256)),
        (
            "joint projections",
            lora(joint(grouped()), all_linear(8), 2, 256),
        ),
        (
            "joint projections, dora, recomputed, bf16",
            recompute(
                1,
                bf16(lora(
                    joint(grouped()),
                    all_linear(8).with_dora(true),
                    2,
                    256,
                )),
            ),
        ),
        (
            "joint projections, everything",
            EstimateConfig::new(joint(small()), None, 2, 256),
        ),
        ("experts", lora(experts(grouped()), all_linear(8), 2, 256)),
        (
            "experts, recomputed, bf16",
            recompute(1, bf16(lora(experts(grouped()), all_linear(8), 2, 256))),
        ),
        (
            "6 layers, 2 x 512",
            lora(llama(6, 256, 8, 1000), qv(4), 2, 512),
        ),
        (
            "large vocabulary",
            lora(llama(2, 256, 8, 8000), qv(8), 2, 256),
        ),
        (
            "64 rows of logits",
            lora(llama(2, 256, 8, 8000), qv(8), 1, 256).with_loss_chunk_rows(64),
        ),
        (
            "recomputed",
            recompute(1, lora(llama(6, 256, 8, 1000), all(8), 2, 512)),
        ),
        (
            "recomputed, bf16",
            recompute(1, bf16(lora(grouped(), qv(8), 2, 256))),
        ),
        (
            "recomputed by 2 of 5",
            recompute(2, lora(llama(5, 256, 8, 4000), qv(8), 2, 512)),
        ),
        ("dropout", lora(small(), all(8).with_dropout(0.1), 2, 256)),
        (
            "recomputed, dropout",
            recompute(
                1,
                lora(llama(6, 256, 8, 1000), all(8).with_dropout(0.1), 2, 512),
            ),
        ),
        ("dora", lora(small(), all(8).with_dora(true), 2, 256)),
        (
            "dora, short, bf16",
            bf16(lora(grouped(), all(8).with_dora(true), 1, 128)),
        ),
        (
            "output too",
            lora(llama(2, 256, 8, 8000), qv(8).with_output(true), 2, 256),
        ),
        (
            "output too, dora",
            lora(
                llama(2, 256, 8, 8000),
                qv(8).with_output(true).with_dora(true),
                2,
                256,
            ),
        ),
        (
            "output alone",
            lora(small(), LoRAConfig::default().with_output(true), 2, 256),
        ),
        ("everything", EstimateConfig::new(small(), None, 2, 256)),
        (
            "everything, short, tied",
            EstimateConfig::new(tied, None, 1, 64),
        ),
        (
            "everything, bf16",
            bf16(EstimateConfig::new(small(), None, 1, 128)),
        ),
    ]
}

/// A base that a file has packed so, by the keys of its matrices.
fn in_gguf(
    config: EstimateConfig,
    format_of: impl Fn(&str) -> Option<BlockFormat>,
) -> EstimateConfig {
    let params = get_params(&config.model.init(&device()));
    let matrices = params.iter().filter(|(_, param)| param.shape.len() == 2);
    let packed = matrices.filter_map(|(key, _)| Some((key.to_owned(), format_of(key)?)));
    config.with_packed(packed.collect())
}

/// Trainings on GGUF files, whose kinds differ from weight to weight.
fn gguf_trainings() -> Vec<(&'static str, EstimateConfig)> {
    let is_vocabulary = |key: &str| key.starts_with("tok_embeddings") || key.starts_with("output");
    let grouped = || llama(4, 512, 4, 4000);
    let tied = || grouped().with_tie_embeddings(true);
    let lora = |model, lora| EstimateConfig::new(model, Some(lora), 2, 64);
    let plain = |config| {
        in_gguf(config, |key| match is_vocabulary(key) {
            true => Some(BlockFormat::Q8_0),
            false => Some(BlockFormat::Q4_1),
        })
    };
    // As llama.cpp mixes them: `w2` has rows that blocks of 256 do not divide.
    let mixed = |config| {
        in_gguf(config, |key| match key.rsplit('.').nth(1) {
            Some("w2") => Some(BlockFormat::Q5_0),
            Some("v_proj" | "tok_embeddings") => Some(BlockFormat::Q6K),
            _ => Some(BlockFormat::Q4K),
        })
    };
    let attention = |config| {
        in_gguf(config, |key| {
            key.contains("attn").then_some(BlockFormat::Q8_0)
        })
    };
    vec![
        ("q4_1, q8_0 vocabulary", plain(lora(grouped(), qv(4)))),
        (
            "q4_1, all, output too",
            plain(lora(grouped(), all(8).with_output(true))),
        ),
        ("q4_k_m, tied", mixed(lora(tied(), all(4)))),
        (
            "q4_k_m, tied, recomputed, bf16",
            mixed(lora(tied(), qv(8)))
                .with_activations(Activations::Recompute { layers: 1 })
                .with_dtype(DType::BF16),
        ),
        ("a part in q8_0", attention(lora(grouped(), qv(4)))),
        (
            "a part in q8_0, nf4, bf16",
            attention(lora(grouped(), qv(4)))
                .with_quantization(Some(Quantization::Nf4))
                .with_dtype(DType::BF16),
        ),
    ]
}

/// With an output that stays the embedding's weight.
fn kept_tied(mut lora: LoRAConfig) -> LoRAConfig {
    lora.ensure_weight_tying = true;
    lora
}

/// A training for each method and target style, named after it.
fn methods() -> Vec<(&'static str, EstimateConfig)> {
    let small = || llama(4, 256, 8, 4000);
    let tied = || small().with_tie_embeddings(true);
    let biased = || small().with_qkv_bias(true).with_output_proj_bias(true);
    let lora = |model, lora| EstimateConfig::new(model, Some(lora), 2, 256);
    let tokens = |name| all(8).with_trainable_tokens(name, 0..100);
    let saved = |modules: &[&str]| qv(8).with_modules_to_save(modules.iter().copied());
    let vocabulary = || qv(8).with_modules_to_save(["tok_embeddings", "output"]);
    vec![
        ("all, rank 32", lora(small(), all(32))),
        (
            "rslora, rank pattern",
            lora(
                small(),
                all(8)
                    .with_rslora(true)
                    .with_rank_pattern([("layers.1.attn.q_proj", 64), ("w2", 128)]),
            ),
        ),
        ("one layer", lora(small(), all(16).with_layers([2]))),
        (
            "all linear",
            lora(
                small(),
                LoRAConfig::default().with_targets(Targets::AllLinear),
            ),
        ),
        (
            "pattern, dora",
            lora(
                small(),
                LoRAConfig::default()
                    .with_targets(Targets::pattern(r".*\.(k|output)_proj"))
                    .with_dora(true),
            ),
        ),
        ("lora bias", lora(small(), all(8).with_lora_bias(true))),
        (
            "biases of its layers",
            lora(biased(), qv(8).with_bias(TrainedBias::LoraOnly)),
        ),
        (
            "all biases",
            lora(biased(), qv(8).with_bias(TrainedBias::All)),
        ),
        (
            "biases alone",
            lora(biased(), LoRAConfig::default().with_bias(TrainedBias::All)),
        ),
        ("lora-fa", lora(small(), all(64).with_frozen_a(true))),
        (
            "dora, dropout",
            lora(small(), all(8).with_dora(true).with_dropout(0.1)),
        ),
        (
            "orthogonal",
            lora(small(), all(8).with_init(Init::Orthogonal)),
        ),
        ("pissa", lora(small(), all(32).with_init(Init::Pissa))),
        ("olora", lora(small(), all(32).with_init(Init::Olora))),
        (
            "pissa, dropout",
            lora(small(), all(32).with_init(Init::Pissa).with_dropout(0.1)),
        ),
        (
            "pissa, dora",
            lora(small(), all(32).with_init(Init::Pissa).with_dora(true)),
        ),
        (
            "embedding",
            lora(small(), LoRAConfig::new(["q_proj", "tok_embeddings"])),
        ),
        (
            "embedding, dora",
            lora(
                small(),
                LoRAConfig::new(["q_proj", "tok_embeddings"]).with_dora(true),
            ),
        ),
        ("head", lora(small(), qv(8).with_output(true))),
        ("tied head", lora(tied(), qv(8).with_output(true))),
        (
            "tied head, dora",
            lora(tied(), qv(8).with_output(true).with_dora(true)),
        ),
        (
            "tied embedding and head",
            lora(
                tied(),
                LoRAConfig::new(["q_proj", "tok_embeddings", "output"]),
            ),
        ),
        ("saved embedding", lora(small(), saved(&["tok_embeddings"]))),
        ("saved head", lora(small(), saved(&["output"]))),
        ("saved embedding and head", lora(small(), vocabulary())),
        ("saved vocabulary, tied", lora(tied(), vocabulary())),
        (
            "saved embedding, kept tied",
            lora(tied(), kept_tied(saved(&["tok_embeddings"]))),
        ),
        (
            "larger vocabulary",
            lora(small(), vocabulary().with_vocab_size(5000)),
        ),
        ("saved norms", lora(small(), saved(&["norm"]))),
        ("token rows", lora(small(), tokens("tok_embeddings"))),
        ("token rows, tied", lora(tied(), tokens("tok_embeddings"))),
        ("token rows of the head", lora(small(), tokens("output"))),
    ]
}

/// The same with activations computed again or a base in bf16.
fn recomputed_methods() -> Vec<(&'static str, EstimateConfig)> {
    let chosen = |name: &str| {
        let names = [
            "lora bias",
            "pissa",
            "embedding, dora",
            "saved embedding and head",
            "saved norms",
            "token rows, tied",
            "all biases",
        ];
        names.contains(&name)
    };
    let methods = methods().into_iter().filter(|(name, _)| chosen(name));
    let recompute = Activations::Recompute { layers: 1 };
    methods
        .map(|(name, config)| {
            (
                name,
                config.with_activations(recompute).with_dtype(DType::BF16),
            )
        })
        .collect()
}

#[test]
fn a_training_takes_what_was_estimated() {
    let _alone = alone();
    let mut wrong = Vec::new();
    let prefixed = |prefix: &'static str, trainings: Vec<(&'static str, EstimateConfig)>| {
        let trainings = trainings.into_iter();
        trainings.map(move |(name, config)| (format!("{prefix}{name}"), config))
    };
    let trainings = prefixed("", trainings()).chain(prefixed("gguf: ", gguf_trainings()));
    let trainings = trainings.chain(prefixed("", methods()));
    for (name, config) in trainings.chain(prefixed("bf16, recomputed: ", recomputed_methods())) {
        let expected = estimate(&config);
        let found = measured_peak(&config);
        let percent = 100.0 * (expected.total() as f64 / found as f64 - 1.0);
        let moment = expected.moment;
        println!("{name:<30} {found:>11} measured {percent:>+6.1} % estimated, {moment}");
        if !is_close(found, expected.total()) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "not close: {wrong:?}");
}

#[test]
fn weights_and_adapters_are_the_models() {
    let _alone = alone();
    let biased = llama(3, 256, 2, 1000)
        .with_qkv_bias(true)
        .with_output_proj_bias(true);
    for model in [
        LlamaConfig::llama2_70b(),
        LlamaConfig::llama3_2_1b(),
        biased,
    ] {
        for lora in [
            qv(8),
            all(16).with_dora(true),
            qv(4).with_output(!model.tie_embeddings),
        ] {
            let count = ParamCount::of(&model.init_lora(&lora, &device()).unwrap());
            let memory = estimate(&EstimateConfig::new(model.clone(), Some(lora), 1, 1));
            assert_eq!(memory.adapters, 4 * count.trainable as u64);
            assert_eq!(memory.weights, 4 * (count.total - count.trainable) as u64);
            assert!(memory.optimizer >= 2 * memory.adapters);
        }
        let count = ParamCount::of(&model.init(&device()));
        let config = EstimateConfig::new(model, None, 1, 1).with_dtype(DType::BF16);
        assert_eq!(estimate(&config).weights, 2 * count.total as u64);
    }
}

#[test]
fn the_parts_add_up_and_print() {
    let memory = MemoryEstimate {
        weights: 13_480_000_000,
        adapters: 16_800_000,
        gradients: 1,
        optimizer: 33_600_000,
        activations: 4_000_000_000,
        loss: 0,
        moment: Moment::Backward,
    };
    assert_eq!(memory.total(), 17_530_400_001);
    let expected = "\
weights       13.5 GB
adapters      16.8 MB
gradients      0.0 MB
optimizer     33.6 MB
activations    4.0 GB
loss           0.0 MB
total         17.5 GB, in a layer's backward pass";
    assert_eq!(memory.to_string(), expected);
}

#[test]
fn a_recipe_is_estimated_as_it_will_run() {
    let _alone = alone();
    let overrides = [
        "enable_activation_checkpointing=true",
        "dtype=bf16",
        "batch_size=3",
    ];
    let overrides = overrides.map(str::to_owned);
    let recipe = RecipeConfig::default().with_overrides(&overrides).unwrap();
    let (llama, lora) = (LlamaConfig::llama2_7b(), recipe.lora());
    let packed = BTreeMap::from([("output.weight".to_owned(), BlockFormat::Q6K)]);
    let config = recipe
        .estimate_config(&llama, packed.clone(), &lora, 100, &device())
        .unwrap();
    let expected = EstimateConfig::new(llama, Some(lora), 3, 100)
        .with_dtype(DType::BF16)
        .with_packed(packed)
        .on_device(&device())
        .with_activations(recipe.trainer(1).options.activations);
    assert_eq!(config, expected);
    assert_eq!(config.activations, Activations::Recompute { layers: 1 });
    // A vocabulary of another size than the files' is dense.
    let (model, larger) = (
        LlamaConfig::llama2_7b(),
        recipe.lora().with_vocab_size(32_008),
    );
    let resized = recipe.estimate_config(&model, config.packed, &larger, 100, &device());
    assert!(resized.unwrap().packed.is_empty());

    let recipe = recipe
        .with_overrides(&["quantize_base=nf4".to_owned()])
        .unwrap();
    let narrow = LlamaConfig::llama2_7b().with_intermediate_dim(352);
    let none = BTreeMap::new();
    let error = recipe.estimate_config(&narrow, none, &recipe.lora(), 100, &device());
    let error = error.unwrap_err().to_string();
    for part in [
        "quantize_base: `layers.0.mlp.w2`",
        "rows of 352",
        "take int8",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// The estimate comes to its end, and to more than there is.
#[test]
fn sizes_that_no_machine_has() {
    let _alone = alone();
    let (rows, tokens) = (1_000_000_000, 1 << 30);
    let config = EstimateConfig::new(LlamaConfig::llama2_7b(), Some(qv(8)), rows, tokens);
    for activations in [Activations::Keep, Activations::Recompute { layers: 1 }] {
        let config = config.clone().with_activations(activations);
        assert!(estimate(&config).total() > 1 << 50);
    }
    assert!(!suggestions(&config, 1 << 34).is_empty());
}

#[test]
fn suggestions_fit_or_come_closer() {
    let _alone = alone();
    let config = EstimateConfig::new(LlamaConfig::llama2_7b(), Some(qv(8)), 4, 1024);
    let total = estimate(&config).total();
    assert!(suggestions(&config, total).is_empty());

    // A little less: every change is enough, and none goes further than it must.
    let found = suggestions(&config, total - 1);
    let changes: Vec<Vec<Change>> = found.iter().map(|s| s.changes.clone()).collect();
    let halved = Change::BatchSize {
        batch_size: 2,
        micro_batches: 2,
    };
    let expected = [
        Change::Recompute,
        halved,
        Change::Bf16,
        Change::Nf4,
        Change::SeqLen(512),
    ];
    assert_eq!(changes, expected.map(|change| vec![change]));
    assert!(found.iter().all(|s| s.estimate.total() < total));

    // Half of it: two changes together.
    let found = suggestions(&config, total / 3);
    let last = found.last().unwrap();
    assert!(
        last.changes.len() > 1 && last.estimate.total() <= total / 3,
        "{last}"
    );
    assert!(
        found[..found.len() - 1]
            .iter()
            .all(|s| s.estimate.total() > total / 3)
    );
    assert!(
        last.to_string()
            .contains("enable_activation_checkpointing: true, batch_size: 1")
    );

    // Nothing helps: all changes together, as the least that it takes.
    let found = suggestions(&config, 0);
    assert_eq!(found.last().unwrap().changes.len(), 5);
}

#[test]
fn nf4_is_suggested_for_dense_bases_that_its_blocks_divide() {
    let suggests = |config: &EstimateConfig| {
        let found = suggestions(config, 0);
        found.iter().any(|s| s.changes.contains(&Change::Nf4))
    };
    let dense = EstimateConfig::new(LlamaConfig::llama2_7b(), Some(qv(4)), 1, 64);
    assert!(suggests(&dense) && suggests(&dense.clone().with_dtype(DType::BF16)));
    assert!(!suggests(
        &dense.clone().with_quantization(Some(Quantization::Int8))
    ));
    assert!(!suggests(&in_gguf(dense.clone(), |_| Some(
        BlockFormat::Q8_0
    ))));
    let other = dense.model.clone().with_intermediate_dim(11_000);
    assert!(!suggests(&EstimateConfig::new(other, Some(qv(4)), 1, 64)));
    // Weights that are trained have to stay numbers.
    assert!(!suggests(&EstimateConfig::new(dense.model, None, 1, 64)));
}

#[test]
fn available_memory_is_told_on_linux() {
    let available = available_memory_bytes(&Device::flex());
    assert_eq!(available.is_some(), cfg!(target_os = "linux"));
    assert!(available.is_none_or(|bytes| bytes > 1 << 20));
}

#[test]
fn more_memory_than_the_machine_has_is_an_error() {
    let device = Device::flex();
    let lora = || Some(LoRAConfig::new([AttnModule::QProj]).with_rank(1_000_000_000));
    let small = EstimateConfig::new(LlamaConfig::llama2_7b().with_num_layers(1), None, 1, 8);
    let large = EstimateConfig::new(LlamaConfig::llama2_7b(), lora(), 1, 8);
    if installed_memory_bytes(&device).is_none() {
        return left_out("memory", "this system does not tell its memory");
    }
    assert!(require_memory(&large, &device, 1).is_err());
    assert!(require_memory(&small, &device, 1_000_000).is_err());
    let tiny = LlamaConfig::llama2_7b()
        .with_num_layers(1)
        .with_vocab_size(8);
    let tiny = tiny.with_embed_dim(64).with_intermediate_dim(64);
    let tiny = EstimateConfig::new(
        tiny.with_num_heads(1).with_num_kv_heads(1).with_head_dim(8),
        None,
        1,
        8,
    );
    require_memory(&tiny, &device, 1).unwrap();
}

/// The rows of the tables in a page that begin with a model's name.
fn table_rows(page: &str) -> Vec<&str> {
    let text = page.lines();
    text.filter(|line| line.starts_with("| Llama 2 ")).collect()
}

#[test]
fn the_pages_show_what_the_example_prints() {
    let printed = memory_table::markdown();
    let printed: Vec<&str> = printed.lines().collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |page| std::fs::read_to_string(root.join(page)).unwrap();
    let (readme, performance) = (read("README.md"), read("docs/performance.md"));
    assert_eq!(table_rows(&performance), printed[2..]);
    let rows = table_rows(&readme);
    assert!(rows.len() >= 4);
    assert!(rows.iter().all(|row| printed.contains(row)), "{rows:?}");
    assert!(readme.contains(&printed[..2].join("\n")));
}
