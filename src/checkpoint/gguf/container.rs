//! The container: a header, metadata, a table of tensors, and their numbers.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::kind::TensorKind;
use crate::files::write_atomic;
use crate::{Error, Result};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const VERSION: u32 = 3;
/// Where each tensor begins is a multiple of this, counted from the first one. A file may name another.
pub(super) const ALIGNMENT: usize = 32;

/// A value of the metadata.
pub(super) enum Value<'a> {
    F32(f32),
    String(&'a str),
}

impl Value<'_> {
    /// The number that stands for its type.
    fn kind(&self) -> u32 {
        match self {
            Self::F32(_) => 6,
            Self::String(_) => 8,
        }
    }
}

/// How a tensor's numbers are stored.
///
/// # Panics
/// If the numbers are not f32.
fn kind_of(tensor: &TensorData) -> TensorKind {
    match tensor.dtype() {
        DType::F32 => TensorKind::F32,
        other => panic!("tensors of {other:?} are not written to GGUF files"),
    }
}

/// Writes a file.
///
/// # Errors
/// [`Error::Io`] if it cannot be written. What stood at `path` stays then.
///
/// # Panics
/// If a tensor is not of f32.
pub(super) fn write_gguf(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: &[(String, TensorData)],
) -> Result<()> {
    write_atomic(path, |temporary| {
        let write = || {
            let mut out = BufWriter::new(File::create(temporary)?);
            out.write_all(&header(metadata, tensors))?;
            for (_, tensor) in tensors {
                write_padded(&mut out, tensor.as_bytes())?;
            }
            out.flush()
        };
        write().map_err(Error::io(path))
    })
}

/// All that stands before the first tensor's numbers.
fn header(metadata: &[(&str, Value)], tensors: &[(String, TensorData)]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    put_length(&mut out, tensors.len());
    put_length(&mut out, metadata.len());
    for (key, value) in metadata {
        put_string(&mut out, key);
        out.extend(value.kind().to_le_bytes());
        match value {
            Value::F32(number) => out.extend(number.to_le_bytes()),
            Value::String(text) => put_string(&mut out, text),
        }
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        put_string(&mut out, name);
        put_shape(&mut out, tensor.shape());
        out.extend(kind_of(tensor).id().to_le_bytes());
        put_length(&mut out, offset);
        offset += aligned(tensor.as_bytes().len());
    }
    out.resize(aligned(out.len()), 0);
    out
}

/// The dimension along which numbers are neighbours comes first.
fn put_shape(out: &mut Vec<u8>, shape: &[usize]) {
    out.extend((shape.len() as u32).to_le_bytes());
    for size in shape.iter().rev() {
        put_length(out, *size);
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u64).to_le_bytes());
}

fn write_padded(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(&vec![0; aligned(bytes.len()) - bytes.len()])
}

/// The next multiple of [`ALIGNMENT`].
fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("two.gguf");
        let wide = TensorData::new(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let tensors = [
            ("wide".to_owned(), wide),
            ("one".to_owned(), TensorData::new(vec![7f32], [1])),
        ];
        let metadata = [("a", Value::String("xyz")), ("bc", Value::F32(0.5))];
        write_gguf(&path, &metadata, &tensors).unwrap();

        let mut expected = b"GGUF\x03\0\0\0".to_vec();
        let long = |n: u8| [n, 0, 0, 0, 0, 0, 0, 0];
        let short = |n: u8| [n, 0, 0, 0];
        expected.extend([long(2), long(2)].concat());
        expected.extend([&long(1)[..], b"a", &short(8), &long(3), b"xyz"].concat());
        expected.extend([&long(2)[..], b"bc", &short(6), b"\0\0\0\x3f"].concat());
        expected.extend([&long(4)[..], b"wide", &short(2), &long(3), &long(2)].concat());
        expected.extend([&short(0)[..], &long(0)].concat());
        // The second one begins 8 bytes after the end of the first, which has 24.
        expected.extend(
            [
                &long(3)[..],
                b"one",
                &short(1),
                &long(1),
                &short(0),
                &long(32),
            ]
            .concat(),
        );
        expected.resize(expected.len().div_ceil(32) * 32, 0);
        for number in [1f32, 2.0, 3.0, 4.0, 5.0, 6.0] {
            expected.extend(number.to_le_bytes());
        }
        expected.extend([0; 8]);
        expected.extend(7f32.to_le_bytes());
        expected.extend([0; 28]);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}
