//! The system calls, and the only `unsafe` code of this crate.
//!
//! The other modules reach the kernel through the trait [`Kernel`]. It is implemented for the calls of libc
//! ([`Libc`]), for the real calls behind the hooks of the shim, and for a fake kernel in tests that fails on demand.
//! An implementation must preserve the thread's `errno`: a function that succeeds may have made a system call that
//! failed.

#![expect(unsafe_code, reason = "system calls")]

use core::ffi::CStr;

use libc::{c_int, c_void, socklen_t};

use crate::defaults;
use crate::direct;
use crate::error::Errno;
use crate::option::SockOpt;

// With its feature `std`, which Cargo.toml turns on, the libc crate leaves it to std to link the C library. This crate
// does not use std.
#[link(name = "c")]
unsafe extern "C" {}

/// Reads and writes an option of a descriptor, and reads the sysctl that automatic values depend on.
pub trait Kernel {
    /// getsockopt(2): fills `value` from its beginning and returns how many bytes it filled.
    ///
    /// # Errors
    /// The error of the kernel.
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno>;

    /// setsockopt(2) of an `int`.
    ///
    /// # Errors
    /// The error of the kernel. The option is unchanged.
    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno>;

    /// Returns net.ipv4.tcp_retries2 of the calling thread's network namespace, or 15 if it cannot be read.
    fn retries(&self) -> u8 {
        defaults::retries()
    }

    /// Returns whether an error is pending on a socket, and leaves it pending. poll(2)
    fn has_error(&self, fd: c_int) -> bool {
        direct::has_error(fd)
    }
}

impl<K: Kernel + ?Sized> Kernel for &K {
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        (**self).get(fd, option, value)
    }

    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        (**self).set(fd, option, value)
    }

    fn retries(&self) -> u8 {
        (**self).retries()
    }

    fn has_error(&self, fd: c_int) -> bool {
        (**self).has_error(fd)
    }
}

/// The kernel, through the C library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Libc;

impl Kernel for Libc {
    #[inline]
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

/// Makes a C library call. If it fails, returns its error number and restores `errno`.
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

/// Returns the thread's `errno`. A reference would be wrong, because any call of the C library may write it.
#[must_use]
pub fn errno() -> Errno {
    // SAFETY: __errno_location returns a pointer to this thread's `errno`, which lives as long as the thread.
    Errno(unsafe { *libc::__errno_location() })
}

/// Sets the thread's `errno`, as a C function does before it returns -1.
pub fn set_errno(errno: Errno) {
    // SAFETY: __errno_location returns a pointer to this thread's `errno`, which lives as long as the thread.
    unsafe { *libc::__errno_location() = errno.0 }
}

/// A descriptor that is closed when dropped.
///
/// This type makes raw system calls, because open(3), read(3) and close(3) are cancellation points. A thread that is
/// cancelled between them would leave the descriptor open.
#[doc(hidden)] // shared with ka-liveness
#[derive(Debug)]
pub struct Descriptor(c_int);

impl Descriptor {
    /// Creates a TCP socket in this network namespace.
    pub(crate) fn tcp_socket() -> Result<Self, Errno> {
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

    /// Duplicates a descriptor. The duplicate is closed on exec.
    pub(crate) fn duplicate(fd: c_int) -> Result<Self, Errno> {
        let args = [direct::int(fd), direct::int(libc::F_DUPFD_CLOEXEC), 0, 0, 0, 0];
        // SAFETY: fcntl(2) takes no pointer here.
        let duplicate = direct::check(unsafe { direct::call(libc::SYS_fcntl, args) })?;
        c_int::try_from(duplicate).map(Self).map_err(|_| Errno(libc::EBADF))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn open(path: &CStr) -> Result<Self, Errno> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY;
        loop {
            // SAFETY: openat(2) reads a C string, which `path` is.
            match syscall(|| unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags) })
            {
                Err(Errno(libc::EINTR)) => {}
                opened => return opened.map(Self),
            }
        }
    }

    /// Reads bytes into `buffer` from its beginning, and returns their number. 0 means the end of the file.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: read(2) writes at most `len` bytes to `buffer`, which has them.
        let read = || unsafe { libc::syscall(libc::SYS_read, self.0, buffer.as_mut_ptr(), buffer.len()) };
        syscall(read).map(|size| usize::try_from(size).unwrap_or(0))
    }

    pub(crate) const fn fd(&self) -> c_int {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: close(2) takes no pointer, and `self` owns the descriptor. An error is ignored, because Linux
        // releases the descriptor even if close(2) fails.
        let _ = syscall(|| unsafe { libc::syscall(libc::SYS_close, self.0) });
    }
}

/// Makes a raw system call whose result fits an `int`. If it fails, returns its error number and restores `errno`.
///
/// # Errors
/// The error of the kernel.
#[doc(hidden)] // shared with ka-liveness
pub fn syscall(call: impl FnOnce() -> libc::c_long) -> Result<c_int, Errno> {
    check(|| c_int::try_from(call()).unwrap_or(-1))
}

/// Returns the number that the next descriptor would have.
#[cfg(test)]
pub(crate) fn lowest_free_descriptor() -> c_int {
    // SAFETY: dup(2) takes no pointer.
    let fd = unsafe { libc::dup(libc::STDERR_FILENO) };
    assert!(fd >= 0);
    drop(Descriptor(fd));
    fd
}
