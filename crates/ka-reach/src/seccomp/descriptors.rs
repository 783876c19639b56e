//! The descriptors of the supervisor's processes and threads.

#![expect(unsafe_code, reason = "system calls on the numbers of descriptors")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use crate::sys::{self, check, close_all_but};

/// Gives the calling thread its own descriptor table with only these descriptors. If the thread gets stuck later, it
/// holds no other file open.
pub(super) fn unshare_table(kept: &[RawFd]) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    // SAFETY: the table belongs to this thread alone, and the thread uses only the descriptors in `kept`.
    unsafe { close_all_but(0, kept) };
    Ok(())
}

/// Replaces the three standard descriptors by `fd`. So a duplicate of a program's socket never gets the number of
/// standard error, and no message can be written to it.
pub(super) fn replace_standard(fd: BorrowedFd<'_>) {
    for standard in 0..=libc::STDERR_FILENO {
        // SAFETY: the table belongs to this thread alone, and the thread does not use the three.
        unsafe { libc::dup2(fd.as_raw_fd(), standard) };
    }
}

/// Closes all descriptors except standard error and those in `kept`. Replaces standard input and output by /dev/null,
/// and also standard error if it is closed.
pub(super) fn keep_only(kept: &[RawFd]) {
    // SAFETY: this process has a single thread, which uses only the descriptors in `kept` from now on.
    unsafe { close_all_but(3, kept) };
    replace_by_null(libc::STDIN_FILENO);
    replace_by_null(libc::STDOUT_FILENO);
    // SAFETY: fcntl with F_GETFD takes no pointer.
    if unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_GETFD) } == -1 {
        replace_by_null(libc::STDERR_FILENO);
    }
}

/// Replaces a standard descriptor by /dev/null. So a reader that waits for the end of a pipe does not wait for this
/// process. If /dev/null cannot be opened, the descriptor stays as it is.
pub(super) fn replace_by_null(standard: RawFd) {
    // SAFETY: Rust's standard streams do not own the standard descriptors, and write to whatever file these refer to.
    let _ = unsafe { sys::replace_by_null(standard) };
}

/// Writes the whole text to a descriptor, or stops at an error.
pub(super) fn write_all(fd: RawFd, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: the pointer and the length are those of `text`.
        let written = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => text = text.get(written..).unwrap_or_default(),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// Returns the port that a socket is bound to. Returns 0 if the socket is not bound, or its family has no ports.
pub(super) fn local_port(fd: RawFd) -> u16 {
    let mut address = MaybeUninit::<libc::sockaddr_in6>::zeroed();
    let Ok(mut size) = libc::socklen_t::try_from(size_of::<libc::sockaddr_in6>()) else { return 0 };
    // SAFETY: the kernel writes at most `size` bytes, and zeros are a valid address.
    let address = unsafe {
        if libc::getsockname(fd, address.as_mut_ptr().cast(), &raw mut size) != 0 {
            return 0;
        }
        address.assume_init()
    };
    // The addresses of both families have the port at the same offset. sockaddr_in(3type)
    if [libc::AF_INET, libc::AF_INET6].contains(&address.sin6_family.into()) {
        u16::from_be(address.sin6_port)
    } else {
        0
    }
}
