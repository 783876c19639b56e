//! recvmsg(2) and recvmmsg(2): descriptors may come with a message (`SCM_RIGHTS`, unix(7)).

use libc::{c_int, c_uint, c_void, cmsghdr, mmsghdr, msghdr, ssize_t, timespec};

use crate::next;
use crate::settings::active;
use crate::sockets::{self, Sender};

/// A TCP socket that comes with the message gets the policy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    sockets::before_use(fd);
    // SAFETY: the program's own call.
    let size = unsafe { next::recvmsg(fd, message, flags) };
    // SAFETY: the kernel has just filled the message, if it succeeded.
    unsafe { after_recvmsg(fd, size, message) };
    size
}

/// A TCP socket that comes with one of the messages gets the policy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    sockets::before_use(fd);
    // SAFETY: the program's own call.
    let filled = unsafe { next::recvmmsg(fd, messages, count, flags, timeout) };
    // SAFETY: the kernel has just filled so many messages.
    unsafe { after_recvmmsg(fd, filled, messages) };
    filled
}

/// # Safety
/// If `size` is no failure, the kernel has filled the message.
#[inline]
pub(super) unsafe fn after_recvmsg(fd: c_int, size: ssize_t, message: *const msghdr) {
    // SAFETY: the kernel has filled the message, so it can be read.
    if size >= 0 && unsafe { (*message).msg_controllen } >= size_of::<cmsghdr>() {
        // SAFETY: the same.
        unsafe { take_rights(fd, message) };
    }
}

/// # Safety
/// The kernel has filled as many messages as `filled` says.
#[inline(never)]
pub(super) unsafe fn after_recvmmsg(fd: c_int, filled: c_int, messages: *const mmsghdr) {
    for n in 0..usize::try_from(filled).unwrap_or(0) {
        // SAFETY: the kernel has filled this one.
        unsafe { after_recvmsg(fd, 0, &raw const (*messages.add(n)).msg_hdr) };
    }
}

#[cold]
unsafe fn take_rights(fd: c_int, message: *const msghdr) {
    let Some(settings) = active() else {
        return;
    };
    let mut sender = Sender::of(fd);
    // SAFETY: the kernel has written the control messages, and their lengths are right.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = control.as_ref() {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                let data: *const c_void = libc::CMSG_DATA(control).cast();
                const { assert!(size_of::<c_int>() == 4) };
                let size = header.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                for n in 0..size / 4 {
                    sockets::received(settings, &mut sender, data.cast::<c_int>().add(n).read_unaligned());
                }
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
}
