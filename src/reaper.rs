//! The reaper of silent connections.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_liveness::sys::Heap;
use ka_liveness::{Reaper, ReaperError};
use libc::{c_int, size_t};

use crate::errno::{EINVAL, answer, answer_pointer};

/// Knows which connections have done no business for a time. Keepalive proves that a peer's kernel lives; this finds
/// the program that has hung, and the stranger who connected and never said a word.
///
/// A connection is a descriptor number: the reaper makes no system call on it, so it works beside epoll, poll, io_uring,
/// libuv or libevent alike. What counts as business is for the program to say, with ka_reaper_touch. All connections
/// of a reaper have one timeout; use one reaper for each timeout.
///
/// Time is a number of milliseconds on a clock of the program's, as CLOCK_MONOTONIC. It never goes backward: a now_ms
/// that is earlier than the latest which ka_reaper_touch or ka_reaper_expired was given counts as that one.
///
/// Memory: 16 bytes a connection where numbers are dense, as the kernel hands them out, in pages of 256 numbers
/// (4 KiB), which are given back to malloc(3) when the last of their connections is gone, all but one. A number far
/// from all others costs 8 KiB, and numbers up to INT_MAX a directory of 16 bytes for each 65536, 512 KiB in all, of
/// which only what is used is touched, and which stays until ka_reaper_free. There is no limit but memory.
///
/// A reaper is used by one thread at a time, and by no signal handler; different ones are independent.
#[allow(non_camel_case_types, reason = "its name in C")]
pub struct ka_reaper(Reaper);

/// Makes a reaper, which has no connection yet.
///
///   timeout_ms  ms, 1 or more: a connection is due when now_ms - last touch >= timeout_ms.
///
/// Returns the reaper, to be given to ka_reaper_free; or NULL with errno:
///   EINVAL       timeout_ms is 0.
///   ENOMEM       there is no memory.
/// After a failure nothing is left behind.
///
/// Thread-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_reaper_new(timeout_ms: u32) -> *mut ka_reaper {
    answer_pointer(|| {
        let reaper = ka_reaper(Reaper::new(timeout_ms)?);
        Ok(Heap::new(reaper).ok_or(ReaperError::OutOfMemory)?.into_raw())
    })
}

/// Gives a reaper's memory back. Its connections are left as they are: none is closed.
///
///   reaper  of ka_reaper_new, and not used again; NULL does nothing.
///
/// Returns nothing.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_free(reaper: *mut ka_reaper) {
    // SAFETY: C vouches that it is NULL or of ka_reaper_new, and not used again.
    drop(unsafe { Heap::from_raw(reaper) });
}

/// Notes that a connection does business now. One that the reaper does not have is added. The time that it takes does
/// not depend on how many there are.
///
///   reaper  of ka_reaper_new.
///   fd      the connection's descriptor, 0 or more.
///   now_ms  ms: the time.
///
/// Returns 0, or -1 with errno:
///   EINVAL       reaper is NULL.
///   EBADF        fd is negative.
///   ENOMEM       there is no memory for one more connection.
/// After a failure the reaper is as it was.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_touch(reaper: *mut ka_reaper, fd: c_int, now_ms: u64) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer, and that no other thread uses it.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        reaper.touch(fd, now_ms)?;
        Ok(0)
    })
}

/// Takes a connection out. Do it before close(2): a number that is used again is otherwise the old connection, touched.
///
///   reaper  of ka_reaper_new.
///   fd      the connection's descriptor.
///
/// Returns 0, or -1 with errno:
///   EINVAL       reaper is NULL.
///   ENOENT       the reaper does not have this connection, as after ka_reaper_expired named it.
/// After a failure the reaper is as it was.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_forget(reaper: *mut ka_reaper, fd: c_int) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer, and that no other thread uses it.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        if reaper.forget(fd) { Ok(0) } else { Err(ka_core::Errno(libc::ENOENT)) }
    })
}

/// Takes out connections that are due, the most silent first, and names them. The time that it takes depends on how
/// many it names, not on how many there are.
///
///   reaper  of ka_reaper_new.
///   now_ms  ms: the time.
///   fds     where to put their descriptors. May be NULL where n is 0.
///   n       how many fds has room for. Those that are due beyond it stay, for the next call.
///
/// Returns how many it named, at most n and INT_MAX, 0 where none is due; or -1 with errno:
///   EINVAL       reaper is NULL; fds is NULL and n is not 0.
/// After a failure the reaper is as it was.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_expired(
    reaper: *mut ka_reaper,
    now_ms: u64,
    fds: *mut c_int,
    n: size_t,
) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer, and that no other thread uses it.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        if fds.is_null() && n > 0 {
            return Err(EINVAL);
        }
        let room = c_int::try_from(n).unwrap_or(c_int::MAX);
        let mut expired = reaper.expired(now_ms);
        let mut count = 0;
        while let Some(fd) = (count < room).then(|| expired.next()).flatten() {
            // SAFETY: fewer than `n` are written before this one, and C vouches for as many.
            unsafe { fds.add(usize::try_from(count).unwrap_or(0)).write_unaligned(fd) };
            count = count.saturating_add(1);
        }
        Ok(count)
    })
}

/// Gets how long to wait until a connection is due: the timeout of epoll_wait(2) and poll(2).
///
///   reaper  of ka_reaper_new. It is only looked at: now_ms does not count as seen.
///   now_ms  ms: the time.
///
/// Returns the ms, at most INT_MAX, 0 where one is due now; or -1:
///   where the reaper has no connection, and errno is as it was: epoll_wait takes it as for ever;
///   with errno EINVAL where reaper is NULL.
/// After a failure nothing has changed.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_next(reaper: *const ka_reaper, now_ms: u64) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer, and that no other thread uses it.
        let ka_reaper(reaper) = unsafe { reaper.as_ref() }.ok_or(EINVAL)?;
        Ok(reaper.next_due_ms(now_ms).map_or(-1, |ms| c_int::try_from(ms).unwrap_or(c_int::MAX)))
    })
}

/// Gets how many connections a reaper has.
///
///   reaper  of ka_reaper_new; NULL has none.
///
/// Returns the number; it never fails.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_len(reaper: *const ka_reaper) -> size_t {
    // SAFETY: C vouches for the pointer, and that no other thread uses it.
    unsafe { reaper.as_ref() }.map_or(0, |ka_reaper(reaper)| reaper.len())
}
