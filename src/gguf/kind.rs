//! How the numbers of a tensor are stored.

use burn::tensor::DType;

/// What a tensor's numbers are: of a float type, or packed in blocks that lie along its rows.
///
/// The blocks are laid out in <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    non_camel_case_types,
    reason = "the names that all programs have for them"
)]
pub(crate) enum TensorKind {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// A row of the table: the kind, the number that stands for it in a file, the elements of a block and its bytes.
type Row = (TensorKind, u32, usize, usize);

const KINDS: [Row; 11] = [
    (TensorKind::F32, 0, 1, 4),
    (TensorKind::F16, 1, 1, 2),
    (TensorKind::BF16, 30, 1, 2),
    (TensorKind::Q8_0, 8, 32, 34),
    (TensorKind::Q4_0, 2, 32, 18),
    (TensorKind::Q4_1, 3, 32, 20),
    (TensorKind::Q5_0, 6, 32, 22),
    (TensorKind::Q5_1, 7, 32, 24),
    (TensorKind::Q4_K, 12, 256, 144),
    (TensorKind::Q5_K, 13, 256, 176),
    (TensorKind::Q6_K, 14, 256, 210),
];

/// Kinds that are not read, by their numbers.
const OTHERS: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl TensorKind {
    /// The kind of a number in a file; what to say of one that is not read.
    pub(crate) fn from_id(id: u32) -> Result<Self, String> {
        if let Some((kind, ..)) = KINDS.into_iter().find(|(_, known, ..)| *known == id) {
            return Ok(kind);
        }
        let name = match OTHERS.into_iter().find(|(other, _)| *other == id) {
            Some((_, name)) => format!("of the kind {name}, which is not read"),
            None => format!("of a kind with the number {id}, which is not known"),
        };
        Err(format!(
            "{name}; load a Q4_K_M, Q5_K_M, Q6_K or Q8_0 file of the same model, or its original folder, quantized \
             while it is loaded"
        ))
    }

    /// The number that stands for it in a file.
    pub(crate) fn id(self) -> u32 {
        self.row().1
    }

    /// The elements that are stored together, neighbours in a row.
    pub(crate) fn block_len(self) -> usize {
        self.row().2
    }

    /// The bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The type of the numbers, where they are not packed.
    pub(crate) fn float(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    fn row(self) -> Row {
        let row = KINDS.into_iter().find(|(kind, ..)| *kind == self);
        row.expect("the table has every kind")
    }
}
