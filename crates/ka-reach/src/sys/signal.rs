//! The signals that end this process, and SIGCHLD.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;

use super::{check, owned};

/// Blocks SIGINT and SIGTERM, and returns a descriptor that becomes readable when one of them arrives. signalfd(2)
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
    let hangup: &[libc::c_int] = if is_ignored { &[] } else { &[libc::SIGHUP] };
    descriptor(&[&[libc::SIGINT, libc::SIGTERM], hangup].concat())
}

fn descriptor(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the set. The other calls read or change it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))?;
        owned(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC).into())
    }
}

/// Makes the kernel reap ended children, including orphans that this process adopts as PID 1 of a namespace. This
/// process can then no longer wait for a child.
pub fn reap_children_automatically() {
    // SAFETY: takes a number and a constant, installs no handler, and there is no other thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
