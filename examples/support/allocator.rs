//! The allocator of the programs: mimalloc, which keeps what is freed for the next step. A step
//! frees and allocates the same large buffers again; handed back to the system in between, each
//! costs its pages anew.

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: after how many milliseconds freed memory is handed back, -1 for never.
const PURGE_DELAY: mi_option_t = 15;

/// Runs before `main`, as the first allocation of a program decides how its memory is committed.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static COMMIT_WHAT_IS_USED: extern "C" fn() = {
    /// `mi_option_arena_eager_commit`: whether memory is committed a gigabyte at a time. The system
    /// then backs it with huge pages from the first byte that is used.
    const ARENA_EAGER_COMMIT: mi_option_t = 4;
    extern "C" fn commit_what_is_used() {
        // SAFETY: the function stores a number.
        unsafe { mi_option_set(ARENA_EAGER_COMMIT, 0) };
    }
    commit_what_is_used
};

/// Hands back what has been freed so far, and nothing from here on. Called when a model is loaded: what loading frees lies
/// between the weights that stay, in pieces that a step could not use.
pub fn keep_freed_memory() {
    // SAFETY: they free what nobody uses, and store a number.
    unsafe {
        mi_collect(true);
        mi_option_set(PURGE_DELAY, -1);
    }
}
