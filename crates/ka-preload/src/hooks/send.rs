//! sendto(2), sendmsg(2) and sendmmsg(2). With `MSG_FASTOPEN`, they connect the socket.

use core::mem::{offset_of, transmute};
use core::ptr;

use libc::{MSG_FASTOPEN, c_int, mmsghdr, msghdr, sockaddr, socklen_t};

use super::connect;
use super::stub::{self, Arguments, int};
use crate::{raw, sockets};

stub::before! {
    /// With `MSG_FASTOPEN`, does what the connect hook does.
    sendto, before_sendto
}

stub::before! {
    /// With `MSG_FASTOPEN`, does what the connect hook does.
    sendmsg, before_sendmsg
}

stub::before! {
    /// With `MSG_FASTOPEN`, does what the connect hook does, for the address of the first message.
    sendmmsg, before_sendmmsg
}

pub(super) extern "C" fn before_sendto(&[fd, _, _, flags, to, size]: &Arguments) {
    sending(int(fd), int(flags), to as *const sockaddr, size as socklen_t);
}

pub(super) extern "C" fn before_sendmsg(&[fd, message, flags, ..]: &Arguments) {
    let is_connecting = int(flags) & MSG_FASTOPEN != 0;
    let (to, size) = if is_connecting { destination(message as *const msghdr) } else { (ptr::null(), 0) };
    sending(int(fd), int(flags), to, size);
}

pub(super) extern "C" fn before_sendmmsg(&[fd, messages, count, flags, ..]: &Arguments) {
    const { assert!(offset_of!(mmsghdr, msg_hdr) == 0) };
    before_sendmsg(&[fd, messages, if int(count) == 0 { 0 } else { flags }, 0, 0, 0]);
}

fn sending(fd: c_int, flags: c_int, to: *const sockaddr, size: socklen_t) {
    if flags & MSG_FASTOPEN == 0 {
        sockets::before_use(fd);
    } else {
        connect::connecting(fd, to, size);
    }
}

/// Returns the destination of a message. The program's pointer may be invalid, so the kernel reads the message.
#[cold]
fn destination(message: *const msghdr) -> (*const sockaddr, socklen_t) {
    let mut bytes = [0; size_of::<msghdr>()];
    if !raw::read_memory(message.cast(), &mut bytes) {
        return (ptr::null(), 0);
    }
    // SAFETY: the type consists of raw pointers and integers, which may have any value.
    let header: msghdr = unsafe { transmute(bytes) };
    (header.msg_name.cast_const().cast(), header.msg_namelen)
}
