//! Reading and mapping files, and writing them so that no half-written one is ever seen under its final name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::{Error, Result};

const TEMPORARY: &str = ".tmp";

/// Removes a file, if there is one.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// Lets `write` fill a temporary file beside `path`, then moves it to `path`. If anything fails,
/// what stood at `path` stays and the temporary file is removed.
pub(crate) fn write_atomic(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    WrittenFile::new(path, write)?.publish()
}

/// A file that is complete and on the disk, but not under its final name yet. Dropped before it is, it is removed.
pub(crate) struct WrittenFile {
    path: PathBuf,
    temporary: PathBuf,
}

impl WrittenFile {
    /// Lets `write` fill a temporary file beside `path`.
    pub(crate) fn new(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        // Others may write the same file, on other machines too.
        name.push(format!(
            ".{:016x}{TEMPORARY}",
            RandomState::new().hash_one(())
        ));
        let file = Self {
            path: path.to_owned(),
            temporary: path.with_file_name(name),
        };
        // Writers that go through a private temporary file of their own would leave it private.
        let permissions = File::create(&file.temporary)
            .and_then(|file| file.metadata())
            .map_err(Error::io(path))?
            .permissions();
        write(&file.temporary)?;
        sync(&file.temporary)
            .and_then(|()| fs::set_permissions(&file.temporary, permissions))
            .map_err(Error::io(path))?;
        Ok(file)
    }

    /// Moves it to its final name, in the place of what stands there.
    pub(crate) fn publish(self) -> Result<()> {
        fs::rename(&self.temporary, &self.path).map_err(Error::io(&self.path))
    }
}

impl Drop for WrittenFile {
    fn drop(&mut self) {
        // After `publish` there is none, and an error before is the one to report.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Brings what was written to a file to the disk.
fn sync(path: &Path) -> io::Result<()> {
    // Windows asks for the right to write.
    let synced = OpenOptions::new().write(true).open(path)?.sync_all();
    match synced {
        // EINVAL and ENOTSUP: macOS has disks, over the network say, that cannot.
        Err(error) if cfg!(target_vendor = "apple") => match error.raw_os_error() {
            Some(22 | 45) => Ok(()),
            _ => Err(error),
        },
        synced => synced,
    }
}

/// Whether a file has the name of one that [`write_atomic`] had not finished, or the safetensors crate within it, which
/// writes to a file of its own first.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let rest = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(TEMPORARY));
    let number = rest.and_then(|rest| rest.rsplit_once('.').map(|(_, number)| number));
    let is_own = number.is_some_and(|n| n.len() == 16 && n.bytes().all(|b| b.is_ascii_hexdigit()));
    let random = name.strip_prefix(TEMPORARY);
    is_own || random.is_some_and(|n| n.len() == 6 && n.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// [`write_atomic`] for bytes.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |temporary| {
        fs::write(temporary, bytes).map_err(Error::io(path))
    })
}

/// [`write_atomic`] for text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// How the file begins that stands for a large one in a Git checkout without Git LFS.
const GIT_LFS: &[u8] = b"version https://git-lfs.github.com/";

/// Refuses the bytes of a file that only stands for another one.
pub(crate) fn require_content(bytes: &[u8], path: &Path) -> Result<()> {
    match bytes.starts_with(GIT_LFS) {
        true => {
            let message = "a pointer of Git LFS, not the file itself; `git lfs pull` brings it";
            Err(Error::format(path, message))
        }
        false => Ok(()),
    }
}

/// Reads a file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    require_content(&bytes, path)?;
    Ok(bytes)
}

/// Reads a text file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    require_content(text.as_bytes(), path)?;
    Ok(text)
}

/// Opens a file of weights. A pipe has no end before somebody writes to it, and none of them can be mapped or read twice.
pub(crate) fn open_weights(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_file() && !metadata.is_dir() {
        let message = "a pipe or a device; weights are read from a regular file";
        return Err(Error::format(path, message));
    }
    File::open(path).map_err(Error::io(path))
}

/// Maps a file into memory.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = open_weights(path)?;
    // SAFETY: the map is only read. A file that another process changes while it is mapped
    // gives wrong numbers or a signal, as for every program that maps checkpoints.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    require_content(&map, path)?;
    Ok(map)
}

/// Lets the system take back the pages of a part of a map that has been copied. Without this, all of
/// the file stays counted as this process's memory beside the model made from it.
#[cfg(unix)]
pub(crate) fn release(map: &Mmap, bytes: Range<usize>) {
    // SAFETY: the map is read-only and backed by the file, so a page that is given back is read
    // again when it is needed.
    let released = unsafe {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        map.unchecked_advise_range(advice, bytes.start, bytes.len())
    };
    // It is only advice: where the system does not take it, nothing else changes.
    let _ = released;
}

#[cfg(not(unix))]
pub(crate) fn release(_map: &Mmap, _bytes: Range<usize>) {}

/// Makes a folder and those above it.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path))
}
