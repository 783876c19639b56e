//! Memory that a process shares with its forked children.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU64;

/// An array of words, initially 0, that this process shares with its forked children.
pub(crate) struct SharedWords {
    place: ptr::NonNull<AtomicU64>,
    count: usize,
}

impl SharedWords {
    /// Maps `count` words, or one if `count` is 0.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let count = count.max(1);
        let size = count.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses the address; on failure it returns MAP_FAILED.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let place = ptr::NonNull::new(place.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { place, count })
    }

    /// Returns the words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped `count` words, aligned to a page. Zero is a valid word. They stay mapped until `drop`.
        // Other processes access them only as atomics.
        unsafe { std::slice::from_raw_parts(self.place.as_ptr(), self.count) }
    }
}

// SAFETY: the struct only hands out references to atomics.
unsafe impl Sync for SharedWords {}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping, and no reference outlives `self`. Forked processes keep their own mapping.
        unsafe { libc::munmap(self.place.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}
