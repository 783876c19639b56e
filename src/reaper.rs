//! The reaper of silent connections.

#![expect(unsafe_code, reason = "C calls these functions")]

use ka_liveness::sys::Heap;
use ka_liveness::{Reaper, ReaperError};
use libc::{c_int, size_t};

use crate::errno::{EINVAL, answer, answer_pointer};

/// Records when each connection was last active, and finds the connections that have been inactive for too long.
///
/// Keepalive proves only that the peer's kernel is alive. A reaper also finds a peer whose program hangs, and a
/// stranger that connects and never sends anything.
///
/// A reaper knows a connection by its descriptor number, and makes no system call on it. So it works with epoll, poll,
/// io_uring, libuv and libevent. The program decides which events are activity, for example a complete message, and
/// calls ka_reaper_touch for them. All connections of a reaper have the same timeout: use one reaper for each timeout.
///
/// Times are in milliseconds, on a clock that the program chooses, for example CLOCK_MONOTONIC. The clock of a reaper
/// is the latest now_ms that ka_reaper_touch or ka_reaper_expired has received. It never goes backward: if a call
/// passes an earlier now_ms, the reaper uses the latest one instead.
///
/// Memory: 16 bytes per connection if the descriptor numbers are dense, as the kernel assigns them. It is allocated in
/// pages of 256 numbers (4 KiB). When the last connection of a page is removed, the page is given back to malloc(3),
/// except one spare page. A number far from all others costs 8 KiB. There is also a directory of 16 bytes for each
/// 65536 numbers, at most 512 KiB (for INT_MAX). Only the used parts of the directory take memory, and it stays until
/// ka_reaper_free. Memory is the only limit on the number of connections.
///
/// Only one thread at a time may use a reaper, and no signal handler may use it. Different reapers are independent.
#[allow(non_camel_case_types, reason = "this is its name in C")]
pub struct ka_reaper(Reaper);

/// Create a reaper without connections.
///
///   timeout_ms  milliseconds, 1 or more. A connection is due when now_ms - (time of its last touch) >= timeout_ms.
///
/// Returns the reaper, which ka_reaper_free frees, or NULL with errno:
///   EINVAL       timeout_ms is 0.
///   ENOMEM       there is not enough memory.
/// After a failure nothing is allocated.
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

/// Free a reaper. Its connections stay open.
///
///   reaper  a reaper of ka_reaper_new, which must not be used again, or NULL, which does nothing.
///
/// Returns nothing.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_free(reaper: *mut ka_reaper) {
    // SAFETY: the C caller passes NULL, or a reaper of ka_reaper_new that it does not use again.
    drop(unsafe { Heap::from_raw(reaper) });
}

/// Record that a connection is active now. Add the connection if it is new. This takes the same time for any number of
/// connections.
///
///   reaper  a reaper of ka_reaper_new.
///   fd      the descriptor of the connection, 0 or more.
///   now_ms  the current time, in milliseconds.
///
/// Returns 0, or -1 with errno:
///   EINVAL       reaper is NULL.
///   EBADF        fd is negative.
///   ENOMEM       there is not enough memory for a new connection.
/// After a failure the reaper is unchanged.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_touch(reaper: *mut ka_reaper, fd: c_int, now_ms: u64) -> c_int {
    answer(|| {
        // SAFETY: the C caller passes NULL, or a reaper that no other thread uses at the same time.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        reaper.touch(fd, now_ms)?;
        Ok(0)
    })
}

/// Remove a connection. Call this before close(2). Otherwise a new connection with the same descriptor number
/// inherits the old entry.
///
///   reaper  a reaper of ka_reaper_new.
///   fd      the descriptor of the connection.
///
/// Returns 0, or -1 with errno:
///   EINVAL       reaper is NULL.
///   ENOENT       the reaper does not have this connection. For example, ka_reaper_expired has already removed it.
/// After a failure the reaper is unchanged.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_forget(reaper: *mut ka_reaper, fd: c_int) -> c_int {
    answer(|| {
        // SAFETY: the C caller passes NULL, or a reaper that no other thread uses at the same time.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        if reaper.forget(fd) { Ok(0) } else { Err(ka_core::Errno(libc::ENOENT)) }
    })
}

/// Remove connections that are due, and return their descriptors, the longest inactive first. The call takes time
/// for each connection that it removes. It does not take longer if the reaper has more connections.
///
///   reaper  a reaper of ka_reaper_new.
///   now_ms  the current time, in milliseconds.
///   fds     receives the descriptors. May be NULL if n is 0.
///   n       the size of fds. If more connections are due, the others stay for the next call.
///
/// Returns the number of connections removed, at most n and INT_MAX, and 0 if none is due; or -1 with errno:
///   EINVAL       reaper is NULL; fds is NULL and n is not 0.
/// After a failure the reaper is unchanged.
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
        // SAFETY: the C caller passes NULL, or a reaper that no other thread uses at the same time.
        let ka_reaper(reaper) = unsafe { reaper.as_mut() }.ok_or(EINVAL)?;
        if fds.is_null() && n > 0 {
            return Err(EINVAL);
        }
        let room = c_int::try_from(n).unwrap_or(c_int::MAX);
        let mut expired = reaper.expired(now_ms);
        let mut count = 0;
        while let Some(fd) = (count < room).then(|| expired.next()).flatten() {
            // SAFETY: `count` is below `n`, and the C caller guarantees room for `n` descriptors.
            unsafe { fds.add(usize::try_from(count).unwrap_or(0)).write_unaligned(fd) };
            count = count.saturating_add(1);
        }
        Ok(count)
    })
}

/// Return the time until the next connection is due, as a timeout for epoll_wait(2) or poll(2).
///
///   reaper  a reaper of ka_reaper_new. It is not changed: now_ms does not advance its clock.
///   now_ms  the current time, in milliseconds.
///
/// Returns milliseconds, at most INT_MAX, and 0 if a connection is due now. Returns -1 with errno unchanged if the
/// reaper has no connection: epoll_wait(2) and poll(2) then wait without a timeout. Or returns -1 with errno:
///   EINVAL       reaper is NULL.
/// After a failure nothing has changed.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_next(reaper: *const ka_reaper, now_ms: u64) -> c_int {
    answer(|| {
        // SAFETY: the C caller passes NULL, or a reaper that no other thread uses at the same time.
        let ka_reaper(reaper) = unsafe { reaper.as_ref() }.ok_or(EINVAL)?;
        Ok(reaper.next_due_ms(now_ms).map_or(-1, |ms| c_int::try_from(ms).unwrap_or(c_int::MAX)))
    })
}

/// Return the number of connections in a reaper.
///
///   reaper  a reaper of ka_reaper_new, or NULL, which has no connection.
///
/// Returns the number. Never fails.
///
/// One thread at a time; fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_reaper_len(reaper: *const ka_reaper) -> size_t {
    // SAFETY: the C caller passes NULL, or a reaper that no other thread uses at the same time.
    unsafe { reaper.as_ref() }.map_or(0, |ka_reaper(reaper)| reaper.len())
}
