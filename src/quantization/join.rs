//! Packed matrices below each other, as one.

use super::bytes::write_f32s;
use super::four_bit::{NestedAbsmax, PlainAbsmax, Planes, ReadAbsmax};
use super::int8::scales_at;
use super::layout::{BlockFormat, FourBit, PackedLayout};

impl PackedLayout {
    /// The layout of matrices below each other; none if they are packed in several ways, or have other columns. Nested
    /// magnitudes, which have a mean of each matrix, are in f32 then.
    pub(crate) fn below(layouts: &[Self]) -> Option<Self> {
        let [first, rest @ ..] = layouts else {
            return None;
        };
        let [_, columns] = first.shape();
        let is_alike =
            |other: &Self| other.format() == first.format() && other.shape()[1] == columns;
        let format = match first.format() {
            BlockFormat::FourBit(four_bit) => BlockFormat::FourBit(four_bit.with_nested(false)),
            format => format,
        };
        let rows = layouts.iter().map(|layout| layout.shape()[0]).sum();
        let joined = Self::new(format, [rows, columns]).ok();
        joined.filter(|_| rest.iter().all(is_alike))
    }
}

/// The bytes of matrices below each other, in the layout that [`PackedLayout::below`] gives of theirs.
///
/// # Panics
/// If there is no such layout.
pub(crate) fn join_rows(parts: &[(PackedLayout, Vec<u8>)]) -> Vec<u8> {
    let layouts: Vec<_> = parts.iter().map(|(layout, _)| *layout).collect();
    let joined = PackedLayout::below(&layouts).expect("matrices that are packed alike");
    let mut bytes: Vec<u8> = parts.iter().flat_map(codes).copied().collect();
    let scales_at = match joined.format() {
        BlockFormat::Int8 => scales_at(joined.shape()),
        _ => bytes.len(),
    };
    bytes.resize(joined.num_bytes(), 0);
    let scales: Vec<f32> = parts.iter().flat_map(scales).collect();
    write_f32s(&mut bytes, scales_at, &scales);
    bytes
}

fn planes(layout: &PackedLayout, four_bit: FourBit) -> Planes {
    Planes::new(layout.shape().iter().product(), four_bit)
}

/// The numbers' own bytes.
fn codes((layout, bytes): &(PackedLayout, Vec<u8>)) -> &[u8] {
    let numbers: usize = layout.shape().iter().product();
    let len = match (layout.format(), layout.format().gguf_block()) {
        (_, Some([block, bytes])) => numbers / block * bytes,
        (BlockFormat::FourBit(four_bit), _) => planes(layout, four_bit).absmax_at,
        _ => numbers,
    };
    &bytes[..len]
}

/// The scales that are not among them.
fn scales((layout, bytes): &(PackedLayout, Vec<u8>)) -> Vec<f32> {
    match layout.format() {
        BlockFormat::FourBit(four_bit) => {
            let planes = planes(layout, four_bit);
            match four_bit.is_nested {
                true => read_all(NestedAbsmax::new(bytes, planes), planes),
                false => read_all(PlainAbsmax::new(bytes, planes), planes),
            }
        }
        BlockFormat::Int8 => {
            let (words, _) = bytes[scales_at(layout.shape())..].as_chunks::<4>();
            words.iter().map(|word| f32::from_le_bytes(*word)).collect()
        }
        _ => Vec::new(),
    }
}

fn read_all(absmax: impl ReadAbsmax, planes: Planes) -> Vec<f32> {
    // SAFETY: the matrix has these blocks.
    let read = |block| unsafe { absmax.read(block) };
    (0..planes.num_blocks).map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::{FourBitTable, dequantize, quantize};

    #[test]
    fn joined_matrices_have_the_numbers_of_their_parts() {
        let nf4 = FourBit::new(FourBitTable::Nf4);
        for format in [
            BlockFormat::FourBit(nf4),
            BlockFormat::FourBit(nf4.with_nested(true)),
            BlockFormat::Int8,
            BlockFormat::Q4_0,
        ] {
            let part = |rows: usize| {
                let numbers = (0..rows * 64).map(|i| ((i * 7919 + rows) % 1009) as f32 - 504.0);
                let layout = PackedLayout::new(format, [rows, 64]).unwrap();
                let bytes = quantize(&Vec::from_iter(numbers), layout).unwrap();
                (layout, bytes)
            };
            let parts = [part(3), part(5)];
            let expected: Vec<f32> = parts
                .iter()
                .flat_map(|(layout, bytes)| dequantize(*layout, bytes))
                .collect();
            let joined = PackedLayout::below(&parts.each_ref().map(|(layout, _)| *layout));
            let found = dequantize(joined.unwrap(), &join_rows(&parts));
            assert_eq!(found, expected, "{format}");
        }
    }

    #[test]
    fn matrices_of_several_kinds_are_not_joined() {
        let layout = |format, columns| PackedLayout::new(format, [2, columns]).unwrap();
        let int8 = layout(BlockFormat::Int8, 64);
        for other in [layout(BlockFormat::Q8_0, 64), layout(BlockFormat::Int8, 32)] {
            assert_eq!(PackedLayout::below(&[int8, other]), None);
        }
    }
}
