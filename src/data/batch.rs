//! Samples in rows of one length.

use std::collections::BTreeSet;

use burn::prelude::*;

use super::{IGNORE_INDEX, Sample};

/// How long the rows of a [`Batch`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Padding {
    /// As long as the longest sample.
    #[default]
    Longest,
    /// The length of the longest sample, rounded up to a multiple of this: fewer distinct shapes,
    /// for backends that compile or tune a kernel for each.
    MultipleOf(usize),
    /// This length, which no sample may exceed.
    Fixed(usize),
}

/// Samples of a step, padded on the right to rows of one length. Lives on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// Token ids, row by row; `[batch_size, seq_len]`.
    pub input_ids: Vec<i32>,
    /// A label for each token, not shifted, [`IGNORE_INDEX`] on padding; `[batch_size, seq_len]`.
    pub labels: Vec<i32>,
    /// The lengths of the samples in each row, one after the other; the rest of a row is padding.
    pub segments: Vec<Vec<usize>>,
    /// The number of rows.
    pub batch_size: usize,
    /// The length of each row.
    pub seq_len: usize,
    /// The name of the adapter that each row takes, if not all take the one that acts; a row without one takes the
    /// base.
    pub adapters: Option<Vec<Option<String>>>,
}

impl Batch {
    /// Puts samples into rows as long as the longest of them, filled up with `pad_id`.
    ///
    /// # Panics
    ///
    /// If `samples` is empty, a sample has not one label a token, or an id is not below 2^31.
    pub fn collate(samples: &[&Sample], pad_id: u32) -> Self {
        Self::collate_to(samples, pad_id, Padding::Longest)
    }

    /// Puts samples into rows of the length that `padding` says, filled up with `pad_id`.
    ///
    /// # Panics
    ///
    /// As [`Batch::collate`]; also if a sample is longer than [`Padding::Fixed`], or
    /// [`Padding::MultipleOf`] is 0.
    pub fn collate_to(samples: &[&Sample], pad_id: u32, padding: Padding) -> Self {
        let rows: Vec<&[&Sample]> = samples.chunks(1).collect();
        Self::collate_packed(&rows, pad_id, padding)
    }

    /// Puts several samples into each row, one after the other. They do not see each other: see
    /// [`AttentionMask::within_segments`](crate::llama::AttentionMask::within_segments).
    ///
    /// # Panics
    ///
    /// As [`Batch::collate_to`], for rows in place of samples.
    pub fn collate_packed(rows: &[&[&Sample]], pad_id: u32, padding: Padding) -> Self {
        let lengths = |row: &&[&Sample]| row.iter().map(|sample| sample.len()).collect();
        let segments: Vec<Vec<usize>> = rows.iter().map(lengths).collect();
        let longest = segments.iter().map(|row| row.iter().sum::<usize>()).max();
        let longest = longest.expect("a batch needs a sample");
        let seq_len = match padding {
            Padding::Longest => longest,
            Padding::MultipleOf(step) => longest.next_multiple_of(step),
            Padding::Fixed(length) => length,
        };
        assert!(
            longest <= seq_len,
            "a row of {longest} tokens does not fit in rows of {seq_len}"
        );
        let mut input_ids = Vec::with_capacity(rows.len() * seq_len);
        let mut labels = Vec::with_capacity(rows.len() * seq_len);
        for (row, samples) in rows.iter().enumerate() {
            for sample in *samples {
                assert_eq!(
                    sample.tokens.len(),
                    sample.labels.len(),
                    "a sample needs one label for each token"
                );
                input_ids.extend(sample.tokens.iter().map(|&id| to_i32(id)));
                labels.extend(&sample.labels);
            }
            input_ids.resize((row + 1) * seq_len, to_i32(pad_id));
            labels.resize((row + 1) * seq_len, IGNORE_INDEX);
        }
        Self {
            input_ids,
            labels,
            batch_size: segments.len(),
            segments,
            seq_len,
            adapters: None,
        }
    }

    /// Each sample in a batch of its own.
    pub fn records(&self) -> Vec<Self> {
        let mut records = Vec::new();
        for (row, lengths) in self.segments.iter().enumerate() {
            let mut start = row * self.seq_len;
            for length in lengths {
                let place = start..start + length;
                start = place.end;
                let adapter = self.adapters.as_ref().map(|rows| vec![rows[row].clone()]);
                records.push(Self {
                    input_ids: self.input_ids[place.clone()].to_vec(),
                    labels: self.labels[place].to_vec(),
                    segments: vec![vec![*length]],
                    batch_size: 1,
                    seq_len: *length,
                    adapters: adapter,
                });
            }
        }
        records
    }

    /// The same rows, each with the adapter of a name, or with none.
    ///
    /// # Panics
    ///
    /// If there are not as many names as rows.
    pub fn with_adapters<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = Option<S>>,
    ) -> Self {
        let names: Vec<_> = names.into_iter().map(|name| name.map(Into::into)).collect();
        assert_eq!(
            names.len(),
            self.batch_size,
            "a row has one adapter or none"
        );
        self.adapters = Some(names);
        self
    }

    /// How many positions the loss counts; see [`Sample::num_label_tokens`].
    pub fn num_label_tokens(&self) -> usize {
        self.labelled().count()
    }

    /// The positions whose next token has a label, counted over all rows, and those labels.
    pub fn predictions(&self) -> (Vec<i32>, Vec<i32>) {
        let labelled = self.labelled();
        labelled
            .map(|(index, label)| (index as i32 - 1, label))
            .unzip()
    }

    /// How many tokens are not padding.
    pub fn num_tokens(&self) -> usize {
        self.segments.iter().flatten().sum()
    }

    /// Whether some row holds more than one sample.
    pub fn is_packed(&self) -> bool {
        self.segments.iter().any(|row| row.len() > 1)
    }

    /// Whether some row is shorter than the batch.
    pub fn is_padded(&self) -> bool {
        let mut lengths = self.segments.iter().map(|row| row.iter().sum::<usize>());
        lengths.any(|length| length < self.seq_len)
    }

    /// The positions with a label, counted over all rows, but for the first of each sample, which
    /// nothing predicts.
    fn labelled(&self) -> impl Iterator<Item = (usize, i32)> {
        let rows = self.segments.iter().enumerate();
        let starts = rows.flat_map(|(row, segments)| {
            segments.iter().scan(row * self.seq_len, |start, length| {
                let range = *start..*start + length;
                *start = range.end;
                Some(range)
            })
        });
        let predicted = starts.flat_map(|range| range.skip(1));
        let labels = predicted.map(|index| (index, self.labels[index]));
        labels.filter(|(_, label)| *label != IGNORE_INDEX)
    }

    /// The token ids as a tensor.
    ///
    /// # Shapes
    ///
    /// - output: `[batch_size, seq_len]`
    pub fn input_tensor(&self, device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(self.input_ids.clone(), [self.batch_size, self.seq_len]);
        Tensor::from_data(data, device)
    }

    /// `true` at each real token and `false` at padding; `None` if nothing is padded, when
    /// attention needs no mask but the causal one. A packed batch needs the mask of its
    /// [`segments`](Self::segments) instead.
    ///
    /// # Shapes
    ///
    /// - output: `[batch_size, seq_len]`
    pub fn attention_mask(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        if !self.is_padded() {
            return None;
        }
        let lengths = self.segments.iter().map(|row| row.iter().sum::<usize>());
        let real: Vec<bool> = lengths
            .flat_map(|length| (0..self.seq_len).map(move |t| t < length))
            .collect();
        let data = TensorData::new(real, [self.batch_size, self.seq_len]);
        Some(Tensor::from_data(data, device))
    }
}

fn to_i32(id: u32) -> i32 {
    i32::try_from(id).expect("a token id is below 2^31")
}

/// Groups samples so that each group has at most `capacity` tokens, in few groups: the longest
/// sample first, each into the group with the least room that is enough (best-fit decreasing). Groups and
/// the samples in them come back in the samples' order, so that training begins with no particular length.
///
/// # Panics
///
/// If a sample is longer than `capacity`.
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&sample| std::cmp::Reverse(lengths[sample]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // Room and index of each group.
    let mut rooms = BTreeSet::new();
    for sample in order {
        let length = lengths[sample];
        assert!(
            length <= capacity,
            "a sample of {length} tokens is longer than {capacity}"
        );
        let fitting = rooms.range((length, 0)..).next().copied();
        let (room, group) = match fitting {
            Some(entry) => {
                rooms.remove(&entry);
                entry
            }
            None => {
                groups.push(Vec::new());
                (capacity, groups.len() - 1)
            }
        };
        groups[group].push(sample);
        rooms.insert((room - length, group));
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}
