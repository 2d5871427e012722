//! What a unit knows of its two rows of scores: the keys in sight, and the softmax so far.

use cubecl::prelude::*;

use super::Layout;
use super::tile::{BLOCK, HeadRows, PLANE, Pair, ROWS, STREAMED, Sums, head_rows, zeros};

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
    pub seen: Seen,
    /// The first key that one of the queries sees, and the one after the last.
    pub first_key: usize,
    pub end_key: usize,
}

#[cube]
pub fn query_block<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    #[comptime] head_dim: usize,
) -> QueryBlock {
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let kv_head = head / (layout.heads / layout.kv_heads);
    // The last queries see the most keys: begin with them.
    let cube_row = ((layout.seq - 1) / BLOCK - CUBE_POS_X as usize) * BLOCK;
    let plane_row = cube_row + UNIT_POS_Y as usize * ROWS;
    let (first_key, end_key) = seen_by_any::<I>(visible, layout, batch, cube_row);
    QueryBlock {
        rows: head_rows(batch, layout.seq, head, layout.heads, head_dim),
        kv_rows: head_rows(batch, layout.keys, kv_head, layout.kv_heads, head_dim),
        cube_row,
        plane_row,
        totals: (batch * layout.heads + head) * layout.seq,
        seen: seen::<I>(visible, layout, batch, plane_row),
        first_key,
        end_key,
    }
}

/// The keys that two queries see, the first and the one after the last of each.
#[derive(CubeType)]
pub struct Seen {
    first: Array<usize>,
    end: Array<usize>,
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

/// What the unit's two queries see; `first_query` is the plane's first.
#[cube]
fn seen<I: Int>(visible: &Tensor<I>, layout: &Layout, batch: usize, first_query: usize) -> Seen {
    let row = first_query + UNIT_POS_PLANE as usize / 4;
    let mut seen = Seen {
        first: Array::new(2usize),
        end: Array::new(2usize),
    };
    #[unroll]
    for half in 0..2usize {
        let (first, end) = seen_by_one::<I>(visible, layout, batch, row + 8 * half);
        seen.first[half] = first;
        seen.end[half] = end;
    }
    seen
}

/// The first key that any query of a cube sees, and the one after the last.
#[cube]
fn seen_by_any<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
) -> (usize, usize) {
    let mut lowest = u32::max_value();
    let mut highest = 0u32;
    #[unroll]
    for i in 0..comptime!(BLOCK / PLANE) {
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
    (plane_min(lowest) as usize, plane_max(highest) as usize)
}

/// A score of a key out of sight.
const HIDDEN: f32 = f32::MIN;

/// Hides the scores of streamed keys that are out of sight; `first_key` is that of the first column.
#[cube]
pub fn hide(scores: &mut Sums, seen: &Seen, first_key: usize) {
    let end_key = first_key + STREAMED;
    let hides_before = seen.first[0] > first_key || seen.first[1] > first_key;
    let hides_after = seen.end[0] < end_key || seen.end[1] < end_key;
    if plane_any(hides_before || hides_after) {
        let column = first_key + UNIT_POS_PLANE as usize % 4 * 2;
        #[unroll]
        for n in 0..comptime!(scores.len()) {
            #[unroll]
            for half in 0..2usize {
                let mut pair = scores.index(n)[half];
                #[unroll]
                for i in 0..2usize {
                    let key = column + 8 * n + i;
                    let is_seen = key >= seen.first[half] && key < seen.end[half];
                    pair.insert(i, select(is_seen, pair.extract(i), HIDDEN));
                }
                scores.index_mut(n)[half] = pair;
            }
        }
    }
}

/// The softmax of a unit's two rows: the largest score so far, and the sum of `exp(scale (s - largest))`
/// over the unit's own columns.
#[derive(CubeType)]
pub struct Softmax {
    largest: Array<f32>,
    total: Array<f32>,
}

#[cube]
pub fn new_softmax() -> Softmax {
    let mut softmax = Softmax {
        largest: Array::new(2usize),
        total: Array::new(2usize),
    };
    #[unroll]
    for half in 0..2usize {
        softmax.largest[half] = HIDDEN;
        softmax.total[half] = 0.0f32;
    }
    softmax
}

/// Takes more scores in, and puts `exp(scale (s - largest))` in their place. Gives what earlier sums must
/// be multiplied by.
#[cube]
pub fn take_in(softmax: &mut Softmax, scores: &mut Sums, scale: f32) -> Array<f32> {
    let mut factors = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let mut largest = softmax.largest[half];
        #[unroll]
        for n in 0..comptime!(scores.len()) {
            let pair = scores.index(n)[half];
            largest = larger(largest, larger(pair.extract(0usize), pair.extract(1usize)));
        }
        largest = larger(largest, plane_shuffle_xor(largest, 1));
        largest = larger(largest, plane_shuffle_xor(largest, 2));
        let shift = shift(largest, scale);
        let factor = (softmax.largest[half] * scale - shift).exp();
        let mut total = softmax.total[half] * factor;
        #[unroll]
        for n in 0..comptime!(scores.len()) {
            let mut pair = scores.index(n)[half];
            #[unroll]
            for i in 0..2usize {
                let weight = (pair.extract(i) * scale - shift).exp();
                total += weight;
                pair.insert(i, weight);
            }
            scores.index_mut(n)[half] = pair;
        }
        softmax.largest[half] = largest;
        softmax.total[half] = total;
        factors[half] = factor;
    }
    factors
}

/// What is taken off scaled scores: the largest of them, or nothing if all are hidden, so that their
/// exponentials are zero.
#[cube]
fn shift(largest: f32, scale: f32) -> f32 {
    select(largest > HIDDEN, largest * scale, 0.0f32)
}

/// The factors that make sums of `exp(scale (s - largest))` means; zero for a query that sees nothing.
#[cube]
pub fn inverse_totals(softmax: &Softmax) -> Array<f32> {
    let mut factors = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let total = row_sum(softmax.total[half]);
        factors[half] = select(total > 0.0f32, 1.0f32 / total, 0.0f32);
    }
    factors
}

/// Brings the unit's part of `Σ w ∂w` to the largest scores of now, with what [`take_in`] gave, and adds
/// the new columns.
#[cube]
pub fn add_along(
    along: &mut Array<f32>,
    factors: &Array<f32>,
    weights: &Sums,
    weight_grads: &Sums,
) {
    #[unroll]
    for half in 0..2usize {
        let mut sum = along[half] * factors[half];
        #[unroll]
        for n in 0..comptime!(weights.len()) {
            let products = weights.index(n)[half] * weight_grads.index(n)[half];
            sum += products.extract(0usize) + products.extract(1usize);
        }
        along[half] = sum;
    }
}

/// Of each row, the logarithm of `Σ exp(scale s)` and the mean of `∂w`. For a query that sees nothing
/// the logarithm is so large that all weights are zero.
#[cube]
pub fn row_totals(softmax: &Softmax, along: &Array<f32>, scale: f32) -> Array<Vector<f32, Pair>> {
    let mut totals = Array::<Vector<f32, Pair>>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let total = row_sum(softmax.total[half]);
        let is_seen = total > 0.0f32;
        let log_total = shift(softmax.largest[half], scale) + total.ln();
        let mean = row_sum(along[half]) / total;
        let mut pair = Vector::<f32, Pair>::new(0.0f32);
        pair.insert(0usize, select(is_seen, log_total, f32::MAX));
        pair.insert(1usize, select(is_seen, mean, 0.0f32));
        totals[half] = pair;
    }
    totals
}

/// Puts weights in the place of scores and gives the gradients of the scores, `scale · w · (∂w - Σ w ∂w)`.
#[cube]
pub fn differentiate(
    scores: &mut Sums,
    weight_grads: &Sums,
    row_totals: &Array<Vector<f32, Pair>>,
    scale: f32,
) -> Sums {
    let mut score_grads = zeros(comptime!(scores.len()));
    #[unroll]
    for half in 0..2usize {
        let log_total = Vector::new(row_totals[half].extract(0usize));
        let along = Vector::new(row_totals[half].extract(1usize));
        let scale = Vector::new(scale);
        #[unroll]
        for n in 0..comptime!(scores.len()) {
            let weights = (scores.index(n)[half] * scale - log_total).exp();
            let grads = scale * weights * (weight_grads.index(n)[half] - along);
            scores.index_mut(n)[half] = weights;
            score_grads.index_mut(n)[half] = grads;
        }
    }
    score_grads
}

/// Where queries are columns: what the unit's own query of the streamed ones sees, and what its softmax
/// comes to.
#[derive(CubeType)]
pub struct Columns {
    first_key: u32,
    end_key: u32,
    log_total: f32,
    along: f32,
}

/// Of the streamed queries from `first_query` on; the totals of the head begin at `head_totals`.
#[cube]
pub fn query_columns<I: Int>(
    visible: &Tensor<I>,
    totals: &Tensor<Vector<f32, Pair>>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
    head_totals: usize,
) -> Columns {
    let query = first_query + UNIT_POS_PLANE as usize;
    let (first_key, end_key) = seen_by_one::<I>(visible, layout, batch, query);
    let mut own = Vector::<f32, Pair>::new(0.0f32);
    if query < layout.seq {
        own = totals[head_totals + query];
    }
    Columns {
        first_key: first_key as u32,
        end_key: end_key as u32,
        log_total: own.extract(0usize),
        along: own.extract(1usize),
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
        for n in 0..comptime!(scores.len()) {
            #[unroll]
            for i in 0..2usize {
                let first = plane_shuffle(columns.first_key, column_unit(n, i));
                let end = plane_shuffle(columns.end_key, column_unit(n, i));
                #[unroll]
                for half in 0..2usize {
                    let key = first_row + UNIT_POS_PLANE / 4 + comptime!(8 * half as u32);
                    let mut pair = scores.index(n)[half];
                    let is_seen = key >= first && key < end;
                    pair.insert(i, select(is_seen, pair.extract(i), HIDDEN));
                    scores.index_mut(n)[half] = pair;
                }
            }
        }
    }
}

/// [`differentiate`] where queries are columns.
#[cube]
pub fn differentiate_columns(
    scores: &mut Sums,
    weight_grads: &Sums,
    columns: &Columns,
    scale: f32,
) -> Sums {
    let mut score_grads = zeros(comptime!(scores.len()));
    #[unroll]
    for n in 0..comptime!(scores.len()) {
        #[unroll]
        for i in 0..2usize {
            let log_total = plane_shuffle(columns.log_total, column_unit(n, i));
            let along = plane_shuffle(columns.along, column_unit(n, i));
            #[unroll]
            for half in 0..2usize {
                let mut weights = scores.index(n)[half];
                let mut grads = score_grads.index(n)[half];
                let weight = (weights.extract(i) * scale - log_total).exp();
                weights.insert(i, weight);
                let weight_grad = weight_grads.index(n)[half].extract(i);
                grads.insert(i, scale * weight * (weight_grad - along));
                scores.index_mut(n)[half] = weights;
                score_grads.index_mut(n)[half] = grads;
            }
        }
    }
    score_grads
}

/// The sum over the four units that share a row.
#[cube]
fn row_sum(value: f32) -> f32 {
    let value = value + plane_shuffle_xor(value, 1);
    value + plane_shuffle_xor(value, 2)
}

#[cube]
fn larger(a: f32, b: f32) -> f32 {
    select(a > b, a, b)
}
