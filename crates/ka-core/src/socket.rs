//! A socket, and what every call on one must find out: is it TCP?

use core::marker::PhantomData;

use libc::c_int;

use crate::error::{Errno, Error};
use crate::option::{SockOpt, Timer};
use crate::settings::Settings;
use crate::status::Status;
use crate::sys::{Kernel, Libc};

/// A borrowed descriptor. It is never closed here, and no state is kept about it.
///
/// The descriptor may be anything: calls on a descriptor that is not a TCP or Multipath TCP socket fail, and leave it
/// unchanged.
///
/// The standard library's `AsFd` and `BorrowedFd` do not exist without `std`. A program that has them calls
/// `ka_reach::socket`, which borrows the descriptor for `'fd`.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'fd, K = Libc> {
    fd: c_int,
    kernel: K,
    borrowed: PhantomData<&'fd ()>,
}

impl Socket<'_> {
    /// The socket with this descriptor, which the caller keeps open for `'fd`.
    #[must_use]
    pub const fn new(fd: c_int) -> Self {
        Self::with_kernel(fd, Libc)
    }
}

impl<K> Socket<'_, K> {
    /// The socket with this descriptor, whose system calls are made by `kernel`.
    #[must_use]
    pub const fn with_kernel(fd: c_int, kernel: K) -> Self {
        Self { fd, kernel, borrowed: PhantomData }
    }
}

impl<K: Kernel> Socket<'_, K> {
    /// Whether keepalive is on.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`]
    pub fn is_enabled(&self) -> Result<bool, Error> {
        self.check_tcp()?;
        self.keepalive()
    }

    /// What the kernel has in force for this timer, the sysctl where nothing was set. A sysctl may hold what
    /// could not be set, as 86400 or -1.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`], [`Error::Unsupported`] (the user timeout on Multipath TCP).
    pub fn timer(&self, timer: Timer) -> Result<i32, Error> {
        self.get(SockOpt::Timer(timer))
    }

    /// All that is in force for keepalive.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`]
    pub fn settings(&self) -> Result<Settings, Error> {
        // SO_KEEPALIVE is read first and proves nothing; the timers after it refuse what is not TCP.
        Ok(Settings {
            enabled: self.keepalive()?,
            idle: self.timer(Timer::Idle)?,
            intvl: self.timer(Timer::Intvl)?,
            cnt: self.timer(Timer::Cnt)?,
            user_timeout: match self.timer(Timer::UserTimeout) {
                Err(Error::Unsupported(_)) => None,
                other => Some(other?),
            },
        })
    }

    /// What the connection is doing.
    ///
    /// # Errors
    /// [`Error::NotTcp`], [`Error::System`], [`Error::Unsupported`]
    pub fn status(&self) -> Result<Status, Error> {
        let mut info = [0; Status::INFO_SIZE];
        let size = self.kernel.get(self.fd, SockOpt::Info, &mut info);
        let size = size.map_err(|errno| self.explain(SockOpt::Info, errno))?;
        info.get(..size).and_then(Status::from_info).ok_or(Error::Unsupported(SockOpt::Info))
    }

    /// `SO_KEEPALIVE`, of any kind of socket.
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
    /// A raw socket may have TCP's protocol number, and a netlink socket has 6 for `NETLINK_XFRM`. So the type decides
    /// too.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn is_tcp(&self) -> Result<bool, Error> {
        let read = |option| self.read(option).map_err(|errno| Error::System { option, errno });
        Ok(matches!(read(SockOpt::Protocol)?, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP)
            && read(SockOpt::Type)? == libc::SOCK_STREAM)
    }

    /// `SO_KEEPALIVE` succeeds on any socket. A call that uses no other option checks the socket with this function
    /// first.
    pub(crate) fn check_tcp(&self) -> Result<(), Error> {
        if self.is_tcp()? { Ok(()) } else { Err(Error::NotTcp) }
    }

    fn read(&self, option: SockOpt) -> Result<i32, Errno> {
        let mut value = [0; size_of::<i32>()];
        self.kernel.get(self.fd, option, &mut value)?;
        Ok(i32::from_ne_bytes(value))
    }

    /// Makes one answer of the kernel's many: UDP, unix and netlink sockets refuse a TCP option with
    /// ENOPROTOOPT or EOPNOTSUPP, reading one otherwise than writing it, and Multipath TCP refuses what it
    /// lacks in the same words. What the socket is decides, not what the kernel said.
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
