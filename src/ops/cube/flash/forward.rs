use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{end_softmax, hide, new_softmax, query_block, take_in};
use super::tile::{
    Eight, PLANES, Pair, ROWS, STREAMED, add_by_columns, begin, block_tile, new_stream, scale_rows,
    send, store, take_first, take_second, tile_by_rows, zeros,
};

/// The fragments of queries that a plane has one below the other: what it reads of keys and values it
/// multiplies by as many.
const BELOW: usize = 2;
/// The queries of a cube.
pub const QUERIES: usize = PLANES * BELOW * ROWS;

/// `softmax(scale · q kᵀ) v` for a block of queries of a head, some keys after the other, and of each query
/// the logarithm of `Σ exp(scale s)`.
#[cube(launch)]
pub fn forward_kernel<F: Float, I: Int>(
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    out: &mut Tensor<Vector<F, Pair>>,
    totals: &mut Tensor<f32>,
    layout: Layout,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let block = query_block::<I>(visible, &layout, BELOW, head_dim);
    let plane = block.plane_row - block.cube_row;
    let q_tile = block_tile::<F>(q, &block.rows, block.cube_row, QUERIES, head_dim);

    let mut softmax = new_softmax(BELOW);
    let mut sums = zeros(BELOW, comptime!(head_dim / 8));
    let mut stream = new_stream::<F>(head_dim);
    let mut key = block.first_key;
    let mut at = 0usize;
    begin::<F>(&mut stream, k, v, &block.kv_rows, key, head_dim);
    while key < block.end_key {
        sync_cube();
        let next = STREAMED - at;
        send::<F>(&mut stream, k, &block.kv_rows, key + STREAMED, head_dim);
        let mut scores = tile_by_rows::<F>(&q_tile, plane, &stream.first, at, BELOW, head_dim);
        take_first::<F>(&mut stream, next, head_dim);
        hide::<I>(&mut scores, visible, &layout, &block, key);
        send::<F>(&mut stream, v, &block.kv_rows, key + STREAMED, head_dim);
        take_in(&mut softmax, &mut scores, &mut sums, scale);
        add_by_columns::<F>(&scores, &stream.second, at, &mut sums, head_dim);
        take_second::<F>(&mut stream, next, head_dim);
        at = next;
        key += STREAMED;
    }
    let (start, first) = (block.totals, block.plane_row);
    let factors = end_softmax(&softmax, scale, totals, start, first, layout.seq, BELOW);
    scale_rows(&mut sums, &factors);
    store::<F>(&sums, out, &block.rows, first);
}
