//! Packed weights: a tile of a weight is decoded into memory of its own, in the type of the activations, and
//! multiplied as a dense weight is.

use std::ops::Range;
use std::sync::Mutex;

use burn::backend::ops::FloatTensorOps;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::prelude::*;

use super::decode::{self, Places, PlacesLaunch, decoded};
use super::product::{rows_by, transposed};
use super::{elem, elementwise, empty, row, vector_size};
use crate::quantization::{BlockFormat, PackedLayout};

/// The numbers of a tile, about; those of a weight that has less are one.
const TILE: usize = 1 << 24;
/// Tiles end after a multiple of so many rows or columns, at which the sizes of products are good.
const STEP: usize = 128;

/// `x Wᵀ`, for some rows of W after the other.
pub fn forward(x: CubeTensor, words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    forward_by(TILE, x, words, layout)
}

/// `grad W`, for some columns of W after the other.
pub fn x_grad(grad: CubeTensor, words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    x_grad_by(TILE, grad, words, layout)
}

fn forward_by(tile: usize, x: CubeTensor, words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let (weight, x) = (Weight::new(words, layout), into_contiguous(x));
    let [rows, columns] = layout.shape();
    let parts = tiles(tile, rows, columns).map(|rows| {
        let tile = weight.decode(rows, 0..columns, x.dtype);
        rows_by(x.clone(), transposed(tile), 1.0)
    });
    joined(parts.collect())
}

fn x_grad_by(tile: usize, grad: CubeTensor, words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let (weight, grad) = (Weight::new(words, layout), into_contiguous(grad));
    let [rows, columns] = layout.shape();
    let parts = tiles(tile, columns, rows).map(|columns| {
        let tile = weight.decode(0..rows, columns, grad.dtype);
        rows_by(grad.clone(), tile, 1.0)
    });
    joined(parts.collect())
}

/// Ranges of `len` lines, all about as long, each of at most `tile` numbers or of [`STEP`] lines.
fn tiles(tile: usize, len: usize, line: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (tile / line / STEP * STEP).max(STEP);
    let each = len.div_ceil(len.div_ceil(most)).next_multiple_of(STEP);
    let starts = (0..len).step_by(each);
    starts.map(move |start| start..len.min(start + each))
}

/// The numbers of the largest tile of a weight, forward and backward.
pub fn largest_tile(layout: &PackedLayout) -> usize {
    let [rows, columns] = layout.shape();
    let lengths = [(rows, columns), (columns, rows)].map(|(len, line)| {
        let first = tiles(TILE, len, line).next();
        first.map_or(0, |first| first.len() * line)
    });
    lengths[0].max(lengths[1])
}

/// Tensors side by side.
fn joined(mut parts: Vec<CubeTensor>) -> CubeTensor {
    match parts.len() {
        1 => parts.remove(0),
        _ => {
            let last = parts[0].shape().num_dims() - 1;
            CubeBackend::float_cat(parts, last)
        }
    }
}

/// The rows of some indices, f32.
pub fn rows(words: CubeTensor, indices: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let (weight, indices) = (Weight::new(words, layout), into_contiguous(indices));
    let [_, columns] = layout.shape();
    let shape = Shape::new([indices.shape().num_elements(), columns]);
    let out = empty(&weight.words, shape, DType::F32);
    let vector = vector_size(&out, columns);
    let (client, dtype) = (out.client.clone(), elem(indices.dtype));
    let (count, dim) = elementwise(&client, out.shape().num_elements() / vector);
    rows_kernel::launch(
        &client,
        count,
        dim,
        weight.address_type().max(out.required_address_type()),
        vector,
        weight.words.clone().into_tensor_arg(),
        weight.tables.clone().into_tensor_arg(),
        indices.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        weight.places(),
        layout.format(),
        dtype,
    );
    out
}

/// The sum of the squares of each row, f32.
pub fn row_squares(words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let weight = Weight::new(words, layout);
    let [rows, columns] = layout.shape();
    let sums = empty(&weight.words, Shape::new([rows]), DType::F32);
    let (client, vector) = (sums.client.clone(), vector_size(&sums, columns));
    let (count, dim) = row::cubes(&client, rows);
    row_squares_kernel::launch(
        &client,
        count,
        dim,
        weight.address_type(),
        vector,
        weight.words.clone().into_tensor_arg(),
        weight.tables.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        weight.places(),
        layout.format(),
    );
    sums
}

/// All of the weight, in f32.
pub fn unpacked(words: CubeTensor, layout: PackedLayout) -> CubeTensor {
    let [rows, columns] = layout.shape();
    Weight::new(words, layout).decode(0..rows, 0..columns, DType::F32)
}

/// A packed weight on a device.
struct Weight {
    words: CubeTensor,
    tables: CubeTensor,
    layout: PackedLayout,
}

impl Weight {
    fn new(words: CubeTensor, layout: PackedLayout) -> Self {
        assert_eq!(words.dtype, DType::U32, "a packed weight is of words");
        let words = into_contiguous(words);
        Self {
            tables: tables(&words.device),
            words,
            layout,
        }
    }

    /// Some rows and columns.
    fn decode(&self, rows: Range<usize>, columns: Range<usize>, dtype: DType) -> CubeTensor {
        let shape = Shape::new([rows.len(), columns.len()]);
        let out = empty(&self.words, shape, dtype);
        let (client, vector) = (out.client.clone(), vector_size(&out, columns.len()));
        let (count, dim) = elementwise(&client, rows.len() * columns.len() / vector);
        decode_kernel::launch(
            &client,
            count,
            dim,
            self.address_type(),
            vector,
            self.words.clone().into_tensor_arg(),
            self.tables.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            self.places(),
            rows.start,
            columns.start,
            columns.len(),
            self.layout.format(),
            elem(dtype),
        );
        out
    }

    fn places(&self) -> PlacesLaunch {
        let [_, columns] = self.layout.shape();
        let [scales_at, offset_at] = self.layout.scale_words();
        PlacesLaunch::new(columns, scales_at, offset_at, 0)
    }

    /// The type that counts all numbers and bytes.
    fn address_type(&self) -> AddressType {
        let [rows, columns] = self.layout.shape();
        AddressType::from_len((rows * columns).max(self.layout.num_bytes()))
    }
}

/// [`decode::tables`] of each device that has had a packed weight.
static TABLES: Mutex<Vec<(CubeDevice, CubeTensor)>> = Mutex::new(Vec::new());

fn tables(device: &CubeDevice) -> CubeTensor {
    let mut known = TABLES.lock().expect("no panic while it is held");
    if let Some((_, tables)) = known.iter().find(|(of, _)| of == device) {
        return tables.clone();
    }
    let numbers = decode::tables();
    let data = TensorData::new(numbers.clone(), [numbers.len()]);
    let tables = CubeBackend::memory_persistent_allocations(device, data, |data| {
        CubeBackend::float_from_data(data, device)
    });
    known.push((device.clone(), tables.clone()));
    tables
}

/// Each unit decodes some neighbouring numbers of a tile of `width` columns.
#[cube(launch, address_type = "dynamic")]
fn decode_kernel<F: Float, N: Size>(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    out: &mut Tensor<Vector<F, N>>,
    places: Places,
    first_row: usize,
    first_column: usize,
    width: usize,
    #[comptime] format: BlockFormat,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let place = ABSOLUTE_POS * N::value();
    let (row, column) = (first_row + place / width, first_column + place % width);
    let numbers = decoded::<N>(words, tables, &places, row, column, format);
    out[ABSOLUTE_POS] = Vector::cast_from(numbers);
}

/// Each unit decodes some neighbouring numbers of a row that an index tells.
#[cube(launch, address_type = "dynamic")]
fn rows_kernel<I: Int, N: Size>(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    indices: &Tensor<I>,
    out: &mut Tensor<Vector<f32, N>>,
    places: Places,
    #[comptime] format: BlockFormat,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let place = ABSOLUTE_POS * N::value();
    let row = usize::cast_from(indices[place / places.columns]);
    let column = place % places.columns;
    out[ABSOLUTE_POS] = decoded::<N>(words, tables, &places, row, column, format);
}

#[cube(launch, address_type = "dynamic")]
fn row_squares_kernel<N: Size>(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    sums: &mut Tensor<f32>,
    places: Places,
    #[comptime] format: BlockFormat,
) {
    let row = CUBE_POS;
    if row >= sums.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut column = UNIT_POS_X as usize * N::value();
    while column < places.columns {
        let numbers = decoded::<N>(words, tables, &places, row, column, format);
        squares += numbers * numbers;
        column += comptime!(row::UNITS) * N::value();
    }
    let sum = row::sum(row::vector_sum::<N>(squares), &mut shared);
    if UNIT_POS_X == 0 {
        sums[row] = sum;
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::DispatchDevice;
    use burn::backend::ops::IntTensorOps;
    use burn::tensor::Device;
    use burn_cubecl::ops::into_data_sync;

    use super::*;
    use crate::quantization::{FourBit, FourBitTable, quantize};
    use crate::weight::packed_words;

    fn number(i: usize) -> f32 {
        (i * 7919 % 4093) as f32 / 1023.0 - 2.0
    }

    fn tensor(shape: [usize; 2], device: &CubeDevice) -> CubeTensor {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        CubeBackend::float_from_data(TensorData::new(numbers, shape), device)
    }

    fn lengths(tile: usize, len: usize, line: usize) -> Vec<usize> {
        tiles(tile, len, line).map(|part| part.len()).collect()
    }

    #[test]
    fn tiles_are_about_as_long() {
        assert_eq!(lengths(TILE, 4096, 4096), [4096]);
        assert_eq!(lengths(TILE, 11008, 4096), [3712, 3712, 3584]);
        assert_eq!(lengths(TILE, 4096, 11008), [1408, 1408, 1280]);
        assert_eq!(lengths(TILE, 33, 5), [33]);
        // Lines of more numbers than a tile.
        assert_eq!(lengths(1, 300, 7), [128, 128, 44]);
    }

    #[test]
    fn a_weight_in_tiles_multiplies_as_one_in_a_piece() {
        let device = Device::default();
        let DispatchDevice::Cube(device) = device.as_dispatch() else {
            println!("skipped: BURN_DEVICE names no device of CubeCL");
            return;
        };
        let shape = [200, 320];
        let format = BlockFormat::FourBit(FourBit::new(FourBitTable::Nf4).with_nested(true));
        let layout = PackedLayout::new(format, shape).unwrap();
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        let words = packed_words(&quantize(&numbers, layout).unwrap());
        let words = CubeBackend::int_from_data(words, device);
        for (by, width) in [(forward_by as fn(_, _, _, _) -> _, 320), (x_grad_by, 200)] {
            let product = |tile| -> Vec<f32> {
                let product: CubeTensor =
                    by(tile, tensor([3, width], device), words.clone(), layout);
                assert_eq!(product.shape()[1], 520 - width);
                into_data_sync(product).iter().collect()
            };
            for (found, expected) in product(1).into_iter().zip(product(TILE)) {
                assert!((found - expected).abs() < 1e-3, "{found}, not {expected}");
            }
        }
    }
}
