//! Waits for descriptors. poll(2)

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use libc::{c_int, c_short, pollfd};

use super::check;

/// Waits until a descriptor is readable, but no longer than `timeout`. Returns for each descriptor whether it is
/// readable.
///
/// A pidfd is readable when its process has ended. The timeout is rounded up to whole milliseconds. If a signal handler
/// interrupts the wait, no descriptor is reported as readable.
///
/// # Errors
///
/// The errno of poll(2).
pub fn poll(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut set: Vec<_> = fds.iter().map(|fd| entry(*fd, libc::POLLIN)).collect();
    wait(&mut set, timeout.as_nanos().div_ceil(1_000_000))?;
    Ok(set.iter().map(|entry| entry.revents != 0).collect())
}

/// Returns whether a descriptor is readable now. Returns false if poll(2) fails.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&[fd], Duration::ZERO).is_ok_and(|ready| ready == [true])
}

/// Waits until the kernel reports a change of one of its own files, such as cgroup.events, but no longer than
/// `longest`. `POLLPRI`
///
/// # Errors
///
/// The errno of poll(2).
pub fn await_change(file: BorrowedFd<'_>, longest: Duration) -> io::Result<()> {
    wait(&mut [entry(file, libc::POLLPRI)], longest.as_millis())
}

fn entry(fd: BorrowedFd<'_>, events: c_short) -> pollfd {
    pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

fn wait(set: &mut [pollfd], milliseconds: u128) -> io::Result<()> {
    let timeout = c_int::try_from(milliseconds).unwrap_or(c_int::MAX);
    // SAFETY: the pointer and the count are those of `set`. The kernel writes only `revents` of its entries.
    match check(unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
