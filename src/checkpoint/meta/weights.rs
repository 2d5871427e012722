//! The weights in the files of all model-parallel processes, under this crate's keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use super::file::TorchFile;
use super::files::weight_files;
use super::names::{Split, from_meta, is_rope, layer_of, to_meta};
use super::params::Params;
use crate::checkpoint::base::BaseWeights;
use crate::checkpoint::composed::{Form, joined};
use crate::checkpoint::keys::{EMBEDDING, OUTPUT};
use crate::checkpoint::rotary::half_split;
use crate::checkpoint::tensors::decode;
use crate::quantization::PackedLayout;
use crate::{Error, Result};

/// The weights of a folder.
pub(in crate::checkpoint) struct MetaWeights {
    dir: PathBuf,
    params: Params,
    /// One of each process, in their order.
    files: Vec<TorchFile>,
    /// Whether the output is there, but its numbers are the embedding's, as in Llama 3.2. Both have the same names here
    /// and there.
    shares_output: bool,
    weights: BTreeMap<String, Weight>,
}

/// A weight of the model.
struct Weight {
    /// Its name in the files.
    name: String,
    /// The type of its numbers there.
    dtype: DType,
    /// The shape of what one file has of it.
    part: Vec<usize>,
    shape: Vec<usize>,
    /// What the parts of all files make; none if each file has all of it.
    form: Option<Form>,
    /// Whether neighbouring rows are rotated in the files, where this crate rotates those half a head apart.
    is_rotated: bool,
}

impl MetaWeights {
    /// Opens every file and checks every index. No tensor is read.
    ///
    /// # Errors
    /// Those of [`load_meta`](super::load_meta) that are the files'.
    pub(in crate::checkpoint) fn open(dir: &Path) -> Result<Self> {
        let params = Params::read(dir)?;
        let files = weight_files(dir)?;
        let files = files.iter().map(|path| TorchFile::open(path));
        let files: Vec<_> = files.collect::<Result<_>>()?;
        let mut weights = Self {
            dir: dir.to_owned(),
            params,
            shares_output: files.iter().all(|file| file.shares(EMBEDDING, OUTPUT)),
            files,
            weights: BTreeMap::new(),
        };
        let mut unexpected = Vec::new();
        for name in weights.names()? {
            let Some((key, split)) = from_meta(&name) else {
                unexpected.push((name, None));
                continue;
            };
            let weight = weights.weight(name, split)?;
            weights.weights.insert(key, weight);
        }
        match unexpected.is_empty() {
            true => Ok(weights),
            false => Err(Error::Keys {
                origin: weights.origin(),
                missing: Vec::new(),
                unexpected,
            }),
        }
    }

    /// The names of the tensors that are weights of their own, which all files share.
    fn names(&self) -> Result<BTreeSet<String>> {
        let is_embedding = |name: &str| self.shares_output && name == OUTPUT;
        let of = |file: &TorchFile| -> BTreeSet<String> {
            let names = file
                .names()
                .filter(|name| !is_rope(name) && !is_embedding(name));
            names.map(str::to_owned).collect()
        };
        let [first, others @ ..] = &self.files[..] else {
            unreachable!("a folder of at least one file");
        };
        let names = of(first);
        for other in others {
            if let Some(name) = names.symmetric_difference(&of(other)).next() {
                let (with, without) = match names.contains(name) {
                    true => (first, other),
                    false => (other, first),
                };
                let message = format!("`{name}` is not in this file, but in {}", with.name());
                return Err(Error::format(without.path(), message));
            }
        }
        Ok(names)
    }

    /// A weight by its name in the files.
    fn weight(&self, name: String, split: Split) -> Result<Weight> {
        let (part, dtype) = self.part_of(&name)?;
        let form = match self.files.len() {
            1 => None,
            _ => self.form(split, &name, &part)?,
        };
        let parts = vec![&part[..]; self.files.len()];
        let shape = match &form {
            None => part.clone(),
            Some(form) => form.shape_of(&parts).map(Vec::from).ok_or_else(|| {
                self.wrong(&name, format!("has the shape {part:?} and is no matrix"))
            })?,
        };
        let weight = Weight {
            name,
            dtype,
            part,
            shape,
            form,
            is_rotated: split == Split::Heads,
        };
        self.require_heads(&weight)?;
        Ok(weight)
    }

    /// The shape and type that a tensor has in every file.
    fn part_of(&self, name: &str) -> Result<(Vec<usize>, DType)> {
        let kind = |file: &TorchFile| {
            let shape = file.shape(name).expect("a tensor of all files").to_vec();
            Ok((shape, file.dtype(name)?))
        };
        let first = kind(&self.files[0])?;
        for file in &self.files[1..] {
            let other = kind(file)?;
            if other != first {
                let ((shape, dtype), (first_shape, first_dtype)) = (other, first);
                let message = format!(
                    "`{name}` has the shape {shape:?} in {dtype:?}, but {first_shape:?} in {first_dtype:?} in {}; are \
                     they of one model?",
                    self.files[0].name()
                );
                return Err(Error::format(file.path(), message));
            }
        }
        Ok(first)
    }

    /// What the parts of several files make.
    fn form(&self, split: Split, name: &str, part: &[usize]) -> Result<Option<Form>> {
        let dim = self.params.dim();
        Ok(match (split, part.last()) {
            (Split::Whole, _) => None,
            (Split::Rows | Split::Heads, _) => Some(Form::Below),
            (Split::Columns, _) => Some(Form::Beside),
            (Split::Either, Some(width)) if *width == dim => Some(Form::Below),
            (Split::Either, Some(width)) if dim.checked_div(*width) == Some(self.files.len()) => {
                Some(Form::Beside)
            }
            (Split::Either, _) => {
                let message = format!(
                    "has the shape {part:?} in each of {} files, which do not make a `dim` of {dim}; are all files \
                     there, and of this model?",
                    self.files.len()
                );
                return Err(self.wrong(name, message));
            }
        })
    }

    /// Rows in another order can be put into this crate's.
    fn require_heads(&self, weight: &Weight) -> Result<()> {
        let (rows, head_dim) = (weight.part.first().copied(), self.params.head_dim());
        match rows {
            _ if !weight.is_rotated => Ok(()),
            Some(rows) if rows.is_multiple_of(head_dim) => Ok(()),
            _ => {
                let message = format!(
                    "has the shape {:?}, whose rows are no whole number of heads of {head_dim}",
                    weight.part
                );
                Err(self.wrong(&weight.name, message))
            }
        }
    }

    /// An error about a tensor.
    fn wrong(&self, name: &str, message: String) -> Error {
        Error::format(self.files[0].path(), format!("`{name}` {message}"))
    }

    /// What one file has of a weight, in this crate's order.
    fn read_part(&self, file: &TorchFile, weight: &Weight, dtype: DType) -> Result<TensorData> {
        let mut bytes = file.bytes(&weight.name)?;
        if self.shares_output && weight.name == EMBEDDING {
            require_output(file, &bytes)?;
        }
        if weight.is_rotated {
            let row_bytes = bytes.len() / weight.part[0];
            bytes = half_split(&bytes, row_bytes, self.params.head_dim());
        }
        Ok(decode(&bytes, weight.dtype, weight.part.clone(), dtype))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn params(&self) -> &Params {
        &self.params
    }

    /// The shape of a weight by its key, if the files have it.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.weights.get(key).map(|weight| &weight.shape[..])
    }

    /// How many layers the tensors are of.
    pub(super) fn num_layers(&self) -> usize {
        let names = self.weights.values().map(|weight| &weight.name);
        names
            .filter_map(|name| layer_of(name))
            .collect::<BTreeSet<_>>()
            .len()
    }
}

/// Checks that the output of a file is its embedding.
fn require_output(file: &TorchFile, embedding: &[u8]) -> Result<()> {
    match file.bytes(OUTPUT)? == embedding {
        true => Ok(()),
        false => {
            let message = format!(
                "`{OUTPUT}` is not `{EMBEDDING}`, but the file is too small for both; was it packed by another program than \
                 torch.save?"
            );
            Err(Error::format(file.path(), message))
        }
    }
}

impl BaseWeights for MetaWeights {
    fn origin(&self) -> String {
        self.dir.display().to_string()
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        let weights = self.weights.iter();
        weights
            .map(|(key, weight)| (key.as_str(), &weight.shape[..]))
            .collect()
    }

    fn packed(&self) -> HashMap<String, PackedLayout> {
        HashMap::new()
    }

    fn own_name(&self, key: &str) -> Option<String> {
        to_meta(key)
    }

    fn locate(&self, error: Error) -> Error {
        let Error::Shape { key, .. } = &error else {
            return error;
        };
        let name = self.weights[key].name.clone();
        error.with_key(&name)
    }

    fn read(&self, key: &str, target: &dyn Fn(DType) -> DType) -> Result<TensorData> {
        let weight = &self.weights[key];
        let dtype = target(weight.dtype);
        match &weight.form {
            None => self.read_part(&self.files[0], weight, dtype),
            Some(form) => {
                let parts = self
                    .files
                    .iter()
                    .map(|file| self.read_part(file, weight, dtype));
                Ok(joined(form, parts.collect::<Result<_>>()?))
            }
        }
    }

    fn read_words(&self, key: &str) -> Result<TensorData> {
        unreachable!("`{key}` is not packed: no weight of such files is")
    }
}
