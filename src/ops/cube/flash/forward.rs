use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Layout;
use super::rows::{hide, inverse_totals, new_softmax, seen, seen_by_any, take_in};
use super::tile::{
    BLOCK, Eight, Pair, ROWS, add_by_columns, add_by_rows, head_rows, lefts, load, new_tile,
    rounded, scale_rows, store, zeros,
};

/// `softmax(scale · q kᵀ) v` for a block of queries of a head, a block of keys after the other.
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
    sync_cube();
    let queries = lefts::<F>(&k_tile, plane_row, head_dim);

    let seen = seen::<I>(visible, &layout, batch, block + plane_row);
    let mut softmax = new_softmax();
    let mut sums = zeros(comptime!(head_dim / 8));
    let (first, end) = seen_by_any::<I>(visible, &layout, batch, block, BLOCK);
    let mut key = first;
    while key < end {
        // What was there before must have been read.
        sync_cube();
        load::<F>(k, &kv_rows, key, &mut k_tile, BLOCK, head_dim);
        load::<F>(v, &kv_rows, key, &mut v_tile, BLOCK, head_dim);
        sync_cube();
        let mut scores = zeros(comptime!(BLOCK / 8));
        #[unroll]
        for step in 0..comptime!(head_dim / 16) {
            add_by_rows::<F>(queries.index(step), &k_tile, step, &mut scores, head_dim);
        }
        hide(&mut scores, &seen, key);
        let factors = take_in(&mut softmax, &mut scores, scale);
        scale_rows(&mut sums, &factors);
        #[unroll]
        for step in 0..comptime!(BLOCK / 16) {
            let weights = rounded::<F>(&scores, step);
            add_by_columns::<F>(&weights, &v_tile, step, &mut sums, head_dim);
        }
        key += BLOCK;
    }
    scale_rows(&mut sums, &inverse_totals(&softmax));
    store::<F>(&sums, out, &rows, block + plane_row);
}
