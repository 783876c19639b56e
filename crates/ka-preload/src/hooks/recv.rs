//! recvmsg(2) and recvmmsg(2): descriptors may come with a message (`SCM_RIGHTS`, unix(7)).

use libc::{c_int, c_void, cmsghdr, mmsghdr, msghdr};

use super::stub::{self, Arguments, int};
use crate::shim::active;
use crate::sockets::{self, Sender};

stub::around! {
    /// A TCP socket that comes with the message gets the policy.
    recvmsg, before, after_recvmsg
}

stub::around! {
    /// A TCP socket that comes with one of the messages gets the policy.
    recvmmsg, before, after_recvmmsg
}

pub(super) extern "C" fn before(&[fd, ..]: &Arguments) {
    sockets::before_use(int(fd));
}

/// # Safety
/// If `size` is not negative, the kernel has filled the message.
pub(super) unsafe extern "C" fn after_recvmsg(size: isize, &[fd, message, ..]: &Arguments) {
    let message = message as *const msghdr;
    // SAFETY: the kernel has filled the message, so it can be read.
    if size >= 0 && unsafe { (*message).msg_controllen } >= size_of::<cmsghdr>() {
        // SAFETY: the kernel has filled the message, and its control messages.
        unsafe { take_rights(int(fd), message) };
    }
}

/// # Safety
/// The kernel has filled `filled` messages.
pub(super) unsafe extern "C" fn after_recvmmsg(filled: isize, &[fd, messages, ..]: &Arguments) {
    let messages = messages as *const mmsghdr;
    for n in 0..usize::try_from(filled as c_int).unwrap_or(0) {
        // SAFETY: the kernel has filled this message.
        unsafe { after_recvmsg(0, &[fd, messages.wrapping_add(n) as usize, 0, 0, 0, 0]) };
    }
}

/// Handles the descriptors that came with a message.
///
/// # Safety
/// The kernel has filled the message.
#[cold]
unsafe fn take_rights(fd: c_int, message: *const msghdr) {
    let Some(shim) = active() else {
        return;
    };
    let mut sender = Sender::of(fd);
    // SAFETY: the kernel has written the control messages, so their lengths are valid.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = control.as_ref() {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                let data: *const c_void = libc::CMSG_DATA(control).cast();
                const { assert!(size_of::<c_int>() == 4) };
                let size = header.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                for n in 0..size / 4 {
                    sockets::received(shim, &mut sender, data.cast::<c_int>().add(n).read_unaligned());
                }
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
}
