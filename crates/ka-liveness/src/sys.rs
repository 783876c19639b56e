//! Memory and random bytes from the system, and the `unsafe` of this crate: all but the table's word that its entries
//! may begin as zeros.

#![expect(unsafe_code, reason = "memory from malloc(3), and random bytes from the kernel")]

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use ka_core::Errno;
use ka_core::sys::{errno, set_errno};
use libc::{c_int, c_long, c_void};

/// A type of which memory full of zeros is a value.
///
/// # Safety
/// It is one, and malloc(3)'s alignment is enough for it: 8 bytes, on every Linux.
pub unsafe trait Zero {}

// SAFETY: arrays of what may be zeros are zeros.
unsafe impl<T: Zero, const N: usize> Zero for [T; N] {}

/// An owned value on the C library's heap, which begins as zeros.
///
/// An `Option` of it is [`Zero`] itself: no pointer is NULL, all zeros.
#[repr(transparent)]
pub struct Heap<T>(NonNull<T>);

// SAFETY: it owns its value, as Box does.
unsafe impl<T: Send> Send for Heap<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Heap<T> {}
// SAFETY: `Option<NonNull<T>>` has NULL for `None` by the language's word, and `Heap` is transparent.
unsafe impl<T> Zero for Option<Heap<T>> {}

impl<T: Zero> Heap<T> {
    /// A value of zeros, or `None` where there is no memory for it.
    #[must_use]
    pub fn zeros() -> Option<Self> {
        const { assert!(align_of::<T>() <= 8, "more than malloc promises") };
        // SAFETY: calloc(3) takes no pointer.
        let memory = quietly(|| unsafe { libc::calloc(1, size_of::<T>()) });
        NonNull::new(memory.cast()).map(Self)
    }
}

impl<T> Heap<T> {
    /// Gives the value to C, which has to give it back through [`Heap::from_raw`].
    #[must_use]
    pub fn into_raw(self) -> *mut T {
        let raw = self.0.as_ptr();
        core::mem::forget(self);
        raw
    }

    /// The value that C gives back; `None` for NULL.
    ///
    /// # Safety
    /// NULL, or `raw` is of [`Heap::into_raw`] and is not used any more.
    pub unsafe fn from_raw(raw: *mut T) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// A value in memory of its own, or `None` where there is none for it.
    #[must_use]
    pub fn new(value: T) -> Option<Self> {
        const { assert!(align_of::<T>() <= 8, "more than malloc promises") };
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
        // SAFETY: the pointer is of a value that lives as long as this.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Heap<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and this is its only owner.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Heap<T> {
    fn drop(&mut self) {
        // SAFETY: the value is owned, and is not used again; its memory is of malloc or calloc.
        unsafe {
            self.0.drop_in_place();
            quietly(|| libc::free(self.0.as_ptr().cast::<c_void>()));
        }
    }
}

/// A list on the C library's heap, grown with zeros.
pub(crate) struct HeapList<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its values, as Vec does.
unsafe impl<T: Send> Send for HeapList<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HeapList<T> {}

impl<T: Zero> HeapList<T> {
    /// A list of nothing, which needs no memory.
    pub(crate) const fn new() -> Self {
        Self { first: NonNull::dangling(), len: 0 }
    }

    /// Makes it `len` long, if it is shorter; `false` where there is no memory, and it is as it was.
    ///
    /// New memory of calloc(3) and not realloc(3): of a large one the C library has pages that the kernel provides as
    /// zeros when they are touched, so what is never used costs no memory.
    pub(crate) fn grow(&mut self, len: usize) -> bool {
        const { assert!(align_of::<T>() <= 8, "more than malloc promises") };
        if len <= self.len {
            return true;
        }
        // SAFETY: calloc(3) takes no pointer, and refuses a size that overflows.
        let memory = quietly(|| unsafe { libc::calloc(len, size_of::<T>()) });
        let Some(memory) = NonNull::new(memory.cast::<T>()) else { return false };
        // SAFETY: the old memory has as many values, and the new has room for more. The values move: the old memory is
        // given back without dropping them.
        unsafe {
            memory.copy_from_nonoverlapping(self.first, self.len);
            self.free();
        }
        (self.first, self.len) = (memory, len);
        true
    }
}

impl<T> HeapList<T> {
    /// Gives the memory back.
    ///
    /// # Safety
    /// It is not used again.
    unsafe fn free(&mut self) {
        if self.len > 0 {
            // SAFETY: the memory is of calloc, and the caller vouches that it is not used again.
            quietly(|| unsafe { libc::free(self.first.as_ptr().cast()) });
        }
    }
}

impl<T> Deref for HeapList<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `first` has `len` values, zeros at first, which `grow` asks a `T` to allow; or it has none.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HeapList<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and this is their only owner.
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

/// Fills `bytes` with what nobody can guess, from the kernel.
///
/// getrandom(2) by its number: glibc has a function of that name only since 2.25. A kernel before 3.17 does not have
/// it: there it is /dev/urandom, random(4).
///
/// # Errors
/// What the kernel answered; `bytes` may have been written to.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut source: Option<Urandom> = None;
    let mut filled = 0_usize;
    while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
        let (to, size) = (rest.as_mut_ptr(), rest.len());
        let result = match &source {
            // SAFETY: the kernel writes at most `size` bytes to `to`, which has them.
            None => syscall(|| unsafe { libc::syscall(libc::SYS_getrandom, to, size, 0) }),
            // SAFETY: as above.
            Some(Urandom(fd)) => syscall(|| unsafe { libc::syscall(libc::SYS_read, *fd, to, size) }),
        };
        match result {
            // It has no end; if it does, this is not what it should be.
            Ok(0) => return Err(Errno(libc::EIO)),
            Ok(more) => filled = filled.saturating_add(usize::try_from(more).unwrap_or(0)),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::ENOSYS)) if source.is_none() => source = Some(Urandom::open()?),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// /dev/urandom, closed when dropped.
///
/// Not by open(3) and close(3), which are cancellation points: a thread that is cancelled between them would leave the
/// descriptor open.
struct Urandom(c_int);

impl Urandom {
    fn open() -> Result<Self, Errno> {
        let path = c"/dev/urandom".as_ptr();
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY;
        loop {
            // SAFETY: openat(2) reads a C string, which `path` is.
            match syscall(|| unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags) }) {
                Err(Errno(libc::EINTR)) => {}
                result => return Ok(Self(c_int::try_from(result?).unwrap_or(-1))),
            }
        }
    }
}

impl Drop for Urandom {
    fn drop(&mut self) {
        // SAFETY: close(2) takes no pointer, and the descriptor is ours.
        let _ = syscall(|| unsafe { libc::syscall(libc::SYS_close, self.0) });
    }
}

/// Makes a raw system call and takes its error number without leaving it in `errno`.
fn syscall(call: impl FnOnce() -> c_long) -> Result<c_long, Errno> {
    quietly(|| {
        let result = call();
        if result < 0 { Err(errno()) } else { Ok(result) }
    })
}

/// Makes a call of the C library that may leave something in `errno`, and takes it out: malloc(3) and, before
/// glibc 2.33, free(3) do so even where they succeed.
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

    /// Counts how often it is dropped, where it was given something to count by.
    struct Counting(Option<&'static AtomicU32>);

    // SAFETY: `Option<&T>` has NULL for `None` by the language's word.
    unsafe impl Zero for Counting {}

    impl Drop for Counting {
        fn drop(&mut self) {
            if let Some(count) = self.0 {
                count.fetch_add(1, Relaxed);
            }
        }
    }

    #[test]
    fn what_is_on_the_heap_is_dropped_once() {
        static DROPPED: AtomicU32 = AtomicU32::new(0);
        drop(Heap::new(Counting(Some(&DROPPED))));
        assert_eq!(DROPPED.load(Relaxed), 1);
        let raw = Heap::new(Counting(Some(&DROPPED))).unwrap().into_raw();
        assert_eq!(DROPPED.load(Relaxed), 1);
        // SAFETY: of `into_raw`, and not used again.
        drop(unsafe { Heap::from_raw(raw) });
        assert_eq!(DROPPED.load(Relaxed), 2);
        // SAFETY: NULL may be given.
        assert!(unsafe { Heap::<Counting>::from_raw(core::ptr::null_mut()) }.is_none());
    }

    #[test]
    fn what_is_in_a_list_moves_when_it_grows_and_is_dropped_once() {
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
