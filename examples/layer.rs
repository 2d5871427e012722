//! One adapted linear layer: what is trained, that it begins as the base, learns, and merges into a plain layer.
//!
//! ```text
//! cargo run --release --example layer
//! ```

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::Distribution;
use burn_peft::adapter::ParamCount;
use burn_peft::lora::{LoRAConfig, LoRALinear};
use burn_peft::training::{AdamW, AdamWConfig};

pub fn main() {
    let device = Device::default().autodiff();
    let base = LoRALinear::plain(32, 16, true, &device);
    let mut layer = base
        .clone()
        .with_adapter(&LoRAConfig::default().with_rank(2));
    println!("{layer}\n{}", ParamCount::of(&layer));

    let x = Tensor::<2>::random([64, 32], Distribution::Default, &device);
    let difference = |a: &LoRALinear, b: &LoRALinear| {
        let difference = a.forward(x.clone()) - b.forward(x.clone());
        difference.abs().max().into_scalar::<f32>()
    };
    println!("before: {} away from the base", difference(&layer, &base));

    // What another layer of the same base gives is of more than rank 2, so the adapter comes near it only.
    let target = LoRALinear::plain(32, 16, true, &device)
        .forward(x.clone())
        .detach();
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for step in 0..=100 {
        let loss = (layer.forward(x.clone()) - target.clone()).square().mean();
        if step % 50 == 0 {
            println!("step {step}: loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let grads = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(1e-2, layer, grads);
    }
    println!("after: {} away from the base", difference(&layer, &base));
    let merged = layer.clone().merge();
    println!(
        "merged: {} away from the adapted layer",
        difference(&merged, &layer)
    );
}
