//! The tensors of one or more files, under this crate's keys.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::tensor::{DType, TensorData};

use super::bitsandbytes::{PackedTensors, Parts, bare_weight, part_of};
use super::composed::{Form, columns, joined};
use super::keys::{EMBEDDING, OUTPUT};
use super::stored::Stored;
use super::tensors::{SafetensorsFile, decode, encode};
use crate::quantization::{PackedLayout, dequantize, join_rows};
use crate::weight::packed_words;
use crate::{Error, Result};

/// Open files and where each of our keys is in them.
pub(super) struct Weights {
    entries: BTreeMap<String, Entry>,
    /// Weights that are several tensors, or a part of one.
    composed: BTreeMap<String, Composed>,
    /// What stands beside packed weights, by the weights' keys.
    parts: BTreeMap<String, Parts>,
}

struct Entry {
    stored: Stored,
    shape: Vec<usize>,
    /// What makes the weight up, if it is packed.
    packed: Option<PackedTensors>,
}

/// A weight that is several tensors together, or a part of one.
struct Composed {
    form: Form,
    /// One at least.
    of: Vec<Rc<Entry>>,
    shape: Vec<usize>,
}

impl Weights {
    /// Opens every file and checks every header and type. What has no key of ours keeps its name. The
    /// output of a model with tied embeddings must be its embedding.
    pub(super) fn open(
        paths: impl IntoIterator<Item = PathBuf>,
        key_of: impl Fn(&str) -> Option<String>,
        tied: bool,
    ) -> Result<Self> {
        let mut weights = Self {
            entries: BTreeMap::new(),
            composed: BTreeMap::new(),
            parts: BTreeMap::new(),
        };
        for path in paths {
            weights.add_file(Rc::new(SafetensorsFile::open(path)?), &key_of)?;
        }
        weights.join_parts()?;
        if tied {
            weights.tie()?;
        }
        Ok(weights)
    }

    fn add_file(
        &mut self,
        file: Rc<SafetensorsFile>,
        key_of: &impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        let key_of = |name: &str| key_of(name).unwrap_or_else(|| name.to_owned());
        for (name, shape) in file.shapes() {
            if is_beside(&name) {
                continue;
            }
            let file = file.clone();
            let stored = Stored { file, name };
            match part_of(&stored.name) {
                Some((weight, part)) => {
                    let parts = self.parts.entry(key_of(&weight)).or_insert_with(Parts::new);
                    require_one(&stored, parts.get(part))?;
                    parts.insert(part, stored);
                }
                None => {
                    let key = key_of(&stored.name);
                    require_one(&stored, self.entries.get(&key).map(|other| &other.stored))?;
                    let packed = None;
                    self.entries.insert(
                        key,
                        Entry {
                            stored,
                            shape,
                            packed,
                        },
                    );
                }
            }
        }
        Ok(())
    }

    /// Makes up packed weights, and checks the types of all others.
    fn join_parts(&mut self) -> Result<()> {
        for (key, entry) in &mut self.entries {
            let stored = entry.stored.clone();
            let Some(parts) = self.parts.remove(key) else {
                bare_weight(&stored).map_or(Ok(()), Err)?;
                stored.require_floats()?;
                continue;
            };
            let packed = PackedTensors::new(stored, parts)?;
            entry.shape = packed.layout.shape().to_vec();
            entry.packed = Some(packed);
        }
        let rest = self.parts.values();
        rest.into_iter()
            .try_for_each(|parts| parts.require_none("belongs to a packed weight that no file has"))
    }

    /// Some programs save the embedding of a tied model as the output's weight too, or only so.
    fn tie(&mut self) -> Result<()> {
        let Some(output) = self.entries.remove(OUTPUT) else {
            return Ok(());
        };
        let Some(embedding) = self.entries.get(EMBEDDING) else {
            self.entries.insert(EMBEDDING.to_owned(), output);
            return Ok(());
        };
        let [output, embedding] = [&output, embedding].map(|entry| &entry.stored);
        if output.holds_same(embedding)? {
            return Ok(());
        }
        Err(output.wrong(format!(
            "differs from `{}`, but the model's config.json says that they are one; \
             if the model has both, set tie_word_embeddings to false there",
            embedding.name
        )))
    }

    /// Whether there is an output beside the embedding, of other numbers.
    pub(super) fn has_other_output(&self) -> Result<bool> {
        let both = self.entries.get(OUTPUT).zip(self.entries.get(EMBEDDING));
        both.map_or(Ok(false), |(output, embedding)| {
            Ok(!output.stored.holds_same(&embedding.stored)?)
        })
    }

    /// Makes one weight of several, if the files have all of them and they go together; others stay what they are.
    pub(super) fn join<const N: usize>(&mut self, key: &str, of: [String; N], form: Form) {
        let shapes = of.iter().map(|key| Some(&self.entries.get(key)?.shape[..]));
        let shape = shapes
            .collect::<Option<Vec<_>>>()
            .and_then(|shapes| form.shape_of(&shapes));
        let Some(shape) = shape else { return };
        let of = of.map(|key| Rc::new(self.entries.remove(&key).expect("it is there")));
        let composed = Composed {
            form,
            of: of.into(),
            shape: shape.to_vec(),
        };
        self.composed.insert(key.to_owned(), composed);
    }

    /// Makes several weights of one that is not packed: for each key a part of this shape, in the form that its index
    /// has.
    pub(super) fn split(
        &mut self,
        key: &str,
        of_keys: Vec<String>,
        shape: &[usize],
        form: impl Fn(usize) -> Form,
    ) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        let entry = Rc::new(entry);
        for (index, key) in of_keys.into_iter().enumerate() {
            let composed = Composed {
                form: form(index),
                of: vec![entry.clone()],
                shape: shape.to_vec(),
            };
            self.composed.insert(key, composed);
        }
    }

    /// Checks a tensor's shape, if the files have it.
    ///
    /// # Errors
    /// [`Error::Shape`] with the file and the name that the tensor has there.
    pub(super) fn require_shape(&self, key: &str, expected: &[usize]) -> Result<()> {
        let found = self.entries.get(key).map(|entry| &entry.shape[..]);
        match found.filter(|found| *found != expected) {
            None => Ok(()),
            Some(found) => Err(self.locate(Error::Shape {
                origin: String::new(),
                key: key.to_owned(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            })),
        }
    }

    /// The shape of a tensor that is no part of another weight and not packed.
    pub(super) fn dense_shape(&self, key: &str) -> Option<&[usize]> {
        let entry = self.entries.get(key)?;
        entry.packed.is_none().then_some(&entry.shape[..])
    }

    /// The tensor of a weight, the first of several.
    fn first(&self, key: &str) -> &Entry {
        let composed = self.composed.get(key).map(|composed| &*composed.of[0]);
        composed.unwrap_or_else(|| &self.entries[key])
    }

    /// Whether a weight is packed.
    pub(super) fn is_packed(&self, key: &str) -> bool {
        self.first(key).packed.is_some()
    }

    /// The type that a tensor is stored in, f32 for a packed weight.
    pub(super) fn dtype(&self, key: &str) -> Result<DType> {
        self.first(key).dtype()
    }

    /// The file that a tensor lies in.
    pub(super) fn file(&self, key: &str) -> &Path {
        self.first(key).stored.file.path()
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let entries = self.entries.iter().map(|(k, e)| (k.as_str(), &e.shape[..]));
        let composed = self.composed.iter();
        entries.chain(composed.map(|(k, c)| (k.as_str(), &c.shape[..])))
    }

    /// The layouts of the packed weights.
    pub(super) fn layouts(&self) -> HashMap<String, PackedLayout> {
        let entries = self.entries.iter();
        let entries = entries.filter_map(|(key, entry)| Some((key.clone(), entry.layout()?)));
        let composed = self.composed.iter();
        let composed =
            composed.filter_map(|(key, composed)| Some((key.clone(), composed.layout()?)));
        entries.chain(composed).collect()
    }

    /// An error about a tensor's shape, with the file and the name that the tensor has there.
    pub(super) fn locate(&self, error: Error) -> Error {
        let Error::Shape { key, .. } = &error else {
            return error;
        };
        let stored = &self.first(key).stored;
        error.with_key(&stored.name).in_file(stored.file.path())
    }

    /// An error about a tensor, with its file.
    pub(super) fn refuse(&self, key: &str, message: String) -> Error {
        Error::format(self.first(key).stored.file.path(), message)
    }

    /// Reads a tensor in the type that `target` gives for the stored one, which is f32 for a packed weight.
    pub(super) fn read(&self, key: &str, target: impl Fn(DType) -> DType) -> Result<TensorData> {
        match self.composed.get(key) {
            None => self.entries[key].read(target),
            Some(composed) => composed.read(target),
        }
    }

    /// The words of a packed weight, as its layout has them.
    ///
    /// # Panics
    /// If the weight is not packed.
    pub(super) fn read_words(&self, key: &str) -> Result<TensorData> {
        let bytes = match self.composed.get(key) {
            None => self.entries[key].packed_bytes()?.1,
            Some(composed) => {
                let parts = composed.of.iter().map(|entry| entry.packed_bytes());
                join_rows(&parts.collect::<Result<Vec<_>>>()?)
            }
        };
        Ok(packed_words(&bytes))
    }
}

impl Entry {
    fn layout(&self) -> Option<PackedLayout> {
        self.packed.as_ref().map(|packed| packed.layout)
    }

    fn dtype(&self) -> Result<DType> {
        match self.packed {
            Some(_) => Ok(DType::F32),
            None => self.stored.file.dtype(&self.stored.name),
        }
    }

    fn read(&self, target: impl Fn(DType) -> DType) -> Result<TensorData> {
        let Some(packed) = &self.packed else {
            let Stored { file, name } = &self.stored;
            return file.read(name, target(file.dtype(name)?));
        };
        let values = dequantize(packed.layout, &packed.bytes()?);
        Ok(encode(
            values.into_iter(),
            self.shape.clone(),
            target(DType::F32),
        ))
    }

    /// # Panics
    /// If the weight is not packed.
    fn packed_bytes(&self) -> Result<(PackedLayout, Vec<u8>)> {
        let packed = self.packed.as_ref().expect("a packed weight");
        Ok((packed.layout, packed.bytes()?))
    }
}

impl Composed {
    /// None unless all parts are packed, and alike.
    fn layout(&self) -> Option<PackedLayout> {
        let layouts = self.of.iter().map(|entry| entry.layout());
        let layouts = layouts.collect::<Option<Vec<_>>>()?;
        match self.form {
            Form::Below => PackedLayout::below(&layouts),
            _ => None,
        }
    }

    fn read(&self, target: impl Fn(DType) -> DType) -> Result<TensorData> {
        let first = &self.of[0];
        let (stored, dtype) = (&first.stored, target(first.dtype()?));
        let (file, name) = (&stored.file, &stored.name);
        match &self.form {
            Form::Below | Form::Beside | Form::Diagonal => {
                let parts = self.of.iter().map(|entry| entry.read(|_| dtype));
                Ok(joined(&self.form, parts.collect::<Result<_>>()?))
            }
            Form::Stretch(stretch) => {
                file.read_stretch(name, stretch.clone(), self.shape.clone(), dtype)
            }
            Form::Columns {
                first: column,
                step,
            } => {
                let (stored, width) = (file.dtype(name)?, first.shape[1]);
                let cut = |bytes: &[u8]| columns(bytes, stored.size(), width, *column, *step);
                let bytes = file.with_bytes(name, cut)?;
                Ok(decode(&bytes, stored, self.shape.clone(), dtype))
            }
        }
    }
}

/// Of two values under two names for one weight, with and without `model.` say, none is known to be right.
fn require_one(stored: &Stored, other: Option<&Stored>) -> Result<()> {
    let Some(other) = other.filter(|other| other.name != stored.name) else {
        return Ok(());
    };
    if stored.holds_same(other)? {
        return Ok(());
    }
    let mut names = [&stored.name, &other.name];
    names.sort();
    let [first, second] = names;
    let message =
        format!("`{first}` and `{second}` are names of one weight, and differ; remove one of them");
    Err(Error::format(stored.file.path(), message))
}

/// What files carry beside the weights of a text model: tables of the rotary embedding in old ones, which follow from the
/// configuration, and what reads images.
pub(super) fn is_beside(name: &str) -> bool {
    let tables = ["inv_freq", "cos_cached", "sin_cached"];
    let of_images = ["vision_tower.", "multi_modal_projector."];
    let bare = name.strip_prefix("model.").unwrap_or(name);
    let is_table = |table| name.ends_with(&format!("rotary_emb.{table}"));
    tables.into_iter().any(is_table) || of_images.into_iter().any(|part| bare.starts_with(part))
}
