use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{MetricLogger, Metrics};
use crate::files::{read_bytes, read_text, write_bytes, write_text};
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
    /// writes them again, and so is a last line that was not written to its end. A line that is none of a log does not end
    /// a training: it is left out, and the file as it was is kept beside it, as `metrics.jsonl.broken`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or written.
    pub fn resume(path: impl AsRef<Path>, step: usize) -> Result<Self> {
        let path = path.as_ref();
        let bytes = match path.exists() {
            true => read_bytes(path)?,
            false => Vec::new(),
        };
        let mut kept = Vec::new();
        let mut is_whole = true;
        // Lines stay as they are, to the last digit. What is behind the last line break was not written to its end.
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        for line in lines.filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice::<Metrics>(line) {
                Ok(metrics) if metrics.step() <= step => kept.extend(line),
                Ok(_) => {}
                Err(_) => is_whole = false,
            }
        }
        if !is_whole {
            write_bytes(&beside(path), &bytes)?;
        }
        write_bytes(path, &kept)?;
        Self::append(path)
    }

    /// The metrics in a log, but for a last line that was not written to its end.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if a line is none of a log.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Metrics>> {
        parse(&read_text(path.as_ref())?, path.as_ref())
    }

    fn append(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(Error::io(path))?,
        })
    }
}

/// Where a log is kept of which a line is broken.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".broken");
    name.into()
}

/// The lines that were written to their end.
fn lines(text: &str) -> std::str::Lines<'_> {
    text.rfind('\n').map_or("", |end| &text[..end]).lines()
}

fn parse(text: &str, path: &Path) -> Result<Vec<Metrics>> {
    let lines = (1..).zip(lines(text));
    let metrics = lines.map(|(number, line)| {
        serde_json::from_str(line)
            .map_err(|error| Error::format(path, format!("line {number}: {error}")))
    });
    metrics.collect()
}

fn line(metrics: &Metrics) -> String {
    serde_json::to_string(metrics).expect("metrics are plain numbers")
}

impl MetricLogger for MetricsLog {
    fn log(&mut self, metrics: &Metrics) -> Result<()> {
        writeln!(self.file, "{}", line(metrics)).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let metrics = |step: usize| Metrics::new(step).with("loss", step as f64 / 8.0);
        let [first, third] = [metrics(1), metrics(3)];
        let two = format!("{}\n{}\n{{\"st", line(&first), line(&third));
        for (before, kept) in [
            (None, vec![]),
            (Some(""), vec![]),
            (Some("{\"st"), vec![]),
            (Some(two.as_str()), vec![line(&first)]),
        ] {
            match before {
                None => assert!(!path.exists()),
                Some(text) => std::fs::write(&path, text).unwrap(),
            }
            let mut log = MetricsLog::resume(&path, 2).unwrap();
            log.log(&third).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let left: Vec<&str> = text.lines().collect();
            assert_eq!(left, [kept, vec![line(&third)]].concat());
            assert_eq!(MetricsLog::read(&path).unwrap().len(), left.len());
        }
    }

    #[test]
    fn a_broken_line_does_not_end_a_training() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = b"{\"step\":1}\n{\"st\0\0\n{\"step\":1,\"lo\xff\":1}\n{\"step\":2}\n";
        std::fs::write(&path, text).unwrap();
        MetricsLog::resume(&path, 2).unwrap();
        let steps = MetricsLog::read(&path).unwrap();
        assert_eq!(Vec::from_iter(steps.iter().map(Metrics::step)), [1, 2]);
        let kept = std::fs::read(dir.path().join("metrics.jsonl.broken")).unwrap();
        assert_eq!(kept, text);
    }

    /// As in the logs of before, without the time.
    #[test]
    fn what_is_read_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = r#"{"step":1,"epoch":0,"loss":null,"peak_memory_bytes":12345678901}"#;
        std::fs::write(&path, format!("{text}\n")).unwrap();
        let read = &MetricsLog::read(&path).unwrap()[0];
        assert_eq!((read.step(), read.time(), read.get("loss")), (1, 0.0, None));
        assert!(read.has("loss") && !read.has("lr"));
        let numbers: Vec<_> = read.iter().collect();
        assert_eq!(
            numbers,
            [("epoch", 0.0), ("peak_memory_bytes", 12345678901.0)]
        );
        // Whole numbers stay whole.
        assert!(line(read).ends_with(r#""peak_memory_bytes":12345678901}"#));
        std::fs::write(&path, "{\"step\":1}\n[]\n").unwrap();
        let error = MetricsLog::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
