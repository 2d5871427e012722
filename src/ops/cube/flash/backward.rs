use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{
    add_along, differentiate, differentiate_columns, hide, hide_columns, new_softmax, query_block,
    query_columns, row_totals, seen_by_one, take_in,
};
use super::tile::{
    BLOCK, Eight, PLANE, Pair, ROWS, STREAMED, add_by_columns, add_by_rows, block_tile, by_rows,
    head_rows, left, lefts, new_stream, send_first, store, take_first, take_second, zeros,
};

/// The gradient of the queries, for a block of them. Goes through the keys twice: for the totals of the
/// softmax and the means of `∂w`, which it writes for [`kv_grad_kernel`], and for the gradient.
#[cube(launch)]
pub fn q_grad_kernel<F: Float, I: Int>(
    grad: &Tensor<Vector<F, Eight>>,
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    q_grad: &mut Tensor<Vector<F, Pair>>,
    totals: &mut Tensor<Vector<f32, Pair>>,
    layout: Layout,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let block = query_block::<I>(visible, &layout, head_dim);
    let plane = block.plane_row - block.cube_row;
    let q_tile = block_tile::<F>(q, &block.rows, block.cube_row, head_dim);
    let grad_tile = block_tile::<F>(grad, &block.rows, block.cube_row, head_dim);
    sync_cube();
    let queries = lefts::<F>(&q_tile, plane, head_dim);
    let grads = lefts::<F>(&grad_tile, plane, head_dim);

    let mut softmax = new_softmax();
    let mut along = Array::<f32>::new(2usize);
    along[0] = 0.0f32;
    along[1] = 0.0f32;
    let mut key = block.first_key;
    let mut stream = new_stream::<F>(head_dim);
    send_first::<F>(&mut stream, k, &block.kv_rows, key, head_dim);
    while key < block.end_key {
        take_first::<F>(&mut stream, v, &block.kv_rows, key, head_dim);
        let mut scores = by_rows::<F>(&queries, &stream.first, head_dim);
        hide(&mut scores, &block.seen, key);
        let factors = take_in(&mut softmax, &mut scores, scale);
        key += STREAMED;
        // After the last keys come the first again.
        let next = select(key < block.end_key, key, block.first_key);
        take_second::<F>(&mut stream, k, &block.kv_rows, next, head_dim);
        let weight_grads = by_rows::<F>(&grads, &stream.second, head_dim);
        add_along(&mut along, &factors, &scores, &weight_grads);
    }
    let row_totals = row_totals(&softmax, &along, scale);
    #[unroll]
    for half in 0..2usize {
        let query = block.plane_row + UNIT_POS_X as usize / 4 + 8 * half;
        if query < layout.seq && UNIT_POS_X % 4 == 0 {
            totals[block.totals + query] = row_totals[half];
        }
    }

    let mut sums = zeros(comptime!(head_dim / 8));
    let mut key = block.first_key;
    while key < block.end_key {
        take_first::<F>(&mut stream, v, &block.kv_rows, key, head_dim);
        let mut scores = by_rows::<F>(&queries, &stream.first, head_dim);
        hide(&mut scores, &block.seen, key);
        take_second::<F>(&mut stream, k, &block.kv_rows, key + STREAMED, head_dim);
        let weight_grads = by_rows::<F>(&grads, &stream.second, head_dim);
        let score_grads = differentiate(&mut scores, &weight_grads, &row_totals, scale);
        add_by_columns::<F>(&score_grads, &stream.first, &mut sums, head_dim);
        key += STREAMED;
    }
    store::<F>(&sums, q_grad, &block.rows, block.plane_row);
}

/// For each block of keys, the first query that sees one of them and the one after the last; a plane a
/// block. Queries between that see none cost time and add zeros.
#[cube(launch)]
pub fn seeing_kernel<I: Int>(
    visible: &Tensor<I>,
    seeing: &mut Tensor<u32>,
    layout: Layout,
    #[define(I)] _dtype: ElemType,
) {
    let batch = CUBE_POS_Y as usize;
    let block = CUBE_POS_X as usize * BLOCK;
    let mut lowest = u32::max_value();
    let mut highest = 0u32;
    let mut query = UNIT_POS_X;
    while (query as usize) < layout.seq {
        let (first, end) = seen_by_one::<I>(visible, &layout, batch, query as usize);
        let sees = first < block + BLOCK && end > block && first < end;
        lowest = select(sees && query < lowest, query, lowest);
        highest = select(sees, query + 1, highest);
        query += PLANE as u32;
    }
    let (first, end) = (plane_min(lowest), plane_max(highest));
    if UNIT_POS_X == 0 {
        let at = 2 * (batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize);
        seeing[at] = select(first < end, first, end);
        seeing[at + 1] = end;
    }
}

/// The gradients of keys and values, for a block of keys of a head: some queries after the other, of all
/// heads that share these keys. Scores lie the other way round, a key in each row.
#[cube(launch)]
pub fn kv_grad_kernel<F: Float, I: Int>(
    grad: &Tensor<Vector<F, Eight>>,
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    totals: &Tensor<Vector<f32, Pair>>,
    seeing: &Tensor<u32>,
    k_grad: &mut Tensor<Vector<F, Pair>>,
    v_grad: &mut Tensor<Vector<F, Pair>>,
    layout: Layout,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let (batch, kv_head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let kv_rows = head_rows(batch, layout.keys, kv_head, layout.kv_heads, head_dim);
    let block = CUBE_POS_X as usize * BLOCK;
    let plane = UNIT_POS_Y as usize * ROWS;
    let k_tile = block_tile::<F>(k, &kv_rows, block, head_dim);
    let v_tile = block_tile::<F>(v, &kv_rows, block, head_dim);
    let mut stream = new_stream::<F>(head_dim);
    let at = 2 * (batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize) % seeing.len();
    let (first_query, end_query) = (seeing[at] as usize, seeing[at + 1] as usize);

    let mut k_sums = zeros(comptime!(head_dim / 8));
    let mut v_sums = zeros(comptime!(head_dim / 8));
    let group = layout.heads / layout.kv_heads;
    for i in 0..group {
        let head = kv_head * group + i;
        let rows = head_rows(batch, layout.seq, head, layout.heads, head_dim);
        let head_totals = (batch * layout.heads + head) * layout.seq;
        let mut query = first_query;
        send_first::<F>(&mut stream, q, &rows, query, head_dim);
        while query < end_query {
            let columns = query_columns::<I>(visible, totals, &layout, batch, query, head_totals);
            take_first::<F>(&mut stream, grad, &rows, query, head_dim);
            let mut scores = zeros(comptime!(STREAMED / 8));
            #[unroll]
            for step in 0..comptime!(head_dim / 16) {
                let keys = left::<F>(&k_tile, plane, step, head_dim);
                add_by_rows::<F>(&keys, &stream.first, step, &mut scores, head_dim);
            }
            query += STREAMED;
            take_second::<F>(&mut stream, q, &rows, query, head_dim);
            let mut weight_grads = zeros(comptime!(STREAMED / 8));
            #[unroll]
            for step in 0..comptime!(head_dim / 16) {
                let values = left::<F>(&v_tile, plane, step, head_dim);
                add_by_rows::<F>(&values, &stream.second, step, &mut weight_grads, head_dim);
            }
            hide_columns(&mut scores, &columns, block + plane);
            let score_grads = differentiate_columns(&mut scores, &weight_grads, &columns, scale);
            add_by_columns::<F>(&scores, &stream.second, &mut v_sums, head_dim);
            add_by_columns::<F>(&score_grads, &stream.first, &mut k_sums, head_dim);
        }
    }
    store::<F>(&k_sums, k_grad, &kv_rows, block + plane);
    store::<F>(&v_sums, v_grad, &kv_rows, block + plane);
}
