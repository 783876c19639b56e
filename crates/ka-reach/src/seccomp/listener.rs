//! Installs filters, and answers the calls that a filter suspends. seccomp(2), seccomp_unotify(2)

#![expect(unsafe_code, reason = "seccomp(2), and the ioctls of its listener")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_long, c_ulong};
use seccompiler::sock_filter;

use crate::sys::{check, owned};

/// A system call that waits for its answer.
pub(super) type Call = libc::seccomp_notif;

/// A struct that the kernel reads or writes, and padding, because a newer kernel may have a longer struct.
/// seccomp_unotify(2), `SECCOMP_GET_NOTIF_SIZES`
#[repr(C)]
pub(super) struct Padded<T> {
    known: T,
    padding: [u64; 16],
}

/// The supervisor's answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The kernel makes the call unchanged.
    Continue,
    /// The kernel does not make the call. It returns 0, or fails with this errno.
    Return(c_int),
}

/// The descriptor that reports the calls of all processes under a filter.
pub(super) struct Listener(OwnedFd);

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Waits for a call, which the kernel writes to `buffer`. Fails with EINTR after a signal. Fails with ENOENT if the
    /// call was cancelled, or if no process is left under the filter.
    ///
    /// # Safety
    /// `buffer` must be valid, zeroed, and not accessed by another thread.
    pub(super) unsafe fn receive(&self, buffer: *mut Padded<Call>) -> io::Result<Call> {
        // SAFETY: the kernel writes one seccomp_notif, for which the caller's buffer has room.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, buffer) })?;
        // SAFETY: the buffer starts with the seccomp_notif that the kernel has just written.
        Ok(unsafe { ptr::read_volatile(buffer.cast()) })
    }

    /// Answers a call. Fails with ENOENT if the caller no longer waits.
    pub(super) fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        // SECCOMP_USER_NOTIF_FLAG_CONTINUE. The constant in the libc crate has another width.
        const CONTINUE: u32 = 1;
        let (error, flags) = match answer {
            Answer::Continue => (0, CONTINUE),
            Answer::Return(errno) => (errno.saturating_neg(), 0),
        };
        let known = libc::seccomp_notif_resp { id, val: 0, error, flags };
        let mut response = Padded { known, padding: [0; 16] };
        // SAFETY: the kernel reads one seccomp_notif_resp. If that of a newer kernel is longer, the kernel reads
        // padding.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
        check(result).map(drop)
    }

    /// Returns whether the caller still waits. If so, its thread ID has not been reused since the call was received.
    pub(super) fn is_waiting(&self, call: &Call) -> bool {
        let mut id = call.id;
        // SAFETY: the pointer to `id` is valid during the call. The kernel reads a u64.
        let valid = check(unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id)
        });
        // After another error, such as EINTR, the caller may still wait. Without an answer it would wait forever.
        !valid.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
    }

    /// Returns whether the last process under the filter has ended. Always false before Linux 5.9, which does not
    /// report this.
    pub(super) fn has_no_callers(&self) -> bool {
        let mut entry = libc::pollfd { fd: self.0.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: the pointer to one pollfd is valid during the call.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 && entry.revents & libc::POLLHUP != 0 }
    }

    /// Makes caller and supervisor run in turn on one processor, which halves the time of a call. Has no effect before
    /// Linux 6.6.
    pub(super) fn set_sync_wake_up(&self) {
        const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: c_ulong = 1;
        // SAFETY: the argument is the flags, not a pointer.
        unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
            )
        };
    }
}

/// Installs a filter on this process and its future children. Returns the result of seccomp(2): a descriptor if `flags`
/// request a listener, otherwise 0.
fn install(filter: &[sock_filter], flags: c_ulong) -> io::Result<c_long> {
    /// `struct sock_fprog` of linux/filter.h
    #[repr(C)]
    struct SockFprog {
        length: u16,
        filter: *const sock_filter,
    }
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = SockFprog { length, filter: filter.as_ptr() };
    // SAFETY: `length` is the number of instructions at `filter`. The kernel copies and checks them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
}

/// Installs a filter that suspends no call.
pub(super) fn install_plain(filter: &[sock_filter]) -> io::Result<()> {
    install(filter, 0).map(drop)
}

/// Installs a filter that suspends calls, and returns its listener.
///
/// Since Linux 5.19, only a fatal signal interrupts a call that the supervisor has received. Before, a program that
/// gets a signal every 50 us may restart the call forever.
pub(super) fn install_listener(filter: &[sock_filter]) -> io::Result<OwnedFd> {
    const LISTENER: c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    owned(match install(filter, LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(filter, LISTENER)?,
        result => result?,
    })
}

/// Returns whether this process is under a filter.
pub(super) fn is_filtered() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) == libc::SECCOMP_MODE_FILTER.cast_signed() }
}

/// Calls connect(2) without an address. The kernel rejects the call, but a supervisor applies its policy first.
pub(super) fn connect_nowhere(socket: BorrowedFd<'_>) {
    // SAFETY: the length is 0, so the kernel reads nothing.
    unsafe { libc::connect(socket.as_raw_fd(), ptr::null(), 0) };
}
