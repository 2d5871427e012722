//! The container: a header, metadata, a table of tensors, and their numbers.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::kind::TensorKind;
use crate::files::write_atomic;
use crate::{Error, Result};

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const VERSION: u32 = 3;
/// Where each tensor begins is a multiple of this, counted from the first one. A file may name another.
pub(crate) const ALIGNMENT: usize = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// The number of a type, and the bytes as another file has them.
    Stored(u32, Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl Value {
    /// A size of a model.
    ///
    /// # Panics
    /// If it is not below 2³².
    pub(crate) fn size(size: usize) -> Self {
        Self::U32(size.try_into().expect("a size of a model"))
    }

    /// The number that stands for its type.
    fn kind(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Strings(_) | Self::F32s(_) | Self::I32s(_) => 9,
            Self::Stored(kind, _) => *kind,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(number) => out.extend(number.to_le_bytes()),
            Self::F32(number) => out.extend(number.to_le_bytes()),
            Self::Bool(flag) => out.push((*flag).into()),
            Self::String(text) => put_string(out, text),
            Self::Strings(texts) => {
                put_array(out, 8, texts.len());
                texts.iter().for_each(|text| put_string(out, text));
            }
            Self::F32s(numbers) => {
                put_array(out, 6, numbers.len());
                numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Self::I32s(numbers) => {
                put_array(out, 5, numbers.len());
                numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Self::Stored(_, bytes) => out.extend(bytes),
        }
    }
}

/// A tensor to write, whose numbers are made when its turn comes.
pub(crate) struct Tensor<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub kind: TensorKind,
    /// Row after row.
    pub bytes: Box<dyn Fn() -> Result<Vec<u8>> + 'a>,
}

impl<'a> Tensor<'a> {
    /// One of numbers that are there.
    ///
    /// # Panics
    /// If they are not f32.
    pub(crate) fn of_f32(name: String, data: &'a TensorData) -> Self {
        assert_eq!(data.dtype(), DType::F32, "numbers of f32");
        Self {
            name,
            shape: data.shape().to_vec(),
            kind: TensorKind::F32,
            bytes: Box::new(|| Ok(data.as_bytes().to_vec())),
        }
    }

    fn num_bytes(&self) -> usize {
        let numbers: usize = self.shape.iter().product();
        numbers / self.kind.block_len() * self.kind.block_bytes()
    }
}

/// Writes a file, one tensor after the other.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, and those of the tensors. What stood at `path` stays then.
pub(crate) fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Tensor],
) -> Result<()> {
    write_atomic(path, |temporary| {
        let io = |error| Error::io(path)(error);
        let mut out = BufWriter::new(File::create(temporary).map_err(io)?);
        out.write_all(&header(metadata, tensors)).map_err(io)?;
        for tensor in tensors {
            let bytes = (tensor.bytes)()?;
            assert_eq!(bytes.len(), tensor.num_bytes(), "`{}`", tensor.name);
            write_padded(&mut out, &bytes).map_err(io)?;
        }
        out.flush().map_err(io)
    })
}

/// All that stands before the first tensor's numbers.
fn header(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    put_length(&mut out, tensors.len());
    put_length(&mut out, metadata.len());
    out.extend(metadata_bytes(metadata));
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        put_shape(&mut out, &tensor.shape);
        out.extend(tensor.kind.id().to_le_bytes());
        put_length(&mut out, offset);
        offset += aligned(tensor.num_bytes());
    }
    out.resize(aligned(out.len()), 0);
    out
}

/// The metadata, without their number.
pub(crate) fn metadata_bytes(metadata: &[(String, Value)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in metadata {
        put_string(&mut out, key);
        out.extend(value.kind().to_le_bytes());
        value.put(&mut out);
    }
    out
}

/// What stands before the elements of an array.
fn put_array(out: &mut Vec<u8>, kind: u32, length: usize) {
    out.extend(kind.to_le_bytes());
    put_length(out, length);
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
    fn every_byte_of_a_value() {
        let long = |n: u8| [n, 0, 0, 0, 0, 0, 0, 0];
        let short = |n: u8| [n, 0, 0, 0];
        for (value, kind, expected) in [
            (Value::U32(5), 4, short(5).to_vec()),
            (Value::Bool(true), 7, vec![1]),
            (
                Value::Strings(vec!["a".into(), String::new()]),
                9,
                [&short(8)[..], &long(2), &long(1), b"a", &long(0)].concat(),
            ),
            (
                Value::F32s(vec![0.5]),
                9,
                [&short(6)[..], &long(1), b"\0\0\0\x3f"].concat(),
            ),
            (
                Value::I32s(vec![-1]),
                9,
                [&short(5)[..], &long(1), b"\xff\xff\xff\xff"].concat(),
            ),
            (Value::Stored(10, long(7).to_vec()), 10, long(7).to_vec()),
        ] {
            let mut out = Vec::new();
            value.put(&mut out);
            assert_eq!((value.kind(), out), (kind, expected), "{value:?}");
        }
    }

    #[test]
    fn every_byte_of_a_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("two.gguf");
        let wide = TensorData::new(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let one = TensorData::new(vec![7f32], [1]);
        let tensors = [("wide", &wide), ("one", &one)];
        let tensors = tensors.map(|(name, data)| Tensor::of_f32(name.to_owned(), data));
        let metadata = [("a", Value::from("xyz")), ("bc", Value::F32(0.5))];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
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
