use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A part of a tensor: some indices of one dimension.
#[derive(Debug, Clone)]
pub struct Piece {
    pub dim: usize,
    pub range: Range<usize>,
}

/// What the pieces of one tensor share in a backward pass.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    has_grad: Arc<AtomicBool>,
}

impl Whole {
    /// Whether another piece has begun the gradient of the whole; from now on one has.
    pub fn begin_grad(&self) -> bool {
        self.has_grad.swap(true, Ordering::Relaxed)
    }
}
