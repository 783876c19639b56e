//! sendto(2), sendmsg(2) and sendmmsg(2): with `MSG_FASTOPEN` they connect.

use core::ffi::c_void;
use core::mem::{offset_of, transmute};
use core::ptr;

use libc::{MSG_FASTOPEN, c_int, c_uint, mmsghdr, msghdr, sockaddr, socklen_t, ssize_t};

use super::connect;
use crate::sockets;
use crate::{next, raw};

/// With `MSG_FASTOPEN`, as connect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    len: usize,
    flags: c_int,
    to: *const sockaddr,
    size: socklen_t,
) -> ssize_t {
    before_sendto(fd, flags, to, size);
    // SAFETY: the program's own call.
    unsafe { next::sendto(fd, data, len, flags, to, size) }
}

/// With `MSG_FASTOPEN`, as connect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    before_sendmsg(fd, message, flags);
    // SAFETY: the program's own call.
    unsafe { next::sendmsg(fd, message, flags) }
}

/// With `MSG_FASTOPEN`, as connect to the address of the first message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    before_sendmmsg(fd, messages, count, flags);
    // SAFETY: the program's own call.
    unsafe { next::sendmmsg(fd, messages, count, flags) }
}

#[inline]
pub(super) fn before_sendto(fd: c_int, flags: c_int, to: *const sockaddr, size: socklen_t) {
    if flags & MSG_FASTOPEN != 0 {
        connect::before(fd, to, size);
    } else {
        sockets::before_use(fd);
    }
}

#[inline]
pub(super) fn before_sendmsg(fd: c_int, message: *const msghdr, flags: c_int) {
    if flags & MSG_FASTOPEN != 0 {
        let (to, size) = destination(message);
        connect::before(fd, to, size);
    } else {
        sockets::before_use(fd);
    }
}

#[inline]
pub(super) fn before_sendmmsg(fd: c_int, messages: *const mmsghdr, count: c_uint, flags: c_int) {
    if flags & MSG_FASTOPEN != 0 && count > 0 {
        const { assert!(offset_of!(mmsghdr, msg_hdr) == 0) };
        before_sendmsg(fd, messages.cast(), flags);
    } else {
        sockets::before_use(fd);
    }
}

/// Where a message goes. The program's address may be wrong, so it is the kernel that reads there.
#[cold]
fn destination(message: *const msghdr) -> (*const sockaddr, socklen_t) {
    let mut bytes = [0; size_of::<msghdr>()];
    if !raw::read_memory(message.cast(), &mut bytes) {
        return (ptr::null(), 0);
    }
    // SAFETY: pointers and numbers, for which any bytes will do.
    let header: msghdr = unsafe { transmute(bytes) };
    (header.msg_name.cast_const().cast(), header.msg_namelen)
}
