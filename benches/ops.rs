//! Forward and backward of the parts of a training step, and a whole step of a small model.
//!
//! | group | what | compared |
//! |---|---|---|
//! | `linear` | 512 tokens times a frozen weight, as Gelem/s of floating-point operations | f32 and bf16 weights, bf16 products, portable body |
//! | `few_rows` | 1 to 17 tokens times a frozen weight | f32 and bf16 weights |
//! | `lora_linear` | a linear layer | frozen, this crate's adapter, Burn's `apply_lora`, which composes the dense weight |
//! | `attention` | 16 heads of 64 | fused and portable bodies, one sample in a row or eight |
//! | `cross_entropy` | 256 x 32000 logits | fused and portable bodies |
//! | `block` | a decoder layer with adapters | fused and portable bodies |
//! | `train_step` | a step with AdamW | activations kept and computed again |
//!
//! To compare two states of the code, save the first under a name:
//!
//! ```text
//! cargo bench --bench ops -- --save-baseline before
//! cargo bench --bench ops -- --baseline before
//! ```

#[path = "support/training.rs"]
mod training;

use std::time::Duration;

use burn::module::{Lora, Module};
use burn::nn::LinearConfig;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use burn_peft::adapter::initialize_params;
use burn_peft::llama::{Context, LlamaConfig};
use burn_peft::lora::{AttnModule, LoRAConfig, LoRALinear};
use burn_peft::ops::{self, AttentionMask, MatmulPrecision};
use burn_peft::training::Activations;
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use training::{Case, Training};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn device() -> Device {
    Device::default().autodiff()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
}

/// Times `op` of `x` with the gradient of `x`.
fn bench_op<const D: usize, const E: usize>(
    group: &mut Group,
    id: BenchmarkId,
    x: &Tensor<D>,
    op: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    group.bench_function(id, |bencher| {
        bencher.iter(|| {
            let x = x.clone().detach().require_grad();
            let grads = op(x.clone()).sum().backward();
            x.grad(&grads).expect("x is tracked")
        });
    });
}

fn bench_bodies<const D: usize, const E: usize>(
    group: &mut Group,
    parameter: &str,
    x: &Tensor<D>,
    op: impl Fn(Tensor<D>) -> Tensor<E>,
) {
    for (name, fused) in [("fused", true), ("portable", false)] {
        ops::set_fused(fused);
        bench_op(group, BenchmarkId::new(name, parameter), x, &op);
    }
    ops::set_fused(true);
}

/// `[out_dim, in_dim]` of the weights of the Llama that `vs_peft` compares.
const WEIGHTS: [[usize; 2]; 4] = [[1024, 1024], [2816, 1024], [1024, 2816], [32000, 1024]];

/// Forward, and forward with backward, of a product whose weight is frozen.
fn linear(criterion: &mut Criterion) {
    const TOKENS: usize = 512;
    let mut group = criterion.benchmark_group("linear");
    for shape @ [out_dim, in_dim] in WEIGHTS {
        let x = random([TOKENS, in_dim]);
        let weight = random(shape).inner();
        let half = weight.clone().cast(DType::BF16);
        let flop = (2 * TOKENS * out_dim * in_dim) as u64;
        let bodies = [
            ("f32", &weight, true, MatmulPrecision::Highest),
            ("bf16 weight", &half, true, MatmulPrecision::Highest),
            ("bf16 products", &half, true, MatmulPrecision::Medium),
            ("portable", &weight, false, MatmulPrecision::Highest),
        ];
        for (name, weight, fused, precision) in bodies {
            ops::set_fused(fused);
            ops::set_matmul_precision(precision);
            let parameter = format!("{name}/{out_dim}x{in_dim}");
            group.throughput(Throughput::Elements(flop));
            group.bench_function(BenchmarkId::new("forward", &parameter), |bencher| {
                let x = x.clone().inner();
                bencher.iter(|| ops::linear(x.clone(), weight.clone()));
            });
            group.throughput(Throughput::Elements(2 * flop));
            let id = BenchmarkId::new("both", &parameter);
            bench_op(&mut group, id, &x, |x| {
                ops::linear(x, Tensor::from_inner(weight.clone()))
            });
        }
    }
    ops::set_fused(true);
    ops::set_matmul_precision(MatmulPrecision::Highest);
}

fn few_rows(criterion: &mut Criterion) {
    const WIDTH: usize = 2048;
    let mut group = criterion.benchmark_group("few_rows");
    let weight = random([WIDTH, WIDTH]).inner();
    let half = weight.clone().cast(DType::BF16);
    for rows in [1, 4, 8, 9, 16, 17] {
        let x = random([rows, WIDTH]).inner();
        group.throughput(Throughput::Elements((2 * rows * WIDTH * WIDTH) as u64));
        for (name, weight) in [("f32", &weight), ("bf16", &half)] {
            group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                bencher.iter(|| ops::linear(x.clone(), weight.clone()));
            });
        }
    }
}

fn lora_linear(criterion: &mut Criterion) {
    const WIDTH: usize = 1024;
    let mut group = criterion.benchmark_group("lora_linear");
    let x = random([1, 512, WIDTH]);
    let layer = LoRALinear::plain(WIDTH, WIDTH, false, &device()).no_grad();
    initialize_params(&layer);
    let id = BenchmarkId::from_parameter("frozen");
    bench_op(&mut group, id, &x, |x| layer.forward(x));
    for rank in [8, 64] {
        let config = LoRAConfig::default().with_rank(rank);
        let layer = LoRALinear::new(WIDTH, WIDTH, &config, false, &device());
        initialize_params(&layer);
        let id = BenchmarkId::new("lora", rank);
        bench_op(&mut group, id, &x, |x| layer.forward(x));

        let linear = LinearConfig::new(WIDTH, WIDTH).with_bias(false);
        let layer = linear.init(&device()).apply_lora(Lora::new(rank, 16.0));
        let id = BenchmarkId::new("burn_apply_lora", rank);
        bench_op(&mut group, id, &x, |x| layer.forward(x));
    }
}

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for seq in [256, 1024] {
        let segments = vec![seq / 8; 8];
        let masks = [
            ("causal", AttentionMask::causal(0, seq)),
            ("packed", AttentionMask::within_segments(&[segments], seq)),
        ];
        let x = random([1, seq, 16, 64]);
        for (name, mask) in masks {
            bench_bodies(&mut group, &format!("{name}/{seq}"), &x, |x| {
                ops::attention(x.clone(), x.clone(), x, &mask)
            });
        }
    }
}

/// The logits are used again, so the fused body copies them, which it need not in training.
fn cross_entropy(criterion: &mut Criterion) {
    const ROWS: usize = 256;
    let mut group = criterion.benchmark_group("cross_entropy");
    let targets = Tensor::<1, Int>::arange(0..ROWS as i64, &device());
    let logits = random([ROWS, 32000]);
    bench_bodies(&mut group, "256x32000", &logits, |logits| {
        ops::cross_entropy_sum(logits, targets.clone())
    });
}

fn block(criterion: &mut Criterion) {
    const SEQ: usize = 256;
    let config = LlamaConfig::llama2_7b()
        .with_vocab_size(8)
        .with_num_layers(1)
        .with_num_heads(16)
        .with_num_kv_heads(16)
        .with_head_dim(64)
        .with_embed_dim(1024)
        .with_intermediate_dim(2816);
    let lora = LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]);
    let model = config.init_lora(&lora, &device());
    let model = model.expect("sizes that fit each other");
    initialize_params(&model);
    let context = Context::causal(&config, 0, SEQ, &device());
    let x = random([2, SEQ, config.embed_dim]);
    let mut group = criterion.benchmark_group("block");
    bench_bodies(&mut group, "2x256", &x, |x| {
        model.layers[0].forward(x, &context, None)
    });
}

fn train_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    for (name, activations) in [
        ("kept", Activations::Keep),
        ("recomputed", Activations::Recompute { layers: 1 }),
    ] {
        let mut training = Training::new(&Case {
            rows: 2,
            seq_len: 256,
            layers: 4,
            rank: 8,
            activations,
        });
        group.bench_function(name, |bencher| bencher.iter(|| training.step()));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = linear, few_rows, lora_linear, attention, cross_entropy, block, train_step
}
criterion_main!(benches);
