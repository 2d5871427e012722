//! Where a run starts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const AUTO: &str = "auto";

/// Whether a run goes on, and from which checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
#[non_exhaustive]
pub enum Resume {
    /// It begins.
    #[default]
    No,
    /// It goes on from the last checkpoint in its folder.
    Last,
    /// It goes on if there is a checkpoint in its folder, and else begins.
    Auto,
    /// It goes on from this checkpoint, or the last one of this run, in this folder or another.
    From(PathBuf),
}

/// How a recipe writes it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Flag(bool),
    Path(PathBuf),
}

impl From<Written> for Resume {
    fn from(written: Written) -> Self {
        match written {
            Written::Flag(false) => Self::No,
            Written::Flag(true) => Self::Last,
            Written::Path(path) if path == Path::new(AUTO) => Self::Auto,
            Written::Path(path) => Self::From(path),
        }
    }
}

impl From<Resume> for Written {
    fn from(resume: Resume) -> Self {
        match resume {
            Resume::No => Self::Flag(false),
            Resume::Last => Self::Flag(true),
            Resume::Auto => Self::Path(AUTO.into()),
            Resume::From(path) => Self::Path(path),
        }
    }
}
