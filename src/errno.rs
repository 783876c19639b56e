//! How a function answers in C.

use core::ptr;

use ka_core::Errno;
use libc::c_int;

/// An argument is wrong.
pub(crate) const EINVAL: Errno = Errno(libc::EINVAL);

/// The answer of `call`: its result, with `errno` left alone, or -1 with `errno` set.
pub(crate) fn answer(call: impl FnOnce() -> Result<c_int, Errno>) -> c_int {
    answer_or(-1, call)
}

/// The same of a call that makes something: NULL with `errno` set.
pub(crate) fn answer_pointer<T>(call: impl FnOnce() -> Result<*mut T, Errno>) -> *mut T {
    answer_or(ptr::null_mut(), call)
}

fn answer_or<T>(failed: T, call: impl FnOnce() -> Result<T, Errno>) -> T {
    call().unwrap_or_else(|errno| {
        ka_core::sys::set_errno(errno);
        failed
    })
}
