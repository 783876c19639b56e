//! The receive buffer of a netlink socket. socket(7)

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use libc::c_int;

use super::check;

/// The size of an `int`.
const INT: libc::socklen_t = 4;

/// Sets the size of the receive buffer. With CAP_NET_ADMIN, it may exceed net.core.rmem_max.
pub(crate) fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    let set = |name| {
        // SAFETY: the kernel reads an int, which `bytes` is.
        check(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const bytes).cast(), INT)
        })
    };
    set(libc::SO_RCVBUFFORCE).or_else(|_| set(libc::SO_RCVBUF)).map(drop)
}

/// Returns the number of messages that the kernel has dropped because the receive buffer was full. `SO_MEMINFO`
pub(crate) fn dropped_messages(socket: BorrowedFd<'_>) -> io::Result<u32> {
    /// `SO_MEMINFO` of <asm-generic/socket.h>. `SK_MEMINFO_DROPS` is the last of its words.
    const SO_MEMINFO: c_int = 55;
    const WORDS: libc::socklen_t = 9;
    let mut words = [0_u32; WORDS as usize];
    let mut size = INT * WORDS;
    // SAFETY: the kernel writes at most `size` bytes to `words`, which has them.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut size,
        )
    })?;
    let [.., drops] = words;
    Ok(drops)
}
