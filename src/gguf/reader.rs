//! Reading: a map of the file, or of the parts that it was split into, whose header has been checked against them.

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::cursor::Cursor;
use super::kind::TensorKind;
use super::metadata::{MIN_BYTES, Metadata, Values};
use super::writer::{ALIGNMENT, MAGIC, VERSION};
use crate::files::{map_file, open_weights, release};
use crate::{Error, Result};

const ALIGNMENT_KEY: &str = "general.alignment";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_NUMBER: &str = "split.no";
/// The most dimensions that a tensor has.
const MAX_DIMS: u32 = 4;
/// The least number of bytes that the table has for a tensor: a name, one dimension, a kind, an offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// An open GGUF file, of which every number has been checked against what is there: version 2 or 3, little-endian. A model
/// that was split into several files is opened by the first.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// One, but for a model that was split.
    parts: Vec<Part>,
    /// What is in the table of tensors, in the file's order.
    tensors: Vec<Entry>,
}

/// One file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    map: Mmap,
    values: Values,
}

/// A tensor in the table.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: TensorKind,
    /// The dimension along which numbers are neighbours is the last, as in a state dict.
    pub(crate) shape: Vec<usize>,
    part: usize,
    bytes: Range<usize>,
}

/// What stands before a file's numbers.
struct Header {
    values: Values,
    tensors: Vec<Entry>,
    /// Where it ends.
    end: usize,
}

/// Whether a file begins as a GGUF file does.
pub(crate) fn is_gguf(path: &Path) -> Result<bool> {
    let mut begin = [0; MAGIC.len()];
    match open_weights(path)?.read_exact(&mut begin) {
        Ok(()) => Ok(begin == *MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io(path)(error)),
    }
}

impl GgufFile {
    /// Opens a file and checks its header. No tensor is read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is truncated, its header does not describe it,
    /// it is of another version or byte order, a tensor is of a kind that is not read, or it is one part of several of
    /// which it is not the first or another is not beside it.
    pub(crate) fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (part, mut tensors) = Part::open(path)?;
        let mut parts = vec![part];
        for sibling in parts[0].siblings()? {
            let (part, of_part) = Part::open(&sibling)?;
            let number = parts.len();
            parts.push(part);
            tensors.extend(of_part.into_iter().map(|entry| Entry {
                part: number,
                ..entry
            }));
        }
        let mut names = HashSet::new();
        if let Some(twice) = tensors.iter().find(|entry| !names.insert(&entry.name)) {
            let message = format!("the tensor `{}` is there twice", twice.name);
            return Err(Error::format(path, message));
        }
        Ok(Self { parts, tensors })
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The files, one but for a model that was split.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.path.clone()).collect()
    }

    /// The metadata; of a model that was split those of its first part.
    pub(crate) fn metadata(&self) -> Metadata<'_> {
        self.parts[0].metadata()
    }

    /// All tensors, in the file's order.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.tensors
    }

    /// The tensor with a name of llama.cpp's.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.iter().find(|entry| entry.name == name)
    }

    /// A tensor as it is stored, row by row.
    pub(crate) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.parts[entry.part].map[entry.bytes.clone()]
    }

    /// Lets the system take back the pages of some bytes of a tensor that have been copied.
    pub(crate) fn release(&self, entry: &Entry, bytes: Range<usize>) {
        let start = entry.bytes.start;
        let bytes = start + bytes.start..start + bytes.end;
        release(&self.parts[entry.part].map, bytes);
    }
}

impl Part {
    fn open(path: &Path) -> Result<(Self, Vec<Entry>)> {
        let map = map_file(path)?;
        let in_file = |message| Error::format(path, message);
        let Header {
            values,
            mut tensors,
            end,
        } = header(&map).map_err(in_file)?;
        let part = Self {
            path: path.to_owned(),
            map,
            values,
        };
        let alignment = part.alignment()?;
        for entry in &mut tensors {
            entry
                .place(end, alignment, part.map.len())
                .map_err(in_file)?;
        }
        Ok((part, tensors))
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata {
            values: &self.values,
            bytes: &self.map,
            path: &self.path,
        }
    }

    /// What each tensor's place is a multiple of.
    fn alignment(&self) -> Result<usize> {
        let metadata = self.metadata();
        match metadata.integer(ALIGNMENT_KEY)? {
            None => Ok(ALIGNMENT),
            Some(value) => match u32::try_from(value) {
                Ok(alignment) if alignment.is_power_of_two() => Ok(alignment as usize),
                _ => Err(metadata.error(ALIGNMENT_KEY, format!("{value} is no power of two"))),
            },
        }
    }

    /// The other parts of a model whose first is this one.
    fn siblings(&self) -> Result<Vec<PathBuf>> {
        let metadata = self.metadata();
        let count = metadata.integer(SPLIT_COUNT)?.unwrap_or(1);
        if count <= 1 {
            return Ok(Vec::new());
        }
        let number = metadata.integer(SPLIT_NUMBER)?.unwrap_or(0);
        if number != 0 {
            let message = format!(
                "part {} of a model that was split into {count}; load the first part, the others beside it",
                number.saturating_add(1)
            );
            return Err(Error::format(&self.path, message));
        }
        (2..=count)
            .map(|number| self.sibling(number, count))
            .collect()
    }

    /// The part with a number, counted from 1, if it is there.
    fn sibling(&self, number: i64, count: i64) -> Result<PathBuf> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let Some(model) = name.strip_suffix(&part_suffix(1, count)) else {
            let message = format!(
                "the first of {count} parts of a model, whose name should end in `{}` for the others to be found",
                part_suffix(1, count)
            );
            return Err(Error::format(&self.path, message));
        };
        let sibling = format!("{model}{}", part_suffix(number, count));
        let path = self.path.with_file_name(&sibling);
        match path.exists() {
            true => Ok(path),
            false => {
                let message = format!(
                    "the first of {count} parts of a model, of which `{sibling}` is not beside it; download it too"
                );
                Err(Error::format(&self.path, message))
            }
        }
    }
}

/// How the names of the parts of a model end.
fn part_suffix(number: i64, count: i64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

impl Entry {
    /// Reads a row of the table. Where the numbers are is not known before the table's end.
    fn read(cursor: &mut Cursor) -> Result<Self, String> {
        let name = cursor.name()?.to_owned();
        let of = |message| format!("the tensor `{name}`: {message}");
        let shape = shape(cursor).map_err(of)?;
        let kind = TensorKind::from_id(cursor.u32().map_err(of)?)
            .map_err(|message| format!("the tensor `{name}` is {message}"))?;
        let offset = cursor.u64().map_err(of)?;
        let bytes = num_bytes(&shape, kind).and_then(|len| {
            let start = usize::try_from(offset).ok();
            let range = start.and_then(|start| Some(start..start.checked_add(len)?));
            range.ok_or_else(|| format!("its offset {offset} is beyond every file"))
        });
        Ok(Self {
            bytes: bytes.map_err(of)?,
            kind,
            shape,
            part: 0,
            name,
        })
    }

    /// Turns the offset from the first tensor into one from the file's start, in a file of `len` bytes whose header ends
    /// at `header_end`.
    fn place(&mut self, header_end: usize, alignment: usize, len: usize) -> Result<(), String> {
        let Range { start, end } = self.bytes;
        if !start.is_multiple_of(alignment) {
            return Err(format!(
                "the tensor `{}`: its offset {start} is no multiple of {alignment}, the file's alignment",
                self.name
            ));
        }
        let first = header_end.checked_next_multiple_of(alignment);
        let from_first = |place: usize| first.and_then(|first| first.checked_add(place));
        match (from_first(start), from_first(end)) {
            (Some(start), Some(end)) if end <= len => {
                self.bytes = start..end;
                Ok(())
            }
            _ => Err(format!(
                "the {} bytes of the tensor `{}` reach beyond the file's end, which has {len} bytes; was the download \
                 or copy cut short?",
                end - start,
                self.name
            )),
        }
    }
}

/// Checks what a file begins with and reads it up to the end of the table of tensors.
fn header(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor::new(bytes);
    if !bytes.starts_with(MAGIC) {
        let message = "no GGUF file: it does not begin with `GGUF`; a model of other files is named by its folder";
        return Err(message.into());
    }
    cursor.take(MAGIC.len())?;
    require_version(cursor.u32()?)?;
    let num_tensors = cursor.count("tensors", MIN_TENSOR_BYTES)?;
    let num_values = cursor.count("metadata", MIN_BYTES)?;
    let values = Values::read(&mut cursor, num_values)?;
    let mut tensors = Vec::new();
    for number in 1..=num_tensors {
        let entry = Entry::read(&mut cursor);
        tensors
            .push(entry.map_err(|message| format!("tensor {number} of {num_tensors}: {message}"))?);
    }
    Ok(Header {
        values,
        tensors,
        end: cursor.at(),
    })
}

fn require_version(version: u32) -> Result<(), String> {
    match version {
        2..=VERSION => Ok(()),
        1 => Err("version 1 of the format, which only the first weeks of it had; convert the model again".into()),
        _ if (1..=VERSION).contains(&version.swap_bytes()) => Err(
            "a big-endian file; `gguf-convert-endian FILE little`, of the Python package `gguf`, turns it round".into(),
        ),
        other => Err(format!(
            "version {other} of the format; versions 2 and {VERSION} are read"
        )),
    }
}

/// A tensor's dimensions, neighbours' last.
fn shape(cursor: &mut Cursor) -> Result<Vec<usize>, String> {
    let count = cursor.u32()?;
    if !(1..=MAX_DIMS).contains(&count) {
        return Err(format!("{count} dimensions; a tensor has 1 to {MAX_DIMS}"));
    }
    let dim = |_| {
        let dim = cursor.u64()?;
        let known = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        known.ok_or_else(|| format!("a dimension of {dim}"))
    };
    let mut shape = (0..count).map(dim).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    Ok(shape)
}

/// How many bytes a tensor takes.
fn num_bytes(shape: &[usize], kind: TensorKind) -> Result<usize, String> {
    let columns = shape.last().copied().unwrap_or_default();
    if !columns.is_multiple_of(kind.block_len()) {
        return Err(format!(
            "rows of {columns} numbers do not divide into {kind:?}'s blocks of {}",
            kind.block_len()
        ));
    }
    let numbers = shape
        .iter()
        .try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let blocks = numbers.map(|numbers| numbers / kind.block_len());
    let bytes = blocks.and_then(|blocks| blocks.checked_mul(kind.block_bytes()));
    bytes.ok_or_else(|| format!("{shape:?} is more than any file holds"))
}
