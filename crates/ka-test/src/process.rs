//! Processes by their PIDs, and the limits of the running process.
#![expect(unsafe_code, reason = "kill, getrlimit, setrlimit, pidfd_open, pidfd_getfd")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::Child;

/// Sends a signal to a process by kill(2), which must succeed.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes no pointer.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", io::Error::last_os_error());
}

/// Sends a signal to a child that nobody has waited for. Its PID is not reused before that.
pub fn signal_child(child: &Child, signal: i32) {
    kill(child.id().try_into().unwrap(), signal);
}

/// Returns whether a process exists and is not a zombie.
pub fn is_running(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Returns the state of a process or thread, such as `S` or `Z`: proc_pid_stat(5). Returns `None` if there is none.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the process, in parentheses, may contain parentheses too.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Returns the PIDs of the children of a process's first thread.
pub fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Opens a process by pidfd_open(2).
///
/// # Errors
///
/// Returns the error of pidfd_open(2).
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes no pointer.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Duplicates a descriptor of another process by pidfd_getfd(2).
///
/// # Errors
///
/// Returns the error of pidfd_getfd(2).
pub fn duplicate(process: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes no pointer.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// Returns the descriptor that a system call has just returned, or its error.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the descriptor is new, and nothing else owns it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit of open descriptors to the hard limit, and returns the limit.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a `struct rlimit` that lives until both calls have returned.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
