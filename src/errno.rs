//! Converts results of Rust into results of C: a return value and `errno`.

use core::ptr;

use ka_core::Errno;
use libc::c_int;

/// The error of a bad argument.
pub(crate) const EINVAL: Errno = Errno(libc::EINVAL);

/// Returns the value of `call` and leaves `errno` unchanged, or returns -1 and sets `errno`.
pub(crate) fn answer(call: impl FnOnce() -> Result<c_int, Errno>) -> c_int {
    answer_or(-1, call)
}

/// Does the same for a call that creates an object: returns NULL and sets `errno` on failure.
pub(crate) fn answer_pointer<T>(call: impl FnOnce() -> Result<*mut T, Errno>) -> *mut T {
    answer_or(ptr::null_mut(), call)
}

fn answer_or<T>(failed: T, call: impl FnOnce() -> Result<T, Errno>) -> T {
    call().unwrap_or_else(|errno| {
        ka_core::sys::set_errno(errno);
        failed
    })
}
