//! Codes of four bits and the largest magnitude of each block, as bitsandbytes has them.

mod blocks;
mod mean;
mod quantize;
mod tables;

pub use blocks::{FourBitBlocks, NestedAbsmax, PlainAbsmax, Planes, ReadAbsmax};
pub use quantize::quantize;
pub use tables::nested_table;

use super::bytes::write_f32s;
use super::invalid;
use super::layout::{BlockFormat, PackedLayout};
use crate::Result;

/// How many `absmax` share one of their own, where they are in eight bits.
pub const NESTED_BLOCK_LEN: usize = 256;

/// The largest magnitude of each block.
#[derive(Debug, Clone, Copy)]
pub enum Absmax<'a> {
    /// In f32.
    Plain(&'a [f32]),
    /// In eight bits: `nested_table()[code] * nested + offset`, with one of `nested` for 256 codes.
    Nested {
        /// A code a block.
        codes: &'a [u8],
        /// The largest magnitude of each 256 `absmax`, from which `offset` was subtracted.
        nested: &'a [f32],
        /// The mean of all `absmax`.
        offset: f32,
    },
}

/// A packed matrix from the codes of a file, two a byte, and the largest magnitudes of its blocks.
///
/// # Errors
/// If their numbers do not fit the layout, or one is nested and the other is not.
///
/// # Panics
/// If the layout is of another format.
pub fn assemble_four_bit(layout: PackedLayout, codes: &[u8], absmax: Absmax) -> Result<Vec<u8>> {
    let BlockFormat::FourBit(four_bit) = layout.format() else {
        panic!("{} is another format", layout.format());
    };
    let [rows, columns] = layout.shape();
    let planes = Planes::new(rows * columns, four_bit);
    check_len("codes", codes.len(), planes.absmax_at)?;
    let mut bytes = vec![0; layout.num_bytes()];
    bytes[..codes.len()].copy_from_slice(codes);
    match (absmax, four_bit.is_nested) {
        (Absmax::Plain(absmax), false) => {
            check_len("absmax", absmax.len(), planes.num_blocks)?;
            write_f32s(&mut bytes, planes.absmax_at, absmax);
        }
        (
            Absmax::Nested {
                codes,
                nested,
                offset,
            },
            true,
        ) => {
            check_len("absmax", codes.len(), planes.num_blocks)?;
            check_len("nested_absmax", nested.len(), planes.num_nested)?;
            bytes[planes.absmax_at..][..codes.len()].copy_from_slice(codes);
            write_f32s(&mut bytes, planes.offset_at, &[offset]);
            write_f32s(&mut bytes, planes.nested_at, nested);
        }
        _ => {
            let message = "the layout and the magnitudes differ in whether they are nested";
            return Err(invalid("absmax", message));
        }
    }
    Ok(bytes)
}

fn check_len(name: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message =
        format!("has {found} elements where the weight's shape and blocks need {expected}");
    Err(invalid(name, message))
}
