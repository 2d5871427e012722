//! Packed weights, decoded on their way into the panels of a product.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512, _MM_HINT_T0, _mm_prefetch};

use burn::backend::Flex;
use burn::backend::tensor::IntTensor;
use rayon::prelude::*;

use super::gemm::Operand;
use super::linear::{Pass, exact, product, rounded, rounds_products};
use super::vector::{sum_of, vectorized};
use super::{Primitive, contiguous, indices, primitive};
use crate::quantization::{Decoder, DecoderVisitor, PackedLayout, PackedMatrix, dequantize};

pub fn forward(x: &Primitive, words: &IntTensor<Flex>, layout: PackedLayout) -> Primitive {
    apply(x, words, layout, Pass::Forward)
}

pub fn x_grad(grad: &Primitive, words: &IntTensor<Flex>, layout: PackedLayout) -> Primitive {
    apply(grad, words, layout, Pass::Backward)
}

fn apply(x: &Primitive, words: &IntTensor<Flex>, layout: PackedLayout, pass: Pass) -> Primitive {
    let matrix = PackedMatrix::new(layout, bytes(words));
    let x = &contiguous(x);
    matrix.with_decoder(Apply { x, matrix, pass })
}

/// The rows of some indices.
pub fn rows(words: &IntTensor<Flex>, of: IntTensor<Flex>, layout: PackedLayout) -> Primitive {
    let (matrix, [_, columns]) = (PackedMatrix::new(layout, bytes(words)), layout.shape());
    let indices = indices(of);
    let mut values = vec![0.0; indices.len() * columns];
    let rows = values.par_chunks_exact_mut(columns).zip(&indices);
    rows.for_each(|(out, index)| matrix.decode(*index, 0, out));
    primitive(values, &[indices.len(), columns])
}

/// The sum of the squares of each row.
pub fn row_squares(words: &IntTensor<Flex>, layout: PackedLayout) -> Primitive {
    let (matrix, [rows, columns]) = (PackedMatrix::new(layout, bytes(words)), layout.shape());
    let mut sums = vec![0.0; rows];
    let rows_of = sums.par_iter_mut().enumerate();
    rows_of.for_each_init(
        || vec![0.0; columns],
        |numbers, (row, sum)| {
            matrix.decode(row, 0, numbers);
            *sum = vectorized(
                #[inline(always)]
                || sum_of(numbers, |x| x * x),
            );
        },
    );
    primitive(sums, &[rows])
}

/// All of the weight.
pub fn unpacked(words: &IntTensor<Flex>, layout: PackedLayout) -> Primitive {
    primitive(dequantize(layout, bytes(words)), &layout.shape())
}

/// A packed weight lies whole in a buffer of its own.
fn bytes(words: &IntTensor<Flex>) -> &[u8] {
    bytemuck::cast_slice(words.storage::<u32>())
}

/// The product with a weight of whichever format.
struct Apply<'a> {
    x: &'a Primitive,
    matrix: PackedMatrix<'a>,
    pass: Pass,
}

impl DecoderVisitor for Apply<'_> {
    type Output = Primitive;

    fn visit<D: Decoder>(self, decoder: D) -> Primitive {
        let weight = Packed {
            matrix: self.matrix,
            decoder,
            pass: self.pass,
            #[cfg(target_arch = "x86_64")]
            row_bytes: self.matrix.layout().row_bytes(),
        };
        match rounds_products() {
            true => product(self.x, weight, rounded),
            false => product(self.x, weight, exact),
        }
    }
}

/// Numbers that a hint is of: 40 bytes of Q4_1.
#[cfg(target_arch = "x86_64")]
const HINT: usize = 64;

/// A packed weight as the right-hand side of a product: its rows are the lines.
#[derive(Clone, Copy)]
struct Packed<'a, D> {
    matrix: PackedMatrix<'a>,
    decoder: D,
    pass: Pass,
    #[cfg(target_arch = "x86_64")]
    row_bytes: usize,
}

impl<D> Packed<'_, D> {
    /// Row and column of the weight.
    #[inline(always)]
    fn place(&self, i: usize, j: usize) -> [usize; 2] {
        match self.pass {
            Pass::Forward => [j, i],
            Pass::Backward => [i, j],
        }
    }
}

impl<D: Decoder> Operand for Packed<'_, D> {
    fn shape(&self) -> [usize; 2] {
        let [rows, columns] = self.matrix.layout().shape();
        self.place(rows, columns)
    }

    fn is_transposed(&self) -> bool {
        self.pass == Pass::Forward
    }

    fn number(&self, i: usize, j: usize) -> f32 {
        let ([row, column], mut numbers) = (self.place(i, j), [0.0; 16]);
        let [_, columns] = self.matrix.layout().shape();
        let first = column / 16 * 16;
        let len = 16.min(columns - first);
        self.matrix.decode(row, first, &mut numbers[..len]);
        numbers[column - first]
    }

    fn widen(&self, line: usize, first: usize, out: &mut [f32]) {
        self.matrix.decode(line, first, out);
    }

    /// Once for some numbers, and where they lie if all take as many bytes: the hint is of a line of the cache.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch(&self, i: usize, j: usize) {
        let ([row, column], [rows, columns]) = (self.place(i, j), self.matrix.layout().shape());
        if i.is_multiple_of(HINT) && row < rows && column < columns {
            let at = row * self.row_bytes + column * self.row_bytes / columns;
            // SAFETY: a hint, which reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(self.matrix.bytes().as_ptr().wrapping_add(at).cast())
            };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(&self, i: usize, j: usize) -> __m512 {
        let [row, column] = self.place(i, j);
        // SAFETY: the caller's.
        unsafe { self.decoder.load16(row, column) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_avx2(&self, i: usize, j: usize) -> [__m256; 2] {
        let [row, column] = self.place(i, j);
        // SAFETY: the caller's.
        unsafe { self.decoder.load16_avx2(row, column) }
    }

    // Without asking for the pass, so that the compiler sees which numbers share a scale.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn column16(&self, i: usize, j: usize) -> __m512 {
        // SAFETY: the caller's; the columns are lines in the forward pass alone.
        unsafe { self.decoder.load16(j, i) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn column16_avx2(&self, i: usize, j: usize) -> [__m256; 2] {
        // SAFETY: the same.
        unsafe { self.decoder.load16_avx2(j, i) }
    }
}
