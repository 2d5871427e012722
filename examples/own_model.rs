//! LoRA in a model of your own: a two-layer classifier whose layers are `LoRALinear`s, first
//! trained in full on one task, then adapted to another with the base frozen.
//!
//! ```text
//! cargo run --release --example own_model
//! ```

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::Distribution;
use burn::tensor::activation::relu;
use burn_peft::adapter::{
    Adapter, ParamCount, get_adapter_params, load_state_dict, state_dict, with_adapters,
};
use burn_peft::checkpoint::{load_adapter, save_adapter};
use burn_peft::lora::{DEFAULT_ADAPTER, LoRAConfig, LoRALinear};
use burn_peft::training::{AdamW, AdamWConfig, cross_entropy_sum};

#[derive(Module, Debug)]
struct Classifier {
    hidden: LoRALinear,
    output: LoRALinear,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        Self {
            hidden: LoRALinear::plain(2, 64, true, device),
            output: LoRALinear::plain(64, 2, true, device),
        }
    }

    fn forward(&self, points: Tensor<2>) -> Tensor<2> {
        self.output.forward(relu(self.hidden.forward(points)))
    }
}

/// Points of the plane, and whether they lie in the ring between two radii.
fn ring(inner: f64, outer: f64, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
    let points = Tensor::<2>::random([256, 2], Distribution::Uniform(-1.0, 1.0), device);
    let radius = points.clone().square().sum_dim(1).sqrt();
    let inside = radius
        .clone()
        .greater_scalar(inner)
        .bool_and(radius.lower_scalar(outer));
    (points, inside.int().reshape([256]))
}

fn train(mut model: Classifier, steps: usize, task: (f64, f64), device: &Device) -> Classifier {
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for step in 0..=steps {
        let (points, labels) = ring(task.0, task.1, device);
        let loss = cross_entropy_sum(model.forward(points), labels) / 256.0;
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, grads);
        if step.is_multiple_of(steps / 2) {
            println!("  step {step}: loss {:.3}", loss.into_scalar::<f32>());
        }
    }
    println!(
        "  the optimizer held {} tensors' moments",
        optimizer.num_states()
    );
    model
}

fn main() -> burn_peft::Result<()> {
    let device = Device::default().autodiff();
    device.seed(1);
    println!("training everything on a disc:");
    let base = train(Classifier::new(&device), 400, (0.0, 0.7), &device);
    let before = state_dict(&base);

    let lora = LoRAConfig::new(["hidden", "output"])
        .with_rank(2)
        .with_alpha(4.0);
    let model = with_adapters(base, &lora)?;
    println!("{}", ParamCount::of(&model));
    for (name, info) in get_adapter_params(&model).iter() {
        println!("  {name} {:?}", info.shape);
    }
    println!("training the adapter on a ring:");
    let model = train(model, 400, (0.4, 0.9), &device);

    let after = state_dict(&model);
    assert!(before.iter().all(|(key, value)| after[key] == *value));
    println!("the base is unchanged");

    let path = std::env::temp_dir().join("burn-peft-own-model.safetensors");
    save_adapter(&Adapter::of(&model, DEFAULT_ADAPTER)?, &path)?;
    let mut again = Classifier::new(&device);
    load_state_dict(&mut again, &before, true)?;
    let again = load_adapter(&path)?.attach(again, DEFAULT_ADAPTER)?;
    assert_eq!(state_dict(&again), after);
    println!("base and adapter together are the trained model again");
    Ok(())
}
