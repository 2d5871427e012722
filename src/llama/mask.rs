//! Which keys a query sees, and where the samples of a packed row begin.

use burn::tensor::{Bool, Tensor};

use crate::ops::AttentionMask;

impl AttentionMask {
    /// Each of `seq_len` queries, the first at position `start`, sees the keys up to its own
    /// position.
    pub fn causal(start: usize, seq_len: usize) -> Self {
        let visible = (0..seq_len).map(|query| 0..start + query + 1);
        Self::new(seq_len, start + seq_len, visible.collect())
    }

    /// Each query sees the keys of its own sample up to its own position, in rows in which several
    /// samples follow each other (a block-causal mask). `segments` are the samples' lengths, row by
    /// row; padding sees padding only.
    ///
    /// # Panics
    /// If the samples of a row are longer than `seq_len` together.
    pub fn within_segments(segments: &[Vec<usize>], seq_len: usize) -> Self {
        let starts = segment_starts(segments, seq_len).into_iter().enumerate();
        let visible = starts.map(|(index, start)| start..index % seq_len + 1);
        Self::new(seq_len, seq_len, visible.collect())
    }

    /// Hides padding on the right from every query as well.
    ///
    /// # Shapes
    /// - `is_token`: `[batch, keys]`, false at padding
    ///
    /// # Panics
    /// If a token follows padding, or the numbers of keys differ.
    pub fn with_padding(self, is_token: Tensor<2, Bool>) -> Self {
        let [_, keys] = is_token.dims();
        let ranges = self.ranges();
        assert_eq!(keys, ranges.keys(), "the mask has another number of keys");
        let is_token: Vec<bool> = is_token.into_data().iter::<bool>().collect();
        let rows = is_token
            .chunks(keys)
            .enumerate()
            .flat_map(|(row, is_token)| {
                let tokens = is_token.iter().take_while(|is_token| **is_token).count();
                let follows = is_token[tokens..].contains(&true);
                assert!(
                    !follows,
                    "padding must be on the right: row {row} has it elsewhere"
                );
                let visible = ranges.visible(row, 0..ranges.seq()).iter();
                visible.map(move |range| range.start.min(tokens)..range.end.min(tokens))
            });
        Self::new(ranges.seq(), keys, rows.collect())
    }
}

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
