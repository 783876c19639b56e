//! Detects seccomp filters that the program installs.
//!
//! A filter may kill the process for a system call that the program itself never makes. Once a filter is installed, the
//! shim makes only the calls that set the policy on a socket, and no calls for descriptors that arrive in messages.
//! ka-preload(7), "SYSTEM CALLS", has the list.
//!
//! The shim detects only filters that the process installs through the C library. It does not detect filters that the
//! process inherited. `/proc/self/status` would report those, but not what they do. Every container has a filter, and
//! most filters deny calls with an errno, which does no harm.

use core::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_uint};

/// Filters cannot be removed, so this never goes back to false. A child of fork inherits both.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Returns whether any thread has installed a filter. The filter may apply to that thread only, but the shim is
/// cautious in all threads.
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

/// Records the result of `seccomp(operation, …)`. A probe for what the kernel supports fails with EFAULT and changes
/// nothing. A success may return a descriptor (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
pub(crate) extern "C" fn after_seccomp(result: isize, &[operation, ..]: &[usize; 6]) {
    let operation = operation as c_uint;
    if matches!(operation, libc::SECCOMP_SET_MODE_STRICT | libc::SECCOMP_SET_MODE_FILTER) && result >= 0 {
        INSTALLED.store(true, Ordering::Relaxed);
    }
}
