//! The allocator of the programs. A step frees and allocates the same large buffers again. Handed back to the system in
//! between, each would cost its pages anew; kept in pieces of an allocator's sizes, those of one moment of a step would
//! lie beside those of another. So on Linux what is freed of large blocks is kept, and turned into the next one that is
//! asked for, of whatever size: the process holds what it held at its largest moment, and nothing more. Small blocks, and
//! all of them elsewhere, are mimalloc's.

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

#[cfg(not(target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: large::Allocator = large::Allocator;

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

/// Hands back what has been freed so far, and of small blocks nothing from here on. Called when a model is loaded: what
/// loading frees lies between the weights that stay, in pieces that a step could not use.
pub fn keep_freed_memory() {
    // SAFETY: they free what nobody uses, and store a number.
    unsafe {
        mi_collect(true);
        mi_option_set(PURGE_DELAY, -1);
    }
    #[cfg(target_os = "linux")]
    large::hand_back();
}

/// Large blocks are mappings of their own.
#[cfg(target_os = "linux")]
mod large {
    use std::alloc::{GlobalAlloc, Layout};
    use std::ptr::{self, null_mut};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use libc::{
        MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, mmap,
        mremap, munmap,
    };
    use mimalloc::MiMalloc;

    const SMALLEST: usize = 1 << 20;
    const PAGE: usize = 4096;
    /// How many freed blocks are kept.
    const KEPT: usize = 512;

    pub struct Allocator;

    // SAFETY: a block's layout alone says whose it is, so it goes back to whom it came from; a mapping begins at a page,
    // is as long as its layout asks for, and belongs to nobody else while it is not among the freed ones.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            match is_large(layout) {
                true => allocate(layout.size()).0,
                // SAFETY: as the caller asks.
                false => unsafe { MiMalloc.alloc(layout) },
            }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            if !is_large(layout) {
                // SAFETY: as the caller asks.
                return unsafe { MiMalloc.alloc_zeroed(layout) };
            }
            let (block, is_used) = allocate(layout.size());
            if is_used && !block.is_null() {
                // SAFETY: the block is of that size.
                unsafe { ptr::write_bytes(block, 0, layout.size()) };
            }
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            match is_large(layout) {
                true => free(block, layout.size()),
                // SAFETY: small blocks are mimalloc's.
                false => unsafe { MiMalloc.dealloc(block, layout) },
            }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: the caller says that size and alignment make a layout.
            let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
            match (is_large(layout), is_large(new)) {
                (true, true) => resized(block, pages(layout.size()), pages(size)),
                // SAFETY: small blocks are mimalloc's.
                (false, false) => unsafe { MiMalloc.realloc(block, layout, size) },
                // SAFETY: as the caller asks.
                _ => unsafe { moved(self, block, layout, new) },
            }
        }
    }

    fn is_large(layout: Layout) -> bool {
        layout.size() >= SMALLEST && layout.align() <= PAGE
    }

    fn pages(size: usize) -> usize {
        size.next_multiple_of(PAGE)
    }

    /// Freed blocks, the oldest first: the address and size of each.
    struct Freed {
        blocks: [(usize, usize); KEPT],
        count: usize,
    }

    static FREED: Mutex<Freed> = Mutex::new(Freed {
        blocks: [(0, 0); KEPT],
        count: 0,
    });

    fn freed() -> MutexGuard<'static, Freed> {
        FREED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Freed {
        fn take(&mut self, index: usize) -> (*mut u8, usize) {
            let (address, size) = self.blocks[index];
            self.blocks.copy_within(index + 1..self.count, index);
            self.count -= 1;
            (address as *mut u8, size)
        }

        /// A block of just this size, the one that was freed last, since a cache may still hold it.
        fn take_equal(&mut self, size: usize) -> Option<*mut u8> {
            let mut indices = (0..self.count).rev();
            let index = indices.find(|&index| self.blocks[index].1 == size)?;
            Some(self.take(index).0)
        }

        fn put(&mut self, block: *mut u8, size: usize) {
            if self.count == KEPT {
                let (oldest, size) = self.take(0);
                unmap(oldest, size);
            }
            self.blocks[self.count] = (block as usize, size);
            self.count += 1;
        }
    }

    /// A block, null if there is no memory, and whether there are numbers in it.
    fn allocate(size: usize) -> (*mut u8, bool) {
        let size = pages(size);
        let mut freed = freed();
        if let Some(block) = freed.take_equal(size) {
            return (block, true);
        }
        if freed.count == 0 {
            drop(freed);
            return (map(size), false);
        }
        // The oldest one becomes it. What it grows by is handed back of others.
        let (block, old) = freed.take(0);
        let mut growth = size.saturating_sub(old);
        while growth > 0 && freed.count > 0 {
            let (other, size) = freed.take(0);
            unmap(other, size);
            growth = growth.saturating_sub(size);
        }
        let resized = resized(block, old, size);
        if resized.is_null() {
            freed.put(block, old);
        }
        (resized, true)
    }

    /// Unmaps all that is freed.
    pub fn hand_back() {
        let mut freed = freed();
        while freed.count > 0 {
            let (block, size) = freed.take(0);
            unmap(block, size);
        }
    }

    fn free(block: *mut u8, size: usize) {
        freed().put(block, pages(size));
    }

    fn map(size: usize) -> *mut u8 {
        // SAFETY: a mapping at no given place touches no other.
        let block = unsafe {
            let access = PROT_READ | PROT_WRITE;
            mmap(null_mut(), size, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        };
        or_null(block)
    }

    /// The block with another number of pages, maybe elsewhere; null if there is no memory, and then it is as it was.
    fn resized(block: *mut u8, old: usize, new: usize) -> *mut u8 {
        // SAFETY: the mapping is of the old size, and whoever calls has it alone.
        or_null(unsafe { mremap(block.cast(), old, new, MREMAP_MAYMOVE) })
    }

    fn unmap(block: *mut u8, size: usize) {
        // SAFETY: the mapping is of this size, and nobody has it.
        unsafe { munmap(block.cast(), size) };
    }

    fn or_null(block: *mut libc::c_void) -> *mut u8 {
        match block == MAP_FAILED {
            true => null_mut(),
            false => block.cast(),
        }
    }

    /// # Safety
    ///
    /// As [`GlobalAlloc::realloc`].
    unsafe fn moved(allocator: &Allocator, old: *mut u8, from: Layout, to: Layout) -> *mut u8 {
        // SAFETY: both blocks are of these layouts, and are not the same.
        unsafe {
            let new = allocator.alloc(to);
            if !new.is_null() {
                ptr::copy_nonoverlapping(old, new, from.size().min(to.size()));
                allocator.dealloc(old, from);
            }
            new
        }
    }
}
