//! The files of a folder of Meta's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub(in crate::checkpoint) const PARAMS: &str = "params.json";

/// Whether a folder is one of Meta's, by what lies in it.
pub(in crate::checkpoint) fn is_meta(dir: &Path) -> bool {
    let is_weights = || numbers(dir).is_ok_and(|numbers| !numbers.is_empty());
    dir.is_dir() && (dir.join(PARAMS).exists() || is_weights())
}

/// The files with weights, one for each process that the model was made for.
pub(in crate::checkpoint) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let found = numbers(dir)?;
    let gap = (0..)
        .zip(&found)
        .find(|(expected, found)| expected != *found);
    if let Some((expected, next)) = gap {
        let message = format!(
            "{} is not in this folder, but {} is; download it, or copy it beside the others",
            name(expected),
            name(*next)
        );
        return Err(Error::format(dir, message));
    }
    match found.is_empty() {
        true => {
            let message = format!(
                "{PARAMS} is in this folder, but no {}; download it, or name the folder that has it",
                name(0)
            );
            Err(Error::format(dir, message))
        }
        false => Ok(found
            .into_iter()
            .map(|number| dir.join(name(number)))
            .collect()),
    }
}

fn name(number: usize) -> String {
    format!("consolidated.{number:02}.pth")
}

/// The numbers that files with weights have in their names, in order.
fn numbers(dir: &Path) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let file = entry.map_err(Error::io(dir))?.file_name();
        let number = file.to_str().and_then(|file| {
            let number = file.strip_prefix("consolidated.")?.strip_suffix(".pth")?;
            let number = number.parse().ok()?;
            (name(number) == file).then_some(number)
        });
        found.extend(number);
    }
    found.sort();
    Ok(found)
}
