//! Samples in few bytes, in memory or in a file.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Dataset, IGNORE_INDEX, Sample};
use crate::files::create_dir;
use crate::{Error, Result};

/// The bit of a token without a label; ids are below it.
const UNLABELLED: u32 = 1 << 31;
/// The bytes that stay in memory unless a store is told otherwise.
const MEMORY: usize = 32 << 20;

/// A [`Dataset`] that is written once, sample by sample, and takes four bytes a token. What is more than some bytes goes to a
/// temporary file, which has no name any more as soon as it is open, so that it goes with the program however that
/// ends. The system may keep the file's contents in memory that nothing else needs; it is not mapped.
///
/// ```
/// use burn_peft::data::{Dataset, Sample, SampleStore};
///
/// let folder = std::env::temp_dir();
/// let mut store = SampleStore::new(&folder);
/// for id in 0..3 {
///     store.push(&Sample { tokens: vec![1, id], labels: vec![-100, id as i32], is_cut: false })?;
/// }
/// assert_eq!(store.len(), 3);
/// assert_eq!(store.sample(2)?.tokens, [1, 2]);
/// # Ok::<(), burn_peft::Error>(())
/// ```
#[derive(Debug)]
pub struct SampleStore {
    folder: PathBuf,
    memory: usize,
    /// Where each sample ends, in words: one that says whether it was cut, then one a token.
    ends: Vec<u64>,
    /// The last samples, behind those in the file.
    tail: Vec<u32>,
    /// The words in the file.
    written: u64,
    file: Option<Mutex<File>>,
}

impl SampleStore {
    /// An empty store, whose file will be in `folder`, which is made if it is needed.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Self {
            folder: folder.as_ref().to_owned(),
            memory: MEMORY,
            ends: Vec::new(),
            tail: Vec::new(),
            written: 0,
            file: None,
        }
    }

    /// The same, with so many bytes of samples in memory before they go to the file.
    pub fn with_memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    ///
    /// # Panics
    /// If the sample has not one label a token, a label that is neither its token nor [`IGNORE_INDEX`], or an id that
    /// is not below 2^31.
    pub fn push(&mut self, sample: &Sample) -> Result<()> {
        let Sample { tokens, labels, .. } = sample;
        assert_eq!(
            tokens.len(),
            labels.len(),
            "a sample needs one label for each token"
        );
        self.tail.push(u32::from(sample.is_cut));
        let words = tokens.iter().zip(labels).map(|(&token, &label)| {
            assert!(token < UNLABELLED, "a token id is below 2^31");
            match label {
                IGNORE_INDEX => token | UNLABELLED,
                label => {
                    assert_eq!(label as u32, token, "a label is its token or none");
                    token
                }
            }
        });
        self.tail.extend(words);
        self.ends.push(self.written + self.tail.len() as u64);
        match self.tail.len() * size_of::<u32>() > self.memory {
            true => self.write().map_err(Error::io(&self.folder)),
            false => Ok(()),
        }
    }

    /// Appends samples as they come.
    ///
    /// # Errors
    /// The first of theirs, and those of [`push`](Self::push).
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn extend(&mut self, samples: impl IntoIterator<Item = Result<Sample>>) -> Result<()> {
        let mut samples = samples.into_iter();
        samples.try_for_each(|sample| self.push(&sample?))
    }

    /// The bytes of the samples in memory.
    pub fn bytes_in_memory(&self) -> usize {
        self.ends.len() * size_of::<u64>() + self.tail.len() * size_of::<u32>()
    }

    /// Moves what is in memory to the file.
    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Mutex::new(temporary(&self.folder)?)),
        };
        let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::End(0))?;
        file.write_all(bytemuck::cast_slice(&self.tail))?;
        self.written += self.tail.len() as u64;
        self.tail.clear();
        Ok(())
    }

    /// The words from one place to another, which are all in the file or all in memory.
    fn words(&self, start: u64, end: u64) -> io::Result<Vec<u32>> {
        let Some(start) = start.checked_sub(self.written) else {
            let file = self.file.as_ref().expect("what was written is in a file");
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let mut words = vec![0; (end - start) as usize];
            file.seek(SeekFrom::Start(start * size_of::<u32>() as u64))?;
            file.read_exact(bytemuck::cast_slice_mut(&mut words))?;
            return Ok(words);
        };
        Ok(self.tail[start as usize..(end - self.written) as usize].to_vec())
    }

    fn start(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

impl Dataset for SampleStore {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn sample(&self, index: usize) -> Result<Sample> {
        let words = self.words(self.start(index), self.ends[index]);
        let words = words.map_err(Error::io(&self.folder))?;
        let (is_cut, words) = words.split_first().expect("a sample has a first word");
        let label = |word: &u32| match word & UNLABELLED {
            0 => *word as i32,
            _ => IGNORE_INDEX,
        };
        Ok(Sample {
            tokens: words.iter().map(|word| word & !UNLABELLED).collect(),
            labels: words.iter().map(label).collect(),
            is_cut: *is_cut == 1,
        })
    }

    fn sample_len(&self, index: usize) -> Result<usize> {
        Ok((self.ends[index] - self.start(index)) as usize - 1)
    }
}

/// A file that is gone when it is closed.
fn temporary(folder: &Path) -> io::Result<File> {
    create_dir(folder).map_err(io::Error::other)?;
    let name = format!(".samples.{:016x}.tmp", RandomState::new().hash_one(()));
    let path = folder.join(name);
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    // Where the system does not take the name away yet, the file is left.
    let _ = fs::remove_file(&path);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(tokens: &[u32], unlabelled: usize, is_cut: bool) -> Sample {
        let labels = tokens.iter().enumerate();
        let labels = labels.map(|(place, token)| match place < unlabelled {
            true => IGNORE_INDEX,
            false => *token as i32,
        });
        Sample {
            tokens: tokens.to_vec(),
            labels: labels.collect(),
            is_cut,
        }
    }

    proptest! {
        /// Whatever goes in comes out, whether it went to the file or not.
        #[test]
        fn reading_undoes_writing(
            tokens in prop::collection::vec(
                (prop::collection::vec(0u32..1 << 31, 0..9), 0usize..9, any::<bool>()), 0..30
            ),
            memory in 0usize..200,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let samples: Vec<Sample> = tokens.iter().map(|(t, u, c)| sample(t, *u, *c)).collect();
            let mut store = SampleStore::new(dir.path()).with_memory(memory);
            store.extend(samples.iter().cloned().map(Ok)).unwrap();
            prop_assert_eq!(store.len(), samples.len());
            // A tail of at most that, and where samples end.
            prop_assert!(store.bytes_in_memory() <= memory + 8 * samples.len());
            for (index, sample) in samples.iter().enumerate().rev() {
                prop_assert_eq!(&store.sample(index).unwrap(), sample);
                prop_assert_eq!(store.sample_len(index).unwrap(), sample.len());
            }
        }
    }

    #[test]
    fn the_file_is_gone_with_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        let mut store = SampleStore::new(&folder);
        store.push(&sample(&[1, 2], 0, false)).unwrap();
        assert!(!folder.exists());
        let mut store = SampleStore::new(&folder).with_memory(0);
        store.push(&sample(&[1, 2], 0, false)).unwrap();
        assert!(folder.exists());
        drop(store);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        // A folder that cannot be made is named.
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut store = SampleStore::new(file.join("x")).with_memory(0);
        let error = store.push(&sample(&[1], 0, false)).unwrap_err().to_string();
        assert!(error.contains("file/x"), "{error}");
    }

    #[test]
    #[should_panic = "a label is its token or none"]
    fn another_label_is_a_bug() {
        let mut other = sample(&[1, 2], 0, false);
        other.labels[1] = 3;
        let _ = SampleStore::new("").push(&other);
    }
}
