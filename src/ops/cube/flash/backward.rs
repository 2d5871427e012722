use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{
    add_along, differentiate, hide, new_softmax, row_totals, seen, seen_by_any, seen_by_one,
    take_in,
};
use super::tile::{
    BLOCK, Eight, Fragment, PLANE, Pair, ROWS, Sums, Tile, add_by_columns, add_by_rows, head_rows,
    left, lefts, load, new_tile, rounded, store, zeros,
};

/// The keys, or for the gradients of keys and values the queries, that go through shared memory at a time.
const STREAMED: usize = PLANE;

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
    let (batch, head) = (CUBE_POS_Z as usize, CUBE_POS_Y as usize);
    let kv_head = head / (layout.heads / layout.kv_heads);
    let rows = head_rows(batch, layout.seq, head, layout.heads, head_dim);
    let kv_rows = head_rows(batch, layout.keys, kv_head, layout.kv_heads, head_dim);
    // The last queries see the most keys: begin with them.
    let block = ((layout.seq - 1) / BLOCK - CUBE_POS_X as usize) * BLOCK;
    let plane_row = UNIT_POS_Y as usize * ROWS;

    let mut k_tile = new_tile::<F>(BLOCK, head_dim);
    let mut v_tile = new_tile::<F>(BLOCK, head_dim);
    load::<F>(q, &rows, block, &mut k_tile, BLOCK, head_dim);
    load::<F>(grad, &rows, block, &mut v_tile, BLOCK, head_dim);
    sync_cube();
    let queries = lefts::<F>(&k_tile, plane_row, head_dim);
    let grads = lefts::<F>(&v_tile, plane_row, head_dim);

    let seen = seen::<I>(visible, &layout, batch, block + plane_row);
    let (first, end) = seen_by_any::<I>(visible, &layout, batch, block, BLOCK);
    let mut softmax = new_softmax();
    let mut along = Array::<f32>::new(2usize);
    along[0] = 0.0f32;
    along[1] = 0.0f32;
    let mut key = first;
    while key < end {
        sync_cube();
        load::<F>(k, &kv_rows, key, &mut k_tile, STREAMED, head_dim);
        load::<F>(v, &kv_rows, key, &mut v_tile, STREAMED, head_dim);
        sync_cube();
        let mut scores = products::<F>(&queries, &k_tile, head_dim);
        let weight_grads = products::<F>(&grads, &v_tile, head_dim);
        hide(&mut scores, &seen, key);
        let factors = take_in(&mut softmax, &mut scores, scale);
        add_along(&mut along, &factors, &scores, &weight_grads);
        key += STREAMED;
    }
    let row_totals = row_totals(&softmax, &along, scale);
    #[unroll]
    for half in 0..2usize {
        let query = block + plane_row + UNIT_POS_X as usize / 4 + 8 * half;
        if query < layout.seq && UNIT_POS_X % 4 == 0 {
            totals[(batch * layout.heads + head) * layout.seq + query] = row_totals[half];
        }
    }

    let mut sums = zeros(comptime!(head_dim / 8));
    let mut key = first;
    while key < end {
        sync_cube();
        load::<F>(k, &kv_rows, key, &mut k_tile, STREAMED, head_dim);
        load::<F>(v, &kv_rows, key, &mut v_tile, STREAMED, head_dim);
        sync_cube();
        let mut scores = products::<F>(&queries, &k_tile, head_dim);
        let weight_grads = products::<F>(&grads, &v_tile, head_dim);
        hide(&mut scores, &seen, key);
        let score_grads = differentiate(&mut scores, &weight_grads, &row_totals, scale);
        add_all_by_columns::<F>(&score_grads, &k_tile, &mut sums, head_dim);
        key += STREAMED;
    }
    store::<F>(&sums, q_grad, &rows, block + plane_row);
}

/// `a tᵀ` for the streamed rows of a tile.
#[cube]
fn products<F: Float>(
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

/// Adds `a t` for the streamed rows of a tile.
#[cube]
fn add_all_by_columns<F: Float>(
    a: &Sums,
    tile: &Tile<F>,
    sums: &mut Sums,
    #[comptime] head_dim: usize,
) {
    #[unroll]
    for step in 0..comptime!(STREAMED / 16) {
        let a = rounded::<F>(a, step);
        add_by_columns::<F>(&a, tile, step, sums, head_dim);
    }
}

/// What the streamed queries see, and what the softmax of each comes to.
#[derive(CubeType)]
struct Columns {
    first: Shared<[u32]>,
    end: Shared<[u32]>,
    totals: Shared<[Vector<f32, Pair>]>,
}

/// The gradients of keys and values, for a block of keys of a head: a block of queries after the other,
/// of all heads that share these keys. Scores lie the other way round, a key in each row.
#[cube(launch)]
pub fn kv_grad_kernel<F: Float, I: Int>(
    grad: &Tensor<Vector<F, Eight>>,
    q: &Tensor<Vector<F, Eight>>,
    k: &Tensor<Vector<F, Eight>>,
    v: &Tensor<Vector<F, Eight>>,
    visible: &Tensor<I>,
    totals: &Tensor<Vector<f32, Pair>>,
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
    let plane_row = UNIT_POS_Y as usize * ROWS;

    let mut k_tile = new_tile::<F>(BLOCK, head_dim);
    let mut v_tile = new_tile::<F>(BLOCK, head_dim);
    load::<F>(k, &kv_rows, block, &mut k_tile, BLOCK, head_dim);
    load::<F>(v, &kv_rows, block, &mut v_tile, BLOCK, head_dim);
    let mut q_tile = new_tile::<F>(STREAMED, head_dim);
    let mut grad_tile = new_tile::<F>(STREAMED, head_dim);
    let mut columns = Columns {
        first: Shared::new_slice(STREAMED),
        end: Shared::new_slice(STREAMED),
        totals: Shared::new_slice(STREAMED),
    };

    let mut k_sums = zeros(comptime!(head_dim / 8));
    let mut v_sums = zeros(comptime!(head_dim / 8));
    let group = layout.heads / layout.kv_heads;
    let mut head = kv_head * group;
    while head < (kv_head + 1) * group {
        let rows = head_rows(batch, layout.seq, head, layout.heads, head_dim);
        let mut query = 0usize;
        while query < layout.seq {
            let own = query + UNIT_POS_X as usize;
            let (first, end) = seen_by_one::<I>(visible, &layout, batch, own);
            if plane_any(first < block + BLOCK && end > block && first < end) {
                sync_cube();
                load::<F>(q, &rows, query, &mut q_tile, STREAMED, head_dim);
                load::<F>(grad, &rows, query, &mut grad_tile, STREAMED, head_dim);
                if UNIT_POS_Y == 0 {
                    columns.first[UNIT_POS_X as usize] = u32::cast_from(first);
                    columns.end[UNIT_POS_X as usize] = u32::cast_from(end);
                    let mut own_totals = Vector::<f32, Pair>::new(0.0f32);
                    if own < layout.seq {
                        own_totals = totals[(batch * layout.heads + head) * layout.seq + own];
                    }
                    columns.totals[UNIT_POS_X as usize] = own_totals;
                }
                sync_cube();
                let mut scores = zeros(comptime!(STREAMED / 8));
                let mut weight_grads = zeros(comptime!(STREAMED / 8));
                #[unroll]
                for step in 0..comptime!(head_dim / 16) {
                    let keys = left::<F>(&k_tile, plane_row, step, head_dim);
                    add_by_rows::<F>(&keys, &q_tile, step, &mut scores, head_dim);
                    let values = left::<F>(&v_tile, plane_row, step, head_dim);
                    add_by_rows::<F>(&values, &grad_tile, step, &mut weight_grads, head_dim);
                }
                let score_grads = differentiate_columns(
                    &mut scores,
                    &weight_grads,
                    &columns,
                    block + plane_row,
                    scale,
                );
                add_all_by_columns::<F>(&scores, &grad_tile, &mut v_sums, head_dim);
                add_all_by_columns::<F>(&score_grads, &q_tile, &mut k_sums, head_dim);
            }
            query += STREAMED;
        }
        head += 1;
    }
    store::<F>(&k_sums, k_grad, &kv_rows, block + plane_row);
    store::<F>(&v_sums, v_grad, &kv_rows, block + plane_row);
}

/// Puts weights in the place of scores and gives the gradients of the scores, where queries are columns;
/// `first_key` is the plane's first.
#[cube]
fn differentiate_columns(
    scores: &mut Sums,
    weight_grads: &Sums,
    columns: &Columns,
    first_key: usize,
    scale: f32,
) -> Sums {
    let unit = UNIT_POS_X as usize;
    let mut score_grads = zeros(comptime!(scores.len()));
    #[unroll]
    for n in 0..comptime!(scores.len()) {
        #[unroll]
        for i in 0..2usize {
            let column = 8 * n + unit % 4 * 2 + i;
            let (first, end) = (columns.first[column], columns.end[column]);
            let (log_total, along) = (
                columns.totals[column].extract(0usize),
                columns.totals[column].extract(1usize),
            );
            #[unroll]
            for half in 0..2usize {
                let key = u32::cast_from(first_key + unit / 4 + 8 * half);
                let mut weights = scores.index(n)[half];
                let mut grads = score_grads.index(n)[half];
                let weight = (weights.extract(i) * scale - log_total).exp();
                let weight = select(key >= first && key < end, weight, 0.0f32);
                let weight_grad = weight_grads.index(n)[half].extract(i);
                weights.insert(i, weight);
                grads.insert(i, scale * weight * (weight_grad - along));
                scores.index_mut(n)[half] = weights;
                score_grads.index_mut(n)[half] = grads;
            }
        }
    }
    score_grads
}
