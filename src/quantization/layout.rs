//! The formats of packed matrices and their sizes.

use std::fmt;

use super::gguf::{self, Kind};
use super::{four_bit, int8, invalid};
use crate::Result;

/// How the numbers of a weight are packed: in blocks that run along its rows.
///
/// Its `Display` is the name of the format in its files: `nf4`, `Q4_K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// Codes of four bits, which stand for the numbers of a table, as bitsandbytes has them.
    FourBit(FourBit),
    /// Numbers of eight bits with a scale a row, as bitsandbytes has them: `w = code * scale / 127`.
    Int8,
    /// GGUF: 32 numbers of eight bits, `w = d * q`.
    Q8_0,
    /// GGUF: 32 numbers of four bits, `w = d * (q - 8)`.
    Q4_0,
    /// GGUF: 32 numbers of four bits, `w = d * q + m`.
    Q4_1,
    /// GGUF: 32 numbers of five bits, `w = d * (q - 16)`.
    Q5_0,
    /// GGUF: 32 numbers of five bits, `w = d * q + m`.
    Q5_1,
    /// GGUF: 256 numbers of four bits, each 32 with a scale and a minimum of six bits.
    Q4K,
    /// GGUF: 256 numbers of five bits, each 32 with a scale and a minimum of six bits.
    Q5K,
    /// GGUF: 256 numbers of six bits, each 16 with a scale of eight bits.
    Q6K,
}

/// A format of four bits: `w = table[code] * absmax`, where `absmax` is the largest magnitude of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FourBit {
    /// The numbers that the codes stand for.
    pub table: FourBitTable,
    /// How many numbers share an `absmax`: a power of two from 32 to 4096.
    pub block_len: usize,
    /// Whether the `absmax` are themselves in eight bits, in blocks of 256 ("double quantization").
    pub is_nested: bool,
}

impl FourBit {
    /// Blocks of 64 numbers with an `absmax` in f32.
    pub fn new(table: FourBitTable) -> Self {
        Self {
            table,
            block_len: 64,
            is_nested: false,
        }
    }

    /// The same with blocks of another length.
    pub fn with_block_len(self, block_len: usize) -> Self {
        Self { block_len, ..self }
    }

    /// The same with each `absmax` in f32 (false) or in eight bits (true).
    pub fn with_nested(self, is_nested: bool) -> Self {
        Self { is_nested, ..self }
    }
}

/// What the 16 codes of a [`FourBit`] format stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FourBitTable {
    /// NormalFloat: as many normally distributed numbers at each code
    /// ([QLoRA](https://arxiv.org/abs/2305.14314)).
    Nf4,
    /// A sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl BlockFormat {
    /// Numbers and bytes of a block of GGUF's.
    pub(crate) fn gguf_block(self) -> Option<[usize; 2]> {
        fn sizes<K: Kind>() -> Option<[usize; 2]> {
            Some([K::NUMBERS, K::BYTES])
        }
        match self {
            Self::FourBit(_) | Self::Int8 => None,
            Self::Q8_0 => sizes::<gguf::Q8_0>(),
            Self::Q4_0 => sizes::<gguf::Q4_0>(),
            Self::Q4_1 => sizes::<gguf::Q4_1>(),
            Self::Q5_0 => sizes::<gguf::Q5_0>(),
            Self::Q5_1 => sizes::<gguf::Q5_1>(),
            Self::Q4K => sizes::<gguf::Q4K>(),
            Self::Q5K => sizes::<gguf::Q5K>(),
            Self::Q6K => sizes::<gguf::Q6K>(),
        }
    }

    /// Whether [`quantize`](super::quantize) makes it; the K-quants are only read.
    pub fn is_written(self) -> bool {
        !matches!(self, Self::Q4K | Self::Q5K | Self::Q6K)
    }

    /// Numbers of a block, 1 if any number of columns will do.
    fn block_len(self) -> usize {
        match (self, self.gguf_block()) {
            (_, Some([numbers, _])) => numbers,
            (Self::FourBit(four_bit), _) => four_bit.block_len,
            _ => 1,
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FourBit(four_bit) => match four_bit.table {
                FourBitTable::Nf4 => "nf4",
                FourBitTable::Fp4 => "fp4",
            },
            Self::Int8 => "int8",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// The format and the sizes of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedLayout {
    format: BlockFormat,
    shape: [usize; 2],
    num_bytes: usize,
}

impl PackedLayout {
    /// A matrix of `[rows, columns]`.
    ///
    /// # Errors
    /// If the matrix has no numbers or more than fit into memory, if the blocks do not divide its columns, or if the
    /// blocks' length is none that bitsandbytes has.
    pub fn new(format: BlockFormat, shape: [usize; 2]) -> Result<Self> {
        let [rows, columns] = shape;
        let block_len = format.block_len();
        if let BlockFormat::FourBit(_) = format {
            check_four_bit_block(block_len)?;
        }
        if rows == 0 || columns == 0 {
            return Err(invalid(
                "shape",
                format!("{shape:?} has no numbers to pack"),
            ));
        }
        if !columns.is_multiple_of(block_len) {
            return Err(invalid(
                "shape",
                format!(
                    "{format} packs {block_len} numbers of a row together, which do not divide rows of {columns}; \
                     leave this weight dense, or take int8"
                ),
            ));
        }
        let num_bytes = num_bytes(format, shape)
            .ok_or_else(|| invalid("shape", format!("{shape:?} is more than fits into memory")))?;
        Ok(Self {
            format,
            shape,
            num_bytes,
        })
    }

    /// How the numbers are packed.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Bytes of the codes of a row, with the scales that lie among them.
    pub fn row_bytes(&self) -> usize {
        let [_, columns] = self.shape;
        match (self.format, self.format.gguf_block()) {
            (_, Some([block, bytes])) => columns / block * bytes,
            (BlockFormat::FourBit(_), _) => columns / 2,
            _ => columns,
        }
    }

    /// The length of the packed bytes, a multiple of four.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Where the scales begin that are not in the blocks, and where those are nested their mean; in words.
    #[cfg(feature = "cube")]
    pub(crate) fn scale_words(&self) -> [usize; 2] {
        let [rows, columns] = self.shape;
        let bytes = match self.format {
            BlockFormat::FourBit(four_bit) => {
                let planes = four_bit::Planes::new(rows * columns, four_bit);
                [planes.absmax_at, planes.offset_at]
            }
            BlockFormat::Int8 => [int8::scales_at(self.shape), 0],
            _ => [0, 0],
        };
        bytes.map(|at| at / size_of::<u32>())
    }
}

fn check_four_bit_block(block_len: usize) -> Result<()> {
    if block_len.is_power_of_two() && (32..=4096).contains(&block_len) {
        return Ok(());
    }
    Err(invalid(
        "block_len",
        format!("{block_len} is no power of two from 32 to 4096"),
    ))
}

/// None if the bytes, or the numbers in f32, are more than fit into memory.
fn num_bytes(format: BlockFormat, [rows, columns]: [usize; 2]) -> Option<usize> {
    let numbers = rows.checked_mul(columns)?;
    numbers
        .checked_mul(size_of::<f32>())
        .filter(|bytes| isize::try_from(*bytes).is_ok())?;
    // No format has more bytes than f32 numbers and one scale a row: the sums below cannot overflow.
    Some(match (format, format.gguf_block()) {
        (_, Some([block, bytes])) => (numbers / block * bytes).next_multiple_of(4),
        (BlockFormat::FourBit(four_bit), _) => four_bit::Planes::new(numbers, four_bit).end,
        _ => int8::scales_at([rows, columns]) + rows * size_of::<f32>(),
    })
}
