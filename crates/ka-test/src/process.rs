//! Processes by their PIDs, and the limits of the running process.
#![expect(unsafe_code, reason = "kill, getrlimit, setrlimit")]

use std::fs;
use std::io;
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
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
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
