//! Products of a few rows, as generation has them: token by token, or of some prompts at once.
//!
//! A panel of `b` is worth bringing to row order if many rows meet it. Here each line of `b`, a column of the product,
//! is read where it lies and multiplied by all rows: with one row a product takes the time that reading `b` takes.

use rayon::prelude::*;

use super::{Mat, MatMut, Operand, Output, avx2, avx512};

/// Rows of the product, at most. With more the panels are as fast.
const ROWS: usize = 16;
/// The same of a weight in bf16 with AVX-512, which brings it into panels fast.
const ROWS_BF16: usize = 8;
/// And where the panels' products are of bf16.
const ROWS_ROUNDED: usize = 4;
/// Rows and lines that meet in registers.
const TILE_ROWS: usize = 4;
pub const LINES: usize = 2;
/// Numbers of a line that are widened at a time where more rows than a tile's meet them.
const DEPTH: usize = 1024;
/// Numbers of a line below which adding up a sum's lanes takes longer than their products.
const SHORTEST: usize = 64;
/// Numbers of `b` that are worth a thread's while.
const TASK: usize = 1 << 14;

/// Whether the product is computed here, in the place of an exact one or of one of rounded numbers.
pub fn serves<B: Operand>(a: &Mat, b: &B, is_exact: bool) -> bool {
    let [rows, k] = a.shape;
    let lies_in_lines = a.strides[1] == 1 && b.is_transposed();
    let most = match b.as_bf16() {
        Some(_) if !is_exact => ROWS_ROUNDED,
        Some(_) if avx512::is_supported() => ROWS_BF16,
        _ => ROWS,
    };
    rows <= most && k >= SHORTEST && lies_in_lines && avx2::is_supported()
}

/// `out (+)= a · b` on all threads, of what [`serves`] said yes to.
pub fn matmul<B: Operand>(out: MatMut, output: Output, a: Mat, b: B) {
    let [k, n] = b.shape();
    let lines = TASK.div_ceil(k).max(n / (8 * rayon::current_num_threads()));
    let lines = lines.next_multiple_of(LINES);
    let tasks = (0..n.div_ceil(lines)).into_par_iter();
    tasks.for_each_init(Vec::new, |buffer, task| {
        let task = task * lines..n.min((task + 1) * lines);
        for first in task.clone().step_by(LINES) {
            // A line that is not there is the last one again.
            let lines = std::array::from_fn(|line| task.end.min(first + line + 1) - 1);
            let count = LINES.min(task.end - first);
            let sums = columns(a, b, lines, buffer);
            for (row, sums) in sums.iter().enumerate().take(out.shape[0]) {
                // SAFETY: inside of the product; the columns of a task are its own.
                unsafe { out.set(output, [row, first], &sums[..count]) };
            }
        }
    });
}

type Sums = [[f32; LINES]; ROWS];

/// The products of all rows of `a` with some lines of `b`.
fn columns<B: Operand>(a: Mat, b: B, lines: [usize; LINES], buffer: &mut Vec<f32>) -> Sums {
    let ([rows, k], mut sums) = (a.shape, [[0.0; LINES]; ROWS]);
    if rows <= TILE_ROWS || b.as_f32().is_some() {
        add_products(&mut sums, a, b, lines);
        return sums;
    }
    buffer.resize(LINES * DEPTH, 0.0);
    for start in (0..k).step_by(DEPTH) {
        let len = DEPTH.min(k - start);
        for (line, numbers) in lines.into_iter().zip(buffer.chunks_exact_mut(DEPTH)) {
            b.widen(line, start, &mut numbers[..len]);
        }
        let widened = Mat::new(buffer, [len, LINES], [1, DEPTH]);
        add_products(&mut sums, a.columns(start, len), widened, [0, 1]);
    }
    sums
}

fn add_products<B: Operand>(sums: &mut Sums, a: Mat, b: B, lines: [usize; LINES]) {
    for row in (0..a.shape[0]).step_by(TILE_ROWS) {
        let sums = &mut sums[row..];
        match a.shape[0] - row {
            1 => add_tile::<1, B>(sums, a, row, b, lines),
            2 => add_tile::<2, B>(sums, a, row, b, lines),
            3 => add_tile::<3, B>(sums, a, row, b, lines),
            _ => add_tile::<TILE_ROWS, B>(sums, a, row, b, lines),
        }
    }
}

fn add_tile<const M: usize, B: Operand>(
    sums: &mut [[f32; LINES]],
    a: Mat,
    row: usize,
    b: B,
    lines: [usize; LINES],
) {
    let [_, k] = a.shape;
    // SAFETY: the processor has the instructions, and the rows and lines are there.
    let products: [_; M] = unsafe {
        match avx512::is_supported() {
            true => avx512::dots(a, row, b, lines),
            false => avx2::dots(a, row, b, lines),
        }
    };
    for (m, (sums, products)) in sums.iter_mut().zip(products).enumerate() {
        for ((line, sum), product) in lines.into_iter().zip(sums).zip(products) {
            let rest = k / 16 * 16..k;
            let rest = rest.map(|i| a.number(row + m, i) * b.number(i, line));
            *sum += product + rest.sum::<f32>();
        }
    }
}
