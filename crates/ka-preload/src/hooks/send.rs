//! sendto(2), sendmsg(2) and sendmmsg(2): with `MSG_FASTOPEN` they connect.

use core::ffi::c_void;
use core::mem::{offset_of, transmute};
use core::ptr;

use libc::{MSG_FASTOPEN, c_int, c_uint, mmsghdr, msghdr, sockaddr, socklen_t};

use super::{connect, stub};
use crate::{raw, sockets};

stub::before! {
    /// With `MSG_FASTOPEN`, as connect.
    sendto, before_sendto
}

stub::before! {
    /// With `MSG_FASTOPEN`, as connect.
    sendmsg, before_sendmsg
}

stub::before! {
    /// With `MSG_FASTOPEN`, as connect to the address of the first message.
    sendmmsg, before_sendmmsg
}

pub(super) extern "C" fn before_sendto(
    fd: c_int,
    _: *const c_void,
    _: usize,
    flags: c_int,
    to: *const sockaddr,
    size: socklen_t,
) {
    if flags & MSG_FASTOPEN == 0 {
        sockets::before_use(fd);
    } else {
        connect::before(fd, to, size);
    }
}

pub(super) extern "C" fn before_sendmsg(fd: c_int, message: *const msghdr, flags: c_int) {
    let (to, size) = if flags & MSG_FASTOPEN == 0 { (ptr::null(), 0) } else { destination(message) };
    before_sendto(fd, ptr::null(), 0, flags, to, size);
}

pub(super) extern "C" fn before_sendmmsg(fd: c_int, messages: *const mmsghdr, count: c_uint, flags: c_int) {
    const { assert!(offset_of!(mmsghdr, msg_hdr) == 0) };
    before_sendmsg(fd, messages.cast(), if count > 0 { flags } else { 0 });
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
