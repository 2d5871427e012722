//! Weights that bitsandbytes packed: the tensors that make one up, checked before any of them is read.
//!
//! Of four bits a layer `X` has `X.weight` (the codes), and beside it `X.weight.absmax`, `X.weight.quant_map` and
//! `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`), which is a JSON text; where the magnitudes are in eight bits
//! ("double quantization") also `X.weight.nested_absmax` and `X.weight.nested_quant_map`. Of eight bits it has `X.weight`,
//! `X.SCB` and, mostly, `X.weight_format`. The tensors of one weight may lie in several files.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::Deserialize;

use super::keys::in_words_of;
use super::stored::Stored;
use crate::quantization::{
    Absmax, BlockFormat, FourBit, FourBitTable, NESTED_BLOCK_LEN, PackedLayout, assemble_four_bit,
    assemble_int8, nested_table,
};
use crate::{Error, Result};

const ABSMAX: &str = "absmax";
const TABLE: &str = "quant_map";
const NESTED_ABSMAX: &str = "nested_absmax";
const NESTED_TABLE: &str = "nested_quant_map";
const STATES: [&str; 2] = [
    "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
];
const ROW_SCALES: &str = "SCB";
const ROW_FORMAT: &str = "weight_format";

/// By how much a table may differ from that of its type: the last bits depend on the processor that made it.
const TABLE_TOLERANCE: f32 = 1e-6;

/// What belongs to a weight, without the weight's own tensor.
pub(super) struct Parts(BTreeMap<&'static str, Stored>);

impl Parts {
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub fn get(&self, part: &str) -> Option<&Stored> {
        self.0.get(part)
    }

    pub fn insert(&mut self, part: &'static str, stored: Stored) {
        self.0.insert(part, stored);
    }

    /// That none is left.
    ///
    /// # Errors
    /// [`Error::Format`] about the first one, with what is the matter with it.
    pub fn require_none(&self, matter: &str) -> Result<()> {
        match self.0.values().next() {
            None => Ok(()),
            Some(stored) => Err(stored.wrong(matter)),
        }
    }

    fn has(&self, part: &str) -> bool {
        self.0.contains_key(part)
    }

    fn take(&mut self, part: &str, weight: &Stored) -> Result<Stored> {
        let missing = || {
            let name = match part {
                ROW_SCALES => format!("{}{part}", layer_of(&weight.name)),
                _ => format!("{}.{part}", weight.name),
            };
            weight.wrong(format!("is packed, but no file has `{name}` with it"))
        };
        self.0.remove(part).ok_or_else(missing)
    }
}

/// The weight that a tensor belongs to by its name, and what it is of it.
pub(super) fn part_of(name: &str) -> Option<(String, &'static str)> {
    let of_weight = [ABSMAX, TABLE, NESTED_ABSMAX, NESTED_TABLE]
        .into_iter()
        .chain(STATES)
        .find_map(|part| Some((name.strip_suffix(part)?.strip_suffix('.')?, part)));
    if let Some((weight, part)) = of_weight {
        return Some((weight.to_owned(), part));
    }
    let of_layer = [ROW_SCALES, ROW_FORMAT]
        .into_iter()
        .find_map(|part| Some((name.strip_suffix(part)?, part)));
    let (layer, part) = of_layer.filter(|(layer, _)| layer.ends_with('.'))?;
    Some((format!("{layer}weight"), part))
}

/// The name of a weight without its last part, with the dot.
fn layer_of(weight: &str) -> &str {
    weight.strip_suffix("weight").unwrap_or(weight)
}

/// What an integer weight is, to which nothing belongs.
pub(super) fn bare_weight(weight: &Stored) -> Option<Error> {
    let (kind, _) = weight.kind().ok()?;
    let wanted = match kind {
        Dtype::I8 => format!("{}{ROW_SCALES}", layer_of(&weight.name)),
        Dtype::U8 => format!("{}.{}", weight.name, STATES[0]),
        _ => return None,
    };
    Some(weight.wrong(format!(
        "holds {kind}, and no file has `{wanted}` with it, as bitsandbytes' weights have; of other quantized models \
         load the folder that they were made from"
    )))
}

/// A packed weight in its files.
pub(super) struct PackedTensors {
    pub layout: PackedLayout,
    codes: Stored,
    scales: Scales,
}

enum Scales {
    /// One a block.
    Blocks(Stored),
    /// One a block in eight bits, in blocks of their own.
    Nested {
        codes: Stored,
        largest: Stored,
        offset: f32,
    },
    /// One a row.
    Rows(Stored),
}

impl PackedTensors {
    /// The weight that some tensors make up. Reads the tables and what is said of the sizes, but not the numbers.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::DType`] if a tensor is missing, too many, or not what the others ask for.
    pub fn new(codes: Stored, mut parts: Parts) -> Result<Self> {
        let state = STATES.into_iter().find(|state| parts.has(state));
        let packed = match state {
            None if parts.has(ROW_SCALES) || parts.has(ROW_FORMAT) => Self::int8(codes, &mut parts),
            state => Self::four_bit(codes, state.unwrap_or(STATES[0]), &mut parts),
        }?;
        parts.require_none("says nothing about a weight that is packed as this one")?;
        Ok(packed)
    }

    fn four_bit(codes: Stored, state: &str, parts: &mut Parts) -> Result<Self> {
        let stored_state = parts.take(state, &codes)?;
        let state = QuantState::read(&stored_state)?;
        let is_nested = parts.has(NESTED_ABSMAX) || state.nested_offset.is_some();
        let (table, layout) = state.layout(is_nested, &stored_state)?;
        let [rows, columns] = layout.shape();
        let num_blocks = rows * columns / state.blocksize;
        require_num_codes(&codes, rows * columns)?;
        require_table(&parts.take(TABLE, &codes)?, table.values())?;
        let absmax = parts.take(ABSMAX, &codes)?;
        require_num_blocks(&absmax, num_blocks)?;
        if !is_nested {
            absmax.require_floats()?;
            let scales = Scales::Blocks(absmax);
            return Ok(Self {
                layout,
                codes,
                scales,
            });
        }
        absmax.require_dtype(Dtype::U8)?;
        let largest = parts.take(NESTED_ABSMAX, &codes)?;
        largest.require_floats()?;
        largest.require_shape(&[num_blocks.div_ceil(NESTED_BLOCK_LEN)])?;
        require_table(&parts.take(NESTED_TABLE, &codes)?, nested_table())?;
        let offset = state.offset(&stored_state)?;
        let scales = Scales::Nested {
            codes: absmax,
            largest,
            offset,
        };
        Ok(Self {
            layout,
            codes,
            scales,
        })
    }

    fn int8(codes: Stored, parts: &mut Parts) -> Result<Self> {
        codes.require_dtype(Dtype::I8)?;
        let scales = parts.take(ROW_SCALES, &codes)?;
        if let Some(format) = parts.0.remove(ROW_FORMAT) {
            require_row_format(&format)?;
        }
        let (_, shape) = codes.kind()?;
        let &[rows, columns] = shape else {
            return Err(codes.wrong(format!("has shape {shape:?}; a matrix is expected")));
        };
        let layout = PackedLayout::new(BlockFormat::Int8, [rows, columns])
            .map_err(|error| codes.wrong(format!("cannot be read: {error}")))?;
        scales.require_floats()?;
        scales.require_shape(&[rows])?;
        let scales = Scales::Rows(scales);
        Ok(Self {
            layout,
            codes,
            scales,
        })
    }

    /// The packed matrix of the layout.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let (layout, codes) = (self.layout, &self.codes);
        match &self.scales {
            Scales::Rows(scales) => {
                let scales = scales.f32s()?;
                codes.with_bytes(|codes| assemble_int8(layout, codes, &scales))?
            }
            Scales::Blocks(absmax) => {
                let absmax = absmax.f32s()?;
                codes
                    .with_bytes(|codes| assemble_four_bit(layout, codes, Absmax::Plain(&absmax)))?
            }
            Scales::Nested {
                codes: absmax,
                largest,
                offset,
            } => {
                let (absmax, nested) = (absmax.with_bytes(<[u8]>::to_vec)?, largest.f32s()?);
                let absmax = Absmax::Nested {
                    codes: &absmax,
                    nested: &nested,
                    offset: *offset,
                };
                codes.with_bytes(|codes| assemble_four_bit(layout, codes, absmax))?
            }
        }
    }
}

/// What the JSON text of a weight of four bits says. Its `dtype`, in which the weight was before, says nothing about the
/// numbers now: they are formed in the type of what they are multiplied by, in bitsandbytes too.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl QuantState {
    fn read(stored: &Stored) -> Result<Self> {
        stored.require_dtype(Dtype::U8)?;
        let state = stored.with_bytes(|text| serde_json::from_slice(text))?;
        state.map_err(|error| {
            stored.wrong(format!("is not the JSON text of a packed weight: {error}"))
        })
    }

    fn layout(&self, is_nested: bool, stored: &Stored) -> Result<(FourBitTable, PackedLayout)> {
        let table = match self.quant_type.as_str() {
            "nf4" => FourBitTable::Nf4,
            "fp4" => FourBitTable::Fp4,
            other => {
                return Err(stored.wrong(format!("names the type `{other}`; nf4 and fp4 are read")));
            }
        };
        let [rows, columns] = self.shape[..] else {
            return Err(stored.wrong(format!("has shape {:?}; a matrix is expected", self.shape)));
        };
        let format = FourBit::new(table)
            .with_block_len(self.blocksize)
            .with_nested(is_nested);
        let layout = PackedLayout::new(BlockFormat::FourBit(format), [rows, columns]);
        let layout = layout.map_err(|error| {
            let message = in_words_of(error, &[("block_len", "blocksize")]);
            stored.wrong(format!("cannot be read: {message}"))
        })?;
        Ok((table, layout))
    }

    /// The mean of the magnitudes.
    fn offset(&self, stored: &Stored) -> Result<f32> {
        if let Some(other) = self.nested_blocksize.filter(|len| *len != NESTED_BLOCK_LEN) {
            let message =
                format!("has a nested_blocksize of {other}; only {NESTED_BLOCK_LEN} is read");
            return Err(stored.wrong(message));
        }
        let missing = || stored.wrong("has no nested_offset, but there is a nested_absmax");
        self.nested_offset
            .map(|offset| offset as f32)
            .ok_or_else(missing)
    }
}

/// Some write the same bytes as numbers of more bits (`bnb_4bit_quant_storage`).
fn require_num_codes(codes: &Stored, count: usize) -> Result<()> {
    match codes.with_bytes(<[u8]>::len)? {
        found if found == count / 2 => Ok(()),
        found => Err(codes.wrong(format!(
            "has {found} bytes, where {count} codes of four bits take {}",
            count / 2
        ))),
    }
}

fn require_num_blocks(absmax: &Stored, num_blocks: usize) -> Result<()> {
    let (_, found) = absmax.kind()?;
    match found.len() {
        2 => Err(absmax.wrong(format!(
            "has shape {found:?}, where [{num_blocks}] is expected; bitsandbytes transposes the magnitudes when a model \
             computes on a CPU, and saves them so: save the model before"
        ))),
        _ => absmax.require_shape(&[num_blocks]),
    }
}

fn require_table(stored: &Stored, expected: &[f32]) -> Result<()> {
    stored.require_shape(&[expected.len()])?;
    let found = stored.f32s()?;
    let differs = |(a, b): (&f32, &f32)| !(-TABLE_TOLERANCE..=TABLE_TOLERANCE).contains(&(a - b));
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(i) => Err(stored.wrong(format!(
            "is not the table of its type: number {i} is {}, not {}",
            found[i], expected[i]
        ))),
    }
}

/// Other formats than rows are those of kernels for some GPUs, which old versions saved.
fn require_row_format(stored: &Stored) -> Result<()> {
    stored.require_dtype(Dtype::U8)?;
    match stored.with_bytes(|bytes| bytes == [0])? {
        true => Ok(()),
        false => Err(stored.wrong(
            "is not 0: the weight does not lie row after row; save the model again by a newer bitsandbytes, or load the \
             folder that it was made from",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        for (name, weight, part) in [
            ("a.q.weight.absmax", "a.q.weight", ABSMAX),
            ("a.q.weight.nested_absmax", "a.q.weight", NESTED_ABSMAX),
            ("a.q.weight.quant_map", "a.q.weight", TABLE),
            ("q.weight.nested_quant_map", "q.weight", NESTED_TABLE),
            (
                "q.weight.quant_state.bitsandbytes__fp4",
                "q.weight",
                STATES[1],
            ),
            ("a.q.SCB", "a.q.weight", ROW_SCALES),
            ("a.q.weight_format", "a.q.weight", ROW_FORMAT),
        ] {
            assert_eq!(part_of(name), Some((weight.to_owned(), part)));
        }
        for name in [
            "a.q.weight",
            "a.q.bias",
            "absmax",
            "weight_format",
            "a.q.xSCB",
        ] {
            assert_eq!(part_of(name), None);
        }
    }
}
