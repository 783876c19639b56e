//! Process groups. setpgid(2)

#![expect(unsafe_code, reason = "system calls that take no pointer")]

/// Returns the process group of this process.
pub(super) fn current() -> i32 {
    // SAFETY: takes no argument.
    unsafe { libc::getpgrp() }
}

/// Returns whether a process is in the process group of this process.
pub(super) fn is_shared_with(pid: i32) -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::getpgid(pid) == current() }
}

/// Moves this process into a process group of its session, or with 0 into a new one. If the group no longer exists,
/// nothing changes.
pub(super) fn join(group: i32) {
    // SAFETY: takes no pointer.
    unsafe { libc::setpgid(0, group) };
}

/// Moves this process into the process group of its parent, if the parent is in the same session.
pub(super) fn join_group_of_parent() {
    // SAFETY: neither call takes a pointer.
    let group = unsafe { libc::getpgid(libc::getppid()) };
    join(group);
}
