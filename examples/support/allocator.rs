//! The allocator of the programs: mimalloc, which keeps what is freed for the next step. A step
//! frees and allocates the same large buffers again; handed back to the system in between, each
//! costs its pages anew.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hands no freed memory back to the system.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc.h: milliseconds, -1 for never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the function stores a number.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
