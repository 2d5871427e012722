//! Matrix products with a frozen right-hand side, and the small ones inside the attention.
//!
//! `out (+)= a · b` with `a` of any strides and `b` row-major or transposed, in f32, bf16 or f16.
//! With AVX-512 the product is computed by panels of `b`, 64 columns wide: a panel is brought to
//! f32 and to row order once, in cache, and serves all rows of `a`, which is read where it lies.
//! A weight so needs neither a transposed nor a widened copy, and both passes run at the same
//! speed. Other processors use the `gemm` crate. `docs/performance.md` has the measurements.

use std::mem::MaybeUninit;

use half::{bf16, f16};
use rayon::prelude::*;

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

/// A number that a frozen weight may be stored in.
pub trait Number: Copy + Send + Sync {
    fn widen(self) -> f32;

    /// The numbers themselves, if they are f32.
    fn as_f32(_numbers: &[Self]) -> Option<&[f32]> {
        None
    }

    /// Widens 16 numbers.
    ///
    /// # Safety
    /// `source` must be readable for 16 numbers, and the processor must have AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(source: *const Self) -> std::arch::x86_64::__m512;
}

impl Number for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn as_f32(numbers: &[Self]) -> Option<&[f32]> {
        Some(numbers)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> std::arch::x86_64::__m512 {
        unsafe { std::arch::x86_64::_mm512_loadu_ps(source) }
    }
}

impl Number for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    /// A bf16 is the upper half of an f32.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
}

impl Number for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(source: *const Self) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) }
    }
}

/// `out (+)= a · b` on all threads.
///
/// # Panics
/// If the shapes do not fit, or neither stride of `b` is 1.
pub fn matmul<T: Number>(out: MatMut, output: Output, a: Mat, b: Mat<T>) {
    if is_done_by_check(&out, output, &a, &b) {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::is_supported() {
        let panels = out.shape[1].div_ceil(avx512::PANEL);
        let parts = (2 * rayon::current_num_threads()).div_ceil(panels);
        let rows = out.shape[0].div_ceil(parts).next_multiple_of(avx512::ROWS);
        let tasks = (0..panels * out.shape[0].div_ceil(rows)).into_par_iter();
        tasks.for_each_init(avx512::Buffer::default, |buffer, task| {
            let (panel, part) = (task % panels, task / panels);
            let rows = part * rows..out.shape[0].min((part + 1) * rows);
            avx512::panel(out, output, a, b, rows, panel * avx512::PANEL, buffer);
        });
        return;
    }
    portable(out, output, a, b, gemm::Parallelism::Rayon(0));
}

/// What a thread keeps between products, so that it need not be allocated again.
#[derive(Default)]
pub struct Scratch {
    #[cfg(target_arch = "x86_64")]
    panel: avx512::Buffer,
}

/// `out (+)= a · b` on this thread.
///
/// # Panics
/// If the shapes do not fit, or neither stride of `b` is 1.
pub fn matmul_here<T: Number>(
    out: MatMut,
    output: Output,
    a: Mat,
    b: Mat<T>,
    #[allow(unused)] scratch: &mut Scratch,
) {
    if is_done_by_check(&out, output, &a, &b) {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::is_supported() {
        for first in (0..out.shape[1]).step_by(avx512::PANEL) {
            avx512::panel(
                out,
                output,
                a,
                b,
                0..out.shape[0],
                first,
                &mut scratch.panel,
            );
        }
        return;
    }
    portable(out, output, a, b, gemm::Parallelism::None);
}

/// Checks the shapes; true if there is nothing to multiply.
fn is_done_by_check<T>(out: &MatMut, output: Output, a: &Mat, b: &Mat<T>) -> bool {
    let ([m, k], [k_b, n]) = (a.shape, b.shape);
    assert!(k == k_b && out.shape == [m, n], "shapes do not fit");
    assert!(
        b.strides.contains(&1),
        "no stride of the right-hand side is 1"
    );
    if k == 0 && output == Output::Write {
        out.fill_with_zeros();
    }
    m * n * k == 0
}

/// Rows of `b` that are widened at a time where the processor has no AVX-512.
const WIDENED_ROWS: usize = 256;

/// By the `gemm` crate, `b` widened some of its contiguous rows at a time.
fn portable<T: Number>(
    out: MatMut,
    output: Output,
    a: Mat,
    b: Mat<T>,
    parallelism: gemm::Parallelism,
) {
    let is_transposed = b.strides[0] == 1;
    if let Some(data) = T::as_f32(b.data) {
        let b = Mat::new(data, b.shape, b.strides);
        return call_gemm(out, output, a, b, parallelism);
    }
    let rows = if is_transposed { b.transpose() } else { b };
    let [num_rows, row_len] = rows.shape;
    let mut widened = Vec::new();
    for first in (0..num_rows).step_by(WIDENED_ROWS) {
        let count = WIDENED_ROWS.min(num_rows - first);
        widened.clear();
        for row in first..first + count {
            let row = &rows.data[row * rows.strides[0]..][..row_len];
            widened.extend(row.iter().map(|value| value.widen()));
        }
        let part = Mat::row_major(&widened, [count, row_len]);
        match is_transposed {
            // The rows of b are columns of the product.
            true => {
                let columns = out.columns(first, count);
                call_gemm(columns, output, a, part.transpose(), parallelism);
            }
            // The rows of b meet columns of a: the products add up.
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
    // SAFETY: `check` and the constructors hold all three inside their data.
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{Mat, MatMut, Number, Output};

    /// Columns of the product that are computed together: four vectors.
    pub const PANEL: usize = VECTORS * LANES;
    const VECTORS: usize = 4;
    const LANES: usize = 16;
    /// Rows of the product whose sums are in registers: 6 x 4 of the 32.
    pub const ROWS: usize = 6;
    /// Rows of a panel that are in cache at a time: 512 x 64 numbers are 128 KiB.
    const DEPTH: usize = 512;

    /// 64 numbers that begin a line of the cache.
    #[derive(Clone, Copy)]
    #[repr(align(64))]
    struct PanelRow([f32; PANEL]);

    /// A part of a panel of `b`: f32, row-major, padded with zeros to 64 columns.
    #[derive(Default)]
    pub struct Buffer(Vec<PanelRow>);

    pub fn is_supported() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    /// Some rows of the columns `first ..` of the product, at most `PANEL` of them.
    pub fn panel<T: Number>(
        out: MatMut,
        output: Output,
        a: Mat,
        b: Mat<T>,
        rows: Range<usize>,
        first: usize,
        buffer: &mut Buffer,
    ) {
        let [k, n] = b.shape;
        assert!(rows.end <= a.shape[0] && first < n);
        let width = PANEL.min(n - first);
        let depth = DEPTH.min(k).max(buffer.0.len());
        buffer.0.resize(depth, PanelRow([0.0; PANEL]));
        for start in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - start);
            let add = start > 0 || output == Output::Add;
            // SAFETY: the processor has AVX-512; `Mat::new` and `matmul` checked that all elements
            // of the three matrices lie inside their data; `width` columns are left from `first`.
            unsafe {
                pack(b, [start, first], [depth, width], &mut buffer.0);
                let mut row = rows.start;
                while row < rows.end {
                    let tile = Tile {
                        a: a.data
                            .as_ptr()
                            .add(row * a.strides[0] + start * a.strides[1]),
                        a_strides: a.strides,
                        b: buffer.0.as_ptr().cast(),
                        depth,
                        out: out.data.add(row * out.row_stride + first),
                        out_stride: out.row_stride,
                        width,
                        add,
                    };
                    row += tile.compute_up_to(rows.end - row);
                }
            }
        }
    }

    /// Brings `depth x width` numbers of `b` into the buffer.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack<T: Number>(
        b: Mat<T>,
        [row, col]: [usize; 2],
        [depth, width]: [usize; 2],
        buffer: &mut [PanelRow],
    ) {
        let at = |i, j| (row + i) * b.strides[0] + (col + j) * b.strides[1];
        let is_transposed = b.strides[0] == 1 && b.strides[1] != 1;
        for j in (0..width).step_by(LANES) {
            for i in (0..depth).step_by(LANES) {
                let rows = &mut buffer[i..depth.min(i + LANES)];
                if rows.len() < LANES || j + LANES > width {
                    for (row, values) in rows.iter_mut().enumerate() {
                        for (col, value) in values.0[j..j + LANES].iter_mut().enumerate() {
                            *value = match j + col < width {
                                true => b.data[at(i + row, j + col)].widen(),
                                false => 0.0,
                            };
                        }
                    }
                    continue;
                }
                // SAFETY: 16 x 16 numbers from (i, j) lie inside of `b`, and of the buffer.
                unsafe {
                    let from = b.data.as_ptr().add(at(i, j));
                    let to = rows.as_mut_ptr().cast::<f32>().add(j);
                    match is_transposed {
                        true => transpose(from, b.strides[1], to),
                        false => copy(from, b.strides[0], to),
                    }
                }
            }
        }
    }

    /// Writes 16 x 16 numbers whose rows begin `stride` apart as rows `PANEL` apart.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn copy<T: Number>(from: *const T, stride: usize, to: *mut f32) {
        for row in 0..LANES {
            unsafe { _mm512_store_ps(to.add(row * PANEL), T::load16(from.add(row * stride))) };
        }
    }

    /// Writes 16 x 16 numbers whose columns begin `stride` apart as rows `PANEL` apart.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn transpose<T: Number>(from: *const T, stride: usize, to: *mut f32) {
        let mut columns = [_mm512_setzero_ps(); LANES];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = unsafe { T::load16(from.add(j * stride)) };
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
                unsafe { _mm512_store_ps(to.add(row * PANEL), values) };
            }
        }
    }

    /// Some rows of a panel of the product.
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
        /// Computes up to 6 of `rows` rows and returns how many.
        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn compute_up_to(&self, rows: usize) -> usize {
            unsafe {
                match self.width.div_ceil(LANES) {
                    1 => self.compute_vectors::<1>(rows),
                    2 => self.compute_vectors::<2>(rows),
                    3 => self.compute_vectors::<3>(rows),
                    _ => self.compute_vectors::<VECTORS>(rows),
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn compute_vectors<const V: usize>(&self, rows: usize) -> usize {
            unsafe {
                match rows {
                    1 => self.compute::<1, V>(),
                    2 => self.compute::<2, V>(),
                    3 => self.compute::<3, V>(),
                    4 => self.compute::<4, V>(),
                    5 => self.compute::<5, V>(),
                    _ => self.compute::<ROWS, V>(),
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn compute<const M: usize, const V: usize>(&self) -> usize {
            let mut sums = [[_mm512_setzero_ps(); V]; M];
            for row in 0..M {
                for vector in 0..V {
                    // A prefetch may be of any address.
                    let line = self
                        .out
                        .wrapping_add(row * self.out_stride + vector * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                }
            }
            let [row_stride, col_stride] = self.a_strides;
            let (mut a, mut b) = (self.a, self.b);
            for _ in 0..self.depth {
                unsafe {
                    let columns: [__m512; V] =
                        std::array::from_fn(|vector| _mm512_load_ps(b.add(vector * LANES)));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*a.add(row * row_stride));
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_fmadd_ps(value, column, *sum);
                        }
                    }
                }
                a = a.wrapping_add(col_stride);
                b = b.wrapping_add(PANEL);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    let first = vector * LANES;
                    let out = self.out.wrapping_add(row * self.out_stride + first);
                    unsafe { self.store(out, *sum, self.width - first) };
                }
            }
            M
        }

        /// Writes or adds the first `count` numbers.
        #[target_feature(enable = "avx512f,avx512bw")]
        unsafe fn store(&self, out: *mut f32, sum: __m512, count: usize) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -0.5 and 0.5 that half precision holds exactly.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 257) as f32 / 256.0 - 0.5;
        (0..len).map(number).collect()
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

    type Matmul<T> = fn(MatMut, Output, Mat, Mat<T>);

    fn assert_products<T: Number>(narrow: fn(f32) -> T, matmul: Matmul<T>) {
        // One element, odd sizes, more than a panel, more than a depth, none.
        let sizes = [
            [1, 1, 1],
            [5, 3, 17],
            [7, 65, 129],
            [13, 130, 530],
            [6, 64, 512],
            [3, 300, 600],
            [2, 3, 0],
            [0, 3, 2],
        ];
        for [m, n, k] in sizes {
            // One more in front: not aligned.
            let (a, b) = (numbers(m * k + 1, 1), numbers(n * k + 1, 2));
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
        assert_products(|value| value, matmul);
        assert_products(
            |value| value,
            |out, output, a, b| matmul_here(out, output, a, b, &mut Scratch::default()),
        );
        assert_products(bf16::from_f32, matmul);
        assert_products(f16::from_f32, matmul);
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
