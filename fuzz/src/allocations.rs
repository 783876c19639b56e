//! Limits the memory that a function allocates. An input of a few bytes must not cause an allocation of gigabytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

/// The bytes that were allocated so far, including freed ones.
static TOTAL: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: each function passes its arguments to the system's allocator and returns its result.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TOTAL.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller guarantees a valid layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees a valid pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TOTAL.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller guarantees a valid layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        TOTAL.fetch_add(size.saturating_sub(layout.size()), Relaxed);
        // SAFETY: the caller guarantees a valid pointer, layout and size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs a function that may allocate at most `most` bytes in total.
pub fn within<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = TOTAL.load(Relaxed);
    let done = work();
    let asked = TOTAL.load(Relaxed) - before;
    assert!(asked <= most, "{asked} bytes were allocated, but {most} are enough");
    done
}
