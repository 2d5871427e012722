//! What a unit knows of its two rows of scores: the keys in sight, and the softmax so far.

use cubecl::prelude::*;

use super::Layout;
use super::tile::{PLANE, Pair, Sums, zeros};

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
pub fn seen<I: Int>(
    visible: &Tensor<I>,
    layout: &Layout,
    batch: usize,
    first_query: usize,
) -> Seen {
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

/// The first key that any of some queries sees, and the one after the last; `queries` is a multiple of
/// the units of a plane.
#[cube]
pub fn seen_by_any<I: Int>(
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
    (plane_min(lowest) as usize, plane_max(highest) as usize)
}

/// A score of a key out of sight.
const HIDDEN: f32 = f32::MIN;

/// Hides the scores of keys that are out of sight; `first_key` is that of the first column.
#[cube]
pub fn hide(scores: &mut Sums, seen: &Seen, first_key: usize) {
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
        let factor = ((softmax.largest[half] - largest) * scale).exp();
        let mut total = softmax.total[half] * factor;
        #[unroll]
        for n in 0..comptime!(scores.len()) {
            let mut pair = scores.index(n)[half];
            #[unroll]
            for i in 0..2usize {
                let score = pair.extract(i);
                let weight = ((score - largest) * scale).exp();
                let weight = select(score > HIDDEN, weight, 0.0f32);
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
        let log_total = softmax.largest[half] * scale + total.ln();
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

/// The sum over the four units that share a row.
#[cube]
pub fn row_sum(value: f32) -> f32 {
    let value = value + plane_shuffle_xor(value, 1);
    value + plane_shuffle_xor(value, 2)
}

#[cube]
fn larger(a: f32, b: f32) -> f32 {
    select(a > b, a, b)
}
