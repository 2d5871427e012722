use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;
use serde::Serialize;
use serde_json::Value;

use crate::files::{read_text, write_text};
use crate::ops::free_memory;
use crate::{Error, Result};

/// A log of metrics, one JSON object a line, flushed line by line.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Begins a log, in place of an older one.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        write_text(path.as_ref(), "")?;
        Self::append(path.as_ref())
    }

    /// Goes on with a log after `step`: lines of later steps are dropped, as the resumed training
    /// writes them again, and so is a last line that was not written to its end.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or written, [`Error::Format`] if a line is not JSON.
    pub fn resume(path: impl AsRef<Path>, step: usize) -> Result<Self> {
        let path = path.as_ref();
        let text = match path.exists() {
            true => read_text(path)?,
            false => String::new(),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut kept = String::new();
        for line in whole.lines() {
            let value: Value =
                serde_json::from_str(line).map_err(|error| Error::format(path, error))?;
            if value["step"].as_u64().is_some_and(|s| s <= step as u64) {
                kept += line;
                kept.push('\n');
            }
        }
        write_text(path, &kept)?;
        Self::append(path)
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    ///
    /// # Panics
    /// If the metrics do not serialise to JSON.
    pub fn log(&mut self, metrics: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(metrics).expect("metrics serialise to JSON");
        writeln!(self.file, "{line}").map_err(Error::io(&self.path))
    }

    fn append(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(Error::io(path))?,
        })
    }
}

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

/// A line such as `VmHWM:  1024 kB` of a file of the kernel.
fn proc_bytes(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_log_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for before in [
            None,
            Some(""),
            Some("{\"st"),
            Some("{\"step\":1}\n{\"step\":3}\n{\"st"),
        ] {
            match before {
                None => assert!(!path.exists()),
                Some(text) => std::fs::write(&path, text).unwrap(),
            }
            let mut log = MetricsLog::resume(&path, 2).unwrap();
            log.log(&json!({ "step": 3 })).unwrap();
            let kept = before.map_or("", |text| &text[..text.find('\n').map_or(0, |end| end + 1)]);
            assert_eq!(read_text(&path).unwrap(), format!("{kept}{{\"step\":3}}\n"));
        }
    }
}
