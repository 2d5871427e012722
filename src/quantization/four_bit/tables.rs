//! What the codes stand for: of the numbers, and of the largest magnitudes in eight bits.

use crate::quantization::layout::FourBitTable;

/// Quantiles of the normal distribution, between -1 and 1, with a zero (QLoRA, appendix E).
static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The magnitudes 0, 1/16, 8, 12, 4, 6, 2, 3 by the largest; then their negatives, the zero without its sign.
static FP4: [f32; 16] = {
    let magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut table = [0.0; 16];
    let mut i = 1;
    while i < 8 {
        table[i] = magnitudes[i] / 12.0;
        table[8 + i] = -table[i];
        i += 1;
    }
    table
};

impl FourBitTable {
    /// The number of each code.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }
}

/// What the codes of nested magnitudes stand for: the "dynamic" map of
/// [8-bit optimizers](https://arxiv.org/abs/2110.02861).
pub fn nested_table() -> &'static [f32; 256] {
    &DYNAMIC
}

/// Zero, one, and numbers of both signs in seven decades. Each decade, from a tenth of its power of ten up to it, has
/// twice as many numbers as the one below: the middles of equal parts.
static DYNAMIC: [f32; 256] = {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    const ZERO: usize = 127;
    let mut table = [0.0; 256];
    let (mut decade, mut code) = (0, ZERO + 1);
    while decade < POWERS.len() {
        let parts = 1 << decade;
        let mut part = 0;
        while part < parts {
            let middle = (boundary(part, parts) + boundary(part + 1, parts)) / 2.0;
            table[code] = POWERS[decade] * middle;
            table[2 * ZERO - code] = -table[code];
            code += 1;
            part += 1;
        }
        decade += 1;
    }
    table[code] = 1.0;
    table
};

/// The `i`th boundary of equal parts of 0.1 to 1, reckoned from the nearer end and rounded once: so PyTorch does where
/// the processor has such an instruction.
const fn boundary(i: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1) / parts as f32;
    if i < parts.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((parts - i) as f32, 1.0)
    }
}
