//! The system calls, and the only `unsafe` of this crate.
//!
//! The rules see the kernel through [`Kernel`], so that they run the same on libc's calls ([`Libc`]), on the
//! real ones behind a shim's hooks, and on a kernel that fails on demand. An implementation must leave the
//! thread's `errno` alone: a call of ours that succeeds may have asked the kernel something that it refused.

#![expect(unsafe_code, reason = "system calls")]

use libc::{c_int, c_void, socklen_t};

use crate::error::Errno;
use crate::option::SockOpt;

// The libc crate names the C library to the linker only where it is without its feature `std`, which whatever else
// is built with this may turn on.
#[link(name = "c")]
unsafe extern "C" {}

/// Reads and writes an option of a descriptor.
pub trait Kernel {
    /// getsockopt(2): fills `value` from its beginning and returns how many bytes it filled.
    ///
    /// # Errors
    /// What the kernel answered.
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno>;

    /// setsockopt(2) of an `int`.
    ///
    /// # Errors
    /// What the kernel answered; the option is as it was.
    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno>;
}

impl<K: Kernel + ?Sized> Kernel for &K {
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        (**self).get(fd, option, value)
    }

    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        (**self).set(fd, option, value)
    }
}

/// The kernel, through the C library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Libc;

impl Kernel for Libc {
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        let (level, name) = option.level_and_name();
        let mut size = socklen_t::try_from(value.len()).unwrap_or(socklen_t::MAX);
        let buffer = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: the kernel writes at most `size` bytes to `buffer`, which has them, and the size to `size`.
        check(|| unsafe { libc::getsockopt(fd, level, name, buffer, &raw mut size) })?;
        Ok(usize::try_from(size).unwrap_or(0))
    }

    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        let (level, name) = option.level_and_name();
        // SAFETY: the kernel reads `INT` bytes of `value`, which has them.
        check(|| unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), INT) })?;
        Ok(())
    }
}

/// The size of an `int` option.
const INT: socklen_t = 4;

/// Makes a C library call and takes its error number without leaving it in `errno`.
fn check(call: impl FnOnce() -> c_int) -> Result<c_int, Errno> {
    let before = errno();
    let result = call();
    if result < 0 {
        let failure = errno();
        set_errno(before);
        return Err(failure);
    }
    Ok(result)
}

/// The thread's `errno`. No reference to it is made, since any call of the C library may write it.
#[must_use]
pub fn errno() -> Errno {
    // SAFETY: __errno_location gives this thread's `errno`, which lives as long as the thread.
    Errno(unsafe { *libc::__errno_location() })
}

/// Sets the thread's `errno`, as a C function does that is about to return -1.
pub fn set_errno(errno: Errno) {
    // SAFETY: __errno_location gives this thread's `errno`, which lives as long as the thread.
    unsafe { *libc::__errno_location() = errno.0 }
}

/// A new TCP socket of this network namespace, closed when dropped.
pub(crate) struct TcpSocket(c_int);

impl TcpSocket {
    pub(crate) fn new() -> Result<Self, Errno> {
        let open = |domain| {
            // SAFETY: socket(2) takes no pointer.
            check(|| unsafe {
                libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP)
            })
        };
        match open(libc::AF_INET) {
            Err(Errno(libc::EAFNOSUPPORT)) => open(libc::AF_INET6),
            other => other,
        }
        .map(Self)
    }

    pub(crate) const fn fd(&self) -> c_int {
        self.0
    }
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Reads a small file whole: the number of bytes of `buffer` that it filled.
///
/// Not through open(3), read(3) and close(3), which are cancellation points: a thread that is cancelled
/// between them would leave the descriptor open.
pub(crate) fn read_file(path: &core::ffi::CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: openat(2) reads a C string, which `path` is.
    let fd = syscall(|| unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: read(2) writes at most `len` bytes to `buffer`, which has them.
    let size = syscall(|| unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) });
    close(fd);
    size.map(|size| usize::try_from(size).unwrap_or(0))
}

/// Makes a raw system call whose result fits an `int`.
fn syscall(call: impl FnOnce() -> libc::c_long) -> Result<c_int, Errno> {
    check(|| c_int::try_from(call()).unwrap_or(-1))
}

fn close(fd: c_int) {
    // SAFETY: close(2) takes no pointer, and only the owner of the descriptor calls this, once. A failure would
    // leave nothing to do: Linux releases the number whatever close answers.
    let _ = syscall(|| unsafe { libc::syscall(libc::SYS_close, fd) });
}

/// The number that the next descriptor would have.
#[cfg(test)]
pub(crate) fn lowest_free_descriptor() -> c_int {
    // SAFETY: dup(2) takes no pointer.
    let fd = unsafe { libc::dup(libc::STDERR_FILENO) };
    assert!(fd >= 0);
    close(fd);
    fd
}
