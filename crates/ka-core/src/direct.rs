//! System calls by instruction. They do not change `errno`, and do not call functions that another library may have
//! hooked.

#![expect(unsafe_code, reason = "system calls")]
#![expect(
    clippy::cast_sign_loss,
    clippy::many_single_char_names,
    clippy::must_use_candidate,
    reason = "the kernel takes six words, and returns a word"
)]

use core::sync::atomic::AtomicU32;
#[cfg(not(target_arch = "aarch64"))]
use core::sync::atomic::Ordering;
use core::time::Duration;

use libc::{c_int, c_long, socklen_t};

use crate::error::Errno;
use crate::option::SockOpt;
use crate::sys::Kernel;

/// Makes a system call. On failure, returns a negated error number.
///
/// # Safety
/// The arguments are valid for the system call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: this is the calling convention of the kernel. The caller guarantees that the arguments are valid.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Makes a system call. On failure, returns a negated error number.
///
/// # Safety
/// The arguments are valid for the system call.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: this is the calling convention of the kernel. The caller guarantees that the arguments are valid.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Makes a system call through the C library, because ka has no instructions for this architecture. On failure, returns
/// a negated error number.
///
/// # Safety
/// The arguments are valid for the system call.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller guarantees that the arguments are valid.
    let result = crate::sys::syscall(|| unsafe { libc::syscall(number, a, b, c, d, e, f) });
    result.map_or_else(|errno| -(errno.0 as isize), |value| value as isize)
}

/// Converts an int to an argument of a system call.
#[must_use]
#[inline]
pub const fn int(value: c_int) -> usize {
    value as isize as usize
}

/// Converts the result of [`call`].
///
/// # Errors
/// The error of the kernel.
#[inline]
pub fn check(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno(c_int::try_from(result.wrapping_neg()).unwrap_or(libc::EINVAL)))
}

/// The kernel, called without the C library.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Kernel for Direct {
    #[inline]
    fn get(&self, fd: c_int, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        let (level, name) = option.level_and_name();
        let mut size = socklen_t::try_from(value.len()).unwrap_or(socklen_t::MAX);
        let args = [int(fd), int(level), int(name), value.as_mut_ptr() as usize, (&raw mut size) as usize, 0];
        // SAFETY: the kernel writes at most `size` bytes to `value`, which has them, and the size to `size`.
        check(unsafe { call(libc::SYS_getsockopt, args) })?;
        Ok(size as usize)
    }

    #[inline]
    fn set(&self, fd: c_int, option: SockOpt, value: c_int) -> Result<(), Errno> {
        let (level, name) = option.level_and_name();
        let args = [int(fd), int(level), int(name), (&raw const value) as usize, size_of::<c_int>(), 0];
        // SAFETY: the kernel reads an int, which `value` is.
        check(unsafe { call(libc::SYS_setsockopt, args) })?;
        Ok(())
    }
}

/// Calls poll(2) without waiting. It uses ppoll(2), which every architecture has.
///
/// # Errors
/// The error of the kernel.
#[inline]
pub fn poll(set: &mut [libc::pollfd]) -> Result<usize, Errno> {
    let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [set.as_mut_ptr() as usize, set.len(), (&raw mut at_once) as usize, 0, 0, 0];
    // SAFETY: the kernel reads and writes the entries of `set`, and may write the remaining time.
    check(unsafe { call(libc::SYS_ppoll, args) })
}

/// Returns whether an error is pending on a socket, and leaves it pending.
pub(crate) fn has_error(fd: c_int) -> bool {
    let mut set = [libc::pollfd { fd, events: 0, revents: 0 }];
    poll(&mut set).is_ok() && set.iter().any(|entry| entry.revents & libc::POLLERR != 0)
}

/// Sleeps for this time, or until a signal arrives. This is not a cancellation point, because the caller must still put
/// settings back.
pub(crate) fn sleep(time: Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: the kernel reads a time. It writes no remaining time, because that pointer is NULL.
    unsafe { call(libc::SYS_nanosleep, [(&raw const time) as usize, 0, 0, 0, 0, 0]) };
}

/// Returns the time of CLOCK_MONOTONIC, or `None` if a seccomp filter refuses the call.
#[must_use]
pub(crate) fn now() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [int(libc::CLOCK_MONOTONIC), (&raw mut time) as usize, 0, 0, 0, 0];
    // SAFETY: clock_gettime(2) writes a time.
    check(unsafe { call(libc::SYS_clock_gettime, args) }).ok()?;
    // Duration::new could panic.
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).ok()?);
    Some(seconds.saturating_add(Duration::from_nanos(u64::try_from(time.tv_nsec).ok()?)))
}

/// Replaces a word by `new` in one atomic step if its value is `old`. Returns whether it did.
///
/// On aarch64, the compiler would call its outline atomics instead. These detect newer instructions before main, keep
/// the result, and need the loader's library. libka must avoid all three. The loop here ends when the word has
/// another value than `old`, or when the new value is written.
#[cfg(target_arch = "aarch64")]
pub(crate) fn replace(word: &AtomicU32, old: u32, new: u32) -> bool {
    let seen: u32;
    // SAFETY: `word` is borrowed during the call, and atomic. The instructions change no other memory.
    unsafe {
        core::arch::asm!(
            "2:",
            "ldaxr {seen:w}, [{word}]",
            "cmp {seen:w}, {old:w}",
            "b.ne 3f",
            "stlxr {failed:w}, {new:w}, [{word}]",
            "cbnz {failed:w}, 2b",
            "3:",
            word = in(reg) word.as_ptr(),
            old = in(reg) old,
            new = in(reg) new,
            seen = out(reg) seen,
            failed = out(reg) _,
            options(nostack),
        );
    }
    seen == old
}

/// Replaces a word by `new` in one atomic step if its value is `old`. Returns whether it did.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn replace(word: &AtomicU32, old: u32, new: u32) -> bool {
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Returns the ID of this process.
pub(crate) fn process() -> u32 {
    // SAFETY: getpid(2) has no arguments.
    let id = unsafe { call(libc::SYS_getpid, [0; 6]) };
    u32::try_from(id).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::replace;

    extern crate std;

    #[test]
    fn only_one_thread_replaces_a_word() {
        let word = AtomicU32::new(0);
        assert!(!replace(&word, 7, 8));
        for round in 0..200 {
            let winners: usize = thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(|| usize::from(replace(&word, round, round + 1))));
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((winners, word.load(Ordering::Relaxed)), (1, round + 1));
        }
    }
}
