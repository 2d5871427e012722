use std::fs::File;
use std::path::{Path, PathBuf};

use super::{MetricLogger, Metrics};
use crate::{Error, Result};

/// A table of metrics for spreadsheets: a row a step or validation, a column a metric.
#[derive(Debug)]
pub struct CsvMetrics {
    path: PathBuf,
    columns: Vec<String>,
    writer: csv::Writer<File>,
}

impl CsvMetrics {
    /// Begins a table, in place of an older one, whose columns are `step`, `time` and these.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn create(path: impl AsRef<Path>, columns: &[&str]) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(Error::io(path))?;
        let mut table = Self {
            path: path.to_owned(),
            columns: columns.iter().map(|name| name.to_string()).collect(),
            writer: csv::Writer::from_writer(file),
        };
        let header = ["step", "time"].into_iter().chain(columns.iter().copied());
        table.write(header.map(str::to_owned).collect())?;
        Ok(table)
    }

    fn write(&mut self, row: Vec<String>) -> Result<()> {
        let written = self.writer.write_record(row);
        let flushed = written.map_err(std::io::Error::from);
        let flushed = flushed.and_then(|()| self.writer.flush());
        flushed.map_err(Error::io(&self.path))
    }
}

impl MetricLogger for CsvMetrics {
    /// A cell of a number that is missing is empty.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written, [`Error::Format`] if a metric has no column.
    fn log(&mut self, metrics: &Metrics) -> Result<()> {
        let is_column = |name: &str| self.columns.iter().any(|column| column == name);
        if let Some((name, _)) = metrics.iter().find(|(name, _)| !is_column(name)) {
            return Err(Error::format(
                &self.path,
                format!("the table has no column `{name}`"),
            ));
        }
        let cell = |name: &String| metrics.get(name).map_or(String::new(), |n| n.to_string());
        let first = [metrics.step().to_string(), metrics.time().to_string()];
        let row = first.into_iter().chain(self.columns.iter().map(cell));
        let row = row.collect();
        self.write(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_with_empty_cells() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let mut table = CsvMetrics::create(&path, &["loss", "bytes", "val_loss"]).unwrap();
        let bytes = 12345678901u64;
        let first = Metrics::new(1).with("loss", 0.1).with("bytes", bytes);
        let second = Metrics::new(2)
            .with("loss", f64::NAN)
            .with("bytes", None::<u64>);
        let third = Metrics::new(2).with("val_loss", 1e-30);
        for metrics in [&first, &second, &third] {
            table.log(metrics).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        let times = [&first, &second, &third].map(Metrics::time);
        let expected = format!(
            "step,time,loss,bytes,val_loss\n1,{},0.1,{bytes},\n2,{},,,\n2,{},,,{}\n",
            times[0], times[1], times[2], 1e-30
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_metric_without_a_column() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = CsvMetrics::create(dir.path().join("metrics.csv"), &["loss"]).unwrap();
        let error = table.log(&Metrics::new(1).with("lr", 0.5)).unwrap_err();
        assert!(error.to_string().contains("no column `lr`"), "{error}");
    }
}
