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
pub fn new_tile<F: Float>(#[comptime] rows: usize, #[comptime] head_dim: usize) -> Tile<F> {
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

/// Brings the rows from `first` on into a tile, with zeros after the last. All units of a cube take part.
#[cube]
pub fn load<F: Float>(
    from: &Tensor<Vector<F, Eight>>,
    at: &HeadRows,
    first: usize,
    tile: &mut Tile<F>,
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) {
    let width = comptime!(head_dim / 8);
    let pieces = comptime!(rows * width);
    #[unroll]
    for i in 0..comptime!(pieces.div_ceil(PLANE * PLANES)) {
        let piece = UNIT_POS as usize + i * PLANE * PLANES;
        if piece < pieces {
            let (row, column) = (piece / width, piece % width);
            let mut numbers = Vector::<F, Eight>::new(F::new(0.0));
            if first + row < at.len {
                numbers = from[at.start + (first + row) * at.stride + column];
            }
            tile[row * comptime!(width + 1) + column] = numbers;
        }
    }
}

/// The fragment of columns `16 step` and on, of the plane's rows in a tile.
#[cube]
pub fn left<F: Float>(
    tile: &Tile<F>,
    first: usize,
    #[comptime] step: usize,
    #[comptime] head_dim: usize,
) -> Fragment<F> {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let unit = UNIT_POS_PLANE as usize;
    let at = (first + unit % 16) * comptime!(head_dim / 8 + 1) + 2 * step + unit / 16;
    def.load_matrix::<Vector<F, Eight>, Pair>(&tile[at..at + 1], MatrixIdent::A, 4usize, false)
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

/// Adds `a tᵀ` to sums, of columns `16 step` and on of the tile t; its rows become columns.
#[cube]
pub fn add_by_rows<F: Float>(
    a: &Fragment<F>,
    tile: &Tile<F>,
    #[comptime] step: usize,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let unit = UNIT_POS_PLANE as usize;
    let (row, piece) = (unit % 8 + unit / 16 * 8, unit / 8 % 2);
    #[unroll]
    for pair in 0..comptime!(sums.len() / 2) {
        let at = (16 * pair + row) * comptime!(head_dim / 8 + 1) + 2 * step + piece;
        let b = def.load_matrix::<Vector<F, Eight>, Pair>(
            &tile[at..at + 1],
            MatrixIdent::B,
            4usize,
            false,
        );
        add_pair::<F>(a, &b, pair, sums);
    }
}

/// Adds `a t` to sums, of rows `16 step` and on of the tile t.
#[cube]
pub fn add_by_columns<F: Float>(
    a: &Fragment<F>,
    tile: &Tile<F>,
    #[comptime] step: usize,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    let def = MmaDefinition::<F, F, f32>::new(16usize, 8usize, 16usize);
    let unit = UNIT_POS_PLANE as usize;
    #[unroll]
    for pair in 0..comptime!(sums.len() / 2) {
        let at = (16 * step + unit % 16) * comptime!(head_dim / 8 + 1) + 2 * pair + unit / 16;
        let b = def.load_matrix::<Vector<F, Eight>, Pair>(
            &tile[at..at + 1],
            MatrixIdent::B,
            4usize,
            true,
        );
        add_pair::<F>(a, &b, pair, sums);
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
pub fn rounded<F: Float>(sums: &Sums, #[comptime] step: usize) -> Fragment<F> {
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
