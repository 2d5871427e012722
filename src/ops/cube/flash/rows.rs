//! What a unit knows of its rows of scores, two of each fragment: the keys in sight, and the softmax so far.

use cubecl::prelude::*;

use super::Layout;
use super::tile::{HeadRows, PLANE, PLANES, Pair, ROWS, STREAMED, Sums, head_rows, scale_rows};

/// The queries of a cube, of one head.
#[derive(CubeType)]
pub struct QueryBlock {
    pub rows: HeadRows,
    pub kv_rows: HeadRows,
    /// The first query of the cube.
    pub cube_row: usize,
    /// The first query of the plane.
    pub plane_row: usize,
    /// Where the head's part of `[batch, heads, seq]` begins.
    pub totals: usize,
    pub batch: usize,
    /// The first key that one of the cube's queries sees, and the one after the last.
    pub first_key: usize,
    pub end_key: usize,
    /// The first key that all of the plane's queries see, and the one after the last.
    pub first_of_all: usize,
    pub end_of_all: usize,
}

/// The queries of planes with `16 below` of them each.
#[cube]
pub fn query_block<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    #[comptime] below: usize,
    #[comptime] head_dim: usize,
) -> QueryBlock {
    let queries = comptime!(PLANES * ROWS * below);
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let kv_head = head / (layout.heads / layout.kv_heads);
    // The last queries see the most keys: begin with them.
    let cube_row = ((layout.seq - 1) / queries - CUBE_POS_X as usize) * queries;
    let plane_row = cube_row + UNIT_POS_Y as usize * comptime!(ROWS * below);
    let (first_key, end_key) = seen_by_any::<I>(visible, layout, batch, cube_row, queries);
    let own = comptime!(ROWS * below);
    let (first_of_all, end_of_all) = seen_by_all::<I>(visible, layout, batch, plane_row, own);
    QueryBlock {
        rows: head_rows(batch, layout.seq, head, layout.heads, head_dim),
        kv_rows: head_rows(batch, layout.keys, kv_head, layout.kv_heads, head_dim),
        cube_row,
        plane_row,
        totals: (batch * layout.heads + head) * layout.seq,
        batch,
        first_key,
        end_key,
        first_of_all,
        end_of_all,
    }
}

/// The keys that one query sees; none if there is no such query.
#[cube]
pub fn seen_by_one<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    batch: usize,
    query: usize,
) -> (usize, usize) {
    let mut first = 0usize;
    let mut end = 0usize;
    if query < layout.seq {
        // Ranges of one batch row serve all.
        let index = (batch * layout.seq + query) * 2 % visible.len();
        first = usize::cast_from(visible[index]);
        end = usize::cast_from(visible[index + 1]);
    }
    (first, end)
}

/// The place in the plane of the row with this index of a unit.
#[cube]
fn unit_row(#[comptime] index: usize) -> usize {
    UNIT_POS_PLANE as usize / 4 + comptime!(8 * index)
}

/// The keys that all queries of a plane see, `first_query` and the next.
#[cube]
fn seen_by_all<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
    #[comptime] queries: usize,
) -> (usize, usize) {
    let query = first_query + UNIT_POS_PLANE as usize % queries;
    let (first, end) = seen_by_one::<I>(visible, layout, batch, query);
    sync_plane();
    let (first, end) = (plane_max(first as u32), plane_min(end as u32));
    (first as usize, end as usize)
}

/// The first key that any query of a cube sees, and the one after the last.
#[cube]
fn seen_by_any<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
    #[comptime] queries: usize,
) -> (usize, usize) {
    let mut lowest = u32::max_value();
    let mut highest = 0u32;
    #[unroll]
    for i in 0..comptime!(queries / PLANE) {
        let query = first_query + i * PLANE + UNIT_POS_PLANE as usize;
        let (first, end) = seen_by_one::<I>(visible, layout, batch, query);
        if first < end {
            lowest = select(
                u32::cast_from(first) < lowest,
                u32::cast_from(first),
                lowest,
            );
            highest = select(u32::cast_from(end) > highest, u32::cast_from(end), highest);
        }
    }
    sync_plane();
    (plane_min(lowest) as usize, plane_max(highest) as usize)
}

/// A score of a key out of sight.
const HIDDEN: f32 = f32::MIN;
/// By how much a scaled score may exceed the largest so far: its exponential is far from f16's largest.
const SLACK: f32 = 8.0;

/// Hides the scores of streamed keys that are out of sight; `first_key` is that of the first column.
#[cube]
pub fn hide<I: Int>(
    scores: &mut Sums,
    visible: &Tensor<I>,
    layout: &Layout,
    block: &QueryBlock,
    first_key: usize,
) {
    if first_key < block.first_of_all || first_key + STREAMED > block.end_of_all {
        let column = first_key + UNIT_POS_PLANE as usize % 4 * 2;
        #[unroll]
        for row in 0..comptime!(2 * scores.len()) {
            let query = block.plane_row + unit_row(row);
            let (first, end) = seen_by_one::<I>(visible, layout, block.batch, query);
            #[unroll]
            for n in 0..comptime!(STREAMED / 8) {
                let mut pair = scores.index(row / 2).index(n)[row % 2];
                #[unroll]
                for i in 0..2usize {
                    let key = column + 8 * n + i;
                    let is_seen = key >= first && key < end;
                    pair.insert(i, select(is_seen, pair.extract(i), HIDDEN));
                }
                scores.index_mut(row / 2).index_mut(n)[row % 2] = pair;
            }
        }
    }
}

/// The softmax of a unit's rows: the largest score so far, and the sum of `exp(scale (s - largest))`
/// over the unit's own columns.
#[derive(CubeType)]
pub struct Softmax {
    largest: Array<f32>,
    total: Array<f32>,
}

#[cube]
pub fn new_softmax(#[comptime] below: usize) -> Softmax {
    let mut softmax = Softmax {
        largest: Array::new(comptime!(2 * below)),
        total: Array::new(comptime!(2 * below)),
    };
    #[unroll]
    for row in 0..comptime!(2 * below) {
        softmax.largest[row] = HIDDEN;
        softmax.total[row] = 0.0f32;
    }
    softmax
}

/// Takes more scores in, and puts `exp(scale (s - largest))` in their place. `sums` are of earlier ones.
///
/// The largest score stays behind until one is larger by so much that it matters, which is rare after the
/// first keys: all weights of a row have the same factor too much, and the end divides by it.
#[cube]
pub fn take_in(softmax: &mut Softmax, scores: &mut Sums, sums: &mut Sums, scale: f32) {
    let mut largest = Array::<f32>::new(comptime!(2 * scores.len()));
    let mut grows = false;
    #[unroll]
    for row in 0..comptime!(2 * scores.len()) {
        let mut of_row = softmax.largest[row];
        #[unroll]
        for n in 0..comptime!(STREAMED / 8) {
            let pair = scores.index(row / 2).index(n)[row % 2];
            of_row = max(of_row, max(pair.extract(0usize), pair.extract(1usize)));
        }
        of_row = max(of_row, plane_shuffle_xor(of_row, 1));
        of_row = max(of_row, plane_shuffle_xor(of_row, 2));
        grows = grows || (of_row - softmax.largest[row]) * scale > SLACK;
        largest[row] = of_row;
    }
    if plane_any(grows) {
        let mut factors = Array::<f32>::new(comptime!(2 * scores.len()));
        #[unroll]
        for row in 0..comptime!(2 * scores.len()) {
            let factor = ((softmax.largest[row] - largest[row]) * scale).exp();
            softmax.total[row] = softmax.total[row] * factor;
            softmax.largest[row] = largest[row];
            factors[row] = factor;
        }
        scale_rows(sums, &factors);
    }
    #[unroll]
    for row in 0..comptime!(2 * scores.len()) {
        let shift = shift(softmax.largest[row], scale);
        let mut total = softmax.total[row];
        #[unroll]
        for n in 0..comptime!(STREAMED / 8) {
            let mut pair = scores.index(row / 2).index(n)[row % 2];
            #[unroll]
            for i in 0..2usize {
                let weight = (pair.extract(i) * scale - shift).exp();
                total += weight;
                pair.insert(i, weight);
            }
            scores.index_mut(row / 2).index_mut(n)[row % 2] = pair;
        }
        softmax.total[row] = total;
    }
}

/// What is taken off scaled scores: the largest of them, or nothing if all are hidden, so that their
/// exponentials are zero.
#[cube]
fn shift(largest: f32, scale: f32) -> f32 {
    select(largest > HIDDEN, largest * scale, 0.0f32)
}

/// Ends the softmax of the plane's queries from `first` on: writes the logarithm of `Σ exp(scale s)` of
/// each, and gives the factors that make sums of `exp(scale (s - largest))` means. For a query that sees
/// nothing the logarithm is so large that all weights are zero, and the factor is zero.
#[cube]
pub fn end_softmax(
    softmax: &Softmax,
    scale: f32,
    totals: &mut Tensor<f32>,
    start: usize,
    first: usize,
    seq: usize,
    #[comptime] below: usize,
) -> Array<f32> {
    let mut factors = Array::<f32>::new(comptime!(2 * below));
    #[unroll]
    for row in 0..comptime!(2 * below) {
        let total = row_sum(softmax.total[row]);
        let is_seen = total > 0.0f32;
        let log_total = shift(softmax.largest[row], scale) + total.ln();
        let query = first + unit_row(row);
        if query < seq && UNIT_POS_PLANE.is_multiple_of(4) {
            totals[start + query] = select(is_seen, log_total, f32::MAX);
        }
        factors[row] = select(is_seen, 1.0f32 / total, 0.0f32);
    }
    factors
}

/// The numbers of a unit's rows in a tensor with one for each query of the head; `first` is the plane's first.
#[cube]
pub fn of_rows(numbers: &Tensor<f32>, start: usize, first: usize, seq: usize) -> Array<f32> {
    let mut rows = Array::<f32>::new(2usize);
    #[unroll]
    for row in 0..2usize {
        let query = first + unit_row(row);
        rows[row] = 0.0f32;
        if query < seq {
            rows[row] = numbers[start + query];
        }
    }
    rows
}

/// Puts the gradients of scores in their place, `scale · w · (∂w - Σ w ∂w)`.
#[cube]
pub fn differentiate(
    scores: &mut Sums,
    weight_grads: &Sums,
    log_totals: &Array<f32>,
    means: &Array<f32>,
    scale: f32,
) {
    let factor = Vector::<f32, Pair>::new(scale);
    #[unroll]
    for row in 0..comptime!(2 * scores.len()) {
        let log_total = Vector::new(log_totals[row]);
        let mean = Vector::new(means[row]);
        #[unroll]
        for n in 0..comptime!(STREAMED / 8) {
            let weights = (scores.index(row / 2).index(n)[row % 2] * factor - log_total).exp();
            let weight_grads = weight_grads.index(row / 2).index(n)[row % 2];
            let grads = factor * weights * (weight_grads - mean);
            scores.index_mut(row / 2).index_mut(n)[row % 2] = grads;
        }
    }
}

/// Where queries are columns: what the unit's own query of the streamed ones sees, and its softmax.
#[derive(CubeType)]
pub struct Columns {
    first_key: u32,
    end_key: u32,
    log_total: f32,
    mean: f32,
}

/// Of the streamed queries from `first_query` on; the numbers of the head begin at `start`.
#[cube]
pub fn query_columns<I: Int>(
    visible: &Tensor<I>,
    totals: &Tensor<f32>,
    means: &Tensor<f32>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
    start: usize,
) -> Columns {
    let query = first_query + UNIT_POS_PLANE as usize;
    let (first_key, end_key) = seen_by_one::<I>(visible, layout, batch, query);
    let mut log_total = 0.0f32;
    let mut mean = 0.0f32;
    if query < layout.seq {
        log_total = totals[start + query];
        mean = means[start + query];
    }
    Columns {
        first_key: first_key as u32,
        end_key: end_key as u32,
        log_total,
        mean,
    }
}

/// The unit that has the query of a column of its fragments.
#[cube]
fn column_unit(#[comptime] n: usize, #[comptime] i: usize) -> u32 {
    UNIT_POS_PLANE % 4 * 2 + comptime!((8 * n + i) as u32)
}

/// [`hide`] where queries are columns; `first_key` is the plane's first.
#[cube]
pub fn hide_columns(scores: &mut Sums, columns: &Columns, first_key: usize) {
    let first_row = first_key as u32;
    let hides = columns.first_key > first_row || columns.end_key < first_row + ROWS as u32;
    if plane_any(hides) {
        #[unroll]
        for n in 0..comptime!(STREAMED / 8) {
            #[unroll]
            for i in 0..2usize {
                let first = plane_shuffle(columns.first_key, column_unit(n, i));
                let end = plane_shuffle(columns.end_key, column_unit(n, i));
                #[unroll]
                for half in 0..2usize {
                    let key = first_row + unit_row(half) as u32;
                    let mut pair = scores.index(0usize).index(n)[half];
                    let is_seen = key >= first && key < end;
                    pair.insert(i, select(is_seen, pair.extract(i), HIDDEN));
                    scores.index_mut(0usize).index_mut(n)[half] = pair;
                }
            }
        }
    }
}

/// [`differentiate`] where queries are columns; puts weights in the place of scores, and the gradients of
/// the scores in the place of the weights'.
#[cube]
pub fn differentiate_columns(
    scores: &mut Sums,
    weight_grads: &mut Sums,
    columns: &Columns,
    scale: f32,
) {
    #[unroll]
    for n in 0..comptime!(STREAMED / 8) {
        #[unroll]
        for i in 0..2usize {
            let log_total = plane_shuffle(columns.log_total, column_unit(n, i));
            let mean = plane_shuffle(columns.mean, column_unit(n, i));
            #[unroll]
            for half in 0..2usize {
                let mut weights = scores.index(0usize).index(n)[half];
                let mut grads = weight_grads.index(0usize).index(n)[half];
                let weight = (weights.extract(i) * scale - log_total).exp();
                weights.insert(i, weight);
                grads.insert(i, scale * weight * (grads.extract(i) - mean));
                scores.index_mut(0usize).index_mut(n)[half] = weights;
                weight_grads.index_mut(0usize).index_mut(n)[half] = grads;
            }
        }
    }
}

/// The sum over the four units that share a row.
#[cube]
fn row_sum(value: f32) -> f32 {
    let value = value + plane_shuffle_xor(value, 1);
    value + plane_shuffle_xor(value, 2)
}
