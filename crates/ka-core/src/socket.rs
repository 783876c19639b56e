//! A borrowed socket. Every call on it checks that the socket is TCP.

use core::marker::PhantomData;

use libc::c_int;

use crate::error::{Errno, Error};
use crate::option::{SockOpt, Timer};
use crate::settings::Settings;
use crate::status::{Status, Subflows};
use crate::sys::{Kernel, Libc};

/// A borrowed descriptor. This type never closes it, and keeps no state about it.
///
/// The descriptor may be of any kind. If it is not a TCP or Multipath TCP socket, calls fail and leave it unchanged.
///
/// The standard library's `AsFd` and `BorrowedFd` do not exist without `std`. A program with `std` calls
/// `ka_reach::socket`, which borrows the descriptor for `'fd`.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'fd, K = Libc> {
    fd: c_int,
    kernel: K,
    borrowed: PhantomData<&'fd ()>,
}

impl Socket<'_> {
    /// Returns the socket with this descriptor. The caller keeps the descriptor open for `'fd`.
    #[must_use]
    pub const fn new(fd: c_int) -> Self {
        Self::with_kernel(fd, Libc)
    }
}

impl<K> Socket<'_, K> {
    /// Returns the socket with this descriptor. `kernel` makes its system calls.
    #[must_use]
    pub const fn with_kernel(fd: c_int, kernel: K) -> Self {
        Self { fd, kernel, borrowed: PhantomData }
    }
}

impl<K: Kernel> Socket<'_, K> {
    /// Returns whether keepalive is on.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`]
    pub fn is_enabled(&self) -> Result<bool, Error> {
        self.check_tcp()?;
        self.keepalive()
    }

    /// Returns the value of this timer that is in force. If no value was set, this is the value of the sysctl. A sysctl
    /// may hold a value that cannot be set on a socket, such as 86400 or -1.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`], [`Error::Unsupported`] (the user timeout and `TCP_RTO_MAX_MS` on
    /// Multipath TCP, and `TCP_RTO_MAX_MS` before Linux 6.15).
    pub fn timer(&self, timer: Timer) -> Result<i32, Error> {
        self.get(SockOpt::Timer(timer))
    }

    /// Returns all keepalive settings that are in force.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`]
    pub fn settings(&self) -> Result<Settings, Error> {
        // Reading SO_KEEPALIVE succeeds on any socket. Reading the timers fails if the socket is not TCP.
        Ok(Settings {
            enabled: self.keepalive()?,
            idle: self.timer(Timer::Idle)?,
            intvl: self.timer(Timer::Intvl)?,
            cnt: self.timer(Timer::Cnt)?,
            user_timeout: match self.timer(Timer::UserTimeout) {
                Err(Error::Unsupported(_)) => None,
                other => Some(other?),
            },
            // A filter of an older program may reject an option that it does not know.
            rto_max: self.timer(Timer::RtoMax).ok(),
        })
    }

    /// Returns the state of the connection.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`], [`Error::Unsupported`]
    pub fn status(&self) -> Result<Status, Error> {
        let mut info = [0; Status::INFO_SIZE];
        let size = self.kernel.get(self.fd, SockOpt::Info, &mut info);
        let size = size.map_err(|errno| self.explain(SockOpt::Info, errno))?;
        info.get(..size).and_then(Status::from_info).ok_or(Error::Unsupported(SockOpt::Info))
    }

    /// Returns the state of the connection, as [`Socket::status`], but over all subflows of a Multipath TCP connection.
    /// The connection is alive if one of its subflows is.
    #[inline(never)]
    pub(crate) fn connection_status(&self) -> Result<Status, Error> {
        let status = self.status()?;
        if self.read(SockOpt::Protocol) == Ok(libc::IPPROTO_MPTCP) {
            return Ok(self.subflow_status().unwrap_or(status));
        }
        Ok(status)
    }

    /// Returns `None` if the connection has fallen back to TCP, and before Linux 5.16.
    #[cold]
    #[inline(never)]
    fn subflow_status(&self) -> Option<Status> {
        let mut info = Subflows::default();
        let size = self.kernel.get(self.fd, SockOpt::Subflows, &mut info.0).ok()?;
        info.statuses(size).reduce(Status::merge)
    }

    /// Returns the value of `SO_KEEPALIVE`. This succeeds on any kind of socket.
    pub(crate) fn keepalive(&self) -> Result<bool, Error> {
        self.get(SockOpt::KeepAlive).map(|value| value != 0)
    }

    pub(crate) fn get(&self, option: SockOpt) -> Result<i32, Error> {
        self.read(option).map_err(|errno| self.explain(option, errno))
    }

    pub(crate) fn set(&self, option: SockOpt, value: i32) -> Result<(), Error> {
        self.kernel.set(self.fd, option, value).map_err(|errno| self.explain(option, errno))
    }

    /// Returns whether this is a TCP or Multipath TCP socket.
    ///
    /// A raw socket may have TCP's protocol number 6, and a netlink socket has 6 for `NETLINK_XFRM`. So the type of the
    /// socket is checked too.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn is_tcp(&self) -> Result<bool, Error> {
        let read = |option| self.read(option).map_err(|errno| Error::System { option, errno });
        Ok(matches!(read(SockOpt::Protocol)?, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
            && read(SockOpt::Type)? == libc::SOCK_STREAM)
    }

    /// Fails unless the socket is TCP. A call that uses only `SO_KEEPALIVE`, which succeeds on any socket, calls this
    /// first.
    pub(crate) fn check_tcp(&self) -> Result<(), Error> {
        if self.is_tcp()? { Ok(()) } else { Err(Error::NotTcp) }
    }

    /// Writes a timer, and checks that the value is in force.
    pub(crate) fn set_and_check(&self, timer: Timer, value: i32) -> Result<(), Error> {
        self.set(SockOpt::Timer(timer), value)?;
        if self.timer(timer)? == value { Ok(()) } else { Err(Error::PolicyHeld) }
    }

    /// Returns the number by which the kernel identifies this socket, or 0 before Linux 4.12.
    pub(crate) fn cookie(&self) -> u64 {
        let mut cookie = [0; size_of::<u64>()];
        let _ = self.kernel.get(self.fd, SockOpt::Cookie, &mut cookie);
        u64::from_ne_bytes(cookie)
    }

    /// Returns whether an error is pending on this socket, and leaves it pending.
    #[must_use]
    pub fn has_error(&self) -> bool {
        self.kernel.has_error(self.fd)
    }

    pub(crate) const fn fd(&self) -> c_int {
        self.fd
    }

    /// Returns net.ipv4.tcp_retries2.
    pub(crate) fn retries(&self) -> u8 {
        self.kernel.retries()
    }

    fn read(&self, option: SockOpt) -> Result<i32, Errno> {
        let mut value = [0; size_of::<i32>()];
        self.kernel.get(self.fd, option, &mut value)?;
        Ok(i32::from_ne_bytes(value))
    }

    /// Converts an error of the kernel. UDP, unix and netlink sockets reject a TCP option with ENOPROTOOPT or
    /// EOPNOTSUPP, and the error of a read differs from that of a write. Multipath TCP reports the same errors for an
    /// option that it lacks. So this function decides by the kind of socket.
    #[cold]
    fn explain(&self, option: SockOpt, errno: Errno) -> Error {
        match errno.0 {
            libc::EBADF | libc::ENOTSOCK => Error::System { option, errno },
            _ => match (self.check_tcp(), errno.0) {
                (Err(Error::NotTcp), _) => Error::NotTcp,
                (Ok(()), libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Error::Unsupported(option),
                _ => Error::System { option, errno },
            },
        }
    }
}
