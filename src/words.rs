//! The size rule: a struct can grow in a later version without breaking programs built with an older header.
//!
//! Such a struct begins with its size and consists of 4-byte words. A caller that was built with another version of the
//! header has fewer words or more.
//!
//! - Fewer words: input functions read the missing words as 0, and output functions do not write them.
//! - More words: output functions leave the extra words unchanged. Input functions fail with E2BIG unless each extra
//!   word is 0 or `KA_KEEP`. Otherwise the library would silently ignore a setting that the caller asked for.
//!
//! The kernel's `copy_struct_from_user` has the same rule.

#![expect(unsafe_code, reason = "it reads and writes structs of the C caller")]

use ka_core::Errno;

use crate::errno::EINVAL;

/// `KA_KEEP`. In every struct, a word with this value means the same as 0: leave the setting unchanged.
pub(crate) const KEEP: i32 = -1;

/// The largest number of words of an input struct: as many as a page holds. No version will have a larger struct. A
/// larger size is uninitialised memory, and reading that far could run past the caller's memory.
const MOST_WORDS: usize = 1024;

/// Returns the number of words in the caller's struct.
///
/// # Safety
/// `object` is NULL, or at least its first word can be read.
pub(crate) unsafe fn count<T>(object: *const T) -> Result<usize, Errno> {
    if object.is_null() {
        return Err(EINVAL);
    }
    // SAFETY: `object` is not NULL, so its first word can be read. C does not guarantee its alignment.
    let size = unsafe { object.cast::<u32>().read_unaligned() };
    let words = usize::try_from(size / 4).unwrap_or(0);
    if size % 4 == 0 && words >= 2 { Ok(words) } else { Err(EINVAL) }
}

/// Returns the words of the caller's struct that this version knows. A missing word is 0. Extra words must be 0 or
/// `KA_KEEP`.
///
/// # Safety
/// `object` is NULL, or can be read for as many bytes as its first word states.
pub(crate) unsafe fn read<T, const N: usize>(object: *const T) -> Result<[i32; N], Errno> {
    // SAFETY: the object is NULL, or can be read as a whole.
    let count = unsafe { count(object) }?;
    if count > MOST_WORDS {
        return Err(Errno(libc::E2BIG));
    }
    // SAFETY: `n` is below `count`, so the word is inside the object.
    let word = |n: usize| unsafe { object.cast::<i32>().add(n).read_unaligned() };
    if (N..count).any(|n| !matches!(word(n), 0 | KEEP)) {
        return Err(Errno(libc::E2BIG));
    }
    Ok(core::array::from_fn(|n| if n < count { word(n) } else { 0 }))
}

/// Writes the words that both versions know, except the first: the size belongs to the caller.
///
/// # Safety
/// `object` can be written for `count` words.
pub(crate) unsafe fn write<T, const N: usize>(object: *mut T, count: usize, words: [i32; N]) {
    let known = words.get(1..count.min(N)).unwrap_or_default();
    // SAFETY: the object has `count` words. C does not guarantee their alignment, so they are copied as bytes.
    unsafe {
        let first = object.cast::<i32>().add(1).cast::<u8>();
        first.copy_from_nonoverlapping(known.as_ptr().cast(), size_of_val(known));
    }
}
