//! Whether the program has installed a seccomp filter of its own.
//!
//! A filter may kill the process for a system call that the program itself never makes. Once there is one, the shim makes
//! only the calls that give a socket its policy, and none for descriptors that only pass through. ka-preload(7), "SYSTEM
//! CALLS", has the list.
//!
//! Only filters that the process installs through the C library are seen, not those that it inherited from the program that
//! started it. `/proc/self/status` would show those, but not what they do: every container has one, and most of them
//! refuse calls with an errno, which does no harm.

use core::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_uint};

/// Filters cannot be removed, so this never goes back to false. A child of fork inherits both.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Whether some thread has installed a filter. A filter may be in force in one thread only, so this errs on the safe side.
#[inline]
pub(crate) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

/// Records the result of `prctl(option, …)`. The new filter may already be in force: this only writes memory.
pub(crate) extern "C" fn after_prctl(result: isize, &[option, ..]: &[usize; 6]) {
    if option as c_int == libc::PR_SET_SECCOMP && result as c_int == 0 {
        INSTALLED.store(true, Ordering::Relaxed);
    }
}

/// Records the result of `seccomp(operation, …)`. A probe for what the kernel supports fails with EFAULT and changes nothing.
/// A success may return a descriptor (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
pub(crate) extern "C" fn after_seccomp(result: isize, &[operation, ..]: &[usize; 6]) {
    let operation = operation as c_uint;
    if matches!(operation, libc::SECCOMP_SET_MODE_STRICT | libc::SECCOMP_SET_MODE_FILTER) && result >= 0 {
        INSTALLED.store(true, Ordering::Relaxed);
    }
}
