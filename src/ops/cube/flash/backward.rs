use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{
    differentiate, differentiate_columns, hide, hide_columns, of_rows, query_block, query_columns,
    seen_by_one,
};
use super::tile::{
    Eight, PLANE, PLANES, Pair, ROWS, STREAMED, add_by_columns, begin, block_tile, by_rows,
    head_rows, lefts, new_stream, send, store, take_first, take_second, tile_by_rows, zeros,
};

/// The queries of a cube in [`q_grad_kernel`], a fragment a plane.
pub const QUERIES: usize = PLANES * ROWS;
/// The keys of a cube in [`kv_grad_kernel`], a fragment a plane.
pub const KEYS: usize = PLANES * ROWS;

/// Of each query the mean of `∂w`, `Σ w ∂w`, which is `∂out · out`; a plane a query. Dao et al.,
/// <https://arxiv.org/abs/2205.14135>, appendix B.
#[cube(launch)]
pub fn means_kernel<F: Float>(
    grad: &Tensor<Vector<F, Eight>>,
    out: &Tensor<Vector<F, Eight>>,
    means: &mut Tensor<f32>,
    layout: Layout,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let query = CUBE_POS_X as usize * PLANES + UNIT_POS_Y as usize;
    let rows = head_rows(batch, layout.seq, head, layout.heads, head_dim);
    let mut mean = 0.0f32;
    if query < rows.len && UNIT_POS_X < comptime!(head_dim as u32 / 8) {
        let at = rows.start + query * rows.stride + UNIT_POS_X as usize;
        let grad = Vector::<f32, Eight>::cast_from(grad[at]);
        let products = grad * Vector::cast_from(out[at]);
        #[unroll]
        for i in 0..8usize {
            mean += products.extract(i);
        }
    }
    sync_plane();
    let mean = plane_sum(mean);
    if query < rows.len && UNIT_POS_X == 0 {
        means[(batch * layout.heads + head) * layout.seq + query] = mean;
    }
}

/// The gradient of the queries, for a block of them, some keys after the other.
#[cube(launch)]
pub fn q_grad_kernel<F: Float, I: Int>(
    grad: &Tensor<Vector<F, Eight>>,
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    totals: &Tensor<f32>,
    means: &Tensor<f32>,
    q_grad: &mut Tensor<Vector<F, Pair>>,
    layout: Layout,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let block = query_block::<I>(visible, &layout, 1usize, head_dim);
    let (first, start) = (block.plane_row, block.totals);
    let plane = first - block.cube_row;
    let q_tile = block_tile::<F>(q, &block.rows, block.cube_row, QUERIES, head_dim);
    let grad_tile = block_tile::<F>(grad, &block.rows, block.cube_row, QUERIES, head_dim);
    sync_cube();
    let queries = lefts::<F>(&q_tile, plane, head_dim);
    let grads = lefts::<F>(&grad_tile, plane, head_dim);
    let totals = of_rows(totals, start, first, layout.seq);
    let means = of_rows(means, start, first, layout.seq);

    let mut sums = zeros(1usize, comptime!(head_dim / 8));
    let mut stream = new_stream::<F>(head_dim);
    let mut key = block.first_key;
    let mut at = 0usize;
    begin::<F>(&mut stream, k, v, &block.kv_rows, key, head_dim);
    while key < block.end_key {
        sync_cube();
        let next = STREAMED - at;
        send::<F>(&mut stream, k, &block.kv_rows, key + STREAMED, head_dim);
        let mut scores = by_rows::<F>(&queries, &stream.first, at, head_dim);
        take_first::<F>(&mut stream, next, head_dim);
        hide::<I>(&mut scores, visible, &layout, &block, key);
        send::<F>(&mut stream, v, &block.kv_rows, key + STREAMED, head_dim);
        let weight_grads = by_rows::<F>(&grads, &stream.second, at, head_dim);
        take_second::<F>(&mut stream, next, head_dim);
        differentiate(&mut scores, &weight_grads, &totals, &means, scale);
        add_by_columns::<F>(&scores, &stream.first, at, &mut sums, head_dim);
        at = next;
        key += STREAMED;
    }
    store::<F>(&sums, q_grad, &block.rows, first);
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
    let block = CUBE_POS_X as usize * KEYS;
    let mut lowest = u32::max_value();
    let mut highest = 0u32;
    let mut query = UNIT_POS_X;
    while (query as usize) < layout.seq {
        let (first, end) = seen_by_one::<I>(visible, &layout, batch, query as usize);
        let sees = first < block + KEYS && end > block && first < end;
        lowest = select(sees && query < lowest, query, lowest);
        highest = select(sees, query + 1, highest);
        query += PLANE as u32;
    }
    sync_plane();
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
    totals: &Tensor<f32>,
    means: &Tensor<f32>,
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
    let block = CUBE_POS_X as usize * KEYS;
    let plane = UNIT_POS_Y as usize * ROWS;
    let k_tile = block_tile::<F>(k, &kv_rows, block, KEYS, head_dim);
    let v_tile = block_tile::<F>(v, &kv_rows, block, KEYS, head_dim);
    let mut stream = new_stream::<F>(head_dim);
    let at = 2 * (batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize) % seeing.len();
    let (first_query, end_query) = (seeing[at] as usize, seeing[at + 1] as usize);

    let mut k_sums = zeros(1usize, comptime!(head_dim / 8));
    let mut v_sums = zeros(1usize, comptime!(head_dim / 8));
    let group = layout.heads / layout.kv_heads;
    for i in 0..group {
        let head = kv_head * group + i;
        let rows = head_rows(batch, layout.seq, head, layout.heads, head_dim);
        let start = (batch * layout.heads + head) * layout.seq;
        let mut query = first_query;
        let mut at = 0usize;
        // What the tiles held of the last head must have been read.
        sync_cube();
        begin::<F>(&mut stream, q, grad, &rows, query, head_dim);
        while query < end_query {
            sync_cube();
            let next = STREAMED - at;
            let columns = query_columns::<I>(visible, totals, means, &layout, batch, query, start);
            query += STREAMED;
            send::<F>(&mut stream, q, &rows, query, head_dim);
            let mut scores = tile_by_rows::<F>(&k_tile, plane, &stream.first, at, 1usize, head_dim);
            take_first::<F>(&mut stream, next, head_dim);
            hide_columns(&mut scores, &columns, block + plane);
            send::<F>(&mut stream, grad, &rows, query, head_dim);
            let mut grads = tile_by_rows::<F>(&v_tile, plane, &stream.second, at, 1usize, head_dim);
            take_second::<F>(&mut stream, next, head_dim);
            differentiate_columns(&mut scores, &mut grads, &columns, scale);
            add_by_columns::<F>(&scores, &stream.second, at, &mut v_sums, head_dim);
            add_by_columns::<F>(&grads, &stream.first, at, &mut k_sums, head_dim);
            at = next;
        }
    }
    store::<F>(&k_sums, k_grad, &kv_rows, block + plane);
    store::<F>(&v_sums, v_grad, &kv_rows, block + plane);
}
