//! The vector instructions that this crate's own loops use on the CPU.

use std::env;
use std::sync::OnceLock;

/// Caps them: `avx512` (and no matrix unit), `avx2` or `portable`. For tests, and to measure what another processor would do.
const CAP: &str = "BURN_PEFT_CPU";

/// Sets of instructions. A processor that has one has those above it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Instructions {
    Portable,
    /// `avx2`, `fma` and `f16c`.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `avx512f` and `avx512bw`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Those, and a matrix unit if there is one.
    #[cfg(target_arch = "x86_64")]
    All,
}

#[cfg(target_arch = "x86_64")]
const NAMED: [(&str, Instructions); 3] = [
    ("avx512", Instructions::Avx512),
    ("avx2", Instructions::Avx2),
    ("portable", Instructions::Portable),
];
#[cfg(not(target_arch = "x86_64"))]
const NAMED: [(&str, Instructions); 1] = [("portable", Instructions::Portable)];

impl Instructions {
    /// The widest that the processor has and `BURN_PEFT_CPU` allows.
    ///
    /// # Panics
    /// If the variable names none.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| match env::var_os(CAP) {
            None => Self::of_processor(),
            Some(name) => {
                let cap = NAMED.into_iter().find(|(known, _)| name == *known);
                let (_, cap) = cap.unwrap_or_else(|| {
                    let known = NAMED.map(|(name, _)| name).join(", ");
                    panic!("{CAP} is {name:?}; it may be {known}")
                });
                cap.min(Self::of_processor())
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match (avx2, avx512) {
            (true, true) => Self::All,
            (true, false) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Self {
        Self::Portable
    }

    /// All sets that may be used.
    #[cfg(test)]
    pub(crate) fn usable() -> impl Iterator<Item = Self> {
        let all = [
            Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
        ];
        all.into_iter().filter(|each| *each <= Self::best())
    }
}
