//! Kernels in which the units of a cube share a row: each takes every so many numbers of it, and what
//! they find is brought together in shared memory.

use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// The units of a cube, a power of two.
pub const UNITS: usize = 256;
/// How often they are halved until one is left.
const HALVINGS: usize = UNITS.ilog2() as usize;

/// A cube for each row.
pub fn cubes(client: &Client, rows: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS as u32);
    (
        calculate_cube_count_elemwise(client, rows * UNITS, dim),
        dim,
    )
}

/// The sum over the units of a cube, at each of them.
#[cube]
pub fn sum(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS_X as usize;
    // What was found before must have been read.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..HALVINGS {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let total = shared[unit] + shared[unit + half];
            shared[unit] = total;
        }
        sync_cube();
    }
    shared[0]
}

/// The largest of all units of a cube, at each of them.
#[cube]
pub fn max(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS_X as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..HALVINGS {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            if other > shared[unit] {
                shared[unit] = other;
            }
        }
        sync_cube();
    }
    shared[0]
}

/// The sum of a vector's numbers.
#[cube]
pub fn vector_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..vector.vector_size() {
        sum += vector.extract(i);
    }
    sum
}
