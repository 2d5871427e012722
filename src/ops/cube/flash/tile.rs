use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// The units of a plane.
pub const PLANE: usize = 32;
/// The planes of a cube.
pub const PLANES: usize = 4;
/// The rows of a fragment.
pub const ROWS: usize = 16;
/// The rows that go through shared memory at a time.
pub const STREAMED: usize = PLANE;

/// Eight neighbouring numbers, as much as a unit reads in one piece.
pub type Eight = Const<8>;
/// Two neighbouring numbers, a register.
pub type Pair = Const<2>;
/// What a unit holds of a matrix on the left-hand side, `[16, 16]` (four pairs), on the right-hand side,
/// `[16, 8]` (two), or of sums, `[16, 8]` (two).
pub type Fragment<F> = Array<Vector<F, Pair>>;
/// Fragments one below the other.
pub type Below<F> = Sequence<Fragment<F>>;
/// Fragments of sums: side by side, and such rows one below the other.
pub type Sums = Sequence<Sequence<Fragment<f32>>>;
/// Rows of a head in shared memory. Between two rows eight numbers are left out, so that the rows which
/// are read together lie in different banks.
pub type Tile<F> = Shared<[Vector<F, Eight>]>;

/// A tile's memory.
#[cube]
fn new_tile<F: Float>(#[comptime] rows: usize, #[comptime] head_dim: usize) -> Tile<F> {
    Shared::new_aligned_slice(comptime!(rows * row_width(head_dim)), 16usize)
}

/// Where a head's rows lie, in pieces of eight numbers.
#[derive(CubeType)]
pub struct HeadRows {
    /// The first of them.
    pub start: usize,
    /// From a row to the next.
    pub stride: usize,
    /// How many there are.
    pub len: usize,
}

/// The rows of the head `head` of `heads`, in batch row `batch` of a tensor `[batch, len, heads, head_dim]`.
#[cube]
pub fn head_rows(
    batch: usize,
    len: usize,
    head: usize,
    heads: usize,
    #[comptime] head_dim: usize,
) -> HeadRows {
    let width = comptime!(head_dim / 8);
    HeadRows {
        start: (batch * len * heads + head) * width,
        stride: heads * width,
        len,
    }
}

/// How many pieces of a tile of so many rows each unit brings; the last may be of some units alone.
fn pieces(rows: usize, head_dim: usize) -> usize {
    (rows * head_dim / 8).div_ceil(PLANES * PLANE)
}

/// Reads a unit's pieces of the rows from `first` on, with zeros after the last row.
#[cube]
fn fetch<F: Float>(
    from: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    first: usize,
    coming: &mut Array<Vector<F, Eight>>,
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) {
    let width = comptime!(head_dim / 8);
    #[unroll]
    for i in 0..comptime!(pieces(rows, head_dim)) {
        let piece = UNIT_POS as usize + i * PLANES * PLANE;
        let (row, column) = (piece / width, piece % width);
        let mut numbers = Vector::<F, Eight>::new(F::new(0.0));
        if row < rows && first + row < at.len {
            numbers = from[at.start + (first + row) * at.stride + column];
        }
        coming[i] = numbers;
    }
}

/// Writes a unit's pieces into a tile, from row `at` on.
#[cube]
fn put<F: Float>(
    coming: &Array<Vector<F, Eight>>,
    tile: &mut Tile<F>,
    at: usize,
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) {
    let width = comptime!(head_dim / 8);
    #[unroll]
    for i in 0..comptime!(pieces(rows, head_dim)) {
        let piece = UNIT_POS as usize + i * PLANES * PLANE;
        if piece < comptime!(rows * width) {
            tile[(at + piece / width) * comptime!(row_width(head_dim)) + piece % width] = coming[i];
        }
    }
}

/// A tile of `rows` rows from `first` on.
#[cube]
pub fn block_tile<F: Float>(
    from: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    first: usize,
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) -> Tile<F> {
    let mut coming = Array::<Vector<F, Eight>>::new(comptime!(pieces(rows, head_dim)));
    let mut tile = new_tile::<F>(rows, head_dim);
    fetch::<F>(from, at, first, &mut coming, rows, head_dim);
    put::<F>(&coming, &mut tile, 0usize, rows, head_dim);
    tile
}

/// Rows of two tensors on their way through shared memory: half of a tile is multiplied by while the next
/// rows come into the other half.
#[derive(CubeType)]
pub struct Stream<F: Float> {
    pub first: Tile<F>,
    pub second: Tile<F>,
    coming: Array<Vector<F, Eight>>,
}

/// A stream of which no rows have been sent for.
#[cube]
pub fn new_stream<F: Float>(#[comptime] head_dim: usize) -> Stream<F> {
    Stream::<F> {
        first: new_tile::<F>(comptime!(2 * STREAMED), head_dim),
        second: new_tile::<F>(comptime!(2 * STREAMED), head_dim),
        coming: Array::new(comptime!(pieces(STREAMED, head_dim))),
    }
}

/// Sends for a unit's part of the rows from `row` on, once the plane has come here: a compiler that sent
/// for them with the rows before would need registers for both.
#[cube]
pub fn send<F: Float>(
    stream: &mut Stream<F>,
    from: &Tensor<Vector<F, Eight>>,
    rows: &HeadRows,
    row: usize,
    #[comptime] head_dim: usize,
) {
    let row = plane_broadcast(row as u32, 0u32) as usize;
    fetch::<F>(from, rows, row, &mut stream.coming, STREAMED, head_dim);
}

/// Takes what is coming into the half of the first tile that begins at row `at`.
#[cube]
pub fn take_first<F: Float>(stream: &mut Stream<F>, at: usize, #[comptime] head_dim: usize) {
    put::<F>(&stream.coming, &mut stream.first, at, STREAMED, head_dim);
}

/// Takes what is coming into the half of the second tile that begins at row `at`.
#[cube]
pub fn take_second<F: Float>(stream: &mut Stream<F>, at: usize, #[comptime] head_dim: usize) {
    put::<F>(&stream.coming, &mut stream.second, at, STREAMED, head_dim);
}

/// Brings the rows from `row` on of both tensors into the first halves of the tiles.
#[cube]
pub fn begin<F: Float>(
    stream: &mut Stream<F>,
    first: &Tensor<Vector<F, Eight>>,
    second: &Tensor<Vector<F, Eight>>,
    rows: &HeadRows,
    row: usize,
    #[comptime] head_dim: usize,
) {
    send::<F>(stream, first, rows, row, head_dim);
    take_first::<F>(stream, 0usize, head_dim);
    send::<F>(stream, second, rows, row, head_dim);
    take_second::<F>(stream, 0usize, head_dim);
}

/// From a row of a tile to the next, in pieces.
fn row_width(head_dim: usize) -> usize {
    head_dim / 8 + 1
}

/// Reads four matrices of eight rows and columns as a fragment; each unit names one row of one of them, by
/// its place `at` in the tile.
#[cube]
fn matrices<F: Float>(tile: &Tile<F>, at: usize, #[comptime] transposed: bool) -> Fragment<F> {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    // They load alike for both sides.
    let ident = MatrixIdent::A;
    def.load_matrix::<Vector<F, Eight>, Pair>(&tile[at..at + 1], ident, 4usize, transposed)
}

/// The unit's place for left-hand sides of a tile's rows from `first` on.
#[cube]
fn left_place(first: usize, #[comptime] head_dim: usize) -> usize {
    let unit = UNIT_POS_PLANE as usize;
    (first + unit % ROWS) * comptime!(row_width(head_dim)) + unit / ROWS
}

/// The fragments of columns `16 step` and on of a tile's rows, `below` of them.
#[cube]
fn left<F: Float>(
    tile: &Tile<F>,
    place: usize,
    #[comptime] step: usize,
    #[comptime] below: usize,
    #[comptime] head_dim: usize,
) -> Below<F> {
    let mut fragments = Sequence::new();
    #[unroll]
    for m in 0..below {
        let at = place + comptime!(m * ROWS * row_width(head_dim) + 2 * step);
        fragments.push(matrices::<F>(tile, at, false));
    }
    fragments
}

/// The left-hand sides of all columns of 16 rows of a tile from `first` on.
#[cube]
pub fn lefts<F: Float>(
    tile: &Tile<F>,
    first: usize,
    #[comptime] head_dim: usize,
) -> Sequence<Below<F>> {
    let place = left_place(first, head_dim);
    let mut fragments = Sequence::new();
    #[unroll]
    for step in 0..comptime!(head_dim / 16) {
        fragments.push(left::<F>(tile, place, step, 1usize, head_dim));
    }
    fragments
}

/// The unit's place in the streamed rows that begin at row `at` of a tile and become columns.
#[cube]
fn rows_place(at: usize, #[comptime] head_dim: usize) -> usize {
    let unit = UNIT_POS_PLANE as usize;
    (at + unit % 8 + unit / 16 * 8) * comptime!(row_width(head_dim)) + unit / 8 % 2
}

/// The right-hand sides of columns `16 step` and on of streamed rows, which become columns.
#[cube]
fn rights<F: Float>(
    tile: &Tile<F>,
    place: usize,
    #[comptime] step: usize,
    #[comptime] head_dim: usize,
) -> Sequence<Fragment<F>> {
    let mut fragments = Sequence::new();
    #[unroll]
    for pair in 0..comptime!(STREAMED / 16) {
        let at = place + comptime!(16 * pair * row_width(head_dim) + 2 * step);
        fragments.push(matrices::<F>(tile, at, false));
    }
    fragments
}

/// `a tᵀ` for the streamed rows t that begin at row `at` of a tile: they become columns.
#[cube]
pub fn by_rows<F: Float>(
    a: &Sequence<Below<F>>,
    tile: &Tile<F>,
    at: usize,
    #[comptime] head_dim: usize,
) -> Sums {
    let place = rows_place(at, head_dim);
    let mut sums = zeros(1usize, comptime!(STREAMED / 8));
    // Each step's matrices are read before the step before is multiplied.
    let mut b = Sequence::<Sequence<Fragment<F>>>::new();
    b.push(rights::<F>(tile, place, 0usize, head_dim));
    #[unroll]
    for step in 0..comptime!(head_dim / 16) {
        if comptime!(step + 1 < head_dim / 16) {
            b.push(rights::<F>(tile, place, step + 1, head_dim));
        }
        add_products::<F>(a.index(step), b.index(step), &mut sums);
    }
    sums
}

/// [`by_rows`] for `16 below` rows of a tile from `first` on, which stay there.
#[cube]
pub fn tile_by_rows<F: Float>(
    left_tile: &Tile<F>,
    first: usize,
    tile: &Tile<F>,
    at: usize,
    #[comptime] below: usize,
    #[comptime] head_dim: usize,
) -> Sums {
    let (left_place, place) = (left_place(first, head_dim), rows_place(at, head_dim));
    let mut sums = zeros(below, comptime!(STREAMED / 8));
    let mut a = Sequence::<Below<F>>::new();
    let mut b = Sequence::<Sequence<Fragment<F>>>::new();
    a.push(left::<F>(left_tile, left_place, 0usize, below, head_dim));
    b.push(rights::<F>(tile, place, 0usize, head_dim));
    #[unroll]
    for step in 0..comptime!(head_dim / 16) {
        if comptime!(step + 1 < head_dim / 16) {
            a.push(left::<F>(left_tile, left_place, step + 1, below, head_dim));
            b.push(rights::<F>(tile, place, step + 1, head_dim));
        }
        add_products::<F>(a.index(step), b.index(step), &mut sums);
    }
    sums
}

/// Adds the products with fragments side by side.
#[cube]
fn add_products<F: Float>(a: &Below<F>, b: &Sequence<Fragment<F>>, sums: &mut Sums) {
    #[unroll]
    for pair in 0..comptime!(b.len()) {
        add_pair::<F>(a, b.index(pair), pair, sums);
    }
}

/// Adds `a t` for the streamed rows t that begin at row `at` of a tile, with `a` rounded.
#[cube]
pub fn add_by_columns<F: Float>(
    a: &Sums,
    tile: &Tile<F>,
    at: usize,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS_PLANE as usize;
    let place = (at + unit % 16) * comptime!(row_width(head_dim)) + unit / 16;
    let pairs = comptime!(head_dim / 16);
    let mut b = Sequence::<Fragment<F>>::new();
    b.push(matrices::<F>(tile, place, true));
    #[unroll]
    for step in 0..comptime!(STREAMED / 16) {
        let a = rounded::<F>(a, step);
        #[unroll]
        for pair in 0..pairs {
            let next = comptime!(step * pairs + pair + 1);
            if comptime!(next < STREAMED / 16 * pairs) {
                let row = comptime!(next / pairs * 16 * row_width(head_dim));
                let at = place + comptime!(row + 2 * (next % pairs));
                b.push(matrices::<F>(tile, at, true));
            }
            add_pair::<F>(&a, b.index(comptime!(next - 1)), pair, sums);
        }
    }
}

/// Adds `a b` to two neighbouring fragments of each row of sums; `b` has two fragments too.
#[cube]
fn add_pair<F: Float>(a: &Below<F>, b: &Fragment<F>, #[comptime] pair: usize, sums: &mut Sums) {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for i in 0..2usize {
        let mut right = Fragment::<F>::new(2usize);
        right[0] = b[comptime!(2 * i)];
        right[1] = b[comptime!(2 * i + 1)];
        let n = comptime!(2 * pair + i);
        #[unroll]
        for m in 0..comptime!(a.len()) {
            def.execute_inplace(a.index(m), &right, sums.index_mut(m).index_mut(n));
        }
    }
}

/// Zeros, `below` rows of so many fragments.
#[cube]
pub fn zeros(#[comptime] below: usize, #[comptime] fragments: usize) -> Sums {
    let mut sums = Sequence::new();
    #[unroll]
    for _ in 0..below {
        let mut row = Sequence::new();
        #[unroll]
        for _ in 0..fragments {
            let mut fragment = Fragment::<f32>::new(2usize);
            fragment[0] = Vector::new(0.0f32);
            fragment[1] = Vector::new(0.0f32);
            row.push(fragment);
        }
        sums.push(row);
    }
    sums
}

/// Columns `16 step` and on of sums, as a left-hand side.
#[cube]
fn rounded<F: Float>(sums: &Sums, #[comptime] step: usize) -> Below<F> {
    let mut fragments = Sequence::new();
    #[unroll]
    for m in 0..comptime!(sums.len()) {
        let mut fragment = Fragment::<F>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            let sums = sums.index(m).index(comptime!(2 * step + i / 2));
            fragment[i] = Vector::cast_from(sums[comptime!(i % 2)]);
        }
        fragments.push(fragment);
    }
    fragments
}

/// Multiplies the unit's rows of sums, two of each fragment.
#[cube]
pub fn scale_rows(sums: &mut Sums, factors: &Array<f32>) {
    #[unroll]
    for m in 0..comptime!(sums.len()) {
        let row = sums.index(m);
        #[unroll]
        for n in 0..comptime!(row.len()) {
            #[unroll]
            for half in 0..2usize {
                let factor = Vector::new(factors[comptime!(2 * m + half)]);
                let scaled = sums.index(m).index(n)[half] * factor;
                sums.index_mut(m).index_mut(n)[half] = scaled;
            }
        }
    }
}

/// Writes the plane's rows of sums, of which `first` is the first, to a head's rows.
#[cube]
pub fn store<F: Float>(sums: &Sums, to: &mut Tensor<Vector<F, Pair>>, at: &HeadRows, first: usize) {
    let unit = UNIT_POS_PLANE as usize;
    #[unroll]
    for m in 0..comptime!(sums.len()) {
        let fragments = sums.index(m);
        #[unroll]
        for half in 0..2usize {
            let row = first + unit / 4 + comptime!(ROWS * m + 8 * half);
            if row < at.len {
                let start = 4 * (at.start + row * at.stride) + unit % 4;
                #[unroll]
                for n in 0..comptime!(fragments.len()) {
                    to[start + 4 * n] = Vector::cast_from(fragments.index(n)[half]);
                }
            }
        }
    }
}
