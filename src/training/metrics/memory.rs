//! What a training holds of memory, and what is left.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;

use crate::ops::free_memory;

/// The largest amount of main memory that this process has held so far, in bytes; none where the
/// system does not tell (anything but Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    // The kernel sums per-thread counters and may be some pages off, downwards too.
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let now = proc_bytes("/proc/self/status", "VmHWM:")?;
    Some(PEAK.fetch_max(now, Ordering::Relaxed).max(now))
}

/// The memory that a training on `device` can still take, in bytes: on a CPU main memory without
/// swapping, on a CUDA device its own. None where nobody tells: on other GPUs, and of main memory on
/// anything but Linux. A limit of a container is not seen.
pub fn available_memory_bytes(device: &Device) -> Option<u64> {
    match device.memory_pool_usage() {
        Some(_) => free_memory(device),
        None => proc_bytes("/proc/meminfo", "MemAvailable:"),
    }
}

/// The main memory of the machine and what it can swap, in bytes: more than a training on a CPU can ever take. None where
/// nobody tells: on a GPU, and on anything but Linux.
pub fn installed_memory_bytes(device: &Device) -> Option<u64> {
    if device.memory_pool_usage().is_some() {
        return None;
    }
    let of = |name| proc_bytes("/proc/meminfo", name);
    Some(of("MemTotal:")? + of("SwapTotal:")?)
}

/// A line such as `VmHWM:  1024 kB` of a file of the kernel.
fn proc_bytes(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
