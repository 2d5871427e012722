//! Safetensors files: reading tensor by tensor from a memory map, writing likewise.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors, TensorInfo, View};
use safetensors::{Dtype, serialize_to_file};

use crate::adapter::{StateDict, StateReader};
use crate::files::{WrittenFile, map_file, release};
use crate::{Error, Result};

/// An open safetensors file whose header has been checked against its length.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl SafetensorsFile {
    /// Opens a file and checks its header. No tensor is read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is truncated or its header
    /// does not describe it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Err(Error::format(path, "a folder, not a safetensors file"));
        }
        let map = map_file(path)?;
        let broken = |error: SafeTensorError| {
            let message = format!(
                "not a complete safetensors file ({error}); was the download or copy cut short?"
            );
            Error::format(path, message)
        };
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(broken)?;
        Ok(Self {
            path: path.to_owned(),
            data_start: size_of::<u64>() + header_len,
            map,
            metadata,
        })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file's metadata say under a key.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.metadata.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// The tensors' names and shapes.
    pub fn shapes(&self) -> HashMap<String, Vec<usize>> {
        let tensors = self.metadata.tensors().into_iter();
        tensors
            .map(|(key, info)| (key, info.shape.clone()))
            .collect()
    }

    /// The type of a weight's elements.
    ///
    /// # Errors
    /// [`Error::DType`] if they are not f32, f16 or bf16, [`Error::Format`] if there is no tensor of this name.
    pub fn dtype(&self, key: &str) -> Result<DType> {
        match self.info(key)?.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => Err(Error::DType {
                origin: self.path.display().to_string(),
                key: key.to_owned(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// Reads a weight and casts it.
    ///
    /// # Errors
    /// [`Error::DType`] if the elements are not f32, f16 or bf16, [`Error::Format`] if there is no tensor of
    /// this name.
    ///
    /// # Panics
    /// If `dtype` is not f32, f16 or bf16.
    pub fn read(&self, key: &str, dtype: DType) -> Result<TensorData> {
        let stored = self.dtype(key)?;
        let info = self.info(key)?;
        let data = decode(self.bytes(info), stored, info.shape.clone(), dtype);
        self.release(info);
        Ok(data)
    }

    /// Reads so many numbers of a weight from one on, as those of a shape.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Panics
    /// If there are no such numbers, or as [`Self::read`].
    pub(super) fn read_stretch(
        &self,
        key: &str,
        stretch: Range<usize>,
        shape: Vec<usize>,
        dtype: DType,
    ) -> Result<TensorData> {
        let stored = self.dtype(key)?;
        let size = stored.size();
        let bytes = self.bytes(self.info(key)?);
        let bytes = &bytes[stretch.start * size..stretch.end * size];
        Ok(decode(bytes, stored, shape, dtype))
    }

    /// Whether a tensor has the type, shape and bytes of another, perhaps in another file.
    pub(super) fn holds_same(&self, key: &str, other: &Self, other_key: &str) -> Result<bool> {
        let (a, b) = (self.info(key)?, other.info(other_key)?);
        let same = (a.dtype, &a.shape) == (b.dtype, &b.shape) && self.bytes(a) == other.bytes(b);
        self.release(a);
        other.release(b);
        Ok(same)
    }

    /// Lets the system take back the pages of a tensor that has been copied.
    fn release(&self, info: &TensorInfo) {
        release(&self.map, self.place(info));
    }

    /// Reads integers (token ids) of 32 or 64 bits.
    ///
    /// # Errors
    /// [`Error::Format`] if the elements are not i64 or i32, or there is no tensor of this name.
    pub fn read_ints(&self, key: &str) -> Result<Vec<i64>> {
        let info = self.info(key)?;
        let bytes = self.bytes(info);
        match info.dtype {
            Dtype::I64 => Ok(words(bytes).map(i64::from_le_bytes).collect()),
            Dtype::I32 => {
                let ints = words(bytes).map(i32::from_le_bytes);
                Ok(ints.map(i64::from).collect())
            }
            other => Err(Error::format(
                &self.path,
                format!("`{key}` holds {other:?}; integers must be I64 or I32"),
            )),
        }
    }

    /// A copy of a tensor's bytes.
    pub(super) fn copy_bytes(&self, key: &str) -> Result<Vec<u8>> {
        self.with_bytes(key, <[u8]>::to_vec)
    }

    /// Reads a tensor in the type that it is stored in.
    fn read_as_stored(&self, key: &str) -> Result<TensorData> {
        let info = self.info(key)?;
        if info.dtype != Dtype::I32 {
            return self.read(key, self.dtype(key)?);
        }
        let ints: Vec<i32> = words(self.bytes(info)).map(i32::from_le_bytes).collect();
        Ok(TensorData::new(ints, info.shape.clone()))
    }

    /// The type and the shape of a tensor, whatever it holds.
    pub(super) fn kind(&self, key: &str) -> Result<(Dtype, &[usize])> {
        let info = self.info(key)?;
        Ok((info.dtype, &info.shape))
    }

    /// Lets `f` look at the bytes of a tensor where they lie.
    pub(super) fn with_bytes<T>(&self, key: &str, f: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let info = self.info(key)?;
        let result = f(self.bytes(info));
        self.release(info);
        Ok(result)
    }

    fn info(&self, key: &str) -> Result<&TensorInfo> {
        let info = self.metadata.info(key);
        info.ok_or_else(|| Error::format(&self.path, format!("it has no tensor `{key}`")))
    }

    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.place(info)]
    }

    fn place(&self, info: &TensorInfo) -> Range<usize> {
        let (start, end) = info.data_offsets;
        self.data_start + start..self.data_start + end
    }
}

/// The numbers of `N` bytes each.
fn words<const N: usize>(bytes: &[u8]) -> impl ExactSizeIterator<Item = [u8; N]> {
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().copied()
}

/// Little-endian numbers of the type `stored`, f32, f16 or bf16, cast to `dtype`.
///
/// # Panics
/// If `dtype` is not f32, f16 or bf16, or `shape` has another number of elements.
pub(super) fn decode(bytes: &[u8], stored: DType, shape: Vec<usize>, dtype: DType) -> TensorData {
    let f16s = || words(bytes).map(f16::from_le_bytes);
    let bf16s = || words(bytes).map(bf16::from_le_bytes);
    match (stored, dtype) {
        // Most of a model, as it is.
        (DType::F16, DType::F16) => TensorData::new(f16s().collect::<Vec<_>>(), shape),
        (DType::BF16, DType::BF16) => TensorData::new(bf16s().collect::<Vec<_>>(), shape),
        (DType::F16, _) => encode(f16s().map(f16::to_f32), shape, dtype),
        (DType::BF16, _) => encode(bf16s().map(bf16::to_f32), shape, dtype),
        _ => encode(words(bytes).map(f32::from_le_bytes), shape, dtype),
    }
}

/// f16 and bf16 pass through f32 without loss, so three sources and three targets are enough.
pub(super) fn encode(
    values: impl Iterator<Item = f32>,
    shape: Vec<usize>,
    dtype: DType,
) -> TensorData {
    match dtype {
        DType::F32 => TensorData::new(values.collect::<Vec<_>>(), shape),
        DType::F16 => TensorData::new(values.map(f16::from_f32).collect::<Vec<_>>(), shape),
        DType::BF16 => TensorData::new(values.map(bf16::from_f32).collect::<Vec<_>>(), shape),
        other => panic!("weights are F32, F16 or BF16, not {other:?}"),
    }
}

/// Reads a file of tensors, in the types that they are stored in: that of [`save_state_dict`].
///
/// # Errors
/// See [`SafetensorsFile::open`]; [`Error::DType`] if a tensor is not of f32, f16, bf16 or i32; [`Error::Format`] if
/// burn-store wrote the file and a square matrix in it may be transposed.
pub fn load_state_dict_file(path: impl AsRef<Path>) -> Result<StateDict> {
    let file = SafetensorsFile::open(path)?;
    require_known_layout(&file)?;
    let keys = file.shapes().into_keys();
    keys.map(|key| Ok((key.clone(), file.read_as_stored(&key)?)))
        .collect()
}

/// burn-store writes the weight of a `burn::nn::Linear` as it lies, `[in, out]`, or, with its adapter for PyTorch,
/// `[out, in]`, and says the same of both files.
fn require_known_layout(file: &SafetensorsFile) -> Result<()> {
    let is_square = |(key, shape): &(String, Vec<usize>)| {
        key.ends_with("weight") && matches!(shape[..], [rows, columns] if rows == columns)
    };
    let square = file.shapes().into_iter().filter(is_square);
    match square.map(|(key, _)| key).min() {
        Some(key) if file.metadata("producer") == Some("burn") => Err(Error::format(
            &file.path,
            format!(
                "burn-store wrote this file, and whether `{key}`, a square matrix, is [in, out] or [out, in] cannot be \
                 told. Load the file by burn-store into the module that it was saved from; the `state_dict` of that \
                 has [out, in], and `LoRALinear::from` takes over a single layer"
            ),
        )),
        _ => Ok(()),
    }
}

/// Writes a state dict to one file.
///
/// # Errors
/// See [`write_tensors`].
pub fn save_state_dict(values: &StateDict, path: impl AsRef<Path>) -> Result<()> {
    let tensors = values.iter().map(|(key, value)| (key.clone(), value));
    write_tensors(tensors, path.as_ref())
}

/// A tensor that [`write_tensors`] can write.
pub trait WritableTensor {
    /// The type of the elements.
    fn dtype(&self) -> DType;
    /// The shape.
    fn shape(&self) -> Vec<usize>;
    /// The elements, little-endian.
    fn bytes(&self) -> Cow<'_, [u8]>;
}

impl WritableTensor for &TensorData {
    fn dtype(&self) -> DType {
        TensorData::dtype(self)
    }

    fn shape(&self) -> Vec<usize> {
        TensorData::shape(self).to_vec()
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }
}

impl WritableTensor for StateReader {
    fn dtype(&self) -> DType {
        StateReader::dtype(self)
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.read().as_bytes().to_vec())
    }
}

/// Writes named tensors to one file, each fetched when its turn comes.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] if a tensor's elements are not f32, f16,
/// bf16 or i32. What stood at `path` stays then.
pub fn write_tensors<T: WritableTensor>(
    tensors: impl IntoIterator<Item = (String, T)>,
    path: &Path,
) -> Result<()> {
    write_tensors_with(tensors, HashMap::new(), path)
}

/// The same, with more in the file's metadata.
pub(super) fn write_tensors_with<T: WritableTensor>(
    tensors: impl IntoIterator<Item = (String, T)>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<()> {
    written(tensors, metadata, path)?.publish()
}

/// Writes the weights of a model beside `path`, as [`write_tensors`] does, but only what is finite.
///
/// # Errors
/// See [`write_tensors`]; [`Error::InvalidArgument`] if a number is NaN or infinite.
pub(super) fn write_weights<T: WritableTensor>(
    weights: impl IntoIterator<Item = (String, T)>,
    path: &Path,
) -> Result<WrittenFile> {
    let refused = RefCell::new(None);
    let checked = weights.into_iter().map(|(key, tensor)| {
        let checked = Checked {
            tensor,
            key: key.clone(),
            refused: &refused,
        };
        (key, checked)
    });
    let file = written(checked, HashMap::new(), path)?;
    match refused.take() {
        None => Ok(file),
        Some(key) => Err(Error::InvalidArgument {
            name: "model",
            message: format!(
                "`{key}` holds numbers that are NaN or infinite; if they come from merging an adapter into f16, \
                 load the base as bf16 or f32"
            ),
        }),
    }
}

/// A tensor that notes its key if it holds a number that is not finite.
struct Checked<'a, T> {
    tensor: T,
    key: String,
    refused: &'a RefCell<Option<String>>,
}

impl<T: WritableTensor> WritableTensor for Checked<'_, T> {
    fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    fn shape(&self) -> Vec<usize> {
        self.tensor.shape()
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        let bytes = self.tensor.bytes();
        if !all_finite(self.dtype(), &bytes) {
            self.refused
                .borrow_mut()
                .get_or_insert_with(|| self.key.clone());
        }
        bytes
    }
}

/// Whether no number's exponent has all its bits set, as those of NaN and infinity have.
pub(super) fn all_finite(dtype: DType, bytes: &[u8]) -> bool {
    let halves = |mask: u16| {
        let (halves, _) = bytes.as_chunks();
        halves.iter().all(|b| u16::from_le_bytes(*b) & mask != mask)
    };
    match dtype {
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::F32 => {
            let (words, _) = bytes.as_chunks();
            let mask = 0x7f80_0000;
            words.iter().all(|b| u32::from_le_bytes(*b) & mask != mask)
        }
        _ => true,
    }
}

/// Writes a file that is to take the place of the one at `path`.
fn written<T: WritableTensor>(
    tensors: impl IntoIterator<Item = (String, T)>,
    mut metadata: HashMap<String, String>,
    path: &Path,
) -> Result<WrittenFile> {
    let entry = |(key, tensor): (String, T)| {
        let entry = Entry::new(&key, tensor).map_err(|message| Error::format(path, message))?;
        Ok((key, entry))
    };
    let views: Vec<_> = tensors.into_iter().map(entry).collect::<Result<_>>()?;
    metadata.insert("format".to_owned(), "pt".to_owned());
    WrittenFile::new(path, |temporary| {
        serialize_to_file(views, Some(metadata), temporary).map_err(|error| match error {
            SafeTensorError::IoError(source) => Error::io(path)(source),
            other => Error::format(path, other),
        })
    })
}

struct Entry<T> {
    tensor: T,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<T: WritableTensor> Entry<T> {
    fn new(key: &str, tensor: T) -> Result<Self, String> {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I32 => Dtype::I32,
            other => {
                return Err(format!(
                    "`{key}` holds {other:?}; what is written must be F32, F16, BF16 or I32, cast it first"
                ));
            }
        };
        let shape = tensor.shape();
        Ok(Self {
            tensor,
            dtype,
            shape,
        })
    }
}

impl<T: WritableTensor> View for Entry<T> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.tensor.bytes()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}
