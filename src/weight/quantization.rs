use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use crate::quantization::{BlockFormat, FourBit, FourBitTable};

/// In how many bits the linear layers of a base are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Quantization {
    /// NormalFloat of four bits in blocks of 64, with double quantization: 4.13 bits a weight. Dettmers et al., *QLoRA:
    /// Efficient Finetuning of Quantized LLMs*, <https://arxiv.org/abs/2305.14314>.
    Nf4,
    /// Eight bits with a scale a row, as the weights of LLM.int8() have them: Dettmers et al.,
    /// <https://arxiv.org/abs/2208.07339>.
    Int8,
}

impl Quantization {
    /// How the numbers are packed.
    pub fn block_format(self) -> BlockFormat {
        match self {
            Self::Nf4 => BlockFormat::FourBit(FourBit::new(FourBitTable::Nf4).with_nested(true)),
            Self::Int8 => BlockFormat::Int8,
        }
    }
}

/// How a base is kept in memory, whatever its files hold: a type of float, or fewer bits for the weights of linear
/// layers.
///
/// ```
/// use burn::tensor::DType;
/// use burn_peft::weight::{BaseFormat, Quantization};
///
/// assert_eq!(BaseFormat::from(DType::BF16).quantization, None);
/// let nf4 = BaseFormat::from(Quantization::Nf4); // the rest in f32
/// assert_eq!(nf4.dtype, DType::F32);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseFormat {
    /// The type of what is not packed.
    pub dtype: DType,
    /// How linear layers are packed, if they are.
    pub quantization: Option<Quantization>,
    /// Whether weights that the files have packed stay as they are there. With a quantization they do in any case.
    pub keeps_packed: bool,
    /// Whether the embedding and the projection to the vocabulary are packed too.
    pub packs_vocabulary: bool,
}

impl BaseFormat {
    /// All weights in a type of float.
    pub fn new(dtype: DType) -> Self {
        Self {
            dtype,
            quantization: None,
            keeps_packed: false,
            packs_vocabulary: false,
        }
    }

    /// The weights of linear layers in fewer bits, or not.
    pub fn with_quantization(self, quantization: impl Into<Option<Quantization>>) -> Self {
        Self {
            quantization: quantization.into(),
            ..self
        }
    }

    /// With weights that the files have packed kept as they are, or brought to the type too.
    pub fn with_kept_packing(self, keeps_packed: bool) -> Self {
        Self {
            keeps_packed,
            ..self
        }
    }

    /// With the embedding and the projection to the vocabulary packed too, or not.
    pub fn with_packed_vocabulary(self, packs_vocabulary: bool) -> Self {
        Self {
            packs_vocabulary,
            ..self
        }
    }
}

impl From<DType> for BaseFormat {
    fn from(dtype: DType) -> Self {
        Self::new(dtype)
    }
}

impl From<Quantization> for BaseFormat {
    fn from(quantization: Quantization) -> Self {
        Self::new(DType::F32).with_quantization(quantization)
    }
}
