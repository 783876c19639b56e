//! The signals that end this process, and SIGCHLD.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr;

use libc::c_int;

use super::{check, owned};

/// Blocks SIGINT and SIGTERM, and returns a descriptor that becomes readable when one of them arrives.
///
/// # Errors
///
/// The errno of the call that failed. The signals may stay blocked.
pub fn termination() -> io::Result<OwnedFd> {
    descriptor(&[libc::SIGINT, libc::SIGTERM])
}

/// Does the same as [`termination`], and also for SIGHUP, unless SIGHUP is ignored as under nohup(1).
///
/// # Errors
///
/// As for [`termination`].
pub fn termination_or_hangup() -> io::Result<OwnedFd> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null pointer is allowed: the action is not changed. The kernel initializes `action` if it returns 0.
    let is_ignored = unsafe {
        libc::sigaction(libc::SIGHUP, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    };
    let hangup: &[c_int] = if is_ignored { &[] } else { &[libc::SIGHUP] };
    descriptor(&[&[libc::SIGINT, libc::SIGTERM], hangup].concat())
}

/// Blocks these signals, and returns a descriptor that becomes readable when one of them arrives. signalfd(2)
fn descriptor(signals: &[c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set. The other calls read or change it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))?;
        owned(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
    }
}

/// Makes the kernel reap ended children, including orphans that this process adopts as PID 1 of a namespace. This
/// process can then no longer wait for a child.
pub fn reap_children_automatically() {
    // SAFETY: takes a number and a constant, installs no handler, and there is no other thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// A signal to a program that shows a view on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewSignal {
    /// SIGINT, SIGTERM, SIGQUIT or SIGHUP: the program should end.
    End,
    /// SIGTSTP: the program should give the terminal back, and call [`ViewSignals::stop`].
    Stop,
    /// SIGCONT: the program runs again after a stop. Meanwhile, another program may have used the terminal.
    Continue,
}

/// The signals that a program with a view on a terminal must handle, as a descriptor. It becomes readable when one of
/// them arrives.
pub struct ViewSignals(OwnedFd);

impl ViewSignals {
    const END: [c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP];

    /// Blocks the signals of [`ViewSignal`], and opens the descriptor. signalfd(2)
    ///
    /// # Errors
    ///
    /// The errno of the call that failed. The signals may stay blocked.
    pub fn open() -> io::Result<Self> {
        let signals = [&Self::END[..], &[libc::SIGTSTP, libc::SIGCONT]].concat();
        Ok(Self(descriptor(&signals)?))
    }

    /// Returns the next signal. `None` if none has arrived.
    pub fn next(&self) -> Option<ViewSignal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        // SAFETY: the kernel writes at most the size of the structure, for which all bytes are valid.
        let (read, info) = unsafe {
            let size = size_of_val(&info);
            (libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size), info.assume_init())
        };
        if usize::try_from(read) != Ok(size_of_val(&info)) {
            return None;
        }
        match c_int::try_from(info.ssi_signo).unwrap_or(0) {
            libc::SIGTSTP => Some(ViewSignal::Stop),
            libc::SIGCONT => Some(ViewSignal::Continue),
            _ => Some(ViewSignal::End),
        }
    }

    /// Sends SIGTSTP to all processes of this process's group, as a terminal does for Ctrl-Z.
    pub fn request_stop() {
        // SAFETY: takes no pointer.
        unsafe { libc::kill(0, libc::SIGTSTP) };
    }

    /// Stops this process until it gets SIGCONT. Returns at once if no shell could continue it: the kernel then ignores
    /// SIGTSTP.
    pub fn stop() {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set. The other calls read or change it, or take numbers.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTSTP);
            libc::raise(libc::SIGTSTP);
            // The process stops in the first call.
            libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        }
    }
}

impl AsFd for ViewSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
