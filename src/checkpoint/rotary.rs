//! The order of q's and k's output rows: Hugging Face and this crate rotate rows half a head apart, Meta's own files,
//! torchtune and llama.cpp neighbouring ones.

use burn::tensor::{DType, TensorData};

use crate::llama::LlamaConfig;

/// The rows of a tensor that belong to rotated outputs; none if it has none such.
pub(super) fn rotated_rows(key: &str, model: &LlamaConfig) -> Option<usize> {
    let is_output = ["lora_b.weight", "lora_b.bias", "magnitude"]
        .iter()
        .any(|end| key.ends_with(end));
    let module = key.split(".attn.").nth(1).filter(|_| is_output)?;
    match module.split('.').next()? {
        "q_proj" => Some(model.q_dim()),
        "k_proj" => Some(model.kv_dim()),
        _ => None,
    }
}

/// Puts rows of heads into another order: row i is what was row `source(i)` of its head.
pub(super) fn permuted(
    value: TensorData,
    head_dim: usize,
    source: fn(usize, usize) -> usize,
) -> TensorData {
    let shape = value.shape().to_vec();
    let width: usize = shape[1..].iter().product();
    let numbers: Vec<f32> = value.convert_dtype(DType::F32).iter().collect();
    let row = |row: usize| {
        let (head, inside) = (row / head_dim, row % head_dim);
        let from = head * head_dim + source(inside, head_dim);
        numbers[from * width..(from + 1) * width].iter().copied()
    };
    let values: Vec<f32> = (0..shape[0]).flat_map(row).collect();
    TensorData::new(values, shape)
}

/// Turns rows of neighbouring pairs, of `row_bytes` each, into rows in halves, see [`permuted_rows`].
///
/// # Panics
/// If the bytes are no whole number of heads.
pub(super) fn half_split(bytes: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    permuted_rows(bytes, row_bytes, head_dim, half_split_row)
}

/// Turns rows in halves, of `row_bytes` each, into rows of neighbouring pairs, see [`permuted_rows`].
///
/// # Panics
/// If the bytes are no whole number of heads.
pub(super) fn interleaved(bytes: &[u8], row_bytes: usize, head_dim: usize) -> Vec<u8> {
    permuted_rows(bytes, row_bytes, head_dim, interleaved_row)
}

/// Puts rows of heads into another order, as [`permuted`] does, whatever the bytes of a row mean: blocks of packed
/// numbers, which lie along the rows, go with them.
fn permuted_rows(
    bytes: &[u8],
    row_bytes: usize,
    head_dim: usize,
    source: fn(usize, usize) -> usize,
) -> Vec<u8> {
    let rows: Vec<&[u8]> = bytes.chunks_exact(row_bytes).collect();
    assert!(
        bytes.len().is_multiple_of(row_bytes) && rows.len().is_multiple_of(head_dim),
        "{} bytes are no heads of {head_dim} rows of {row_bytes} bytes",
        bytes.len()
    );
    let heads = rows.chunks(head_dim);
    let rows = heads.flat_map(|head| (0..head_dim).map(|row| head[source(row, head_dim)]));
    rows.collect::<Vec<_>>().concat()
}

/// Where in a head of neighbouring pairs the row lies that is at `row` in one of two halves.
pub(super) fn half_split_row(row: usize, head_dim: usize) -> usize {
    let half = head_dim / 2;
    2 * (row % half) + row / half
}

/// The reverse of [`half_split_row`].
pub(super) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    row / 2 + row % 2 * (head_dim / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves_and_pairs_again() {
        let halves: Vec<usize> = (0..6).map(|row| half_split_row(row, 6)).collect();
        assert_eq!(halves, [0, 2, 4, 1, 3, 5]);
        for row in 0..6 {
            assert_eq!(interleaved_row(half_split_row(row, 6), 6), row);
        }
    }

    /// Two heads of four rows of three bytes.
    #[test]
    fn bytes_of_rows_stay_together() {
        let row = |row: u8| [row, 100 + row, 200 + row];
        let pairs: Vec<u8> = (0..8).flat_map(row).collect();
        let expected = [0, 2, 1, 3, 4, 6, 5, 7].map(row).concat();
        assert_eq!(half_split(&pairs, 3, 4), expected);
        assert_eq!(interleaved(&expected, 3, 4), pairs);
    }
}
