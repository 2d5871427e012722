//! A tensor of an open file, whatever it holds.

use std::fmt::Display;
use std::rc::Rc;

use burn::tensor::DType;
use safetensors::Dtype;

use super::tensors::SafetensorsFile;
use crate::{Error, Result};

/// A tensor that its file has.
#[derive(Clone)]
pub(super) struct Stored {
    pub file: Rc<SafetensorsFile>,
    pub name: String,
}

impl Stored {
    /// The type of the elements and the shape.
    pub fn kind(&self) -> Result<(Dtype, &[usize])> {
        self.file.kind(&self.name)
    }

    /// The numbers, in f32.
    ///
    /// # Errors
    /// [`Error::DType`] if they are not of f32, f16 or bf16.
    pub fn f32s(&self) -> Result<Vec<f32>> {
        let data = self.file.read(&self.name, DType::F32)?;
        Ok(data.try_into_vec().expect("values of f32"))
    }

    /// Lets `f` look at the bytes where they lie.
    pub fn with_bytes<T>(&self, f: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.file.with_bytes(&self.name, f)
    }

    /// Whether another one has the same type, shape and bytes.
    pub fn holds_same(&self, other: &Self) -> Result<bool> {
        self.file.holds_same(&self.name, &other.file, &other.name)
    }

    /// # Errors
    /// [`Error::Format`] if the tensor has another type.
    pub fn require_dtype(&self, expected: Dtype) -> Result<()> {
        match self.kind()?.0 {
            found if found == expected => Ok(()),
            found => Err(self.wrong(format!("holds {found}, where {expected} is expected"))),
        }
    }

    /// # Errors
    /// [`Error::DType`] if the numbers are not of f32, f16 or bf16.
    pub fn require_floats(&self) -> Result<()> {
        self.file.dtype(&self.name).map(|_| ())
    }

    /// # Errors
    /// [`Error::Format`] if the tensor has another shape.
    pub fn require_shape(&self, expected: &[usize]) -> Result<()> {
        match self.kind()?.1 {
            found if found == expected => Ok(()),
            found => Err(self.wrong(format!(
                "has shape {found:?}, where {expected:?} is expected"
            ))),
        }
    }

    /// An error about the tensor, in its file.
    pub fn wrong(&self, message: impl Display) -> Error {
        Error::format(self.file.path(), format!("`{}` {message}", self.name))
    }
}
