//! setsockopt(2)

use core::ffi::c_void;

use libc::{c_int, socklen_t};

use crate::guard::{self, Answer};
use crate::next;

/// What the program may do to its keepalive is for the mode to say; all else passes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
) -> c_int {
    // SAFETY: the program's own call, with its own arguments or an int in the place of its value.
    unsafe {
        judged(fd, level, name, value, size, |value, size| next::setsockopt(fd, level, name, value, size))
    }
}

/// Makes the call, or does not, as the mode says.
///
/// # Safety
/// `make` makes the call with the value that it is given.
#[inline]
pub(super) unsafe fn judged(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
    make: impl FnOnce(*const c_void, socklen_t) -> c_int,
) -> c_int {
    // SAFETY: none of the arguments need be right.
    match unsafe { guard::judge(fd, level, name, value, size) } {
        Answer::Make => make(value, size),
        Answer::MakeAndMend => {
            let result = make(value, size);
            if result == 0 {
                guard::mend(fd, level, name);
            }
            result
        }
        Answer::Granted => 0,
        Answer::MakeWith(other) => make((&raw const other).cast(), size_of::<c_int>() as socklen_t),
    }
}
