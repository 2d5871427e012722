//! Products with a frozen bf16 weight on matrix units (Intel AMX), sums in f32.
//!
//! A tile is 16 rows of 64 bytes. `tdpbf16ps` multiplies a tile of `a`, 16 rows of 32 numbers, with
//! one of `b`, 16 pairs of rows of 16 columns: in a cycle 16 times what two units for f32 do. So three
//! products take less time than one of f32, and an f32 `a` is split into three bf16 whose sum it is.
//! The unit takes numbers below 2⁻¹²⁶, and pieces below it, for zero.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _mm512_loadu_ps, _xgetbv};
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::avx512::{self, Buffer};
use super::{Mat, MatMut, Operand, Output, PANEL, all_panels};
use crate::instructions::Instructions;

/// Rows and columns of a tile of the product.
const TILE: usize = 16;
/// Numbers of a tile's row of `a`.
const ROW: usize = 32;
/// Rows and columns of the product whose sums are in registers: 2 x 2 tiles.
const BLOCK: usize = 2 * TILE;
/// Rows of pieces that stay in the second cache: at most 1024 x 1024 bf16, 2 MiB.
const CACHED_ROWS: usize = 1024;

/// What a number of `a` becomes.
#[derive(Clone, Copy)]
pub enum Split {
    /// The nearest bf16.
    Rounded,
    /// Three bf16, of 8 of its 24 binary digits each.
    Exact,
}

impl Split {
    fn pieces(self) -> usize {
        match self {
            Self::Rounded => 1,
            Self::Exact => 3,
        }
    }

    /// How many numbers of a row are split at a time, and rows of a panel of `b` are in the second cache: the more, the
    /// fewer times the product is read and written.
    fn depth(self) -> usize {
        match self {
            Self::Rounded => 1024,
            Self::Exact => 512,
        }
    }
}

/// Whether a product of so many rows is computed here: from 16 on that is faster than with f32.
pub fn serves(rows: usize) -> bool {
    rows >= TILE && is_supported()
}

/// Whether the processor has the unit and the system lets this process use it.
pub fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| may_be_used() && has_unit() && asks_permission())
}

fn may_be_used() -> bool {
    Instructions::best() == Instructions::All && avx512::multiplies_bf16()
}

/// The unit by CPUID, its state in what the system saves (Intel's Software Developer's Manual, volume 1,
/// "Programming with Intel Advanced Matrix Extensions").
fn has_unit() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    // AVX-512 is told in the same leaf, and is there.
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: AVX-512 is there, and so is the register that says what the system saves.
    let saved = unsafe { saved_state() };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && saved & TILE_STATE == TILE_STATE
}

/// # Safety
/// The processor must have AVX-512.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: the caller has found AVX-512, which is there only if the system lets programs read this register.
    unsafe { _xgetbv(0) }
}

/// Linux saves the tiles of those that have asked for it.
#[cfg(target_os = "linux")]
fn asks_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: it has no effect but that this process may use the tiles.
    let code = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    code == 0
}

#[cfg(not(target_os = "linux"))]
fn asks_permission() -> bool {
    false
}

/// `out (+)= a · b` on all threads. The processor must have the unit, the shapes must fit, and a
/// stride of `b` be 1.
pub fn matmul<B: Operand>(out: MatMut, output: Output, a: Mat, b: B, split: Split) {
    assert!(is_supported());
    let [_, k] = a.shape;
    let mut tiles = Vec::new();
    for start in (0..k).step_by(split.depth()) {
        let depth = split.depth().min(k - start);
        split_into_tiles(a.columns(start, depth), split, &mut tiles);
        let part = Part {
            out,
            add: start > 0 || output == Output::Add,
            tiles: &tiles,
            pieces: split.pieces(),
            b,
            start,
            steps: depth.div_ceil(ROW),
        };
        let at_most = CACHED_ROWS / split.pieces();
        all_panels(out.shape, [BLOCK, at_most], |rows, first, buffer| {
            part.compute(rows.start / BLOCK..rows.end.div_ceil(BLOCK), first, buffer);
        });
    }
}

/// 32 numbers of a row of `a`, in bf16.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct TileRow([u16; ROW]);

/// For each 32 rows of `a`, for each 32 of their columns, for each piece: the rows. Zeros follow after
/// the last row and column.
fn split_into_tiles(a: Mat, split: Split, tiles: &mut Vec<TileRow>) {
    let [m, k] = a.shape;
    let (pieces, steps) = (split.pieces(), k.div_ceil(ROW));
    tiles.resize(
        m.div_ceil(BLOCK) * steps * pieces * BLOCK,
        TileRow([0; ROW]),
    );
    let blocks = tiles
        .par_chunks_exact_mut(steps * pieces * BLOCK)
        .enumerate();
    // SAFETY: a processor with the unit has these instructions.
    blocks.for_each(|(block, tiles)| unsafe { split_block(a, block * BLOCK, split, tiles) });
}

/// 32 rows of [`split_into_tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_block(a: Mat, first: usize, split: Split, tiles: &mut [TileRow]) {
    let pieces = split.pieces();
    for (step, tiles) in tiles.chunks_exact_mut(pieces * BLOCK).enumerate() {
        for index in 0..BLOCK {
            let mut numbers = numbers_of(a, first + index, step * ROW);
            let rows = tiles[index..].iter_mut().step_by(BLOCK);
            split_row(&mut numbers, split, rows);
        }
    }
}

/// 32 numbers of a row from a column on, zeros beyond the matrix.
#[inline(always)]
fn numbers_of(a: Mat, row: usize, first: usize) -> [f32; ROW] {
    let ([m, k], [row_stride, col_stride]) = (a.shape, a.strides);
    let mut numbers = [0.0; ROW];
    if row >= m {
        return numbers;
    }
    let count = ROW.min(k - first);
    let values = &a.data[row * row_stride + first * col_stride..];
    match (col_stride, count) {
        (1, ROW) => numbers.copy_from_slice(&values[..ROW]),
        _ => {
            let values = values.iter().step_by(col_stride);
            let places = numbers[..count].iter_mut();
            places
                .zip(values)
                .for_each(|(number, value)| *number = *value);
        }
    }
    numbers
}

/// Writes the pieces of 32 numbers.
#[inline(always)]
fn split_row<'a>(
    numbers: &mut [f32; ROW],
    split: Split,
    pieces: impl Iterator<Item = &'a mut TileRow>,
) {
    for piece in pieces {
        match split {
            // SAFETY: a processor with the unit has AVX-512 for bf16.
            Split::Rounded => *piece = unsafe { rounded(numbers) },
            Split::Exact => take_upper_bits(numbers, piece),
        }
    }
}

/// The nearest bf16.
///
/// # Safety
/// The processor must have AVX-512 for bf16.
#[inline(always)]
unsafe fn rounded(numbers: &[f32; ROW]) -> TileRow {
    // SAFETY: the caller's, of the instructions; 16 numbers from 0 and from 16 on lie inside, and a `TileRow`
    // is 512 bits, too.
    unsafe {
        let [first, others] = [0, ROW / 2].map(|i| _mm512_loadu_ps(numbers[i..].as_ptr()));
        std::mem::transmute(avx512::rounded_both(first, others))
    }
}

/// Writes the upper halves of numbers, and leaves what they lack.
#[inline(always)]
fn take_upper_bits(numbers: &mut [f32; ROW], TileRow(piece): &mut TileRow) {
    for (number, piece) in numbers.iter_mut().zip(piece) {
        let bits = upper_bits(*number);
        *piece = bits as u16;
        let rest = *number - f32::from_bits(bits << 16);
        *number = if number.is_finite() { rest } else { 0.0 };
    }
}

/// The upper half of an f32, which is a bf16 of the same first digits.
#[inline(always)]
fn upper_bits(value: f32) -> u32 {
    const QUIET: u32 = 1 << 6;
    let bits = value.to_bits() >> 16;
    if value.is_nan() { bits | QUIET } else { bits }
}

/// A part of a product: some columns of `a`, split, by as many rows of `b`.
struct Part<'a, B> {
    out: MatMut,
    add: bool,
    tiles: &'a [TileRow],
    pieces: usize,
    b: B,
    /// The first of the rows of `b`.
    start: usize,
    /// How many times 32 rows they are, rounded up.
    steps: usize,
}

impl<B: Operand> Part<'_, B> {
    /// Blocks of 32 rows of the columns `first ..` of the product, at most [`PANEL`] of them.
    fn compute(&self, blocks: Range<usize>, first: usize, buffer: &mut Buffer) {
        let [m, n] = self.out.shape;
        let width = PANEL.min(n - first);
        let depth = self.steps * TILE;
        let panel = buffer.reserve(depth);
        // SAFETY: AVX-512 is there, and the constructor checked that `b` lies inside of its data.
        unsafe { avx512::pack_pairs(self.b, [self.start / 2, first], [depth, width], panel) };
        let block_len = self.steps * self.pieces * BLOCK;
        // SAFETY: `matmul` asked for the unit. Compiled code uses no tiles, so what is set here stays until `tilerelease`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack)) };
        for block in blocks {
            let a = &self.tiles[block * block_len..][..block_len];
            let (row, rows) = (block * BLOCK, BLOCK.min(m - block * BLOCK));
            for col in (0..width).step_by(BLOCK) {
                let b = panel.as_ptr().cast::<f32>().wrapping_add(col);
                let to = row * self.out.row_stride + first + col;
                let out = self.out.data.wrapping_add(to);
                // SAFETY: the panel has 64 columns, and the constructor checked that the product lies inside of its
                // data.
                unsafe {
                    match (rows, BLOCK.min(width - col)) {
                        (BLOCK, BLOCK) => self.multiply(a, b, out, self.out.row_stride, self.add),
                        edge => self.multiply_edge(a, b, out, edge.into()),
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack)) };
    }

    /// Writes or adds `a · b`, 32 x 32 numbers, with `b` the columns of a panel from some on.
    ///
    /// # Safety
    /// The unit must be there and configured, `b` have 32 columns and as many rows as `a` has pairs, and `out` be 32
    /// numbers in each of 32 rows.
    unsafe fn multiply(
        &self,
        a: &[TileRow],
        b: *const f32,
        out: *mut f32,
        row_stride: usize,
        add: bool,
    ) {
        // Strides of `a` and `b` are multiples of a line of 64 bytes: 1 and 4.
        // SAFETY: the caller's. The loads and stores are those of 16 rows each that it says, and all tiles
        // are named as written.
        unsafe {
            asm!(
                "test {add}, {add}; jz 4f",
                "tileloadd tmm0, [{out} + {stride}]; tileloadd tmm1, [{out} + {stride} + 64]",
                "tileloadd tmm2, [{below} + {stride}]; tileloadd tmm3, [{below} + {stride} + 64]",
                "jmp 2f",
                "4:",
                "tilezero tmm0; tilezero tmm1",
                "tilezero tmm2; tilezero tmm3",
                "2:",
                "tileloadd tmm6, [{b} + {line} * 4]; tileloadd tmm7, [{b} + {line} * 4 + 64]",
                "mov {piece}, {pieces}",
                "3:",
                "tileloadd tmm4, [{a} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {line} + 16 * 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {a}, 32 * 64",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {piece}; jnz 3b",
                "add {b}, 16 * 4 * 64",
                "dec {steps}; jnz 2b",
                "tilestored [{out} + {stride}], tmm0; tilestored [{out} + {stride} + 64], tmm1",
                "tilestored [{below} + {stride}], tmm2; tilestored [{below} + {stride} + 64], tmm3",
                a = inout(reg) a.as_ptr() => _,
                b = inout(reg) b => _,
                out = in(reg) out,
                below = in(reg) out.wrapping_add(TILE * row_stride),
                stride = in(reg) row_stride * size_of::<f32>(),
                add = in(reg) usize::from(add),
                line = in(reg) 64usize,
                steps = inout(reg) self.steps => _,
                pieces = in(reg) self.pieces,
                piece = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// [`Self::multiply`] where the product has fewer rows or columns.
    ///
    /// # Safety
    /// The same, but for those that it does not have.
    unsafe fn multiply_edge(
        &self,
        a: &[TileRow],
        b: *const f32,
        out: *mut f32,
        [rows, cols]: [usize; 2],
    ) {
        let mut sums = [0.0; BLOCK * BLOCK];
        // SAFETY: the caller's, and `sums` has 32 rows of 32 numbers, without a gap.
        unsafe { self.multiply(a, b, sums.as_mut_ptr(), BLOCK, false) };
        for (row, sums) in sums.chunks_exact(BLOCK).take(rows).enumerate() {
            let out = out.wrapping_add(row * self.out.row_stride);
            // SAFETY: the caller says that these `cols` numbers are there; `sums` has no fewer, and is no
            // part of `out`.
            unsafe {
                if self.add {
                    let out = std::slice::from_raw_parts_mut(out, cols);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                } else {
                    out.copy_from_nonoverlapping(sums.as_ptr(), cols);
                }
            }
        }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 8],
    unused_row_bytes: [u16; 8],
    rows: [u8; 8],
    unused_rows: [u8; 8],
}

/// All eight tiles are whole.
static TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64; 8],
    unused_row_bytes: [0; 8],
    rows: [TILE as u8; 8],
    unused_rows: [0; 8],
};

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn pieces(numbers: [f32; ROW], split: Split) -> Vec<[f32; ROW]> {
        let mut rows = vec![TileRow([0; ROW]); split.pieces()];
        split_row(&mut numbers.clone(), split, rows.iter_mut());
        let widen = |row: &TileRow| row.0.map(|bits| bf16::from_bits(bits).to_f32());
        rows.iter().map(widen).collect()
    }

    #[test]
    fn three_pieces_add_up_to_the_number() {
        let mut bits = 1u32;
        for _ in 0..10_000 {
            let numbers = [(); ROW].map(|()| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // So large that the last piece is no denormal.
                let magnitude = f32::from_bits((bits >> 1) % 0x7000_0000 + 0x0c00_0000);
                if bits & 1 == 0 { magnitude } else { -magnitude }
            });
            let pieces = pieces(numbers, Split::Exact);
            for (i, number) in numbers.into_iter().enumerate() {
                let sum: f64 = pieces.iter().map(|piece| f64::from(piece[i])).sum();
                assert_eq!(sum, f64::from(number));
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let splits = match avx512::multiplies_bf16() {
            true => vec![Split::Rounded, Split::Exact],
            // Rounding is an instruction of AVX-512.
            false => vec![Split::Exact],
        };
        for split in splits {
            for number in [f32::INFINITY, f32::NEG_INFINITY] {
                let pieces = pieces([number; ROW], split);
                let sum: f32 = pieces.iter().map(|piece| piece[0]).sum();
                assert_eq!(sum, number);
            }
            for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xffc0_0000] {
                let pieces = pieces([f32::from_bits(bits); ROW], split);
                assert!(pieces[0][0].is_nan(), "{bits:x}");
            }
        }
    }
}
