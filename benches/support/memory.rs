//! The most memory that a part of a program takes.

/// From here on the kernel tells the most memory since now, where it can.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most main memory that was held since [`reset_peak`], in bytes; what
/// [`peak_memory_bytes`](burn_peft::training::peak_memory_bytes) tells never falls.
pub fn peak_since_reset() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
