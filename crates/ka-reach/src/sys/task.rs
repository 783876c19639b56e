//! The calling thread, and the descriptor tables of tasks.

use std::cmp::Ordering;
use std::io;

use libc::c_int;

use super::check;

/// Returns the ID of the calling thread. gettid(2)
pub(crate) fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Gives the calling thread its own copy of the descriptor table. The kernel then need not lock the table against other
/// threads. Descriptors that this thread opens later are invalid in other threads. unshare(2)
pub(crate) fn unshare_descriptors() {
    // SAFETY: takes no pointer. If the call fails, the table stays shared, which is only slower.
    unsafe { libc::unshare(libc::CLONE_FILES) };
}

/// Compares the descriptor tables of two tasks: equal if the tasks share a table. The kernel orders different tables by
/// their obfuscated addresses. kcmp(2)
pub(crate) fn compare_descriptors(one: i32, other: i32) -> io::Result<Ordering> {
    const KCMP_FILES: c_int = 2;
    // SAFETY: takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) }).map(|order| match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

/// Returns whether two tasks share a descriptor table.
pub(crate) fn share_descriptors(one: i32, other: i32) -> io::Result<bool> {
    compare_descriptors(one, other).map(Ordering::is_eq)
}
