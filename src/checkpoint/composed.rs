//! Weights that are several tensors of the files together, or a part of one: those of experts, which programs keep apart or
//! stacked.

use std::ops::Range;

use burn::tensor::{Bytes, TensorData};

/// How a weight follows from tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// The rows of one matrix below those of another.
    Below,
    /// One matrix to the right of and below the other, with zeros beside them.
    Diagonal,
    /// Numbers of one tensor that follow each other.
    Stretch(Range<usize>),
    /// Columns of one matrix: so many apart from the first on.
    Columns { first: usize, step: usize },
}

impl Form {
    /// The shape of what matrices make; none if they do not go together.
    pub fn shape_of(&self, shapes: &[&[usize]]) -> Option<[usize; 2]> {
        let matrices = shapes.iter().map(|shape| (*shape).try_into().ok());
        let matrices: Vec<[usize; 2]> = matrices.collect::<Option<_>>()?;
        let sum = |side: usize| matrices.iter().map(|shape| shape[side]).sum();
        let [_, columns] = *matrices.first()?;
        match self {
            Self::Below if matrices.iter().all(|shape| shape[1] == columns) => {
                Some([sum(0), columns])
            }
            Self::Diagonal => Some([sum(0), sum(1)]),
            _ => None,
        }
    }
}

/// Matrices together.
///
/// # Panics
/// If they are none of one type that go together so.
pub(super) fn joined(form: &Form, values: Vec<TensorData>) -> TensorData {
    let shapes: Vec<Vec<usize>> = values.iter().map(|value| value.shape().to_vec()).collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let shape = form.shape_of(&shapes).expect("matrices that go together");
    let (dtype, size) = (values[0].dtype(), values[0].dtype().size());
    assert!(values.iter().all(|value| value.dtype() == dtype));
    let mut bytes = Vec::with_capacity(shape[0] * shape[1] * size);
    let mut before = 0;
    for (value, shape_of_part) in values.iter().zip(&shapes) {
        let columns = shape_of_part[1];
        let [left, right] = match form {
            Form::Diagonal => [before, shape[1] - before - columns],
            _ => [0, 0],
        };
        for row in value.as_bytes().chunks_exact(columns * size) {
            bytes.extend(std::iter::repeat_n(0, left * size));
            bytes.extend_from_slice(row);
            bytes.extend(std::iter::repeat_n(0, right * size));
        }
        before += columns;
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
    let (dtype, size) = (parts[0].dtype(), parts[0].dtype().size());
    let all: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    let mut bytes = Vec::with_capacity(all.iter().map(|part| part.len()).sum());
    for start in (0..rows * rank).map(|element| element * size) {
        for part in &all {
            bytes.extend_from_slice(&part[start..start + size]);
        }
    }
    let shape = [rows, rank * parts.len()];
    TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype)
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
        let (a, b) = (matrix(&[1.0, 2.0], 2), matrix(&[3.0, 4.0, 5.0, 6.0], 2));
        let below = joined(&Form::Below, vec![a.clone(), b.clone()]);
        assert_eq!(below, matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2));
        let diagonal = joined(&Form::Diagonal, vec![a, b]);
        let rows = [
            [1.0, 2.0, 0.0, 0.0],
            [0.0, 0.0, 3.0, 4.0],
            [0.0, 0.0, 5.0, 6.0],
        ];
        assert_eq!(diagonal, matrix(&rows.concat(), 4));
        assert_eq!(Form::Below.shape_of(&[&[1, 2], &[1, 3]]), None);
        assert_eq!(Form::Diagonal.shape_of(&[&[1, 2], &[1]]), None);
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
