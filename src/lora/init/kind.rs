use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How `A` and `B` begin; what they add to the layer begins as zero. Written and read as a word, see
/// [`Init::WORDS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum Init {
    /// `A` with Kaiming's uniform distribution, `B` with zeros.
    #[default]
    Kaiming,
    /// `A` with `N(0, 1/r²)`, `B` with zeros.
    Gaussian,
    /// Both at random, orthogonal to each other, see [`init::orthogonal`](super::orthogonal). Of an even rank.
    Orthogonal,
    /// With the principal part of the weight, see [`init::pissa`](super::pissa).
    Pissa,
    /// The same, found by a randomised decomposition of so many iterations: faster, and not quite the same part.
    PissaRandomized {
        /// How often random vectors are multiplied by the weight.
        iterations: usize,
    },
    /// With an orthonormal basis of the weight's leading columns, see [`init::olora`](super::olora).
    Olora,
    /// With the directions in which the layer's inputs vary most, which only data can tell: as [`Init::Kaiming`] until
    /// [`initialize_eva`](crate::adapter::initialize_eva).
    Eva,
    /// With what makes up for a part of a quantization's error, which only the dense weights can tell: as
    /// [`Init::Kaiming`] until [`initialize_loftq`](crate::adapter::initialize_loftq).
    Loftq,
}

const PISSA_RANDOMIZED: &str = "pissa_niter_";

impl Init {
    /// The words for all of them; `N` is a number of iterations.
    pub const WORDS: [&'static str; 8] = [
        "kaiming",
        "gaussian",
        "orthogonal",
        "pissa",
        "pissa_niter_N",
        "olora",
        "eva",
        "loftq",
    ];

    /// Whether the adapter begins with a part of the base, which the base loses for it: the layer then computes
    /// `W x + s·(B·A - B₀·A₀) x`.
    pub fn shifts_base(self) -> bool {
        match self {
            Self::Pissa | Self::PissaRandomized { .. } | Self::Olora => true,
            Self::Kaiming | Self::Gaussian | Self::Orthogonal | Self::Eva | Self::Loftq => false,
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kaiming => "kaiming",
            Self::Gaussian => "gaussian",
            Self::Orthogonal => "orthogonal",
            Self::Pissa => "pissa",
            Self::PissaRandomized { iterations } => {
                return write!(f, "{PISSA_RANDOMIZED}{iterations}");
            }
            Self::Olora => "olora",
            Self::Eva => "eva",
            Self::Loftq => "loftq",
        })
    }
}

impl FromStr for Init {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidArgument`] for what is none of [`Init::WORDS`].
    fn from_str(word: &str) -> Result<Self> {
        let iterations = word.strip_prefix(PISSA_RANDOMIZED);
        if let Some(Ok(iterations)) = iterations.map(str::parse) {
            return Ok(Self::PissaRandomized { iterations });
        }
        let plain = [
            Self::Kaiming,
            Self::Gaussian,
            Self::Orthogonal,
            Self::Pissa,
            Self::Olora,
            Self::Eva,
            Self::Loftq,
        ];
        let found = plain.into_iter().find(|init| init.to_string() == word);
        found.ok_or_else(|| {
            let words = Self::WORDS.join(", ");
            Error::InvalidArgument {
                name: "init",
                message: format!("`{word}` is not one of {words}"),
            }
        })
    }
}

impl From<Init> for String {
    fn from(init: Init) -> Self {
        init.to_string()
    }
}

impl TryFrom<String> for Init {
    type Error = Error;

    fn try_from(word: String) -> Result<Self> {
        word.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_a_word() {
        for word in Init::WORDS {
            let word = word.replace('N', "4");
            let init: Init = word.parse().unwrap();
            assert_eq!(init.to_string(), word);
            let json = serde_json::json!(word);
            assert_eq!(serde_json::to_value(init).unwrap(), json);
            assert_eq!(serde_json::from_value::<Init>(json).unwrap(), init);
        }
        for word in ["pissa_niter_", "pissa_niter_N", "Kaiming", "corda"] {
            let error = word.parse::<Init>().unwrap_err().to_string();
            assert!(error.contains("pissa_niter_N, olora"), "{error}");
        }
    }
}
