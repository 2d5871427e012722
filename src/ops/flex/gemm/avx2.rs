//! Panels of products with AVX2, as [`super::avx512`] has them, in half as many registers of half the width.
//!
//! The columns of a panel are taken 16 at a time, a strip: its rows are neighbours in the buffer and stay in the first
//! cache, while the rows of `a` that meet them stay in the second for the panel's other strips.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Mat, MatMut, Operand, Output, PANEL, thin};
use crate::instructions::Instructions;

const LANES: usize = 8;
const VECTORS: usize = 2;
const STRIP: usize = VECTORS * LANES;
/// Rows of the product whose sums are in registers: 6 x 2 of the 16.
pub const ROWS: usize = 6;
/// Rows of a strip that are in cache at a time: 256 x 16 numbers are 16 KiB.
const DEPTH: usize = 256;

/// Numbers that fill a line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct StripRow([f32; STRIP]);

/// A part of a strip of `b`: row-major, padded with zeros to 16 columns.
#[derive(Default)]
pub struct Buffer(Vec<StripRow>);

pub fn is_supported() -> bool {
    Instructions::best() >= Instructions::Avx2
}

/// Some rows of the columns `first ..` of the product, at most `PANEL` of them.
pub fn panel<B: Operand>(
    out: MatMut,
    output: Output,
    a: Mat,
    b: B,
    rows: Range<usize>,
    first: usize,
    buffer: &mut Buffer,
) {
    let [k, n] = b.shape();
    assert!(rows.end <= a.shape[0] && rows.end <= out.shape[0] && first < n);
    buffer.0.resize(DEPTH, StripRow([0.0; STRIP]));
    for start in (0..k).step_by(DEPTH) {
        for first in (first..n.min(first + PANEL)).step_by(STRIP) {
            let (depth, width) = (DEPTH.min(k - start), STRIP.min(n - first));
            let strip = &mut buffer.0[..depth];
            // SAFETY: who calls asked for AVX2; the constructors checked that all elements of the three matrices lie
            // inside their data.
            unsafe {
                pack(b, [start, first], width, strip);
                let tile = Tile {
                    a: a.data[start * a.strides[1]..].as_ptr(),
                    a_strides: a.strides,
                    strip,
                    out: out.data.wrapping_add(first),
                    out_stride: out.row_stride,
                    width,
                    add: start > 0 || output == Output::Add,
                };
                tile.rows(rows.clone());
            }
        }
    }
}

/// Brings `width` columns of `b`, from (row, col) on, into a strip.
///
/// # Safety
/// The numbers of the strip's rows from (row, col) on must lie inside of `b`, `width` in each; the processor must
/// have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack<B: Operand>(b: B, [row, col]: [usize; 2], width: usize, strip: &mut [StripRow]) {
    let is_transposed = b.is_transposed();
    for (i, rows) in strip.chunks_mut(STRIP).enumerate() {
        let row = row + i * STRIP;
        if rows.len() < STRIP || width < STRIP {
            pack_edge(rows, width, |i, j| b.number(row + i, col + j));
            continue;
        }
        let to = rows.as_mut_ptr().cast::<f32>();
        // SAFETY: 16 x 16 numbers from (row, col) lie inside of `b`, and of the strip.
        unsafe {
            match is_transposed {
                true => transpose(b, [row, col], to),
                false => copy(b, [row, col], to),
            }
        }
    }
}

/// Rows of which `width` columns are there, the others zeros.
fn pack_edge(rows: &mut [StripRow], width: usize, number: impl Fn(usize, usize) -> f32) {
    for (i, row) in rows.iter_mut().enumerate() {
        for (j, value) in row.0.iter_mut().enumerate() {
            *value = if j < width { number(i, j) } else { 0.0 };
        }
    }
}

/// Writes 16 x 16 numbers of contiguous rows.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C, 16 x 16 numbers from (row, col) lie inside of `b`, and as many,
/// aligned, at `to`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn copy<B: Operand>(b: B, [row, col]: [usize; 2], to: *mut f32) {
    for i in 0..STRIP {
        // SAFETY: the caller says that 16 x 16 numbers lie inside of `b`, and that `to` is aligned and has as
        // many.
        unsafe {
            let [left, right] = b.load16_avx2(row + i, col);
            _mm256_store_ps(to.add(i * STRIP), left);
            _mm256_store_ps(to.add(i * STRIP + LANES), right);
        }
    }
}

/// Writes 16 x 16 numbers of contiguous columns.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C, 16 x 16 numbers from (row, col) lie inside of `b`, and as many,
/// aligned, at `to`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transpose<B: Operand>(b: B, [row, col]: [usize; 2], to: *mut f32) {
    for half in [0, LANES] {
        let mut upper = [_mm256_setzero_ps(); LANES];
        let mut lower = upper;
        for j in 0..LANES {
            // SAFETY: the caller's.
            [upper[j], lower[j]] = unsafe { b.load16_avx2(row, col + half + j) };
        }
        // SAFETY: the caller's.
        unsafe {
            store_transposed(upper, to.add(half));
            store_transposed(lower, to.add(LANES * STRIP + half));
        }
    }
}

/// Writes 8 columns as rows `STRIP` apart.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C, and eight rows `STRIP` apart lie at `to`, aligned.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_transposed(columns: [__m256; LANES], to: *mut f32) {
    // Pairs of columns, then fours; then the two halves of 128 bits change places.
    let mut pairs = columns;
    for j in (0..LANES).step_by(2) {
        pairs[j] = _mm256_unpacklo_ps(columns[j], columns[j + 1]);
        pairs[j + 1] = _mm256_unpackhi_ps(columns[j], columns[j + 1]);
    }
    let mut fours = pairs;
    for j in (0..LANES).step_by(4) {
        fours[j] = _mm256_shuffle_ps::<0x44>(pairs[j], pairs[j + 2]);
        fours[j + 1] = _mm256_shuffle_ps::<0xee>(pairs[j], pairs[j + 2]);
        fours[j + 2] = _mm256_shuffle_ps::<0x44>(pairs[j + 1], pairs[j + 3]);
        fours[j + 3] = _mm256_shuffle_ps::<0xee>(pairs[j + 1], pairs[j + 3]);
    }
    for i in 0..4 {
        let first = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
        let second = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
        // SAFETY: the caller's.
        unsafe {
            _mm256_store_ps(to.add(i * STRIP), first);
            _mm256_store_ps(to.add((i + 4) * STRIP), second);
        }
    }
}

/// The products of M rows of `a`, whose numbers are neighbours, with some columns of `b`, whose are too; but for the last
/// numbers, of which there are not 16.
///
/// # Safety
/// The processor must have AVX2 and FMA, and the rows and columns must be there.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dots<B: Operand, const M: usize>(
    a: Mat,
    row: usize,
    b: B,
    columns: [usize; thin::LINES],
) -> [[f32; thin::LINES]; M] {
    let mut sums = [[_mm256_setzero_ps(); thin::LINES]; M];
    let (first, [row_stride, _]) = (a.at(row, 0), a.strides);
    let end = a.shape[1] / STRIP * STRIP;
    // Two strips at a time: most packed weights have a scale for 32 numbers, or more.
    for pair in (0..end).step_by(2 * STRIP) {
        for half in 0..2 {
            let i = pair + half * STRIP;
            if i == end {
                break;
            }
            let mut numbers = [[_mm256_setzero_ps(); VECTORS]; thin::LINES];
            for (numbers, column) in numbers.iter_mut().zip(columns) {
                b.prefetch(i, column + thin::LINES);
                // SAFETY: the caller's.
                *numbers = unsafe { b.column16_avx2(i, column) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let [left, right] = unsafe {
                    let a = first.add(row * row_stride + i);
                    [_mm256_loadu_ps(a), _mm256_loadu_ps(a.add(LANES))]
                };
                for (sum, numbers) in sums.iter_mut().zip(numbers) {
                    *sum = _mm256_fmadd_ps(left, numbers[0], *sum);
                    *sum = _mm256_fmadd_ps(right, numbers[1], *sum);
                }
            }
        }
    }
    let mut totals = [[0.0; thin::LINES]; M];
    for (totals, sums) in totals.iter_mut().zip(sums) {
        for (total, sum) in totals.iter_mut().zip(sums) {
            let mut lanes = [0.0; LANES];
            // SAFETY: as many as it has.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            *total = lanes.iter().sum();
        }
    }
    totals
}

/// A strip of the product, and the parts of `a` and `b` that a pass over it multiplies.
struct Tile<'a> {
    a: *const f32,
    a_strides: [usize; 2],
    strip: &'a [StripRow],
    out: *mut f32,
    out_stride: usize,
    width: usize,
    add: bool,
}

impl Tile<'_> {
    /// Six rows at a time.
    ///
    /// # Safety
    /// The processor must have AVX2 and FMA, and all elements must lie inside of their data.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rows(&self, rows: Range<usize>) {
        for row in rows.clone().step_by(ROWS) {
            // SAFETY: the caller's; there are no more rows than `rows` has.
            unsafe {
                match rows.end - row {
                    1 => self.compute::<1>(row),
                    2 => self.compute::<2>(row),
                    3 => self.compute::<3>(row),
                    4 => self.compute::<4>(row),
                    5 => self.compute::<5>(row),
                    _ => self.compute::<ROWS>(row),
                }
            }
        }
    }

    /// M rows, all in registers.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), of the M rows from `row` on.
    #[inline(always)]
    unsafe fn compute<const M: usize>(&self, row: usize) {
        let [row_stride, col_stride] = self.a_strides;
        // SAFETY: the caller says that these rows lie inside of `a` and `out`; a strip's rows are aligned,
        // and as many as `a` has columns.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); VECTORS]; M];
            let mut a = self.a.add(row * row_stride);
            for numbers in self.strip {
                let numbers = numbers.0.as_ptr();
                let columns = [_mm256_load_ps(numbers), _mm256_load_ps(numbers.add(LANES))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(row * row_stride));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.wrapping_add(col_stride);
            }
            let out = self.out.add(row * self.out_stride);
            for (row, [left, right]) in sums.into_iter().enumerate() {
                let out = out.add(row * self.out_stride);
                self.store(out, left, self.width);
                if self.width > LANES {
                    self.store(out.add(LANES), right, self.width - LANES);
                }
            }
        }
    }

    /// Writes or adds the first `count` numbers.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), of `count` numbers at `out`.
    #[inline(always)]
    unsafe fn store(&self, out: *mut f32, sum: __m256, count: usize) {
        // SAFETY: the caller says that `count` numbers are there; where they are fewer than eight the mask
        // leaves out the others.
        unsafe {
            if count >= LANES {
                let sum = match self.add {
                    true => _mm256_add_ps(sum, _mm256_loadu_ps(out)),
                    false => sum,
                };
                _mm256_storeu_ps(out, sum);
            } else {
                let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), places);
                let sum = match self.add {
                    true => _mm256_add_ps(sum, _mm256_maskload_ps(out, mask)),
                    false => sum,
                };
                _mm256_maskstore_ps(out, mask, sum);
            }
        }
    }
}
