use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

/// The units of a plane.
pub const PLANE: usize = 32;
/// The planes of a cube.
pub const PLANES: usize = 4;
/// The rows of a product that a plane has.
pub const ROWS: usize = 16;
/// The rows of a cube.
pub const BLOCK: usize = PLANES * ROWS;
/// The rows that go through shared memory at a time.
pub const STREAMED: usize = PLANE;

/// Eight neighbouring numbers, as much as a unit reads in one piece.
pub type Eight = Const<8>;
/// Two neighbouring numbers, a register.
pub type Pair = Const<2>;
/// What a unit holds of a matrix on the left-hand side, `[16, 16]` (four pairs), on the right-hand side,
/// `[16, 8]` (two), or of sums, `[16, 8]` (two).
pub type Fragment<F> = Array<Vector<F, Pair>>;
/// Fragments of sums, side by side.
pub type Sums = Sequence<Fragment<f32>>;
/// Rows of a head in shared memory. Between two rows eight numbers are left out, so that the rows which
/// are read together lie in different banks.
pub type Tile<F> = Shared<[Vector<F, Eight>]>;

/// A tile's memory.
#[cube]
fn new_tile<F: Float>(#[comptime] rows: usize, #[comptime] head_dim: usize) -> Tile<F> {
    Shared::new_aligned_slice(comptime!(rows * (head_dim / 8 + 1)), 16usize)
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

/// Writes a unit's pieces into a tile.
#[cube]
fn put<F: Float>(
    coming: &Array<Vector<F, Eight>>,
    tile: &mut Tile<F>,
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) {
    let width = comptime!(head_dim / 8);
    #[unroll]
    for i in 0..comptime!(pieces(rows, head_dim)) {
        let piece = UNIT_POS as usize + i * PLANES * PLANE;
        if piece < comptime!(rows * width) {
            tile[piece / width * comptime!(width + 1) + piece % width] = coming[i];
        }
    }
}

/// A tile of a cube's rows from `first` on.
#[cube]
pub fn block_tile<F: Float>(
    from: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    first: usize,
    #[comptime] head_dim: usize,
) -> Tile<F> {
    let mut coming = Array::<Vector<F, Eight>>::new(comptime!(pieces(BLOCK, head_dim)));
    let mut tile = new_tile::<F>(BLOCK, head_dim);
    fetch::<F>(from, at, first, &mut coming, BLOCK, head_dim);
    put::<F>(&coming, &mut tile, BLOCK, head_dim);
    tile
}

/// Rows of two tensors on their way through shared memory, in turn: while one tile is multiplied by, the
/// other's rows are coming.
#[derive(CubeType)]
pub struct Stream<F: Float> {
    pub first: Tile<F>,
    pub second: Tile<F>,
    coming: Array<Vector<F, Eight>>,
}

/// Of which nothing has been sent for.
#[cube]
pub fn new_stream<F: Float>(#[comptime] head_dim: usize) -> Stream<F> {
    let coming = Array::<Vector<F, Eight>>::new(comptime!(pieces(STREAMED, head_dim)));
    Stream::<F> {
        first: new_tile::<F>(STREAMED, head_dim),
        second: new_tile::<F>(STREAMED, head_dim),
        coming,
    }
}

/// Sends for rows of the first tensor.
#[cube]
pub fn send_first<F: Float>(
    stream: &mut Stream<F>,
    first: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    row: usize,
    #[comptime] head_dim: usize,
) {
    fetch::<F>(first, at, row, &mut stream.coming, STREAMED, head_dim);
}

/// Takes what is coming as the first tile, and sends for rows of the second tensor. All units of a cube
/// take part, as in [`take_second`].
#[cube]
pub fn take_first<F: Float>(
    stream: &mut Stream<F>,
    second: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    row: usize,
    #[comptime] head_dim: usize,
) {
    // What both tiles held must have been read.
    sync_cube();
    put::<F>(&stream.coming, &mut stream.first, STREAMED, head_dim);
    fetch::<F>(second, at, row, &mut stream.coming, STREAMED, head_dim);
    sync_cube();
}

/// Takes what is coming as the second tile, and sends for the next rows of the first tensor.
#[cube]
pub fn take_second<F: Float>(
    stream: &mut Stream<F>,
    first: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    next_row: usize,
    #[comptime] head_dim: usize,
) {
    put::<F>(&stream.coming, &mut stream.second, STREAMED, head_dim);
    send_first::<F>(stream, first, at, next_row, head_dim);
    sync_cube();
}

/// Reads four matrices of eight rows and columns as a fragment; each unit names one row of one of them, by
/// its row in the tile and its piece of eight columns.
#[cube]
fn matrices<F: Float>(
    tile: &Tile<F>,
    row: usize,
    piece: usize,
    #[comptime] ident: MatrixIdent,
    #[comptime] transposed: bool,
    #[comptime] head_dim: usize,
) -> Fragment<F> {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let at = row * comptime!(head_dim / 8 + 1) + piece;
    def.load_matrix::<Vector<F, Eight>, Pair>(&tile[at..at + 1], ident, 4usize, transposed)
}

/// The fragment of columns `16 step` and on, of the plane's rows in a tile.
#[cube]
pub fn left<F: Float>(
    tile: &Tile<F>,
    first: usize,
    #[comptime] step: usize,
    #[comptime] head_dim: usize,
) -> Fragment<F> {
    let unit = UNIT_POS_PLANE as usize;
    let (row, piece) = (first + unit % 16, 2 * step + unit / 16);
    matrices::<F>(tile, row, piece, MatrixIdent::A, false, head_dim)
}

/// The fragments of all columns of the plane's rows in a tile.
#[cube]
pub fn lefts<F: Float>(
    tile: &Tile<F>,
    first: usize,
    #[comptime] head_dim: usize,
) -> Sequence<Fragment<F>> {
    let mut fragments = Sequence::new();
    #[unroll]
    for step in 0..comptime!(head_dim / 16) {
        fragments.push(left::<F>(tile, first, step, head_dim));
    }
    fragments
}

/// `a tᵀ` for a streamed tile t: its rows become columns.
#[cube]
pub fn by_rows<F: Float>(
    a: &Sequence<Fragment<F>>,
    tile: &Tile<F>,
    #[comptime] head_dim: usize,
) -> Sums {
    let mut sums = zeros(comptime!(STREAMED / 8));
    #[unroll]
    for step in 0..comptime!(head_dim / 16) {
        add_by_rows::<F>(a.index(step), tile, step, &mut sums, head_dim);
    }
    sums
}

/// Adds the part of `a tᵀ` that is of columns `16 step` and on of both.
#[cube]
pub fn add_by_rows<F: Float>(
    a: &Fragment<F>,
    tile: &Tile<F>,
    #[comptime] step: usize,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS_PLANE as usize;
    let (row, piece) = (unit % 8 + unit / 16 * 8, 2 * step + unit / 8 % 2);
    #[unroll]
    for pair in 0..comptime!(sums.len() / 2) {
        let row = 16 * pair + row;
        let b = matrices::<F>(tile, row, piece, MatrixIdent::B, false, head_dim);
        add_pair::<F>(a, &b, pair, sums);
    }
}

/// Adds `a t` for a streamed tile t, with `a` rounded.
#[cube]
pub fn add_by_columns<F: Float>(
    a: &Sums,
    tile: &Tile<F>,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS_PLANE as usize;
    #[unroll]
    for step in 0..comptime!(STREAMED / 16) {
        let a = rounded::<F>(a, step);
        let row = 16 * step + unit % 16;
        #[unroll]
        for pair in 0..comptime!(sums.len() / 2) {
            let piece = 2 * pair + unit / 16;
            let b = matrices::<F>(tile, row, piece, MatrixIdent::B, true, head_dim);
            add_pair::<F>(&a, &b, pair, sums);
        }
    }
}

/// Adds `a b` to two neighbouring fragments of sums; `b` has two fragments too.
#[cube]
fn add_pair<F: Float>(a: &Fragment<F>, b: &Fragment<F>, #[comptime] pair: usize, sums: &mut Sums) {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for i in 0..2usize {
        let mut right = Fragment::<F>::new(2usize);
        right[0] = b[comptime!(2 * i)];
        right[1] = b[comptime!(2 * i + 1)];
        def.execute_inplace(a, &right, sums.index_mut(comptime!(2 * pair + i)));
    }
}

/// So many fragments of zeros.
#[cube]
pub fn zeros(#[comptime] fragments: usize) -> Sums {
    let mut sums = Sequence::new();
    #[unroll]
    for _ in 0..fragments {
        let mut fragment = Fragment::<f32>::new(2usize);
        fragment[0] = Vector::new(0.0f32);
        fragment[1] = Vector::new(0.0f32);
        sums.push(fragment);
    }
    sums
}

/// Columns `16 step` and on of sums, as a left-hand side.
#[cube]
fn rounded<F: Float>(sums: &Sums, #[comptime] step: usize) -> Fragment<F> {
    let mut fragment = Fragment::<F>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        fragment[i] = Vector::cast_from(sums.index(comptime!(2 * step + i / 2))[comptime!(i % 2)]);
    }
    fragment
}

/// Multiplies the unit's two rows of sums.
#[cube]
pub fn scale_rows(sums: &mut Sums, factors: &Array<f32>) {
    #[unroll]
    for n in 0..comptime!(sums.len()) {
        #[unroll]
        for half in 0..2usize {
            let scaled = sums.index(n)[half] * Vector::new(factors[half]);
            sums.index_mut(n)[half] = scaled;
        }
    }
}

/// Writes the plane's rows of sums, of which `first` is the first, to a head's rows.
#[cube]
pub fn store<F: Float>(sums: &Sums, to: &mut Tensor<Vector<F, Pair>>, at: &HeadRows, first: usize) {
    let unit = UNIT_POS_PLANE as usize;
    #[unroll]
    for half in 0..2usize {
        let row = first + unit / 4 + 8 * half;
        if row < at.len {
            let start = 4 * (at.start + row * at.stride) + unit % 4;
            #[unroll]
            for n in 0..comptime!(sums.len()) {
                to[start + 4 * n] = Vector::cast_from(sums.index(n)[half]);
            }
        }
    }
}
