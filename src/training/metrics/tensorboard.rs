//! TensorBoard's event files: records of a length, a message of Protocol Buffers, and checksums of both.
//!
//! ```text
//! u64 length | u32 checksum of the length | message | u32 checksum of the message      (little end first)
//! message = Event { 1: double wall_time, 2: int64 step, 3: string file_version | 5: Summary }
//! Summary = { 1: Value { 1: string tag, 2: float simple_value } ... }
//! ```
//!
//! <https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{MetricLogger, Metrics};
use crate::files::create_dir;
use crate::{Error, Result};

/// How the name of an event file begins.
const PREFIX: &str = "events.out.tfevents.";
/// What the first event of a file says.
const VERSION: &str = "brain.Event:2";

/// Metrics for TensorBoard: an event file in a folder, a scalar a metric.
#[derive(Debug)]
pub struct TensorBoardMetrics {
    path: PathBuf,
    file: File,
}

impl TensorBoardMetrics {
    /// Begins an event file in a folder, in place of those that are there. `time`, in seconds since 1970, is when the
    /// training began.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn create(folder: impl AsRef<Path>, time: f64) -> Result<Self> {
        let folder = folder.as_ref();
        create_dir(folder)?;
        for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                let path = entry.path();
                fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        let path = folder.join(format!("{PREFIX}{:010}.burn-peft", time as u64));
        let mut events = Self {
            file: File::create(&path).map_err(Error::io(&path))?,
            path,
        };
        let mut version = double(1, time);
        version.extend(bytes(3, VERSION.as_bytes()));
        events.write(&version)?;
        Ok(events)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [
            &length[..],
            &masked_crc32c(&length).to_le_bytes(),
            event,
            &masked_crc32c(event).to_le_bytes(),
        ];
        self.file
            .write_all(&record.concat())
            .map_err(Error::io(&self.path))
    }
}

impl MetricLogger for TensorBoardMetrics {
    /// A number that is missing is left out.
    fn log(&mut self, metrics: &Metrics) -> Result<()> {
        let values = metrics.iter().map(|(name, number)| {
            let value = [bytes(1, name.as_bytes()), float(2, number as f32)].concat();
            bytes(1, &value)
        });
        let summary: Vec<u8> = values.flatten().collect();
        let event = [
            double(1, metrics.time()),
            varint(2, metrics.step() as u64),
            bytes(5, &summary),
        ];
        self.write(&event.concat())
    }
}

// Fields of a message: the number of a field and the kind of its value, then the value.
// <https://protobuf.dev/programming-guides/encoding/>

fn varint(field: u64, value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    push_varint(field << 3, &mut encoded);
    push_varint(value, &mut encoded);
    encoded
}

fn double(field: u64, value: f64) -> Vec<u8> {
    let mut encoded = Vec::new();
    push_varint(field << 3 | 1, &mut encoded);
    encoded.extend(value.to_le_bytes());
    encoded
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    push_varint(field << 3 | 2, &mut encoded);
    push_varint(value.len() as u64, &mut encoded);
    encoded.extend(value);
    encoded
}

fn float(field: u64, value: f32) -> Vec<u8> {
    let mut encoded = Vec::new();
    push_varint(field << 3 | 5, &mut encoded);
    encoded.extend(value.to_le_bytes());
    encoded
}

/// Seven bits a byte, the lowest first; the highest bit of a byte says that another follows.
fn push_varint(mut value: u64, encoded: &mut Vec<u8>) {
    while value >= 0x80 {
        encoded.push(value as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
}

/// The checksum of records, turned so that one of data with checksums is not taken for another.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The cyclic redundancy check by Castagnoli's polynomial, <https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4>.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let of_byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ POLYNOMIAL,
            _ => crc >> 1,
        })
    };
    !data.iter().fold(!0, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720, B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    /// The examples of Protocol Buffers' guide.
    #[test]
    fn fields_are_those_of_protocol_buffers() {
        assert_eq!(varint(1, 150), [0x08, 0x96, 0x01]);
        assert_eq!(
            bytes(2, b"testing"),
            [&[0x12, 0x07][..], b"testing"].concat()
        );
        assert_eq!(varint(2, 0), [0x10, 0]);
        assert_eq!(varint(1, u64::MAX).len(), 11);
    }

    #[test]
    fn a_training_that_goes_on_has_one_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "").unwrap();
        for time in [1.0, 2.0] {
            let mut events = TensorBoardMetrics::create(dir.path(), time).unwrap();
            events.log(&Metrics::new(1).with("loss", f64::NAN)).unwrap();
        }
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["events.out.tfevents.0000000002.burn-peft", "mine"]);
    }
}
