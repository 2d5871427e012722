//! Forward and backward of one linear layer: plain and frozen, with this crate's adapter, and with
//! Burn's own `apply_lora`, which composes the dense weight.
//!
//! ```text
//! cargo bench --bench lora_linear
//! ```

use burn::module::{Lora, Module};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Distribution, Tensor};
use burn_peft::adapter::initialize_params;
use burn_peft::lora::{LoRAConfig, LoRALinear};
use divan::Bencher;

const TOKENS: usize = 512;
const WIDTH: usize = 1024;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn device() -> Device {
    Device::default().autodiff()
}

/// An activation from a layer below, so that the backward pass needs its gradient.
fn activation() -> Tensor<3> {
    let shape = [1, TOKENS, WIDTH];
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device()).require_grad()
}

fn bench_layer(bencher: Bencher, forward: impl Fn(Tensor<3>) -> Tensor<3> + Sync) {
    bencher.with_inputs(activation).bench_values(|x| {
        let grads = forward(x.clone()).sum().backward();
        x.grad(&grads)
            .expect("x is tracked")
            .sum()
            .into_scalar::<f32>()
    });
}

#[divan::bench]
fn frozen(bencher: Bencher) {
    let layer = LoRALinear::plain(WIDTH, WIDTH, false, &device()).no_grad();
    initialize_params(&layer);
    bench_layer(bencher, |x| layer.forward(x));
}

#[divan::bench(args = [8, 64])]
fn lora(bencher: Bencher, rank: usize) {
    let config = LoRAConfig::new([]).with_rank(rank);
    let layer = LoRALinear::new(WIDTH, WIDTH, &config, false, &device());
    initialize_params(&layer);
    bench_layer(bencher, |x| layer.forward(x));
}

#[divan::bench(args = [8, 64])]
fn burn_apply_lora(bencher: Bencher, rank: usize) {
    let linear = LinearConfig::new(WIDTH, WIDTH).with_bias(false);
    let layer = linear.init(&device()).apply_lora(Lora::new(rank, 16.0));
    bench_layer(bencher, |x| layer.forward(x));
}
