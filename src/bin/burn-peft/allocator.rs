//! The allocator of the programs. A step frees and allocates the same large buffers again. Handed back to the system in
//! between, each would cost its pages anew; kept in pieces of an allocator's sizes, those of one moment of a step would
//! lie beside those of another. So on Linux the pages of freed large blocks are kept, and become those of the next block
//! that is asked for, of whatever size: the process holds what it held at its largest moment, and a step needs hardly a page
//! anew. Small blocks, and all of them elsewhere, are mimalloc's.

use std::ffi::c_long;

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

#[cfg(not(target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: large::Allocator = large::Allocator;

/// `mi_option_purge_delay` of mimalloc.h: after how many milliseconds freed memory is handed back, -1 for never.
const PURGE_DELAY: mi_option_t = 15;
/// Where large blocks are kept, small ones need not be for longer than a step or two take. For ever, the pages of all sizes
/// that were ever asked for would add up over a long run.
const PURGE_DELAY_MS: c_long = if cfg!(target_os = "linux") { 1000 } else { -1 };

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

/// Hands back what has been freed so far, and from here on nothing that a step will ask for again. Called when a model is
/// loaded: what loading frees lies between the weights that stay, in pieces that a step could not use.
pub fn keep_freed_memory() {
    // SAFETY: they free what nobody uses, and store a number.
    unsafe {
        mi_collect(true);
        mi_option_set(PURGE_DELAY, PURGE_DELAY_MS);
    }
    #[cfg(target_os = "linux")]
    large::hand_back();
}

/// Large blocks are whole pages. One that is freed is kept: a smaller one is cut from it; for a larger one the pages of
/// several are moved side by side (`mremap`), which takes no page from the system and copies nothing. The system counts
/// what lies side by side and was moved on its own, and has a limit: beyond ours pages are handed back and taken anew.
#[cfg(target_os = "linux")]
mod large {
    use std::alloc::{GlobalAlloc, Layout};
    use std::collections::{BTreeMap, BTreeSet};
    use std::ptr::{self, null_mut};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use libc::{
        MADV_DONTNEED, MADV_NORMAL, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED_NOREPLACE, MAP_PRIVATE,
        MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, c_int, c_void, madvise, mmap, mremap,
        munmap,
    };
    use mimalloc::MiMalloc;

    const SMALLEST: usize = 1 << 20;
    /// The largest that a system of the processor has.
    const PAGE: usize = if cfg!(target_arch = "x86_64") {
        4 << 10
    } else {
        64 << 10
    };
    /// Fewer bytes are taken anew sooner than moved.
    const LEAST_MOVED: usize = 64 << 10;
    /// Well below `vm.max_map_count`, 65530 where nobody changed it. There are more mappings than seams: at most one more for
    /// each block and each freed piece.
    const MOST_SEAMS: usize = 16 << 10;

    pub struct Allocator;

    // SAFETY: a block's layout alone says whose it is, so it goes back to whom it came from; its pages are mapped, are as
    // many as its layout asks for, and belong to nobody else while they are not among the freed ones.
    unsafe impl GlobalAlloc for Allocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            match is_large(layout) {
                true => or_null(pages().allocate(rounded(layout.size()))).0,
                // SAFETY: as the caller asks.
                false => unsafe { MiMalloc.alloc(layout) },
            }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            if !is_large(layout) {
                // SAFETY: as the caller asks.
                return unsafe { MiMalloc.alloc_zeroed(layout) };
            }
            let (block, is_used) = or_null(pages().allocate(rounded(layout.size())));
            if is_used {
                // SAFETY: the block is of that size.
                unsafe { ptr::write_bytes(block, 0, layout.size()) };
            }
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            match is_large(layout) {
                true => pages().free(block as usize, rounded(layout.size())),
                // SAFETY: small blocks are mimalloc's.
                false => unsafe { MiMalloc.dealloc(block, layout) },
            }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: the caller says that size and alignment make a layout.
            let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
            match (is_large(layout), is_large(new)) {
                (true, true) => {
                    let (old, new) = (rounded(layout.size()), rounded(size));
                    let block = pages().resize(block as usize, old, new);
                    block.map_or(null_mut(), |block| block as *mut u8)
                }
                // SAFETY: small blocks are mimalloc's.
                (false, false) => unsafe { MiMalloc.realloc(block, layout, size) },
                // SAFETY: as the caller asks.
                _ => unsafe { moved(self, block, layout, new) },
            }
        }
    }

    fn is_large(layout: Layout) -> bool {
        layout.size() >= SMALLEST && layout.align() <= 4096
    }

    fn rounded(size: usize) -> usize {
        size.next_multiple_of(PAGE)
    }

    fn or_null(block: Option<(usize, bool)>) -> (*mut u8, bool) {
        block.map_or((null_mut(), false), |(start, is_used)| {
            (start as *mut u8, is_used)
        })
    }

    /// What is known of the pages of large blocks. Its own nodes are small blocks.
    struct Pages {
        /// The freed ones: the size of each piece by its address, and when it was freed. No two are side by side.
        freed: BTreeMap<usize, (usize, u64)>,
        /// Where pages lie side by side that came from elsewhere, so that they can be moved only on their own: all such
        /// places within a freed piece, and maybe others.
        seams: BTreeSet<usize>,
        /// The pieces freed until now.
        time: u64,
    }

    static PAGES: Mutex<Pages> = Mutex::new(Pages {
        freed: BTreeMap::new(),
        seams: BTreeSet::new(),
        time: 0,
    });

    fn pages() -> MutexGuard<'static, Pages> {
        PAGES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands all freed pages back.
    pub fn hand_back() {
        pages().hand_back();
    }

    impl Pages {
        fn hand_back(&mut self) {
            while let Some((start, (size, _))) = self.freed.pop_first() {
                self.leave(start, size);
                unmap(start, size);
            }
        }

        /// A block of whole pages, and whether there are numbers in it; none if there is no memory.
        fn allocate(&mut self, size: usize) -> Option<(usize, bool)> {
            match self.cut(size) {
                Some(start) => Some((start, true)),
                None => self.gather(size, 0),
            }
        }

        /// A part of the smallest piece that is large enough. Of equal ones it is the last freed: a cache may still hold it.
        fn cut(&mut self, size: usize) -> Option<usize> {
            let freed = self.freed.iter();
            let large = freed.filter(|(_, (piece, _))| *piece >= size);
            let (&start, _) = large.min_by_key(|(_, (piece, time))| (*piece, u64::MAX - time))?;
            let (piece, time) = self.freed.remove(&start)?;
            if piece > size {
                self.freed.insert(start + size, (piece - size, time));
            }
            Some(start)
        }

        /// A new range of addresses, for all but its beginning with the freed pages, the largest pieces first, as far as
        /// they reach; and whether there are numbers in it.
        fn gather(&mut self, size: usize, kept: usize) -> Option<(usize, bool)> {
            let start = map(size).or_else(|| {
                self.hand_back();
                map(size)
            })?;
            self.leave(start, size);
            self.seams.extend([start, start + size]);
            let (mut filled, mut is_used) = (kept, false);
            while filled < size {
                let pieces = self.freed.iter();
                let largest = pieces.max_by_key(|(_, (piece, _))| *piece);
                let Some((&from, &(piece, time))) = largest else {
                    break;
                };
                let taken = piece.min(size - filled);
                self.freed.remove(&from);
                if taken < piece {
                    self.freed.insert(from + taken, (piece - taken, time));
                }
                is_used |= self.relocate(from, taken, start + filled, false);
                filled += taken;
            }
            Some((start, is_used))
        }

        /// Moves pages to another address, where a range is mapped for them; whether there are numbers in it then. What
        /// cannot be moved is handed back, copied before if it is a block's.
        fn relocate(&mut self, from: usize, size: usize, to: usize, is_live: bool) -> bool {
            let (mut start, end) = (from, from + size);
            let mut is_used = is_live;
            while start < end {
                let next = self.seams.range(start + 1..end).next();
                let (size, place) = (next.map_or(end, |next| *next) - start, to + (start - from));
                let is_worth = size >= LEAST_MOVED && self.seams.len() < MOST_SEAMS;
                if is_worth {
                    self.seams.extend([place, place + size]);
                }
                if is_worth && remap(start, size, place) {
                    is_used = true;
                } else {
                    if is_live {
                        // SAFETY: both ranges are mapped, and do not overlap.
                        unsafe {
                            ptr::copy_nonoverlapping(start as *const u8, place as *mut u8, size)
                        };
                    }
                    unmap(start, size);
                }
                start += size;
            }
            self.leave(from, size);
            is_used
        }

        /// Forgets the seams of pages that are somewhere else now, or nowhere.
        fn leave(&mut self, start: usize, size: usize) {
            while let Some(&seam) = self.seams.range(start..=start + size).next() {
                self.seams.remove(&seam);
            }
        }

        fn free(&mut self, mut start: usize, mut size: usize) {
            let before = self.freed.range(..start).next_back();
            if let Some((&other, &(piece, _))) = before
                && other + piece == start
            {
                self.freed.remove(&other);
                (start, size) = (other, piece + size);
            }
            if let Some((piece, _)) = self.freed.remove(&(start + size)) {
                size += piece;
            }
            self.time += 1;
            self.freed.insert(start, (size, self.time));
        }

        /// The block with another number of pages, maybe elsewhere; none if there is no memory, and then it is as it was.
        fn resize(&mut self, start: usize, old: usize, new: usize) -> Option<usize> {
            if new <= old {
                if new < old {
                    self.free(start + new, old - new);
                }
                return Some(start);
            }
            let behind = start + old;
            if let Some(&(piece, time)) = self.freed.get(&behind)
                && piece >= new - old
            {
                self.freed.remove(&behind);
                if piece > new - old {
                    self.freed.insert(start + new, (piece - (new - old), time));
                }
                return Some(start);
            }
            let (grown, _) = self.gather(new, old)?;
            self.relocate(start, old, grown, true);
            Some(grown)
        }
    }

    /// A range of pages that are the system's until they are used.
    fn map(size: usize) -> Option<usize> {
        map_at(0, size, 0)
    }

    fn map_at(start: usize, size: usize, flags: c_int) -> Option<usize> {
        let (start, access) = (start as *mut c_void, PROT_READ | PROT_WRITE);
        // SAFETY: it touches no other mapping, at no given place or by MAP_FIXED_NOREPLACE.
        let block = unsafe {
            mmap(
                start,
                size,
                access,
                MAP_PRIVATE | MAP_ANONYMOUS | flags,
                -1,
                0,
            )
        };
        (block != MAP_FAILED).then_some(block as usize)
    }

    /// Whether pages could be moved into the place of others; if not, there are pages in both places.
    fn remap(from: usize, size: usize, to: usize) -> bool {
        let (old, new) = (from as *mut c_void, to as *mut c_void);
        // SAFETY: whoever calls has both ranges alone.
        if unsafe { mremap(old, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, new) } != MAP_FAILED {
            return true;
        }
        // The other place may be unmapped by then. The advice changes nothing, and is refused where a page is missing.
        // SAFETY: the range is the caller's.
        let is_mapped = unsafe { madvise(new, size, MADV_NORMAL) } == 0;
        if !is_mapped && map_at(to, size, MAP_FIXED_NOREPLACE) != Some(to) {
            std::process::abort();
        }
        false
    }

    /// At the limit of mappings none can be parted; its pages can be handed back.
    fn unmap(start: usize, size: usize) {
        let start = start as *mut c_void;
        // SAFETY: the pages are mapped, and nobody has them.
        unsafe {
            if munmap(start, size) != 0 {
                madvise(start, size, MADV_DONTNEED);
            }
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
