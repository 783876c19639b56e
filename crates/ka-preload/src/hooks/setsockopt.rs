//! setsockopt(2)

use core::ffi::c_void;

use libc::{c_int, socklen_t};

use super::stub::{Arguments, int};
use crate::guard::{self, Decision};
use crate::next;

/// The mode decides about calls that set a keepalive option. Calls that set other options pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: usize,
    level: usize,
    name: usize,
    value: usize,
    size: usize,
) -> c_int {
    /// # Safety
    /// As for setsockopt(2).
    unsafe fn make(&[fd, level, name, value, size, _]: &Arguments) -> c_int {
        // SAFETY: the caller guarantees that the arguments are valid for setsockopt(2).
        unsafe { next::setsockopt(int(fd), int(level), int(name), value as *const c_void, size as socklen_t) }
    }
    // SAFETY: `make` calls setsockopt(2) with the program's arguments, or with a pointer to an int that `judged` owns.
    unsafe { judged(&[fd, level, name, value, size, 0], make) }
}

/// Makes the call if the mode permits it.
///
/// # Safety
/// `make` makes the call with the arguments that are passed to it.
pub(super) unsafe fn judged(arguments: &Arguments, make: unsafe fn(&Arguments) -> c_int) -> c_int {
    let &[a, b, c, value, size, f] = arguments;
    let (fd, level, name) = (int(a), int(b), int(c));
    // SAFETY: `judge` accepts any arguments. `make` gets the program's arguments, or a pointer to `other`, which lives
    // until the call has returned.
    unsafe {
        match guard::judge(fd, level, name, value as *const c_void, size as socklen_t) {
            Decision::Make => make(arguments),
            Decision::MakeAndFollowUp => {
                let result = make(arguments);
                if result == 0 {
                    guard::follow_up(fd, level, name);
                }
                result
            }
            Decision::Succeed => 0,
            Decision::MakeWith(other) => make(&[a, b, c, (&raw const other) as usize, size_of::<c_int>(), f]),
        }
    }
}
