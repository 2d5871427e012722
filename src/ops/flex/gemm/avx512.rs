//! Panels of products with AVX-512. A step of a product multiplies a number of `a`, in all lanes,
//! with a row of a panel of `b`: f32 by f32, or a pair of bf16 by a pair of bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Mat, MatMut, Operand, Output, PANEL, bf16_bits, thin};
use crate::instructions::Instructions;

const LANES: usize = 16;
const VECTORS: usize = PANEL / LANES;
/// Rows of the product whose sums are in registers: 6 x 4 of the 32.
pub const ROWS: usize = 6;
/// Rows of a panel that are in cache at a time: 512 x 64 numbers are 128 KiB.
const DEPTH: usize = 512;

/// 64 numbers that begin a line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct PanelRow([f32; PANEL]);

/// A part of a panel of `b`: row-major, padded with zeros to 64 columns.
#[derive(Default)]
pub struct Buffer(Vec<PanelRow>);

pub fn is_supported() -> bool {
    Instructions::best() >= Instructions::Avx512
}

pub fn multiplies_bf16() -> bool {
    is_supported() && is_x86_feature_detected!("avx512bf16")
}

/// Rounds to bf16, whose bits are the upper half of an f32.
///
/// # Safety
/// The processor must have AVX-512 for bf16.
#[inline(always)]
pub unsafe fn rounded(values: __m512) -> __m512 {
    // SAFETY: the caller has the instructions; both types are 256 bits.
    unsafe {
        let halves: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(values));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

/// 32 numbers in bf16, the first 16 before the others.
///
/// # Safety
/// As [`rounded`].
#[inline(always)]
pub unsafe fn rounded_both(first: __m512, others: __m512) -> __m512 {
    // SAFETY: both are 512 bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(others, first)) }
}

/// How a step multiplies and adds.
trait Step {
    /// # Safety
    /// The processor must have the instruction.
    unsafe fn multiply_add(value: __m512, column: __m512, sum: __m512) -> __m512;
}

struct F32;

impl Step for F32 {
    #[inline(always)]
    unsafe fn multiply_add(value: __m512, column: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ps(value, column, sum) }
    }
}

/// Pairs of bf16, lower half first; products and sums are f32.
struct Bf16Pairs;

impl Step for Bf16Pairs {
    #[inline(always)]
    unsafe fn multiply_add(value: __m512, column: __m512, sum: __m512) -> __m512 {
        // SAFETY: both are 512 bits.
        let pairs = |bits| unsafe { std::mem::transmute::<__m512, __m512bh>(bits) };
        // SAFETY: the caller's.
        unsafe { _mm512_dpbf16_ps(sum, pairs(value), pairs(column)) }
    }
}

/// As [`super::avx2::dots`].
///
/// # Safety
/// The processor must have AVX-512, and the rows and columns must be there.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn dots<B: Operand, const M: usize>(
    a: Mat,
    row: usize,
    b: B,
    columns: [usize; thin::LINES],
) -> [[f32; thin::LINES]; M] {
    // Of the even and of the odd vectors.
    let mut sums = [[[_mm512_setzero_ps(); thin::LINES]; M]; 2];
    let (first, [row_stride, _]) = (a.at(row, 0), a.strides);
    let end = a.shape[1] / LANES * LANES;
    // Two vectors at a time: most packed weights have a scale for 32 numbers, or more.
    for pair in (0..end).step_by(2 * LANES) {
        for (half, sums) in sums.iter_mut().enumerate() {
            let i = pair + half * LANES;
            if i == end {
                break;
            }
            let mut numbers = [_mm512_setzero_ps(); thin::LINES];
            for (numbers, column) in numbers.iter_mut().zip(columns) {
                b.prefetch(i, column + thin::LINES);
                // SAFETY: the caller's.
                *numbers = unsafe { b.column16(i, column) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let a = unsafe { _mm512_loadu_ps(first.add(row * row_stride + i)) };
                for (sum, numbers) in sums.iter_mut().zip(numbers) {
                    *sum = _mm512_fmadd_ps(a, numbers, *sum);
                }
            }
        }
    }
    let [even, odd] = sums;
    let mut totals = [[0.0; thin::LINES]; M];
    for (totals, (even, odd)) in totals.iter_mut().zip(even.into_iter().zip(odd)) {
        for (total, (even, odd)) in totals.iter_mut().zip(even.into_iter().zip(odd)) {
            *total = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
        }
    }
    totals
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
    assert!(rows.end <= a.shape[0] && first < n);
    for start in (0..k).step_by(DEPTH) {
        let (depth, width) = (DEPTH.min(k - start), PANEL.min(n - first));
        let buffer = buffer.reserve(depth);
        // SAFETY: `matmul` asked for AVX-512; it and the constructors checked that all elements of
        // the three matrices lie inside their data.
        unsafe {
            pack(b, [start, first], [depth, width], buffer);
            let tile = Tile {
                a: a.data[start * a.strides[1]..].as_ptr(),
                a_strides: a.strides,
                b: buffer.as_ptr().cast(),
                depth,
                out: out.data.wrapping_add(first),
                out_stride: out.row_stride,
                width,
                add: start > 0 || output == Output::Add,
            };
            tile.rows(rows.clone());
        }
    }
}

/// [`panel`] of a product with pairs of bf16; `a` has `k / 2` of them in a row, rounded up.
pub fn panel_of_pairs<B: Operand>(
    out: MatMut,
    a: &[u32],
    b: B,
    rows: Range<usize>,
    first: usize,
    buffer: &mut Buffer,
) {
    let [k, n] = b.shape();
    let pairs = k.div_ceil(2);
    assert!(rows.end * pairs <= a.len() && rows.end <= out.shape[0] && first < n);
    for start in (0..pairs).step_by(DEPTH) {
        let (depth, width) = (DEPTH.min(pairs - start), PANEL.min(n - first));
        let buffer = buffer.reserve(depth);
        // SAFETY: `matmul_bf16` asked for the instruction; the assertion and the constructors
        // checked that all elements lie inside their data.
        unsafe {
            pack_pairs(b, [start, first], [depth, width], buffer);
            let tile = Tile {
                a: a[start..].as_ptr().cast(),
                a_strides: [pairs, 1],
                b: buffer.as_ptr().cast(),
                depth,
                out: out.data.wrapping_add(first),
                out_stride: out.row_stride,
                width,
                add: start > 0,
            };
            tile.rows_of_pairs(rows.clone());
        }
    }
}

impl Buffer {
    pub fn reserve(&mut self, depth: usize) -> &mut [PanelRow] {
        let depth = depth.max(self.0.len());
        self.0.resize(depth, PanelRow([0.0; PANEL]));
        &mut self.0
    }
}

/// Brings `depth x width` numbers of `b` into the buffer.
///
/// # Safety
/// The processor must have AVX-512, and the numbers from (row, col) on lie inside of `b`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack<B: Operand>(
    b: B,
    [row, col]: [usize; 2],
    [depth, width]: [usize; 2],
    buffer: &mut [PanelRow],
) {
    let is_transposed = b.is_transposed();
    for j in (0..width).step_by(LANES) {
        for i in (0..depth).step_by(LANES) {
            let rows = &mut buffer[i..depth.min(i + LANES)];
            let (row, col) = (row + i, col + j);
            if rows.len() < LANES || j + LANES > width {
                pack_edge(rows, j, width, |i, j| b.number(row + i, col + j));
                continue;
            }
            // SAFETY: 16 x 16 numbers from (row, col) lie inside of `b`, and of the buffer.
            unsafe {
                let to = rows.as_mut_ptr().cast::<f32>().add(j);
                match is_transposed {
                    true => transpose(|j| b.load16(row, col + j), to),
                    false => copy(|i| b.load16(row + i, col), to),
                }
            }
        }
    }
}

/// Brings `depth x width` pairs of numbers of `b`, below each other and in bf16, into the buffer.
///
/// # Safety
/// The processor must have AVX-512 with bf16, and the first of each pair lie inside of `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn pack_pairs<B: Operand>(
    b: B,
    [row, col]: [usize; 2],
    [depth, width]: [usize; 2],
    buffer: &mut [PanelRow],
) {
    let ([k, _], is_transposed) = (b.shape(), b.is_transposed());
    for j in (0..width).step_by(LANES) {
        for i in (0..depth).step_by(LANES) {
            let rows = &mut buffer[i..depth.min(i + LANES)];
            let (row, col) = (2 * (row + i), col + j);
            if row + 2 * LANES > k || rows.len() < LANES || j + LANES > width {
                pack_edge(rows, j, width, |i, j| pair(b, row + 2 * i, col + j));
                continue;
            }
            // SAFETY: 16 x 16 pairs from (row, col) lie inside of `b`, and of the buffer.
            unsafe {
                let to = rows.as_mut_ptr().cast::<f32>().add(j);
                match is_transposed {
                    true => transpose(|j| b.load32_bf16(row, col + j), to),
                    false => copy(|i| load_pairs(b, row + 2 * i, col), to),
                }
            }
        }
    }
}

/// A number in bf16 in the lower half, and the one below it, if there is one.
fn pair<B: Operand>(b: B, row: usize, col: usize) -> f32 {
    let [k, _] = b.shape();
    let half = |row| {
        if row < k {
            bf16_bits(b.number(row, col))
        } else {
            0
        }
    };
    f32::from_bits(half(row) | half(row + 1) << 16)
}

/// 16 columns from `first` on, with zeros from `width` on; `number` gives the others, counted from `first`.
fn pack_edge(
    rows: &mut [PanelRow],
    first: usize,
    width: usize,
    number: impl Fn(usize, usize) -> f32,
) {
    for (i, values) in rows.iter_mut().enumerate() {
        for (j, value) in values.0[first..first + LANES].iter_mut().enumerate() {
            *value = if first + j < width { number(i, j) } else { 0.0 };
        }
    }
}

/// 16 pairs of a row's number, in the lower half, and that of the row below it.
///
/// # Safety
/// The processor must have AVX-512, with bf16; 16 numbers of this row and the next from `col` on lie inside of `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load_pairs<B: Operand>(b: B, row: usize, col: usize) -> __m512 {
    // A widened bf16 has its bits in the upper half.
    // SAFETY: the caller's.
    let [lower, upper] = unsafe { [b.load16_bf16(row, col), b.load16_bf16(row + 1, col)] };
    let lower = _mm512_srli_epi32::<16>(_mm512_castps_si512(lower));
    _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(upper), lower))
}

/// Writes 16 x 16 numbers, whose rows `load` gives, as rows `PANEL` apart.
///
/// # Safety
/// The processor must have AVX-512, and 16 rows `PANEL` apart lie at `to`, aligned.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy(load: impl Fn(usize) -> __m512, to: *mut f32) {
    for row in 0..LANES {
        // SAFETY: the caller says that `to` is aligned, and has 16 rows of `PANEL` numbers.
        unsafe { _mm512_store_ps(to.add(row * PANEL), load(row)) };
    }
}

/// Writes 16 x 16 numbers, whose columns `load` gives, as rows `PANEL` apart.
///
/// # Safety
/// The processor must have AVX-512, and 16 rows `PANEL` apart lie at `to`, aligned.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose(load: impl Fn(usize) -> __m512, to: *mut f32) {
    let mut columns = [_mm512_setzero_ps(); LANES];
    for (j, column) in columns.iter_mut().enumerate() {
        *column = load(j);
    }
    // Pairs of columns, then fours; then the four lanes of 128 bits change places.
    let mut pairs = columns;
    for j in (0..LANES).step_by(2) {
        pairs[j] = _mm512_unpacklo_ps(columns[j], columns[j + 1]);
        pairs[j + 1] = _mm512_unpackhi_ps(columns[j], columns[j + 1]);
    }
    let mut fours = pairs;
    for j in (0..LANES).step_by(4) {
        let pair = |j: usize| _mm512_castps_pd(pairs[j]);
        let low = |j| _mm512_castpd_ps(_mm512_unpacklo_pd(pair(j), pair(j + 2)));
        let high = |j| _mm512_castpd_ps(_mm512_unpackhi_pd(pair(j), pair(j + 2)));
        (fours[j], fours[j + 1]) = (low(j), high(j));
        (fours[j + 2], fours[j + 3]) = (low(j + 1), high(j + 1));
    }
    for i in 0..4 {
        let even = |j: usize| _mm512_shuffle_f32x4::<0x88>(fours[j], fours[j + 4]);
        let odd = |j: usize| _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[j + 4]);
        let (even_low, even_high) = (even(i), even(i + 8));
        let (odd_low, odd_high) = (odd(i), odd(i + 8));
        let rows = [
            (i, _mm512_shuffle_f32x4::<0x88>(even_low, even_high)),
            (i + 4, _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high)),
            (i + 8, _mm512_shuffle_f32x4::<0xdd>(even_low, even_high)),
            (i + 12, _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high)),
        ];
        for (row, values) in rows {
            // SAFETY: the caller says that `to` is aligned, and has 16 rows of `PANEL` numbers.
            unsafe { _mm512_store_ps(to.add(row * PANEL), values) };
        }
    }
}

/// A panel of the product, and the parts of `a` and `b` that a pass over it multiplies.
struct Tile {
    a: *const f32,
    a_strides: [usize; 2],
    b: *const f32,
    depth: usize,
    out: *mut f32,
    out_stride: usize,
    width: usize,
    add: bool,
}

impl Tile {
    /// # Safety
    /// The processor must have AVX-512, and all elements must lie inside of their data.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn rows(&self, rows: Range<usize>) {
        // SAFETY: the caller's.
        unsafe { self.compute_rows::<F32>(rows) }
    }

    /// # Safety
    /// As [`rows`](Self::rows), with AVX-512 for bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn rows_of_pairs(&self, rows: Range<usize>) {
        // SAFETY: the caller's.
        unsafe { self.compute_rows::<Bf16Pairs>(rows) }
    }

    /// Six rows at a time.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), with what the step needs.
    #[inline(always)]
    unsafe fn compute_rows<S: Step>(&self, rows: Range<usize>) {
        let vectors = self.width.div_ceil(LANES);
        for row in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - row);
            // SAFETY: the caller's; there are no more rows than `rows` has.
            unsafe {
                match vectors {
                    1 => self.compute_vectors::<S, 1>(row, count),
                    2 => self.compute_vectors::<S, 2>(row, count),
                    3 => self.compute_vectors::<S, 3>(row, count),
                    _ => self.compute_vectors::<S, VECTORS>(row, count),
                }
            }
        }
    }

    /// # Safety
    /// As [`rows`](Self::rows), with what the step needs, of `count` rows of V vectors.
    #[inline(always)]
    unsafe fn compute_vectors<S: Step, const V: usize>(&self, row: usize, count: usize) {
        // SAFETY: the caller's; `M` is not more than `count`.
        unsafe {
            match count {
                1 => self.compute::<S, 1, V>(row),
                2 => self.compute::<S, 2, V>(row),
                3 => self.compute::<S, 3, V>(row),
                4 => self.compute::<S, 4, V>(row),
                5 => self.compute::<S, 5, V>(row),
                _ => self.compute::<S, ROWS, V>(row),
            }
        }
    }

    /// M rows of V vectors, all in registers.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), with what the step needs, of the M rows from `row` on.
    #[inline(always)]
    unsafe fn compute<S: Step, const M: usize, const V: usize>(&self, row: usize) {
        // SAFETY: the caller says that these rows lie inside of `a` and `out`; rows of a panel are aligned,
        // and as many as `depth`.
        unsafe {
            let [row_stride, col_stride] = self.a_strides;
            let out = self.out.add(row * self.out_stride);
            for row in 0..M {
                for vector in 0..V {
                    // A prefetch may be of any address.
                    let line = out.wrapping_add(row * self.out_stride + vector * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                }
            }
            let mut sums = [[_mm512_setzero_ps(); V]; M];
            let (mut a, mut b) = (self.a.add(row * row_stride), self.b);
            for _ in 0..self.depth {
                let columns: [__m512; V] =
                    std::array::from_fn(|vector| _mm512_load_ps(b.add(vector * LANES)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(row * row_stride));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = S::multiply_add(value, column, *sum);
                    }
                }
                a = a.wrapping_add(col_stride);
                b = b.wrapping_add(PANEL);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    let first = vector * LANES;
                    let out = out.add(row * self.out_stride + first);
                    self.store(out, *sum, self.width - first);
                }
            }
        }
    }

    /// Writes or adds the first `count` numbers.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), of `count` numbers at `out`.
    #[inline(always)]
    unsafe fn store(&self, out: *mut f32, sum: __m512, count: usize) {
        // SAFETY: the caller says that `count` numbers are there; where they are fewer than 16 the mask
        // leaves out the others.
        unsafe {
            if count >= LANES {
                let sum = match self.add {
                    true => _mm512_add_ps(sum, _mm512_loadu_ps(out)),
                    false => sum,
                };
                _mm512_storeu_ps(out, sum);
            } else {
                let mask = (1 << count) - 1;
                let sum = match self.add {
                    true => _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out)),
                    false => sum,
                };
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}
