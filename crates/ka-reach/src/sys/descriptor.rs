//! Descriptors of this process and of others.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use super::{check, owned};

/// Opens a process, or with `PIDFD_THREAD` a task. If its ID is reused, the descriptor still refers to the original.
/// pidfd_open(2)
pub(crate) fn pidfd_open(pid: i32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// Duplicates a descriptor of another process. The duplicate is closed on exec. pidfd_getfd(2)
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Returns the inode of an open file. fstat(2)
pub(crate) fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    stat(fd).map(|status| status.st_ino)
}

/// Returns the ID of the user who owns an open file. The owner of a socket is the user who created it. fstat(2)
pub(crate) fn owner(fd: BorrowedFd<'_>) -> io::Result<u32> {
    stat(fd).map(|status| status.st_uid)
}

fn stat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel initializes the struct if it returns 0.
    check(unsafe { libc::fstat(fd.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: `check` has returned, so the call succeeded.
    Ok(unsafe { status.assume_init() })
}

/// Returns the index of the interface that a socket is bound to. 0 if it is bound to none. `SO_BINDTOIFINDEX`
pub(crate) fn bound_interface(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    let (mut index, mut size) = (0_u32, 4);
    let value = (&raw mut index).cast();
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes to `index`, which has them.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX, value, &raw mut size) })?;
    Ok(index)
}

/// Waits until no other process holds the lock of a file, and locks it. Closing the descriptor unlocks the file.
/// flock(2)
pub(crate) fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}

/// Closes the calling thread's descriptors from `first` on, except those in `keep`.
///
/// # Safety
///
/// The threads that share the descriptor table must not use the closed descriptors any more.
pub(crate) unsafe fn close_all_but(mut first: u32, keep: &[RawFd]) {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.cast_unsigned()).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    // SAFETY: the caller promises that nothing uses the closed descriptors.
    unsafe {
        for fd in kept {
            if fd > first {
                close_range(first, fd.saturating_sub(1));
            }
            first = fd.saturating_add(1);
        }
        close_range(first, u32::MAX);
    }
}

/// Closes the open descriptors from `first` to `last`. close_range(2)
///
/// # Safety
///
/// The threads that share the descriptor table must not use the closed descriptors any more.
unsafe fn close_range(first: u32, last: u32) {
    // SAFETY: the calls take no pointer, and the caller promises that nothing uses the closed descriptors.
    unsafe {
        // Before Linux 5.9, or if a seccomp filter forbids close_range, close the descriptors one by one.
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            let most = u32::try_from(libc::sysconf(libc::_SC_OPEN_MAX)).unwrap_or(u32::MAX).min(1 << 20);
            for fd in first..=last.min(most) {
                libc::close(fd.cast_signed());
            }
        }
    }
}

/// Replaces a descriptor by /dev/null. If /dev/null cannot be opened, the descriptor stays as it is.
///
/// # Safety
///
/// No owner may rely on the file that the descriptor referred to.
pub(crate) unsafe fn replace_by_null(fd: RawFd) -> io::Result<()> {
    // SAFETY: the path is a C string. The caller promises that `fd` may be replaced, and `null` is closed only if it is
    // another descriptor.
    unsafe {
        let null = check(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
        if null == fd {
            return Ok(());
        }
        let replaced = check(libc::dup2(null, fd));
        libc::close(null);
        replaced.map(drop)
    }
}
