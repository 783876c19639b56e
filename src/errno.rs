//! How a function answers in C.

use ka_core::Errno;
use libc::c_int;

/// An argument is wrong.
pub(crate) const EINVAL: Errno = Errno(libc::EINVAL);

/// The answer of `call`: its result, with `errno` left alone, or -1 with `errno` set.
pub(crate) fn answer(call: impl FnOnce() -> Result<c_int, Errno>) -> c_int {
    call().unwrap_or_else(|errno| {
        ka_core::sys::set_errno(errno);
        -1
    })
}
