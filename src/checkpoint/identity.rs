//! Which base a path names: by its content, and by a name that others find it by.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use serde_json::Value;

use super::any_base::BaseKind;
use super::{hf, meta};
use crate::files::{open_weights, read_text};
use crate::gguf::GgufFile;
use crate::ops::mix;
use crate::{Error, Result};

/// The largest file that is read as a whole.
const WHOLE_BYTES: u64 = 64 << 20;
/// What is read of a larger one: its beginning, where the header is, ...
const HEAD_BYTES: u64 = 1 << 20;
/// ... and so many parts of so many bytes, from there to the end.
const PARTS: u64 = 256;
const PART_BYTES: u64 = 4096;

/// Fields of a `config.json` that say nothing of the model.
const NOTES: [&str; 4] = [
    "_name_or_path",
    "transformers_version",
    "architectures",
    "use_cache",
];

/// A number that differs where the content of two bases does, wherever they lie: their sizes and weights. It is the
/// same in every version of this crate.
///
/// Files of up to 64 MiB are read as a whole. Of larger ones it is the length, the first MiB (which has the names, types
/// and shapes) and 256 parts of 4 KiB, spread evenly: 2 MiB a file, where all of it would be read twice. A training
/// changes every weight, so one part would tell; a change of a few numbers by hand may be missed.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read; [`Error::Format`] and [`Error::MissingShard`] if the files of the model are
/// not there.
pub fn base_fingerprint(path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let (config, files) = match BaseKind::of(path) {
        BaseKind::Gguf => (None, GgufFile::open(path)?.paths()),
        BaseKind::Meta => (Some(meta::PARAMS), meta::weight_files(path)?),
        BaseKind::HuggingFace => (Some(hf::CONFIG_FILE), hf::weight_files(path)?),
    };
    let config = match config {
        Some(name) => of_config(&path.join(name))?,
        None => 0,
    };
    let mut buffer = Vec::new();
    files.iter().try_fold(config, |hash, path| {
        let file = open_weights(path)?;
        of_file(hash, file, &mut buffer).map_err(Error::io(path))
    })
}

/// The fields of a configuration in the order of their names.
fn of_config(path: &Path) -> Result<u64> {
    let text = read_text(path)?;
    let fields: BTreeMap<String, Value> =
        serde_json::from_str(&text).map_err(|error| Error::format(path, error))?;
    let fields = fields
        .iter()
        .filter(|(name, _)| !NOTES.contains(&name.as_str()));
    Ok(fields.fold(0, |hash, (name, value)| {
        let hash = of_bytes(hash, name.as_bytes());
        of_bytes(hash, value.to_string().as_bytes())
    }))
}

fn of_file(hash: u64, mut file: File, buffer: &mut Vec<u8>) -> std::io::Result<u64> {
    let len = file.metadata()?.len();
    let mut hash = mix(hash, len);
    for (start, count) in parts(len) {
        buffer.resize(count as usize, 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(buffer)?;
        hash = of_bytes(hash, buffer);
    }
    Ok(hash)
}

/// Where the parts begin that are read of a file, and how long they are.
fn parts(len: u64) -> Vec<(u64, u64)> {
    if len <= WHOLE_BYTES {
        let starts = (0..len).step_by(HEAD_BYTES as usize);
        return starts
            .map(|start| (start, HEAD_BYTES.min(len - start)))
            .collect();
    }
    let first = HEAD_BYTES;
    let last = len - PART_BYTES;
    let spread = (0..PARTS).map(|part| first + (last - first) * part / (PARTS - 1));
    let spread = spread.map(|start| (start, PART_BYTES));
    std::iter::once((0, HEAD_BYTES)).chain(spread).collect()
}

fn of_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = mix(hash, bytes.len() as u64);
    let hash = words
        .iter()
        .fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

/// The name by which others find a base: `owner/name` for a folder in the Hub's cache
/// (`models--owner--name/snapshots/REVISION`), and else the absolute path.
pub fn base_model_name(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    // Links are left as they are: files of the cache are links to names without a meaning.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // A file is not what PEFT makes of the name of a repository.
    let name = match path.is_file() {
        true => None,
        false => name_on_hub(&absolute),
    };
    name.unwrap_or_else(|| absolute.to_string_lossy().into_owned())
}

fn name_on_hub(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let [.., repository, "snapshots", _revision] = parts[..] else {
        return None;
    };
    Some(repository.strip_prefix("models--")?.replace("--", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 0 to the end, without more than a file has.
    #[test]
    fn the_parts_of_a_file_lie_in_it() {
        for len in [
            0,
            1,
            HEAD_BYTES,
            WHOLE_BYTES,
            WHOLE_BYTES + 1,
            5_000_000_000,
        ] {
            let parts = parts(len);
            assert!(
                parts.iter().all(|(start, count)| start + count <= len),
                "{len}"
            );
            assert_eq!(parts.first().map_or(0, |(start, _)| *start), 0);
            assert_eq!(parts.last().map_or(0, |(start, count)| start + count), len);
            let read: u64 = parts.iter().map(|(_, count)| count).sum();
            assert!(
                read == len || read == HEAD_BYTES + PARTS * PART_BYTES,
                "{len}"
            );
        }
    }

    #[test]
    fn a_byte_and_a_length_make_another_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let hash_of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            of_file(0, File::open(&path).unwrap(), &mut Vec::new()).unwrap()
        };
        let hashes = [
            hash_of(b""),
            hash_of(&[0]),
            hash_of(&[0; 8]),
            hash_of(&[0; 9]),
            hash_of(b"12345678901"),
            hash_of(b"12345678902"),
            hash_of(b"22345678901"),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash), "{index}");
        }
    }

    #[test]
    fn a_base_in_the_hubs_cache_has_its_name_there() {
        let hub = |path: &str| name_on_hub(Path::new(path));
        let cached =
            "/home/me/.cache/huggingface/hub/models--meta-llama--Llama-2-7b-hf/snapshots/01c7f73d";
        assert_eq!(hub(cached).as_deref(), Some("meta-llama/Llama-2-7b-hf"));
        assert_eq!(
            hub("/hub/models--gpt2/snapshots/1").as_deref(),
            Some("gpt2")
        );
        assert_eq!(hub("/models/meta-llama/Llama-2-7b-hf"), None);
        assert_eq!(hub("/hub/models--a--b/blobs/1"), None);
        let here = std::env::current_dir().unwrap().join("models/base");
        assert_eq!(base_model_name("models/base"), here.to_string_lossy());
    }
}
