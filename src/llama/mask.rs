//! Which keys a query sees, and where the samples of a packed row begin.

use burn::tensor::{Bool, Tensor};

use super::Span;
use crate::ops::AttentionMask;

impl AttentionMask {
    /// Each of `seq_len` queries, the first at position `start`, sees the keys up to its own
    /// position.
    pub fn causal(start: usize, seq_len: usize) -> Self {
        Self::causal_within(Span::Full, start, seq_len)
    }

    /// The same within a span. The keys are those that the span shows to the first query, then those of the queries.
    pub fn causal_within(span: Span, start: usize, seq_len: usize) -> Self {
        let kept = span.seen_before(start);
        let dropped = start - kept;
        let visible = (start..start + seq_len).map(|position| {
            let first = span.first_seen(position).max(dropped);
            first - dropped..position + 1 - dropped
        });
        Self::new(seq_len, kept + seq_len, visible.collect())
    }

    /// Each query sees the keys of its own sample up to its own position, in rows in which several
    /// samples follow each other (a block-causal mask). `segments` are the samples' lengths, row by
    /// row; padding sees padding only.
    ///
    /// # Panics
    /// If the samples of a row are longer than `seq_len` together.
    pub fn within_segments(segments: &[Vec<usize>], seq_len: usize) -> Self {
        Self::within_segments_and(Span::Full, segments, seq_len)
    }

    /// The same within a span too, which begins anew with each sample.
    ///
    /// # Panics
    /// As [`Self::within_segments`].
    pub fn within_segments_and(span: Span, segments: &[Vec<usize>], seq_len: usize) -> Self {
        let starts = segment_starts(segments, seq_len).into_iter().enumerate();
        let visible = starts.map(|(index, start)| {
            let position = index % seq_len;
            start + span.first_seen(position - start)..position + 1
        });
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

    /// What each query sees.
    fn visible(mask: &AttentionMask) -> Vec<std::ops::Range<usize>> {
        let ranges = mask.ranges();
        ranges.visible(0, 0..ranges.seq()).to_vec()
    }

    #[test]
    fn a_span_hides_what_lies_before_it() {
        let window = Span::Window(2);
        let mask = AttentionMask::causal_within(window, 0, 4);
        assert_eq!(visible(&mask), [0..1, 0..2, 1..3, 2..4]);
        // One key is left of the five before.
        let mask = AttentionMask::causal_within(window, 5, 3);
        assert_eq!(
            (mask.ranges().keys(), visible(&mask)),
            (4, vec![0..2, 1..3, 2..4])
        );
        let mask = AttentionMask::causal_within(Span::Chunk(4), 5, 4);
        assert_eq!(
            (mask.ranges().keys(), visible(&mask)),
            (5, vec![0..2, 0..3, 0..4, 4..5])
        );
        let mask = AttentionMask::within_segments_and(window, &[vec![3, 1]], 5);
        assert_eq!(visible(&mask), [0..1, 0..2, 1..3, 3..4, 4..5]);
    }
}
