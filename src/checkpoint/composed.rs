//! Weights that are several tensors of the files together, or a part of one: those of experts, which programs keep apart or
//! stacked, and those that several processes share.

use std::ops::Range;

use burn::tensor::{Bytes, TensorData};

/// How a weight follows from tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// The rows of one matrix below those of another.
    Below,
    /// The columns of one matrix to the right of those of another.
    Beside,
    /// One matrix to the right of and below the other, with zeros beside them.
    Diagonal,
    /// Numbers of one tensor that follow each other.
    Stretch(Range<usize>),
    /// Columns of one matrix: so many apart from the first on.
    Columns { first: usize, step: usize },
}

impl Form {
    /// The shape of what matrices make; none if they are no matrices of one shape.
    pub fn shape_of(&self, shapes: &[&[usize]]) -> Option<[usize; 2]> {
        let [rows, columns]: [usize; 2] = (*shapes.first()?).try_into().ok()?;
        let count = shapes.len();
        match self {
            _ if shapes.iter().any(|shape| *shape != shapes[0]) => None,
            Self::Below => Some([count * rows, columns]),
            Self::Beside => Some([rows, count * columns]),
            Self::Diagonal => Some([count * rows, count * columns]),
            Self::Stretch(_) | Self::Columns { .. } => None,
        }
    }
}

/// Matrices together.
///
/// # Panics
/// If they are no matrices of one shape and type.
pub(super) fn joined(form: &Form, values: Vec<TensorData>) -> TensorData {
    let shapes: Vec<&[usize]> = values.iter().map(|value| &value.shape()[..]).collect();
    let shape = form.shape_of(&shapes).expect("matrices of one shape");
    let dtype = values[0].dtype();
    assert!(values.iter().all(|value| value.dtype() == dtype));
    let row = shapes[0][1] * dtype.size();
    if *form == Form::Beside {
        let bytes = interleaved(&values, row);
        return TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype);
    }
    let mut bytes = Vec::with_capacity(shape[0] * shape[1] * dtype.size());
    for (index, value) in values.iter().enumerate() {
        let [left, right] = match form {
            Form::Diagonal => [index * row, (values.len() - 1 - index) * row],
            _ => [0, 0],
        };
        for numbers in value.as_bytes().chunks_exact(row) {
            bytes.extend(std::iter::repeat_n(0, left));
            bytes.extend_from_slice(numbers);
            bytes.extend(std::iter::repeat_n(0, right));
        }
    }
    TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype)
}

/// The elements of some columns of a matrix, row by row: so many apart from the first on.
pub(super) fn columns(
    bytes: &[u8],
    element: usize,
    width: usize,
    first: usize,
    step: usize,
) -> Vec<u8> {
    let rows = bytes.chunks_exact(width * element);
    let elements = rows.flat_map(|row| row.chunks_exact(element).skip(first).step_by(step));
    elements.flatten().copied().collect()
}

/// Stacked factors of experts as a parameter of PEFT's has them: of `A`, `[experts · r, in]`, the rows of each expert
/// below those of the one before; of `B`, `[out, experts · r]`, the columns of each rank, an expert's beside another's.
///
/// # Panics
/// If they are no matrices of one shape and type.
pub(super) fn stacked(is_b: bool, parts: Vec<TensorData>) -> TensorData {
    if !is_b {
        return joined(&Form::Below, parts);
    }
    let [rows, rank] = parts[0].shape()[..] else {
        panic!("a factor is a matrix");
    };
    let dtype = parts[0].dtype();
    let bytes = interleaved(&parts, dtype.size());
    let shape = [rows, rank * parts.len()];
    TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype)
}

/// So many bytes of each value in turn, until all are there.
fn interleaved(values: &[TensorData], step: usize) -> Vec<u8> {
    let all: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
    let mut bytes = Vec::with_capacity(all.iter().map(|value| value.len()).sum());
    for start in (0..all[0].len()).step_by(step) {
        for value in &all {
            bytes.extend_from_slice(&value[start..start + step]);
        }
    }
    bytes
}

/// Rows of a matrix.
pub(super) fn rows(value: &TensorData, rows: Range<usize>) -> TensorData {
    let (shape, dtype) = (value.shape().to_vec(), value.dtype());
    let row: usize = shape[1..].iter().product::<usize>() * dtype.size();
    let bytes = value.as_bytes()[rows.start * row..rows.end * row].to_vec();
    let shape: Vec<usize> = [&[rows.len()], &shape[1..]].concat();
    TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(numbers: &[f32], columns: usize) -> TensorData {
        TensorData::new(numbers.to_vec(), [numbers.len() / columns, columns])
    }

    #[test]
    fn matrices_are_joined() {
        let parts = || vec![matrix(&[1.0, 2.0], 1), matrix(&[3.0, 4.0], 1)];
        let below = joined(&Form::Below, parts());
        assert_eq!(below, matrix(&[1.0, 2.0, 3.0, 4.0], 1));
        let beside = joined(&Form::Beside, parts());
        assert_eq!(beside, matrix(&[1.0, 3.0, 2.0, 4.0], 2));
        let diagonal = joined(&Form::Diagonal, parts());
        let rows = [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 4.0]];
        assert_eq!(diagonal, matrix(&rows.concat(), 2));
        for form in [Form::Below, Form::Beside, Form::Diagonal] {
            assert_eq!(form.shape_of(&[&[1, 2], &[2, 2]]), None);
            assert_eq!(form.shape_of(&[&[2], &[2]]), None);
        }
    }

    /// Two experts of rank 2: `A` has one after the other, `B` one beside the other.
    #[test]
    fn factors_are_stacked_as_peft_has_them() {
        let a = [matrix(&[1.0, 2.0], 1), matrix(&[3.0, 4.0], 1)];
        assert_eq!(stacked(false, a.into()), matrix(&[1.0, 2.0, 3.0, 4.0], 1));
        let b = [
            matrix(&[1.0, 2.0, 3.0, 4.0], 2),
            matrix(&[5.0, 6.0, 7.0, 8.0], 2),
        ];
        let all = stacked(true, b.clone().into());
        assert_eq!(all, matrix(&[1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0], 4));
        for (expert, part) in b.iter().enumerate() {
            assert_eq!(columns(all.as_bytes(), 4, 4, expert, 2), part.as_bytes());
        }
    }

    #[test]
    fn rows_are_cut_out() {
        let value = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        assert_eq!(rows(&value, 1..3), matrix(&[3.0, 4.0, 5.0, 6.0], 2));
    }
}
