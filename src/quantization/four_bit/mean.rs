//! The mean of many numbers in the order in which PyTorch adds them on one thread, so that the bits are the same.

/// Numbers of a vector.
const LANES: usize = 8;
/// Numbers of the vectors that are added beside each other.
const ROW: usize = 4 * LANES;
/// How often sums are added to sums of sums.
const LEVELS: usize = 4;

/// Zero if there are none.
pub fn mean(numbers: &[f32]) -> f32 {
    let sum = match numbers.len() {
        // Too few for a vector: each number is one.
        ..LANES => sum::<1, 4>(numbers),
        _ => sum::<LANES, ROW>(numbers),
    };
    sum / numbers.len().max(1) as f32
}

fn sum<const LANES: usize, const ROW: usize>(numbers: &[f32]) -> f32 {
    let (rows, rest) = numbers.as_chunks::<ROW>();
    let (vectors, last) = rest.as_chunks::<LANES>();
    let sums = sum_rows(rows);
    let (sums, _) = sums.as_chunks::<LANES>();
    let mut total = sums[0];
    for vector in vectors.iter().chain(&sums[1..]) {
        add(&mut total, vector);
    }
    last.iter()
        .chain(&total)
        .fold(0.0, |sum, number| sum + number)
}

/// Sums a few rows, then sums of these, and so on, so that what is added is not much smaller than the sum.
fn sum_rows<const ROW: usize>(rows: &[[f32; ROW]]) -> [f32; ROW] {
    let log_len = rows.len().max(1).next_power_of_two().ilog2();
    let log_step = (log_len / LEVELS as u32).max(4);
    let mut sums = [[0.0; ROW]; LEVELS];
    let steps = rows.chunks_exact(1 << log_step);
    let rest = steps.remainder();
    for (step, rows) in (1usize..).zip(steps) {
        rows.iter().for_each(|row| add(&mut sums[0], row));
        // A level goes to the next when it has summed as many as a step has.
        let full = (step.trailing_zeros() / log_step) as usize;
        for level in 1..LEVELS.min(full + 2) {
            let sum = std::mem::replace(&mut sums[level - 1], [0.0; ROW]);
            add(&mut sums[level], &sum);
        }
    }
    let [mut total, upper @ ..] = sums;
    for row in rest.iter().chain(&upper) {
        add(&mut total, row);
    }
    total
}

fn add<const N: usize>(sum: &mut [f32; N], other: &[f32; N]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::tests::Fixture;

    #[test]
    fn means_are_those_of_pytorch() {
        let fixture = Fixture::open("mean");
        let (lengths, _) = fixture.bytes("lengths").as_chunks::<4>();
        let lengths = lengths
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes) as usize);
        for (len, expected) in lengths.zip(fixture.f32s("means")) {
            let number = |i: usize| (i * 7919 % 100_003) as f32 / 65536.0;
            let numbers: Vec<f32> = (0..len).map(number).collect();
            assert_eq!(mean(&numbers), expected, "{len}");
        }
        assert_eq!(mean(&[]), 0.0);
    }
}
