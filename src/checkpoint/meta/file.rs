//! A `.pth` file, of which nothing is run: its index is interpreted, and tensors are read when they are asked for.

use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use pytorch_reader::{DType as Stored, PickleError, PytorchError, PytorchReader, Tensor};

use crate::files::{open_weights, require_content};
use crate::{Error, Result};

/// How a file begins that `torch.save` has written since PyTorch 1.6: a zip archive.
const MAGIC: &[u8] = b"PK\x03\x04";

/// An open file whose index has been checked.
pub(super) struct TorchFile {
    path: PathBuf,
    /// In bytes.
    size: u64,
    reader: PytorchReader,
}

impl TorchFile {
    /// Opens a file and interprets its index. No tensor is read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is of another kind, truncated or damaged, or has
    /// tensors that are no plain ones, or larger than the file.
    pub fn open(path: &Path) -> Result<Self> {
        require_archive(path)?;
        let size = path.metadata().map_err(Error::io(path))?.len();
        let reader = PytorchReader::new(path).map_err(|error| unreadable(path, error))?;
        for (name, tensor) in reader.tensors() {
            // A view may repeat what the file has once.
            if tensor.num_elements() == 0 || tensor.byte_len() as u64 > size {
                let message = format!(
                    "`{name}` has the shape {:?}, of which there are no such numbers in the file",
                    tensor.shape()
                );
                return Err(Error::format(path, message));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            size,
            reader,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name in the folder.
    pub fn name(&self) -> std::path::Display<'_> {
        let name = self.path.file_name().unwrap_or_default();
        Path::new(name).display()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.reader.tensors().keys().map(String::as_str)
    }

    /// A tensor's shape, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.reader.get(name).map(Tensor::shape)
    }

    /// The type of a tensor's elements.
    ///
    /// # Errors
    /// [`Error::DType`] if they are not f32, f16 or bf16.
    ///
    /// # Panics
    /// If the file has no such tensor.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.tensor(name).dtype() {
            Stored::F32 => Ok(DType::F32),
            Stored::F16 => Ok(DType::F16),
            Stored::BF16 => Ok(DType::BF16),
            other => Err(Error::DType {
                origin: self.path.display().to_string(),
                key: name.to_owned(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// The little-endian numbers of a tensor, row by row.
    ///
    /// # Errors
    /// [`Error::Format`] if the file does not have them as its index says.
    ///
    /// # Panics
    /// If the file has no such tensor.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = self.tensor(name).read();
        bytes.map_err(|error| damaged(&self.path, error))
    }

    /// Whether two tensors are the same numbers, by the size of the file: it has room for all tensors but one of them. That
    /// they are equal is known when they are read.
    pub fn shares(&self, one: &str, other: &str) -> bool {
        let tensors = self.reader.get(one).zip(self.reader.get(other));
        tensors.is_some_and(|(one, other)| {
            let is_alike = one.shape() == other.shape() && one.dtype() == other.dtype();
            let all = self.reader.tensors().values();
            let all: u64 = all.map(|tensor| tensor.byte_len() as u64).sum();
            is_alike && all > self.size && all - one.byte_len() as u64 <= self.size
        })
    }

    fn tensor(&self, name: &str) -> &Tensor {
        let tensor = self.reader.get(name);
        tensor.expect("a tensor of the file")
    }
}

fn require_archive(path: &Path) -> Result<()> {
    let mut begin = Vec::new();
    let file = open_weights(path)?;
    let read = file.take(64).read_to_end(&mut begin);
    read.map_err(Error::io(path))?;
    require_content(&begin, path)?;
    match begin.starts_with(MAGIC) {
        true => Ok(()),
        false => {
            let message = "not a zip archive, as torch.save of PyTorch 1.6 and later writes; is it another kind of \
                           file, or was the download cut short?";
            Err(Error::format(path, message))
        }
    }
}

fn unreadable(path: &Path, error: PytorchError) -> Error {
    match error {
        PytorchError::Pickle(PickleError::UnsupportedType(class)) => {
            let message = format!(
                "it has tensors in a `{class}`, which only Python could make: nothing of a file is run here, and plain \
                 tensors are read alone"
            );
            Error::format(path, message)
        }
        PytorchError::Io(error) => damaged(path, error),
        PytorchError::Zip(error) => damaged(path, error),
        other => {
            let message = format!(
                "{other}; a dictionary of plain tensors is read, and nothing of a file is run"
            );
            Error::format(path, message)
        }
    }
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    let message =
        format!("not a complete file of torch.save ({error}); was the download or copy cut short?");
    Error::format(path, message)
}
