/// For each position of each row, where in the row its sample begins. `segments` are the samples'
/// lengths, row by row; what is left of a row is padding, and counts as one more sample.
///
/// # Panics
/// If the samples of a row are longer than `seq_len` together.
pub(super) fn segment_starts(segments: &[Vec<usize>], seq_len: usize) -> Vec<usize> {
    let mut starts = Vec::with_capacity(segments.len() * seq_len);
    for row in segments {
        let mut start = 0;
        for &length in row {
            starts.extend(std::iter::repeat_n(start, length));
            start += length;
        }
        assert!(
            start <= seq_len,
            "{start} tokens do not fit in a row of {seq_len}"
        );
        starts.extend(std::iter::repeat_n(start, seq_len - start));
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_begin_anew_in_each_row() {
        let starts = segment_starts(&[vec![2, 1], vec![4]], 5);
        assert_eq!(starts, [0, 0, 2, 3, 3, 0, 0, 0, 0, 4]);
    }
}
