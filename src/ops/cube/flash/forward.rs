use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{hide, inverse_totals, new_softmax, query_block, take_in};
use super::tile::{
    Eight, Pair, STREAMED, add_by_columns, block_tile, by_rows, lefts, new_stream, scale_rows,
    send_first, store, take_first, take_second, zeros,
};

/// `softmax(scale · q kᵀ) v` for a block of queries of a head, some keys after the other.
#[cube(launch)]
pub fn forward_kernel<F: Float, I: Int>(
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    out: &mut Tensor<Vector<F, Pair>>,
    layout: Layout,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let block = query_block::<I>(visible, &layout, head_dim);
    let q_tile = block_tile::<F>(q, &block.rows, block.cube_row, head_dim);
    sync_cube();
    let queries = lefts::<F>(&q_tile, block.plane_row - block.cube_row, head_dim);

    let mut softmax = new_softmax();
    let mut sums = zeros(comptime!(head_dim / 8));
    let mut key = block.first_key;
    let mut stream = new_stream::<F>(head_dim);
    send_first::<F>(&mut stream, k, &block.kv_rows, key, head_dim);
    while key < block.end_key {
        take_first::<F>(&mut stream, v, &block.kv_rows, key, head_dim);
        let mut scores = by_rows::<F>(&queries, &stream.first, head_dim);
        hide(&mut scores, &block.seen, key);
        let factors = take_in(&mut softmax, &mut scores, scale);
        scale_rows(&mut sums, &factors);
        take_second::<F>(&mut stream, k, &block.kv_rows, key + STREAMED, head_dim);
        add_by_columns::<F>(&scores, &stream.second, &mut sums, head_dim);
        key += STREAMED;
    }
    scale_rows(&mut sums, &inverse_totals(&softmax));
    store::<F>(&sums, out, &block.rows, block.plane_row);
}
