//! How much memory a training takes, and what takes less.

use burn::tensor::Device;
use burn_peft::training::{Bytes, EstimateConfig, available_memory_bytes, estimate, suggestions};

use crate::say::tell;

/// What the estimate of a GPU's memory leaves out: what cuBLAS takes, and what lies between the
/// buffers of CubeCL's pools.
const GPU_OVERHEAD: u64 = 2_000_000_000;

/// The memory that a training will take on the device and, if there is not as much, what takes less. `num_local` say how
/// many train on this machine.
pub fn print_memory(config: &EstimateConfig, device: &Device, num_local: usize) {
    let memory = estimate(config);
    say!("Estimated memory of the training:\n{memory}");
    let is_gpu = device.memory_pool_usage().is_some();
    let Some(available) = available_memory_bytes(device) else {
        return;
    };
    // GPUs have memory of their own.
    let sharing = if is_gpu { 1 } else { num_local };
    let available = available / sharing as u64;
    say!("{:<12}{:>9}", "available", Bytes(available));
    if sharing > 1 {
        say!("for each of the {sharing} that train on this machine");
    }
    let usable = match is_gpu {
        true => available.saturating_sub(GPU_OVERHEAD),
        false => available,
    };
    if memory.total() > usable {
        say!("This will probably not fit.");
        for suggestion in suggestions(config, usable) {
            tell(&suggestion.to_string());
        }
    }
}
