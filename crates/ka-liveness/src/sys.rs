//! Memory and random bytes from the system, with the `unsafe` code of this crate. `table.rs` also has `unsafe` code: it
//! implements [`Zero`] for its entries.

#![expect(unsafe_code, reason = "memory from malloc(3), and random bytes from the kernel")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use ka_core::Errno;
use ka_core::sys::{Descriptor, errno, set_errno, syscall};
use libc::c_void;

/// The alignment in bytes that malloc(3) and calloc(3) guarantee on every Linux.
const MALLOC_ALIGNMENT: usize = 8;

/// A type for which zeroed memory is a valid value.
///
/// # Safety
/// Zeroed memory is a valid value of the type.
pub unsafe trait Zero {}

// SAFETY: a zeroed array consists of zeroed elements, which are valid.
unsafe impl<T: Zero, const N: usize> Zero for [T; N] {}

/// An owned value in memory of malloc(3).
///
/// `Option<Heap<T>>` is [`Zero`] too, because `None` is NULL.
#[repr(transparent)]
pub struct Heap<T>(NonNull<T>);

// SAFETY: `Heap` owns its value, as Box does.
unsafe impl<T: Send> Send for Heap<T> {}
// SAFETY: `&Heap` only gives out `&T`, as `&Box` does.
unsafe impl<T: Sync> Sync for Heap<T> {}
// SAFETY: the language guarantees that `None` of `Option<NonNull<T>>` is NULL, and `Heap` is transparent.
unsafe impl<T> Zero for Option<Heap<T>> {}

impl<T: Zero> Heap<T> {
    /// Returns a zeroed value, or `None` if there is no memory.
    #[must_use]
    pub fn zeros() -> Option<Self> {
        const { assert!(align_of::<T>() <= MALLOC_ALIGNMENT) };
        // SAFETY: calloc(3) takes no pointer.
        let memory = quietly(|| unsafe { libc::calloc(1, size_of::<T>()) });
        NonNull::new(memory.cast()).map(Self)
    }
}

impl<T> Heap<T> {
    /// Transfers the value to C code, which must return it through [`Heap::from_raw`].
    #[must_use]
    pub fn into_raw(self) -> *mut T {
        let raw = self.0.as_ptr();
        core::mem::forget(self);
        raw
    }

    /// Takes a value back from C code. Returns `None` for NULL.
    ///
    /// # Safety
    /// `raw` is NULL, or a pointer from [`Heap::into_raw`] that is not used again.
    pub unsafe fn from_raw(raw: *mut T) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// Moves a value to newly allocated memory. Returns `None` if there is no memory.
    #[must_use]
    pub fn new(value: T) -> Option<Self> {
        const { assert!(align_of::<T>() <= MALLOC_ALIGNMENT) };
        // SAFETY: malloc(3) takes no pointer.
        let memory = quietly(|| unsafe { libc::malloc(size_of::<T>()) });
        let memory = NonNull::new(memory.cast::<T>())?;
        // SAFETY: the memory is new, large enough, and aligned as asserted.
        unsafe { memory.write(value) };
        Some(Self(memory))
    }
}

impl<T> Deref for Heap<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the pointer is to a value that `self` owns, so it lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Heap<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the pointer is to a value that only `self` owns, so it lives as long as `self`.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Heap<T> {
    fn drop(&mut self) {
        // SAFETY: the value is owned and not used again. Its memory comes from malloc or calloc.
        unsafe {
            self.0.drop_in_place();
            quietly(|| libc::free(self.0.as_ptr().cast::<c_void>()));
        }
    }
}

/// A list in memory of calloc(3). It grows by zeroed values.
pub(crate) struct HeapList<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: `HeapList` owns its values, as Vec does.
unsafe impl<T: Send> Send for HeapList<T> {}
// SAFETY: `&HeapList` only gives out `&[T]`, as `&Vec` does.
unsafe impl<T: Sync> Sync for HeapList<T> {}

impl<T: Zero> HeapList<T> {
    /// Returns an empty list, which needs no memory.
    pub(crate) const fn new() -> Self {
        Self { first: NonNull::dangling(), len: 0 }
    }

    /// Grows the list to `len` values, if it is shorter. Returns `false` if there is no memory. The list is unchanged
    /// then.
    ///
    /// This calls calloc(3) instead of realloc(3). The C library takes a large block directly from the kernel, which
    /// provides a zeroed page at the first access. So values that are never used cost no memory.
    pub(crate) fn grow(&mut self, len: usize) -> bool {
        const { assert!(align_of::<T>() <= MALLOC_ALIGNMENT) };
        if len <= self.len {
            return true;
        }
        // SAFETY: calloc(3) takes no pointer, and fails if the size overflows.
        let memory = quietly(|| unsafe { libc::calloc(len, size_of::<T>()) });
        let Some(memory) = NonNull::new(memory.cast::<T>()) else { return false };
        // SAFETY: the old memory has `self.len` values, and the new memory has room for more. The values move, so the
        // old memory is freed without dropping them.
        unsafe {
            memory.copy_from_nonoverlapping(self.first, self.len);
            self.free();
        }
        (self.first, self.len) = (memory, len);
        true
    }
}

impl<T> HeapList<T> {
    /// Frees the memory.
    ///
    /// # Safety
    /// The memory is not used again.
    unsafe fn free(&mut self) {
        if self.len > 0 {
            // SAFETY: the memory comes from calloc, and the caller guarantees that it is not used again.
            quietly(|| unsafe { libc::free(self.first.as_ptr().cast()) });
        }
    }
}

impl<T> Deref for HeapList<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `first` points to `len` values, or `len` is 0. `grow` creates them as zeros, and `T: Zero` allows
        // that.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HeapList<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `first` points to `len` valid values, as in `deref`, and only `self` owns them.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for HeapList<T> {
    fn drop(&mut self) {
        let values: *mut [T] = &raw mut **self;
        // SAFETY: the values are owned, and neither they nor the memory is used again.
        unsafe {
            values.drop_in_place();
            self.free();
        }
    }
}

/// Fills `bytes` with secure random bytes from the kernel.
///
/// getrandom(2) is called by its number, because glibc has a wrapper only since 2.25. Kernels before 3.17 lack the
/// system call. There the bytes come from /dev/urandom, random(4).
///
/// # Errors
/// The error of the kernel. `bytes` may be partly overwritten.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut urandom: Option<Descriptor> = None;
    let mut filled = 0_usize;
    while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
        let result = match &urandom {
            None => getrandom(rest),
            Some(urandom) => urandom.read(rest),
        };
        match result {
            // The source has no end, so this is not /dev/urandom.
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(more) => filled = filled.saturating_add(more),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::ENOSYS)) if urandom.is_none() => {
                urandom = Some(Descriptor::open(c"/dev/urandom")?);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Fills `bytes` from its beginning, and returns how many bytes it filled.
fn getrandom(bytes: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `len` bytes to `bytes`, which has them.
    let fill = || unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    syscall(fill).map(|size| usize::try_from(size).unwrap_or(0))
}

/// Makes a C library call and restores `errno`. malloc(3), and free(3) before glibc 2.33, may change `errno` even if
/// they succeed.
fn quietly<T>(call: impl FnOnce() -> T) -> T {
    let before = errno();
    let result = call();
    set_errno(before);
    result
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::{Heap, HeapList, Zero};

    /// Counts its drops in the counter, if it has one.
    struct Counting(Option<&'static AtomicU32>);

    // SAFETY: the language guarantees that `None` of `Option<&T>` is NULL.
    unsafe impl Zero for Counting {}

    impl Drop for Counting {
        fn drop(&mut self) {
            if let Some(count) = self.0 {
                count.fetch_add(1, Relaxed);
            }
        }
    }

    #[test]
    fn a_value_on_the_heap_is_dropped_once() {
        static DROPPED: AtomicU32 = AtomicU32::new(0);
        drop(Heap::new(Counting(Some(&DROPPED))));
        assert_eq!(DROPPED.load(Relaxed), 1);
        let raw = Heap::new(Counting(Some(&DROPPED))).unwrap().into_raw();
        assert_eq!(DROPPED.load(Relaxed), 1);
        // SAFETY: `raw` is from `into_raw`, and not used again.
        drop(unsafe { Heap::from_raw(raw) });
        assert_eq!(DROPPED.load(Relaxed), 2);
        // SAFETY: NULL is allowed.
        assert!(unsafe { Heap::<Counting>::from_raw(core::ptr::null_mut()) }.is_none());
    }

    #[test]
    fn values_of_a_list_survive_growth_and_are_dropped_once() {
        static DROPPED: AtomicU32 = AtomicU32::new(0);
        let mut list = HeapList::new();
        assert!(list.grow(2));
        if let Some(first) = list.first_mut() {
            *first = Counting(Some(&DROPPED));
        }
        assert!(list.grow(9) && list.grow(3));
        assert_eq!((list.len(), DROPPED.load(Relaxed)), (9, 0));
        drop(list);
        assert_eq!(DROPPED.load(Relaxed), 1);
    }
}
