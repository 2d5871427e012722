//! Matrix products with a frozen right-hand side, and the small ones inside the attention.
//!
//! `out (+)= a · b` with `a` of any strides and `b` row-major or transposed, in f32, bf16 or f16.
//! With AVX-512 the product is computed by panels of `b`, 64 columns wide: a panel is brought to
//! f32 and to row order once, in cache, and serves all rows of `a`, which is read where it lies.
//! A weight so needs neither a transposed nor a widened copy, and both passes run at the same
//! speed. Where there is a matrix unit (Intel AMX), it takes the products with bf16. With AVX2 weights
//! that are not f32 have such panels too. Products of a few rows read a weight where it lies ([`thin`]). All else is the
//! `gemm` crate's. `docs/performance.md` has the measurements.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod thin;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::vector::vectorized;

/// Columns of the product that are computed together.
#[cfg(target_arch = "x86_64")]
const PANEL: usize = 64;

/// A matrix to read, `[rows, cols]`; the element (i, j) is at `i · strides[0] + j · strides[1]`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T = f32> {
    data: &'a [T],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a, T> Mat<'a, T> {
    /// # Panics
    /// If an element would lie outside of `data`.
    pub fn new(data: &'a [T], shape: [usize; 2], strides: [usize; 2]) -> Self {
        assert_inside(data.len(), shape, strides);
        Self {
            data,
            shape,
            strides,
        }
    }

    /// Rows one after another.
    pub fn row_major(data: &'a [T], shape: [usize; 2]) -> Self {
        Self::new(data, shape, [shape[1], 1])
    }

    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where the element (i, j) is.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *const T {
        let offset = i * self.strides[0] + j * self.strides[1];
        self.data.as_ptr().wrapping_add(offset)
    }

    pub fn transpose(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.shape, self.strides);
        Self {
            data: self.data,
            shape: [cols, rows],
            strides: [col_stride, row_stride],
        }
    }
}

/// A matrix to write, `[rows, cols]`, with contiguous rows, `row_stride` apart. Parts of one buffer
/// that do not overlap may be written by several threads.
#[derive(Clone, Copy)]
pub struct MatMut {
    data: *mut f32,
    shape: [usize; 2],
    row_stride: usize,
}

// SAFETY: a pointer and sizes; who builds one promises that nobody else touches its elements.
unsafe impl Send for MatMut {}
// SAFETY: the same.
unsafe impl Sync for MatMut {}

impl MatMut {
    pub fn row_major(data: &mut [MaybeUninit<f32>], shape: [usize; 2]) -> Self {
        assert_inside(data.len(), shape, [shape[1], 1]);
        Self {
            data: data.as_mut_ptr().cast(),
            shape,
            row_stride: shape[1],
        }
    }

    /// The same, of numbers that a product can be added to.
    pub fn row_major_of(data: &mut [f32], shape: [usize; 2]) -> Self {
        assert_inside(data.len(), shape, [shape[1], 1]);
        Self {
            data: data.as_mut_ptr(),
            shape,
            row_stride: shape[1],
        }
    }

    /// # Safety
    /// All elements must lie in one allocation, and nothing else may read or write them while the
    /// matrix is in use.
    pub unsafe fn from_raw(data: *mut f32, shape: [usize; 2], row_stride: usize) -> Self {
        Self {
            data,
            shape,
            row_stride,
        }
    }

    /// Writes some numbers of a row, or adds them to it.
    ///
    /// # Safety
    /// They must lie inside of the matrix, and nothing else may read or write them now.
    unsafe fn set(&self, output: Output, [row, col]: [usize; 2], numbers: &[f32]) {
        for (i, number) in numbers.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let out = self.data.add(row * self.row_stride + col + i);
                match output {
                    Output::Write => out.write(*number),
                    Output::Add => *out += number,
                }
            }
        }
    }

    fn fill_with_zeros(&self) {
        let [rows, cols] = self.shape;
        for row in 0..rows {
            // SAFETY: the row lies inside of the matrix.
            unsafe { self.data.add(row * self.row_stride).write_bytes(0, cols) };
        }
    }
}

fn assert_inside(len: usize, [rows, cols]: [usize; 2], strides: [usize; 2]) {
    if rows > 0 && cols > 0 {
        let last = (rows - 1) * strides[0] + (cols - 1) * strides[1];
        assert!(last < len, "a matrix reaches beyond its data");
    }
}

/// What happens to what is in the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is overwritten, and may be uninitialised.
    Write,
    /// The product is added to it.
    Add,
}

/// The right-hand side of a product, `[k, n]`: lines of contiguous numbers, which are its rows or its columns.
pub trait Operand: Copy + Send + Sync {
    fn shape(&self) -> [usize; 2];

    /// Whether the lines are its columns.
    fn is_transposed(&self) -> bool;

    /// The element (i, j), widened.
    fn number(&self, i: usize, j: usize) -> f32;

    /// Widens the numbers of a line from `first` on, a multiple of 16: as many as `out` has, a multiple of 16 too or
    /// up to the line's end.
    fn widen(&self, line: usize, first: usize, out: &mut [f32]);

    /// The matrix itself, if it is of f32.
    fn as_f32(&self) -> Option<Mat<'_>> {
        None
    }

    /// The matrix itself, if it is of bf16.
    #[cfg(target_arch = "x86_64")]
    fn as_bf16(&self) -> Option<Mat<'_, bf16>> {
        None
    }

    /// Says that the numbers from (i, j) on will be read, if there are any.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch(&self, _i: usize, _j: usize) {}

    /// 16 numbers of a line from (i, j) on, a multiple of 16 along the line, widened.
    ///
    /// # Safety
    /// They must lie inside, and the processor must have AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(&self, i: usize, j: usize) -> __m512;

    /// The same on a processor with AVX2, FMA and F16C.
    ///
    /// # Safety
    /// They must lie inside, and the processor must have these.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16_avx2(&self, i: usize, j: usize) -> [__m256; 2];

    /// [`load16`](Self::load16) of column `j`, where the lines are the columns.
    ///
    /// # Safety
    /// As there.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn column16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { self.load16(i, j) }
    }

    /// The same of [`load16_avx2`](Self::load16_avx2).
    ///
    /// # Safety
    /// As there.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn column16_avx2(&self, i: usize, j: usize) -> [__m256; 2] {
        // SAFETY: the caller's.
        unsafe { self.load16_avx2(i, j) }
    }

    /// The same, rounded to bf16.
    ///
    /// # Safety
    /// As [`Self::load16`], with AVX-512 for bf16.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_bf16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { avx512::rounded(self.load16(i, j)) }
    }

    /// 32 numbers of a column in bf16, where columns are contiguous.
    ///
    /// # Safety
    /// As [`Self::load16_bf16`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load32_bf16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { avx512::rounded_both(self.load16(i, j), self.load16(i + 16, j)) }
    }
}

/// A number that a frozen weight may be stored in.
pub trait Number: Copy + Send + Sync {
    fn widen(self) -> f32;

    /// Widens numbers, as many as `out` has.
    fn widen_all(numbers: &[Self], out: &mut [f32]);

    /// The numbers themselves, if they are f32.
    fn as_f32(_numbers: &[Self]) -> Option<&[f32]> {
        None
    }

    /// The matrix itself, if it is of bf16.
    #[cfg(target_arch = "x86_64")]
    fn as_bf16(_mat: Mat<Self>) -> Option<Mat<bf16>> {
        None
    }

    /// Widens 16 numbers.
    ///
    /// # Safety
    /// `source` must be readable for 16 numbers, and the processor must have AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(source: *const Self) -> __m512;

    /// Widens 8 numbers.
    ///
    /// # Safety
    /// `source` must be readable for 8 numbers, and the processor must have AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load8(source: *const Self) -> __m256;

    /// The same, rounded to bf16.
    ///
    /// # Safety
    /// As [`Self::load16`], with AVX-512 for bf16.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_bf16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { avx512::rounded(Self::load16(source)) }
    }

    /// 32 numbers in bf16.
    ///
    /// # Safety
    /// As [`Self::load16_bf16`], with 32 numbers to read.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load32_bf16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { avx512::rounded_both(Self::load16(source), Self::load16(source.add(16))) }
    }
}

impl Number for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn widen_all(numbers: &[Self], out: &mut [f32]) {
        out.copy_from_slice(numbers);
    }

    fn as_f32(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(source) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(source: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(source) }
    }
}

impl Number for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn widen_all(numbers: &[Self], out: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                for (out, number) in out.iter_mut().zip(numbers) {
                    *out = f32::from_bits(u32::from(number.to_bits()) << 16);
                }
            },
        );
    }

    #[cfg(target_arch = "x86_64")]
    fn as_bf16(mat: Mat<Self>) -> Option<Mat<bf16>> {
        Some(mat)
    }

    /// A bf16 is the upper half of an f32.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(source: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_bf16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { Self::load16(source) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load32_bf16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(source.cast()) }
    }
}

impl Number for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn widen_all(numbers: &[Self], out: &mut [f32]) {
        numbers.convert_to_f32_slice(out);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load8(source: *const Self) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(source.cast())) }
    }
}

impl<T: Number> Operand for Mat<'_, T> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn is_transposed(&self) -> bool {
        self.strides[0] == 1 && self.strides[1] != 1
    }

    #[inline(always)]
    fn number(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.strides[0] + j * self.strides[1]].widen()
    }

    fn widen(&self, line: usize, first: usize, out: &mut [f32]) {
        let stride = self.strides[usize::from(self.is_transposed())];
        T::widen_all(&self.data[line * stride + first..][..out.len()], out);
    }

    fn as_f32(&self) -> Option<Mat<'_>> {
        let data = T::as_f32(self.data)?;
        Some(Mat::new(data, self.shape, self.strides))
    }

    #[cfg(target_arch = "x86_64")]
    fn as_bf16(&self) -> Option<Mat<'_, bf16>> {
        T::as_bf16(*self)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        // Where nothing is mapped a hint takes longer than a read.
        if j < self.shape[1] {
            // SAFETY: a hint, which reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.at(i, j).cast()) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { T::load16(self.at(i, j)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_avx2(&self, i: usize, j: usize) -> [__m256; 2] {
        let source = self.at(i, j);
        // SAFETY: the caller's.
        unsafe { [T::load8(source), T::load8(source.add(8))] }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_bf16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { T::load16_bf16(self.at(i, j)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load32_bf16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { T::load32_bf16(self.at(i, j)) }
    }
}

/// `out (+)= a · b` on all threads.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<B: Operand>(out: MatMut, output: Output, a: Mat, b: B) {
    if is_done_by_check(&out, output, &a, &b) {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    match b.as_bf16() {
        _ if thin::serves(&a, &b, true) => return thin::matmul(out, output, a, b),
        Some(b) if amx::serves(a.shape[0]) => {
            return amx::matmul(out, output, a, b, amx::Split::Exact);
        }
        _ if avx512::is_supported() => return avx512_matmul(out, output, a, b),
        // The `gemm` crate is as fast, but takes no other weight.
        _ if avx2::is_supported() && b.as_f32().is_none() => return avx2_matmul(out, output, a, b),
        _ => {}
    }
    portable(out, output, a, b, gemm::Parallelism::Rayon(0));
}

#[cfg(target_arch = "x86_64")]
fn avx512_matmul<B: Operand>(out: MatMut, output: Output, a: Mat, b: B) {
    let rows = [avx512::ROWS, usize::MAX];
    all_panels(out.shape, rows, |rows, first, buffer| {
        avx512::panel(out, output, a, b, rows, first, buffer);
    });
}

#[cfg(target_arch = "x86_64")]
fn avx2_matmul<B: Operand>(out: MatMut, output: Output, a: Mat, b: B) {
    let rows = [avx2::ROWS, usize::MAX];
    all_panels(out.shape, rows, |rows, first, buffer| {
        avx2::panel(out, output, a, b, rows, first, buffer);
    });
}

/// Calls `panel` with the rows and the first column of the parts of a product, on all threads. A part
/// has at most `at_most` rows, brought up to a multiple of `multiple`.
#[cfg(target_arch = "x86_64")]
fn all_panels<Buffer: Default>(
    [m, n]: [usize; 2],
    [multiple, at_most]: [usize; 2],
    panel: impl Fn(Range<usize>, usize, &mut Buffer) + Sync,
) {
    let panels = n.div_ceil(PANEL);
    let parts = (2 * rayon::current_num_threads()).div_ceil(panels);
    let rows = m.div_ceil(parts).min(at_most).next_multiple_of(multiple);
    let tasks = (0..panels * m.div_ceil(rows)).into_par_iter();
    tasks.for_each_init(Buffer::default, |buffer, task| {
        let (index, part) = (task % panels, task / panels);
        let rows = part * rows..m.min((part + 1) * rows);
        panel(rows, index * PANEL, buffer);
    });
}

/// Whether [`matmul_bf16`] can be called: the processor multiplies bf16.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::multiplies_bf16();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether [`matmul_bf16`] takes less time than [`matmul`]: with a matrix unit, and on AMD's processors. Others that
/// multiply bf16 do so at a rate at which rounding costs more than it saves.
pub fn bf16_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::is_supported() || multiplies_bf16() && is_of_amd();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// By the vendor that CPUID names.
#[cfg(target_arch = "x86_64")]
fn is_of_amd() -> bool {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD"
}

/// Whether there are so few rows that [`matmul`], which then reads each number of `b` where it lies, is faster than
/// [`matmul_bf16`].
pub fn is_thin<B: Operand>(a: &Mat, b: &B) -> bool {
    #[cfg(target_arch = "x86_64")]
    return thin::serves(a, b, false);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (a, b);
        false
    }
}

/// `out = a · b` on all threads, with both rounded to bf16 and sums in f32. `a` is row-major.
///
/// # Panics
/// If the shapes do not fit, or the processor does not multiply bf16.
pub fn matmul_bf16<B: Operand>(out: MatMut, a: Mat, b: B) {
    assert!(multiplies_bf16(), "the processor does not multiply bf16");
    if is_done_by_check(&out, Output::Write, &a, &b) {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if amx::serves(a.shape[0]) {
        amx::matmul(out, Output::Write, a, b, amx::Split::Rounded);
    } else {
        avx512_matmul_bf16(out, a, b);
    }
}

#[cfg(target_arch = "x86_64")]
fn avx512_matmul_bf16<B: Operand>(out: MatMut, a: Mat, b: B) {
    let a = pairs_of_bf16(a);
    let rows = [avx512::ROWS, usize::MAX];
    all_panels(out.shape, rows, |rows, first, buffer| {
        avx512::panel_of_pairs(out, &a, b, rows, first, buffer);
    });
}

/// The rows of `a` in bf16, two numbers in one, a lonely last one with a zero.
#[cfg(target_arch = "x86_64")]
fn pairs_of_bf16(a: Mat) -> Vec<u32> {
    let [rows, k] = a.shape;
    assert!(a.strides == [k, 1], "the left-hand side is not row-major");
    let pairs = k.div_ceil(2);
    let mut out = Vec::with_capacity(rows * pairs);
    let spare = &mut out.spare_capacity_mut()[..rows * pairs];
    let both = spare.par_chunks_exact_mut(pairs).zip(a.data.par_chunks(k));
    both.for_each(|(out, row)| {
        vectorized(
            #[inline(always)]
            || {
                let (two, one) = row.as_chunks::<2>();
                for (out, [lower, upper]) in out.iter_mut().zip(two) {
                    out.write(bf16_bits(*lower) | bf16_bits(*upper) << 16);
                }
                if let [last] = one {
                    out[pairs - 1].write(bf16_bits(*last));
                }
            },
        );
    });
    // SAFETY: all pairs are written.
    unsafe { out.set_len(rows * pairs) };
    out
}

/// The bits of the nearest bf16, ties to even.
#[inline(always)]
pub fn bf16_bits(value: f32) -> u32 {
    const NAN: u32 = 0x7fc0;
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { NAN } else { rounded }
}

/// What a thread keeps between products, so that it need not be allocated again.
#[derive(Default)]
pub struct Scratch {
    #[cfg(target_arch = "x86_64")]
    panel: avx512::Buffer,
    #[cfg(target_arch = "x86_64")]
    strip: avx2::Buffer,
}

impl Scratch {
    /// `out (+)= a · b` on this thread.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn matmul<B: Operand>(&mut self, out: MatMut, output: Output, a: Mat, b: B) {
        if is_done_by_check(&out, output, &a, &b) {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if avx2::is_supported() {
            let is_wide = avx512::is_supported();
            for first in (0..out.shape[1]).step_by(PANEL) {
                let rows = 0..out.shape[0];
                match is_wide {
                    true => avx512::panel(out, output, a, b, rows, first, &mut self.panel),
                    false => avx2::panel(out, output, a, b, rows, first, &mut self.strip),
                }
            }
            return;
        }
        portable(out, output, a, b, gemm::Parallelism::None);
    }
}

/// Checks the shapes; true if there is nothing to multiply.
fn is_done_by_check(out: &MatMut, output: Output, a: &Mat, b: &impl Operand) -> bool {
    let ([m, k], [k_b, n]) = (a.shape, b.shape());
    assert!(k == k_b && out.shape == [m, n], "shapes do not fit");
    if k == 0 && output == Output::Write {
        out.fill_with_zeros();
    }
    m * n * k == 0
}

/// Lines of `b` that are widened at a time where the processor has neither AVX-512 nor AVX2.
const WIDENED_LINES: usize = 256;

/// By the `gemm` crate, `b` widened some of its lines at a time.
fn portable<B: Operand>(out: MatMut, output: Output, a: Mat, b: B, parallelism: gemm::Parallelism) {
    if let Some(b) = b.as_f32() {
        return call_gemm(out, output, a, b, parallelism);
    }
    let ([rows, columns], is_transposed) = (b.shape(), b.is_transposed());
    let [num_lines, len] = if is_transposed {
        [columns, rows]
    } else {
        [rows, columns]
    };
    let mut widened = Vec::new();
    for first in (0..num_lines).step_by(WIDENED_LINES) {
        let count = WIDENED_LINES.min(num_lines - first);
        widened.resize(count * len, 0.0);
        let lines = widened.chunks_exact_mut(len.max(1)).enumerate();
        lines.for_each(|(line, out)| b.widen(first + line, 0, out));
        let part = Mat::row_major(&widened, [count, len]);
        match is_transposed {
            // The lines of b are columns of the product.
            true => {
                let columns = out.columns(first, count);
                call_gemm(columns, output, a, part.transpose(), parallelism);
            }
            // The lines of b meet columns of a: the products add up.
            false => {
                let output = if first == 0 { output } else { Output::Add };
                let a = a.columns(first, count);
                call_gemm(out, output, a, part, parallelism);
            }
        }
    }
}

impl MatMut {
    fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.shape[1]);
        Self {
            // SAFETY: within the matrix.
            data: unsafe { self.data.add(first) },
            shape: [self.shape[0], count],
            row_stride: self.row_stride,
        }
    }
}

impl Mat<'_> {
    fn columns(self, first: usize, count: usize) -> Self {
        let start = (first * self.strides[1]).min(self.data.len());
        Self::new(&self.data[start..], [self.shape[0], count], self.strides)
    }
}

fn call_gemm(out: MatMut, output: Output, a: Mat, b: Mat, parallelism: gemm::Parallelism) {
    let ([m, k], [_, n]) = (a.shape, b.shape);
    let stride = |stride: usize| stride as isize;
    // SAFETY: `is_done_by_check` and the constructors keep all three inside their data.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data,
            1,
            stride(out.row_stride),
            output == Output::Add,
            a.data.as_ptr(),
            stride(a.strides[1]),
            stride(a.strides[0]),
            b.data.as_ptr(),
            stride(b.strides[1]),
            stride(b.strides[0]),
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -0.5 and 0.5 that half precision holds exactly.
    fn short_numbers(len: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 257) as f32 / 256.0 - 0.5;
        (0..len).map(number).collect()
    }

    /// Numbers of as many digits as an f32 has.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        let numbers = short_numbers(len, seed).into_iter();
        numbers.map(|number| number * 1.017_347_4).collect()
    }

    fn expected(a: Mat, b: Mat, start: &[f32]) -> Vec<f32> {
        let ([m, k], [_, n]) = (a.shape, b.shape);
        let at = |mat: &Mat, i, j| f64::from(mat.data[i * mat.strides[0] + j * mat.strides[1]]);
        let element = |i: usize| {
            let products = (0..k).map(|q| at(&a, i / n, q) * at(&b, q, i % n));
            (f64::from(start[i]) + products.sum::<f64>()) as f32
        };
        (0..m * n).map(element).collect()
    }

    /// One element, odd sizes, more than a panel, more than a depth, more than a tile, none.
    const SIZES: [[usize; 3]; 10] = [
        [1, 1, 1],
        [5, 3, 17],
        [7, 65, 129],
        [13, 130, 1111],
        [6, 64, 512],
        [3, 300, 600],
        [40, 100, 70],
        [210, 64, 1030],
        [2, 3, 0],
        [0, 3, 2],
    ];

    type Matmul<T> = fn(MatMut, Output, Mat, Mat<T>);

    fn assert_products<T: Number>(narrow: fn(f32) -> T, matmul: Matmul<T>) {
        for [m, n, k] in SIZES {
            // One more in front: not aligned.
            let (a, b) = (numbers(m * k + 1, 1), short_numbers(n * k + 1, 2));
            let narrowed: Vec<T> = b.iter().map(|value| narrow(*value)).collect();
            for (a_strides, b_strides) in [
                ([k, 1], [n, 1]),
                ([k, 1], [1, k]),
                ([1, m], [1, k]),
                ([1, m], [n, 1]),
            ] {
                let a = Mat::new(&a[1..], [m, k], a_strides);
                let exact = Mat::new(&b[1..], [k, n], b_strides);
                let b = Mat::new(&narrowed[1..], [k, n], b_strides);
                for (output, before) in [(Output::Write, 0.0), (Output::Add, 0.25)] {
                    // Two columns more than are written: they must stay.
                    let mut out = vec![before; m * (n + 2)];
                    // SAFETY: `out` has `m` rows of `n + 2` numbers, and is not used but through `target`
                    // until that is dropped.
                    let target = unsafe { MatMut::from_raw(out.as_mut_ptr(), [m, n], n + 2) };
                    matmul(target, output, a, b);
                    let expected = expected(a, exact, &vec![before; m * n]);
                    for row in 0..m {
                        let (found, rest) = out[row * (n + 2)..][..n + 2].split_at(n);
                        assert_eq!(rest, [before; 2]);
                        for (found, expected) in found.iter().zip(&expected[row * n..]) {
                            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_equal_sums_of_products() {
        assert_products(|value| value, |out, output, a, b| matmul(out, output, a, b));
        assert_products(
            |value| value,
            |out, output, a, b| Scratch::default().matmul(out, output, a, b),
        );
        assert_products(bf16::from_f32, |out, output, a, b| {
            matmul(out, output, a, b)
        });
        assert_products(f16::from_f32, |out, output, a, b| matmul(out, output, a, b));
        // Where a matrix unit takes bf16, the other body too.
        #[cfg(target_arch = "x86_64")]
        if avx512::is_supported() {
            assert_products(bf16::from_f32, |out, output, a, b| {
                if !is_done_by_check(&out, output, &a, &b) {
                    avx512_matmul(out, output, a, b);
                }
            });
        }
        #[cfg(target_arch = "x86_64")]
        if avx2::is_supported() {
            fn here<T: Number>(out: MatMut, output: Output, a: Mat, b: Mat<T>) {
                if !is_done_by_check(&out, output, &a, &b) {
                    avx2_matmul(out, output, a, b);
                }
            }
            assert_products(|value| value, here);
            assert_products(bf16::from_f32, here);
            assert_products(f16::from_f32, here);
        }
    }

    #[test]
    fn bf16_products_equal_those_of_rounded_numbers() {
        if !multiplies_bf16() {
            return println!("skipped: the processor does not multiply bf16");
        }
        assert_rounded_products(|out, a, b| matmul_bf16(out, a, b));
        #[cfg(target_arch = "x86_64")]
        if avx512::multiplies_bf16() {
            assert_rounded_products(|out, a, b| {
                if !is_done_by_check(&out, Output::Write, &a, &b) {
                    avx512_matmul_bf16(out, a, b);
                }
            });
        }
    }

    fn assert_rounded_products(matmul_bf16: fn(MatMut, Mat, Mat<bf16>)) {
        for [m, n, k] in SIZES {
            let (a, b) = (numbers(m * k, 1), short_numbers(n * k + 1, 2));
            let rounded: Vec<f32> = a.iter().map(|a| bf16::from_f32(*a).to_f32()).collect();
            let narrowed: Vec<bf16> = b.iter().map(|value| bf16::from_f32(*value)).collect();
            for b_strides in [[n, 1], [1, k]] {
                let exact = Mat::new(&b[1..], [k, n], b_strides);
                let b = Mat::new(&narrowed[1..], [k, n], b_strides);
                let mut out = vec![MaybeUninit::new(0.0); m * n];
                let target = MatMut::row_major(&mut out, [m, n]);
                matmul_bf16(target, Mat::row_major(&a, [m, k]), b);
                let rounded = Mat::row_major(&rounded, [m, k]);
                for (found, expected) in out.iter().zip(expected(rounded, exact, &vec![0.0; m * n]))
                {
                    // SAFETY: the product wrote all numbers.
                    let found = unsafe { found.assume_init() };
                    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn rounding_to_bf16_is_that_of_half() {
        let special = [0.0, -0.0, f32::INFINITY, f32::MIN, f32::MAX, 1e-45];
        for value in numbers(1000, 3).into_iter().chain(special) {
            let expected = bf16::from_f32(value).to_bits();
            assert_eq!(bf16_bits(value), u32::from(expected), "{value}");
        }
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xffc0_0000] {
            let rounded = bf16_bits(f32::from_bits(bits)) as u16;
            assert!(bf16::from_bits(rounded).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn portable_products_equal_sums_of_products() {
        fn here<T: Number>(out: MatMut, output: Output, a: Mat, b: Mat<T>) {
            portable(out, output, a, b, gemm::Parallelism::None);
        }
        assert_products(|value| value, here);
        assert_products(bf16::from_f32, here);
    }

    #[test]
    #[should_panic = "beyond its data"]
    fn a_matrix_stays_inside_its_data() {
        Mat::new(&[0.0; 5], [2, 3], [3, 1]);
    }
}
