//! The size rule: structs that can grow without breaking a program built before they did.
//!
//! A struct of the API begins with its size and consists of 4-byte words. A caller built against another version
//! has fewer or more of them. If it has fewer, input functions take the missing words as 0, and output functions do not
//! write them. If it has more, output functions leave the extra words unchanged. Input functions require each of them to
//! be 0 or `KA_KEEP`: otherwise a request would be ignored silently. The kernel's `copy_struct_from_user` has this rule.

#![expect(unsafe_code, reason = "it reads and writes what C points to")]

use ka_core::Errno;

use crate::errno::EINVAL;

/// `KA_KEEP`. In every struct, a word with this value asks for nothing, as 0 does.
pub(crate) const KEEP: i32 = -1;

/// No version will have a struct of more words than a page holds: a size beyond it was never set, and reading so
/// far would leave the caller's memory.
const MOST_WORDS: usize = 1024;

/// How many words the caller's struct has.
///
/// # Safety
/// NULL, or at least the first word of `object` can be read.
pub(crate) unsafe fn count<T>(object: *const T) -> Result<usize, Errno> {
    if object.is_null() {
        return Err(EINVAL);
    }
    // SAFETY: the caller vouches for the first word; C may have put it anywhere.
    let size = unsafe { object.cast::<u32>().read_unaligned() };
    let words = usize::try_from(size / 4).unwrap_or(0);
    if size % 4 == 0 && words >= 2 { Ok(words) } else { Err(EINVAL) }
}

/// The words of the caller's struct, as far as this version knows them. A missing word is 0. A word that this version
/// does not know must be 0 or KA_KEEP.
///
/// # Safety
/// NULL, or `object` can be read for as many bytes as its first word says.
pub(crate) unsafe fn read<T, const N: usize>(object: *const T) -> Result<[i32; N], Errno> {
    // SAFETY: the caller vouches for the whole of the object.
    let count = unsafe { count(object) }?;
    if count > MOST_WORDS {
        return Err(Errno(libc::E2BIG));
    }
    // SAFETY: `n` is below the count that the object's size gives.
    let word = |n: usize| unsafe { object.cast::<i32>().add(n).read_unaligned() };
    if (N..count).any(|n| !matches!(word(n), 0 | KEEP)) {
        return Err(Errno(libc::E2BIG));
    }
    Ok(core::array::from_fn(|n| if n < count { word(n) } else { 0 }))
}

/// Writes the words that both know, all but the first: the size is the caller's.
///
/// # Safety
/// `object` can be written for `count` words.
pub(crate) unsafe fn write<T, const N: usize>(object: *mut T, count: usize, words: [i32; N]) {
    let known = words.get(1..count.min(N)).unwrap_or_default();
    // SAFETY: the caller vouches for `count` words. C may have put them anywhere, so they are copied as bytes.
    unsafe {
        let first = object.cast::<i32>().add(1).cast::<u8>();
        first.copy_from_nonoverlapping(known.as_ptr().cast(), size_of_val(known));
    }
}
