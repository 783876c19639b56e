//! Forks children, and waits for them. fork(2), wait(2)

#![expect(unsafe_code, reason = "fork(2), waitid(2), _exit(2)")]

use std::io;
use std::mem::MaybeUninit;

use libc::c_int;

use crate::sys::check;

/// The process in which [`fork`] returned.
pub(super) enum Forked {
    /// The parent, with the PID of the child.
    Parent(i32),
    Child,
}

/// Forks this process, which must have a single thread. fork(2)
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: this process has a single thread, so the child inherits no lock that another thread holds.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Forked::Child,
        pid => Forked::Parent(pid),
    })
}

/// Makes this process the parent of its orphaned descendants. Otherwise init becomes their parent. prctl(2),
/// `PR_SET_CHILD_SUBREAPER`
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// A change of a child's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateChange {
    /// The child has exited with this status.
    Exited(c_int),
    /// This signal has killed the child.
    Killed(c_int),
    /// This signal has stopped the child.
    Stopped(c_int),
    Continued,
}

impl StateChange {
    /// Converts the status of a process that has ended, as wait(2) returns it.
    pub(super) fn ended(status: c_int) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Killed(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// Returns a child whose state has changed, and the change. Returns the same change again until [`acknowledge`]
/// consumes it. Returns `None` if no state has changed. Fails with ECHILD if there are no children.
pub(super) fn next_change() -> io::Result<Option<(i32, StateChange)>> {
    const EVENTS: c_int = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes a siginfo_t. Zeros are valid too, and mean that no state has changed.
    let (pid, status, code) = unsafe {
        let flags = EVENTS | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        retry_interrupted(|| libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags))?;
        let info = info.assume_init();
        (info.si_pid(), info.si_status(), info.si_code)
    };
    let change = match code {
        libc::CLD_EXITED => StateChange::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => StateChange::Killed(status),
        libc::CLD_CONTINUED => StateChange::Continued,
        _ => StateChange::Stopped(status),
    };
    Ok((pid != 0).then_some((pid, change)))
}

/// Consumes a change of a child's state. Reaps a child that has ended.
pub(super) fn acknowledge(pid: i32, change: StateChange) {
    let event = match change {
        StateChange::Exited(_) | StateChange::Killed(_) => libc::WEXITED,
        StateChange::Stopped(_) => libc::WSTOPPED,
        StateChange::Continued => libc::WCONTINUED,
    };
    let Ok(id) = libc::id_t::try_from(pid) else { return };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = event | libc::WNOHANG | libc::__WALL;
    // SAFETY: the kernel writes a siginfo_t.
    let _ = retry_interrupted(|| unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) });
}

/// Reaps a child if it has ended. Returns whether it exited with status 0, or `None` if it still runs.
pub(super) fn try_wait(pid: i32) -> Option<bool> {
    let mut status = 0;
    // SAFETY: the pointer to `status` is valid during the call.
    match retry_interrupted(|| unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::__WALL) }) {
        Ok(0) => None,
        Ok(_) => Some(is_success(status)),
        // A seccomp filter may deny waitpid. Then check whether the process exists: a second supervisor must not start
        // while the first one runs.
        // SAFETY: takes no pointer. With signal 0, kill(2) only checks whether the process exists.
        Err(_) => (unsafe { libc::kill(pid, 0) } != 0).then_some(false),
    }
}

/// Waits until a child has ended, and reaps it. Returns whether it exited with status 0.
pub(super) fn wait(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: the pointer to `status` is valid during the call.
    let waited = retry_interrupted(|| unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) });
    waited.is_ok() && is_success(status)
}

fn is_success(status: c_int) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// Repeats a call that fails with EINTR.
fn retry_interrupted(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Ends this process without running exit handlers. They would write buffered data of its parent a second time.
/// _exit(2)
pub(super) fn exit(status: c_int) -> ! {
    // SAFETY: _exit does not return, and runs no code of this process.
    unsafe { libc::_exit(status) }
}
