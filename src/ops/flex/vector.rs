//! Loops over slices that the compiler turns into vector instructions.

use std::mem::MaybeUninit;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::instructions::Instructions;

/// Numbers that one thread takes at a time.
pub const CHUNK: usize = 1 << 14;

/// Runs `f` compiled for the widest vectors that the processor has. What it calls must be inlined.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    widest().dispatch(f)
}

/// The widest vectors that the processor has and [`Instructions`] allow.
#[inline]
fn widest() -> pulp::Arch {
    let arch = pulp::Arch::new();
    #[cfg(target_arch = "x86_64")]
    return match (Instructions::best(), arch) {
        (Instructions::Portable, _) => pulp::Arch::Scalar,
        (Instructions::Avx2, pulp::Arch::V4(_)) => {
            pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3)
        }
        (_, arch) => arch,
    };
    #[cfg(not(target_arch = "x86_64"))]
    arch
}

/// A new buffer of `len` numbers.
///
/// # Safety
/// `fill` must write all of them.
pub unsafe fn new_buffer<T>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut buffer = Vec::with_capacity(len);
    fill(&mut buffer.spare_capacity_mut()[..len]);
    // SAFETY: they are written.
    unsafe { buffer.set_len(len) };
    buffer
}

/// `f` of the numbers at each place of some slices, on all threads.
///
/// # Panics
/// If the lengths differ.
pub fn map<T: Copy + Sync, U: Send, const N: usize>(
    inputs: [&[T]; N],
    f: impl Fn([T; N]) -> U + Sync,
) -> Vec<U> {
    let len = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == len));
    let f = &f;
    let fill = |out: &mut [MaybeUninit<U>]| {
        let chunks = out.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(index, out)| {
            let first = index * CHUNK;
            vectorized(
                #[inline(always)]
                move || {
                    // Slices of one length, known where the loop is: it checks no bounds.
                    let inputs = inputs.map(|input| &input[first..][..out.len()]);
                    for i in 0..out.len() {
                        out[i].write(f(inputs.map(|input| input[i])));
                    }
                },
            );
        });
    };
    // SAFETY: the chunks are all of the buffer.
    unsafe { new_buffer(len, fill) }
}

/// `f` of the index and the number at each place of a slice, on all threads.
pub fn map_indexed(input: &[f32], f: impl Fn(usize, f32) -> f32 + Sync) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let chunks = out.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK));
        chunks.enumerate().for_each(|(index, (out, input))| {
            vectorized(
                #[inline(always)]
                || {
                    for (i, (out, input)) in out.iter_mut().zip(input).enumerate() {
                        out.write(f(index * CHUNK + i, *input));
                    }
                },
            );
        });
    };
    // SAFETY: the chunks are all of the buffer.
    unsafe { new_buffer(input.len(), fill) }
}

/// `f` of each row of some slices and its index, on all threads; `f` gets a row of zeros to write.
///
/// # Panics
/// If the lengths differ, or are not whole rows.
pub fn map_rows<const N: usize>(
    row_len: usize,
    inputs: [&[f32]; N],
    f: impl Fn(usize, [&[f32]; N], &mut [f32]) + Sync,
) -> Vec<f32> {
    let len = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == len));
    assert!(len.is_multiple_of(row_len), "a row is not whole");
    let rows_at_a_time = CHUNK.div_ceil(row_len.max(1));
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let rows = out.par_chunks_exact_mut(row_len).enumerate();
        rows.with_min_len(rows_at_a_time).for_each(|(row, out)| {
            let inputs = inputs.map(|input| &input[row * row_len..][..row_len]);
            out.fill(MaybeUninit::new(0.0));
            // SAFETY: the line above wrote them.
            let out = unsafe { out.assume_init_mut() };
            vectorized(
                #[inline(always)]
                || f(row, inputs, out),
            );
        });
    };
    // SAFETY: the rows are all of the buffer.
    unsafe { new_buffer(len, fill) }
}

/// The sum of the products of two slices, in 16 partial sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The sum of a slice, in 16 partial sums.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    sum_of(values, |value| value)
}

/// The sum of `f` of each number, in 16 partial sums.
#[inline(always)]
pub fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|value| f(*value)).sum();
    for values in chunks {
        for i in 0..16 {
            sums[i] += f(values[i]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The largest number of a slice, minus infinity if it is empty.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut largest = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder().iter().copied();
    let rest = rest.fold(f32::NEG_INFINITY, larger);
    for values in chunks {
        for i in 0..16 {
            largest[i] = larger(largest[i], values[i]);
        }
    }
    largest.into_iter().fold(rest, larger)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^x` within two units in the last place, without branches: `2^n · e^r` with `n` the integer
/// nearest to `x / ln 2`, and a polynomial for `e^r` (the coefficients are those of Cephes' `expf`).
/// Below -87 and above 88 it stays at their values, so the result is never zero or infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (rest, power) = exp_parts(x);
    (rest + 1.0) * power
}

/// `tanh x` with a relative error below 2e-7, also where it is small, without branches:
/// `y / (y + 2)` with `y = e^2|x| - 1`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let (rest, power) = exp_parts(2.0 * x.abs());
    let y = rest * power + (power - 1.0);
    (y / (y + 2.0)).copysign(x)
}

/// `e^r - 1`, accurate where it is small, and `2^n`, see [`exp`].
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32) {
    /// Adding it leaves an integer in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few digits.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN_2.0) - n * LN_2.1;
    let mut polynomial = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        polynomial = polynomial * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (polynomial * (r * r) + r, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        assert_eq!(exp(-1e30), exp(-87.0));
        assert_eq!(exp(1e30), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_accurate_near_zero_and_far_from_it() {
        let exponents = (-120..5).flat_map(|n| (0..1000).map(move |i| (n, i)));
        for x in exponents.map(|(n, i)| (1.0 + i as f32 * 1e-3) * 2f32.powi(n)) {
            let expected = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "{x}: {error}");
            assert_eq!(tanh(-x), -tanh(x));
        }
        for (x, expected) in [(0.0, 0.0), (1e30, 1.0), (f32::INFINITY, 1.0)] {
            assert_eq!([tanh(x), tanh(-x)], [expected, -expected]);
        }
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for len in [0, 1, 15, 16, 17, 50] {
            let values: Vec<f32> = (0..len).map(|i| (i as f32 - 20.0) * 0.5).collect();
            assert_eq!(sum(&values), values.iter().sum::<f32>());
            assert_eq!(
                dot(&values, &values),
                values.iter().map(|v| v * v).sum::<f32>()
            );
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest);
        }
    }

    #[test]
    fn map_covers_more_than_a_chunk() {
        let a: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32).collect();
        let doubled: Vec<f32> = a.iter().map(|a| a * 2.0).collect();
        assert_eq!(map([&a, &a], |[a, b]| a + b), doubled);
    }
}
