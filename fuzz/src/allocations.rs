//! How much memory some work asks for: an input of a few bytes must not have it take gigabytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

/// All that was asked for so far, what was given back too.
static TOTAL: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TOTAL.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller vouches for both.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TOTAL.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        TOTAL.fetch_add(size.saturating_sub(layout.size()), Relaxed);
        // SAFETY: the caller vouches for them.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does some work that may ask for so many bytes in all.
pub fn within<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = TOTAL.load(Relaxed);
    let done = work();
    let asked = TOTAL.load(Relaxed) - before;
    assert!(asked <= most, "{asked} bytes were asked for, where {most} are enough");
    done
}
